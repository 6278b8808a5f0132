"""Settings of VDVAE: every flag of the original training script, with its name, default and meaning, and our own."""

from __future__ import annotations

import dataclasses

from tfgen.data.source import ImageSpec
from tfgen.settings import SettingsError, check_values, flag
from tfgen.systems.vdvae import architecture
from tfgen.systems.vdvae.architecture import Architecture

_LARGEST_SEED = 2**32 - 1  # of numpy.random.RandomState
_NEVER_READ = "the original parses it and never reads it"
_RANKS = "the ranks come from horovodrun"


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a VDVAE run.

    Values are checked one by one on construction and against each other by `check`; `validate` adds the data set.
    All of them raise `SettingsError`.
    """

    save_dir: str = flag("./saved_models", "Root folder of outputs.", group="Where outputs go (--run is simpler)")
    desc: str = flag("test", "Run name, a folder below save_dir.")

    dataset: str = flag(
        "cifar10",
        "Images to learn, square and RGB: cifar10, imagenet32, imagenet64, ffhq_256, ffhq_1024, digits, photos, the "
        "path of an array file or image folder, or any TensorFlow Datasets name.",
        group="Data",
    )
    data_root: str = flag("./", "Folder with the data files; ./ leaves it to --data_dir.")

    enc_blocks: str = flag(
        "", "Encoder blocks: 32x11,32d2,... (RxN: N blocks at R; RdF: one, then pooling by F).", group="Network"
    )
    dec_blocks: str = flag("", "Decoder blocks: 1x1,4m1,4x2,... (RmS: a block at R that adds the state at S).")
    zdim: int = flag(16, "Latent channels of every stochastic layer.", minimum=1)
    width: int = flag(512, "Channels, where custom_width_str names no others.", minimum=1)
    custom_width_str: str = flag("", "Channels by resolution, as RESOLUTION:WIDTH,...")
    bottleneck_multiple: float = flag(0.25, "Channels inside a block as a share of its width.", above=0.0)
    no_bias_above: int = flag(64, "Decoder resolutions up to this one have a learned initial state.", minimum=0)
    num_mixtures: int = flag(10, "Logistic components of the output head.", minimum=1)
    scale_encblock: bool = flag(
        False, "Scale the encoder blocks.", unused="the original always scales their initial values"
    )

    n_batch: int = flag(32, "Images per rank and update.", minimum=1, group="Optimisation")
    lr: float = flag(0.00015, "Learning rate.", minimum=0.0)
    warmup_iters: float = flag(0.0, "Steps of linear warm-up.", minimum=0.0)
    wd: float = flag(0.0, "Decoupled weight decay of all variables, a multiple of the learning rate.", minimum=0.0)
    adam_beta1: float = flag(0.9, "Decay of the first moment.", minimum=0.0, below=1.0)
    adam_beta2: float = flag(0.9, "Decay of the second moment.", minimum=0.0, below=1.0)
    grad_clip: float = flag(200.0, "Clip of the gradients' global norm.", above=0.0)
    skip_threshold: float = flag(400.0, "A step whose gradient norm reaches this changes nothing; -1 for no threshold.")
    ema_rate: float = flag(0.999, "Decay of the averaged weights, per update.", minimum=0.0, below=1.0)
    num_epochs: int = flag(10000, "Epochs after which the run ends.", minimum=1)
    seed: int = flag(0, "Seed of initial weights, data order and noise.", minimum=0, maximum=_LARGEST_SEED)
    rate_weight: float = flag(
        1.0, "Weight of the rate in the objective (beta); the bound that is reported has weight 1.", minimum=0.0
    )
    lr_prior: float = flag(0.00015, "Learning rate of the prior.", unused=_NEVER_READ)
    wd_prior: float = flag(0.0, "Weight decay of the prior.", unused=_NEVER_READ)
    port: int = flag(29500, "Port of the process group.", unused=_RANKS)

    iters_per_print: int = flag(1000, "Steps between log records.", minimum=1, group="Logging, saving and evaluation")
    iters_per_save: int = flag(10000, "Steps between checkpoints.", minimum=1)
    iters_per_ckpt: int = flag(25000, "Steps between checkpoints that are kept for ever.", minimum=1)
    iters_per_images: int = flag(10000, "Steps between picture grids.", minimum=1)
    epochs_per_eval: int = flag(10, "Epochs between evaluations.", minimum=1)
    test_eval: bool = flag(False, "Evaluate the test set once and exit.")
    rate_per_resolution: bool = flag(False, "Also log the rate of each resolution's stochastic layers.")
    epochs_per_probe: int | None = flag(None, "Epochs between probes.", unused=_NEVER_READ)
    epochs_per_eval_save: int = flag(20, "Epochs between saved evaluations.", unused=_NEVER_READ)
    restore_path: str = flag("", "Weights (-model.th) of the original code to start from.")
    restore_ema_path: str = flag("", "Averaged weights (-model-ema.th) to start from.")
    restore_optimizer_path: str = flag("", "Optimizer state (-opt.th) to start from.")
    restore_log_path: str = flag("", "Log (-log.jsonl) that says at which step to start.")

    restart_warmup: bool = flag(
        False, "After restoring files of the original code begin the warm-up anew, as it does; otherwise it goes on."
    )

    num_images_visualize: int = flag(8, "Columns of the picture grid.", minimum=1, group="Pictures")
    num_variables_visualize: int = flag(6, "Rows of partial reconstructions.", minimum=0)
    num_temperatures_visualize: int = flag(
        3, "Rows of samples, at temperatures 1.0, 0.9, 0.8 and 0.7; at most 4 are drawn.", minimum=0
    )
    sample_batch: int = flag(16, "Samples drawn at a time on one rank.", minimum=1)
    temperature: float = flag(
        1.0, "Temperature.", unused="choose it when sampling: python -m tfgen.sample --temperature"
    )

    def __post_init__(self) -> None:
        check_values(self)

    def check(self) -> None:
        """Raises `SettingsError` for settings that contradict each other, whatever the images are."""
        if self.skip_threshold <= 0 and self.skip_threshold != -1:
            raise SettingsError(
                f"--skip_threshold={self.skip_threshold:g}: expected a norm above 0, or -1 for no threshold"
            )
        for name in ("enc_blocks", "dec_blocks"):
            text = getattr(self, name)
            if not architecture.parse_blocks(text, name):
                raise SettingsError(
                    f"--{name} is empty: name a preset (--system=vdvae --hps=cifar10_small), or give both block strings"
                )
        architecture.parse_widths(self.width, self.custom_width_str)
        weights = self.restore_path or self.restore_ema_path
        for name in ("restore_optimizer_path", "restore_log_path"):
            if getattr(self, name) and not weights:
                raise SettingsError(f"--{name} needs the weights that go with it: add --restore_path=...-model.th")

    def validate(self, spec: ImageSpec) -> None:
        """Raises `SettingsError` for settings that contradict each other or the images."""
        self.check()
        size = f"images of {self.dataset} are {spec.height}x{spec.width}x{spec.channels}"
        if spec.channels != 3:
            raise SettingsError(
                f"{size}: the output head of VDVAE is made for 3 channels (RGB); convert the images to RGB"
            )
        if spec.height != spec.width:
            raise SettingsError(f"{size}: VDVAE needs square images; crop or resize them")
        self.architecture(spec.height)

    def architecture(self, image_size: int) -> Architecture:
        """The network shape for images of `image_size`; raises `ArchitectureError` if the strings do not fit."""
        return architecture.build(
            image_size=image_size,
            enc_blocks=self.enc_blocks,
            dec_blocks=self.dec_blocks,
            width=self.width,
            custom_width_str=self.custom_width_str,
            bottleneck_multiple=self.bottleneck_multiple,
            no_bias_above=self.no_bias_above,
        )


def parameter_count(config: Config, image_size: int) -> int:
    """Number of trainable parameters, from the settings alone."""
    shape = config.architecture(image_size)
    latents = config.zdim

    def bottleneck(resolution: int, inputs: int, middle: int, outputs: int) -> int:
        area = 9 if resolution > 2 else 1
        return (inputs + 1) * middle + 2 * (area * middle + 1) * middle + (middle + 1) * outputs

    total = (27 + 1) * shape.width  # stem
    for block in shape.encoder:
        total += bottleneck(block.resolution, block.width, block.middle, block.width)
    for layer in shape.decoder:
        side, width, middle = layer.resolution, layer.width, layer.middle
        total += bottleneck(side, 2 * width, middle, 2 * latents)  # posterior
        total += bottleneck(side, width, middle, 2 * latents + width)  # prior
        total += (latents + 1) * width + bottleneck(side, width, middle, width)  # projection, residual
    total += sum(side * side * shape.widths[side] for side in shape.bias_resolutions)
    return total + 2 * shape.width + (shape.width + 1) * 10 * config.num_mixtures
