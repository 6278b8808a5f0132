"""Settings of energy-based models: every flag of the original training script and of the modules it imports, with its
name, default and meaning, and our own."""

from __future__ import annotations

import dataclasses
import os

from tfgen.data import sprites
from tfgen.data.source import ImageSpec
from tfgen.settings import SettingsError, check_values, flag
from tfgen.systems.ebm.architecture import NetworkShape, ShapeError
from tfgen.systems.ebm.catalog import NETWORKS, network_shape
from tfgen.systems.ebm.preprocess import scaling_of

_LARGEST_SEED = 2**32 - 1  # of numpy.random.RandomState
_RANKS = "the ranks come from horovodrun"
_LOADER = "the background threads of the loader are the trainer's"

# The network of a data set, and its width where --num_filters does not give it.
_NETWORK_OF = {
    **{"mnist": "MnistNet", "digits": "MnistNet", "dsprites": "DspritesNet", "sprites": "DspritesNet"},
    **{"imagenetfull": "ResNet128"},
}
_WIDTHS = {"ResNet32": 128, "ResNet32Large": 128, "ResNet32Larger": 128, "ResNet128": 64}
_WIDER_CIFAR, _WIDER_IMAGENET = 192, 256
# Columns of the label of dSprites by flag: one-hot shape, size, position, cosine and sine of the rotation.
_ONLY = {"dshape_only": 3, "dpos_only": 2, "dsize_only": 1, "drot_only": 2}
_CONDITIONS = {"cond_size": 1, "cond_shape": 3, "cond_pos": 2, "cond_rot": 2}
_SIDES = {"sprites": sprites.SPEC.height}
_CLASSES = {"mnist": 10, "digits": 10, "cifar10": 10, "imagenet": 1000, "imagenetfull": 1000}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run.

    Values are checked one by one on construction and against each other by `check`; `validate` adds the data set.
    All of them raise `SettingsError`.
    """

    logdir: str = flag("cachedir", "Root folder of outputs.", group="Where outputs go (--run is simpler)")
    exp: str = flag("default", "Run name, a folder below logdir.")

    dataset: str = flag(
        "mnist",
        "Images to learn: mnist, dsprites, cifar10, imagenet (32x32), imagenetfull (128x128), digits, photos, sprites "
        "(drawn, like dSprites, 32x32), the path of an array file or image folder, or any TensorFlow Datasets name.",
        group="Data",
    )
    datasource: str = flag(
        "random",
        "Where chains begin: uniform noise, or (default) images with noise. Sprites always have normal noise.",
        choices=("random", "default"),
    )
    dsprites_path: str = flag("", "The dSprites archive (.npz). Empty: looked for below --data_dir.")
    imagenet_path: str = flag("", "Folder of the pickles of ImageNet 32x32. Empty: looked for below --data_dir.")
    imagenet_datadir: str = flag("", "Folder of the TFRecords of ImageNet 128x128. Empty: below --data_dir.")
    rescale: float = flag(1.0, "Pixels lie between 0 and this; noise and step_lr are multiples of it.", above=0.0)
    single: bool = flag(False, "Learn the first image only.")
    augment: bool = flag(False, "Random crops (4 pixels of padding) and mirroring; the original has it for CIFAR-10.")
    cutout: bool = flag(False, "Blank a square of the image.")
    cutout_inside: bool = flag(False, "Keep that square inside the image.")
    cutout_prob: float = flag(1.0, "Share of the images with such a square.", minimum=0.0, maximum=1.0)
    cutout_mask_size: int = flag(16, "Its side in pixels.", minimum=1)
    mixup: bool = flag(False, "Blend images of a batch, shares uniform between 0 and 1; labels stay.")
    data_workers: int = flag(4, "Processes of the loader.", unused=_LOADER)

    cclass: bool = flag(False, "Condition the network on labels.", group="Labels")
    model_cclass: bool = flag(False, "Draw the classes of images from the network (CIFAR-10 with --cclass).")
    cond_size: bool = flag(False, "Sprites: the label is the size.")
    cond_shape: bool = flag(False, "Sprites: the label is the shape, one-hot.")
    cond_pos: bool = flag(False, "Sprites: the label is the position.")
    cond_rot: bool = flag(False, "Sprites: the label is the rotation, as cosine and sine.")
    dshape_only: bool = flag(False, "Sprites of one position, size and rotation; the label is the shape.")
    dpos_only: bool = flag(False, "Sprites of one shape, size and rotation; the label is the position.")
    dsize_only: bool = flag(False, "Sprites of one shape, position and rotation; the label is the size.")
    drot_only: bool = flag(False, "Sprites of one shape, size and position; the label is the rotation.")
    dsprites_restrict: bool = flag(False, "Sprites of one shape and rotation; the label is as without.")

    network: str = flag(
        "",
        "Network; empty for that of the data set: MnistNet (mnist, digits), DspritesNet, ResNet32Wider (imagenet), "
        "ResNet128 (imagenetfull), else ResNet32 or what the next three flags say.",
        choices=("", *NETWORKS),
        group="Network",
    )
    large_model: bool = flag(False, "ResNet32Large in place of ResNet32.")
    larger_model: bool = flag(False, "ResNet32Larger in place of ResNet32.")
    wider_model: bool = flag(False, "ResNet32Wider in place of ResNet32.")
    num_filters: int = flag(64, "Unit of width of MnistNet and DspritesNet.", minimum=1)
    filters: int = flag(
        0, "Unit of width of the other networks; 0 for the published: 128, Wider 192 or 256, ResNet128 64.", minimum=0
    )
    swish_act: bool = flag(False, "Swish for the leaky rectifier; not in ResNet32, Large and Larger.")
    use_attention: bool = flag(False, "Use the attention layer of residual networks.")
    downsample: bool = flag(False, "DspritesNet: means of 2x2 in place of strides.")
    large_dropout: bool = flag(True, "ResNet32Large has dropout in every forward pass of the training.")
    spec_norm: bool = flag(True, "Divide weights by their spectral norm.")
    spec_iter: int = flag(1, "Power iterations of a step.", minimum=1)
    spec_norm_val: float = flag(1.0, "Spectral norm of the weights.", above=0.0)
    spec_eval: bool = flag(False, "Do not keep what the power iteration has improved.")

    objective: str = flag(
        "cd", "How energies are compared.", choices=("cd", "logsumexp", "softplus"), group="Objective"
    )
    ml_coeff: float = flag(1.0, "Weight of the comparison of energies.")
    l2_coeff: float = flag(1.0, "Weight of the squared energies.", minimum=0.0)
    zero_kl: bool = flag(False, "Leave out the gradient through the sampler, as every published run does.")
    temperature: int = flag(1, "Factor of the energy, in the comparison and in the sampler.", minimum=1)

    num_steps: int = flag(20, "Steps of a chain.", minimum=1, group="Sampler")
    step_lr: float = flag(1.0, "Step size, a multiple of rescale.", minimum=0.0)
    noise_scale: float = flag(1.0, "Noise of a step, in units of 0.005 rescale.", minimum=0.0)
    proj_norm: float = flag(0.0, "Limit of the gradient in a step; 0 for none.", minimum=0.0)
    proj_norm_type: str = flag(
        "li",
        "What is limited: li each entry, l2 the norm over the whole batch, l2_sample the norm in each image.",
        choices=("li", "l2", "l2_sample"),
    )
    hmc: bool = flag(False, "Hamiltonian Monte Carlo in place of gradient steps.")
    hmc_step_size: float = flag(15.0, "Its step size.", above=0.0)
    hmc_leapfrogs: int = flag(10, "Its leapfrog steps.", minimum=1)
    proposal_debug: bool = flag(False, "Log the mean acceptance of one further transition.")
    pcd: bool = flag(False, "Begin chains where those of the step before ended.")

    replay_batch: bool = flag(False, "Begin chains at earlier samples, out of a buffer.", group="Replay buffer")
    replay_capacity: int = flag(10_000, "Images in the buffer of a rank.", minimum=1)
    replay_restart: float = flag(0.05, "Share of the chains that begin anew all the same.", minimum=0.0, maximum=1.0)
    replay_float: bool = flag(False, "Keep images as they are; the original rounds to bytes, and darkens by 255/256.")
    replay_labels: bool = flag(False, "Keep labels with images; in the original a chain goes on under another label.")
    replay_truncates: bool = flag(
        False, "Fill the buffer beyond its capacity and cut it back, as the original does, in place of a ring."
    )

    batch_size: int = flag(256, "Images per rank and update.", minimum=1, group="Optimisation")
    lr: float = flag(3e-4, "Learning rate.", minimum=0.0)
    epoch_num: int = flag(10000, "Epochs after which the run ends.", minimum=1)
    energy_limit: float = flag(
        0.0,
        "A step in which the mean |energy| of images or samples is above this, or not a number, is skipped; 0 for "
        "no limit. After --max_skipped_steps of them in a row see --on_divergence. The original goes on for ever.",
        minimum=0.0,
    )
    on_divergence: str = flag(
        "stop",
        "Then stop, or once go back to the newest checkpoint from before and on with other noise.",
        choices=("stop", "rollback"),
    )
    ema_rate: float = flag(
        0.0, "Decay of averaged weights, per update; 0 for none, as in the original.", minimum=0.0, below=1.0
    )
    seed: int = flag(0, "Seed of initial weights, data order and noise.", minimum=0, maximum=_LARGEST_SEED)
    num_gpus: int = flag(1, "Parts of a batch in one process.", unused=_RANKS)

    log_interval: int = flag(10, "Steps between log records.", minimum=1, group="Logging, saving and evaluation")
    save_interval: int = flag(1000, "Steps between checkpoints.", minimum=1)
    test_interval: int = flag(1000, "Steps between sample grids.", minimum=1)
    resume_iter: int = flag(
        -1, "Begin with the original's checkpoint LOGDIR/EXP/model_N of this number N; -1 for none.", minimum=-1
    )
    train: bool = flag(True, "Train; otherwise draw a grid of samples and exit.")

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def restore_path(self) -> str:
        """The original's checkpoint to begin with; "" for none."""
        if self.resume_iter == -1:
            return ""
        return f"{os.path.expandvars(os.path.expanduser(self.logdir))}/{self.exp}/model_{self.resume_iter}"

    @property
    def network_kind(self) -> str:
        """The network, one of `catalog.NETWORKS`."""
        if self.network:
            return self.network
        if self.dataset in _NETWORK_OF:
            return _NETWORK_OF[self.dataset]
        if self.large_model:
            return "ResNet32Large"
        if self.larger_model:
            return "ResNet32Larger"
        return "ResNet32Wider" if self.wider_model or self.dataset == "imagenet" else "ResNet32"

    @property
    def width(self) -> int:
        """Its unit of width."""
        kind = self.network_kind
        if kind in ("MnistNet", "DspritesNet"):
            return self.num_filters
        if self.filters:
            return self.filters
        if kind == "ResNet32Wider":
            return _WIDER_IMAGENET if self.dataset == "imagenet" else _WIDER_CIFAR
        return _WIDTHS[kind]

    @property
    def is_sprites(self) -> bool:
        """Whether the images are dSprites or rendered like them, whose labels are values of their factors."""
        return self.dataset in ("dsprites", "sprites")

    @property
    def labels_are_classes(self) -> bool:
        """Whether labels, where there are any, are one-hot: not the values of a factor of sprites."""
        return not self.is_sprites or self.sprites_mode in ("", "cond_shape", "dshape_only")

    @property
    def sprites_mode(self) -> str:
        """What is learned of dSprites, one of `sprites.MODES`: a subset's flag before a condition's, "" without."""
        return next((name for name in (*_ONLY, *_CONDITIONS) if getattr(self, name)), "")

    def label_columns(self, spec: ImageSpec | None = None) -> int:
        """Values of a label that the network is given; 0 for an unconditional network.

        Args:
          spec: of the data; without it a data set that the original does not know has 10 classes.
        """
        if not self.cclass:
            return 0
        if self.is_sprites:
            return (_ONLY | _CONDITIONS | {"": 3})[self.sprites_mode]
        if spec is not None and spec.num_classes is not None:
            return spec.num_classes
        return _CLASSES.get(self.dataset, 10)

    def network_shape(self, spec: ImageSpec | None = None) -> NetworkShape:
        """The shape of the network; raises `ShapeError`.

        Args:
          spec: of the images; without it those that the network was published for, or of the drawn sprites.
        """
        kind = self.network_kind
        return network_shape(
            kind,
            self.width,
            side=spec.height if spec is not None else _SIDES.get(self.dataset),
            channels=spec.channels if spec is not None else None,
            label_columns=self.label_columns(spec),
            swish=self.swish_act,
            spec_norm=self.spec_norm,
            spec_iterations=self.spec_iter,
            spec_target=self.spec_norm_val,
            use_attention=self.use_attention,
            dropout=kind == "ResNet32Large" and self.large_dropout,
            downsample=self.downsample,
        )

    def check(self) -> None:
        """Raises `SettingsError` for settings that contradict each other, whatever the images are."""
        self._check_images()
        self._check_labels()
        if self.replay_batch and self.pcd:
            raise SettingsError("--pcd begins chains at the last samples, --replay_batch at earlier ones: drop one")
        for name in ("replay_float", "replay_labels", "replay_truncates"):
            if getattr(self, name) and not self.replay_batch:
                raise SettingsError(f"--{name} says how the buffer works: it needs --replay_batch")
        if self.replay_batch and self.replay_capacity < self.batch_size:
            raise SettingsError(
                f"--replay_capacity={self.replay_capacity} is below --batch_size={self.batch_size}: every step puts a "
                "batch into the buffer"
            )
        if self.replay_labels and not self.cclass:
            raise SettingsError("--replay_labels: an unconditional network has none; add --cclass")
        if self.replay_labels and self.model_cclass:
            raise SettingsError("--replay_labels: --model_cclass draws labels anew in every step; drop one")
        if self.objective == "softplus" and self.model_cclass:
            raise SettingsError("--objective=softplus compares pairs, which --model_cclass does not have: use cd")
        if self.hmc and not self.zero_kl:
            raise SettingsError("--hmc: no gradient goes back through its transitions; add --zero_kl")
        if self.network_kind == "MnistNet" and self.dataset != "mnist":
            return  # what it can be depends on the side of the images
        try:
            self.network_shape()
        except ShapeError as error:
            raise SettingsError(str(error)) from error

    def _check_images(self) -> None:
        if self.rescale != 1.0 and scaling_of(self.dataset) != "levels":
            raise SettingsError(f"--rescale={self.rescale:g}: images of {self.dataset} are always between 0 and 1")
        if self.augment and self.is_sprites:
            raise SettingsError(f"--augment would move images of {self.dataset} away from their labels: leave it out")

    def _check_labels(self) -> None:
        only, conditions = ([name for name in flags if getattr(self, name)] for flags in (_ONLY, _CONDITIONS))
        chosen = [*only, *conditions, *(["dsprites_restrict"] if self.dsprites_restrict else [])]
        if chosen and not self.is_sprites:
            raise SettingsError(
                f"--{chosen[0]} is about dSprites: add --dataset=dsprites or --dataset=sprites, or leave it out"
            )
        if conditions and not self.cclass:
            raise SettingsError(f"--{conditions[0]} chooses what the network is conditioned on: add --cclass")
        # The original takes one of them for the images' labels and another for the network, which then do not fit.
        matching = len(only) == len(conditions) == 1 and _factor(only[0]) == _factor(conditions[0])
        if len(chosen) > 1 and not matching and not (self.dsprites_restrict and len(chosen) == 2):
            raise SettingsError(f"--{chosen[0]} and --{chosen[1]} contradict each other: drop one")
        if self.model_cclass and not (self.cclass and self.dataset == "cifar10"):
            raise SettingsError("--model_cclass draws the classes of CIFAR-10: it needs --dataset=cifar10 --cclass")

    def validate(self, spec: ImageSpec) -> None:
        """Raises `SettingsError` for settings that contradict each other or the images."""
        self.check()
        if spec.height != spec.width:
            raise SettingsError(f"images of {self.dataset} are {spec.height}x{spec.width}, expected square ones")
        half, even = self.cutout_mask_size // 2, 1 - self.cutout_mask_size % 2
        if self.cutout and self.cutout_inside and spec.height + even <= 2 * half:
            raise SettingsError(
                f"--cutout_mask_size={self.cutout_mask_size} is more than the {spec.height} pixels of images of "
                f"{self.dataset}: make it smaller, or leave --cutout_inside out"
            )
        if self.cclass and not self.is_sprites and spec.num_classes is None:
            raise SettingsError(f"--cclass: the images of {self.dataset} have no labels; leave it out")
        try:
            shape = self.network_shape(spec)
        except ShapeError as error:
            raise SettingsError(f"images of {self.dataset}: {error}") from error
        smallest = 2 ** sum(getattr(layer, "pools", False) for layer in shape.layers)
        if spec.height < smallest:
            raise SettingsError(
                f"images of {self.dataset} have {spec.height} pixels, and {shape.kind} halves them to nothing: "
                f"expected {smallest} or more; choose another --network"
            )


def _factor(flag: str) -> str:
    """ "pos" of "dpos_only" and "cond_pos"."""
    return flag.removeprefix("cond_").removeprefix("d").removesuffix("_only")
