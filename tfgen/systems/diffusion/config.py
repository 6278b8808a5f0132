"""Settings of improved diffusion: every flag of the original training scripts, with its name, default and meaning."""

from __future__ import annotations

import dataclasses

from tfgen.data.source import ImageSpec
from tfgen.settings import SettingsError, check_values, flag
from tfgen.systems.diffusion import noise_schedules
from tfgen.systems.diffusion.architecture import CHANNEL_MULTIPLIERS, ShapeError, UNetShape, unet_shape
from tfgen.systems.diffusion.respacing import kept_steps

_LARGEST_SEED = 2**32 - 1  # of numpy.random.RandomState
CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a diffusion run.

    Values are checked one by one on construction and against each other by `check`; `validate` adds the data set.
    All of them raise `SettingsError`.
    """

    dataset: str = flag(
        "",
        "Images to learn. Empty: the image folder --data_dir, as in the original. Otherwise cifar10, digits, photos, "
        "the path of an array file or image folder, or any TensorFlow Datasets name.",
        group="Data",
    )
    image_size: int = flag(64, "Side of the square images, in pixels.", minimum=4)
    class_cond: bool = flag(False, "Learn classes: of an image folder, what precedes the first _ in a file's name.")
    num_classes: int = flag(1000, "Rows of the class table; the original always has 1000.", minimum=2)
    random_flip: bool = flag(False, "Mirror half of the training images; the original does not.")
    convert_first: bool = flag(
        False, "Convert images to RGB before they are resized; the original resizes palette images without smoothing."
    )

    super_resolution: bool = flag(
        False,
        "Learn images of large_size given small ones of small_size, instead of images of image_size.",
        group="Super-resolution",
    )
    large_size: int = flag(256, "Side of the images made, in pixels.", minimum=4)
    small_size: int = flag(64, "Side of the images they are made from; the network takes any.", minimum=1)

    num_channels: int = flag(128, "Channels at the full resolution, a multiple of 32.", minimum=32, group="Network")
    num_res_blocks: int = flag(
        2, "Residual blocks at each resolution on the way down; one more on the way up.", minimum=1
    )
    channel_mult: str = flag(
        "",
        "Channels at each resolution as multiples of num_channels: 1,2,2,2. Empty: the original's for "
        + ", ".join(map(str, sorted(CHANNEL_MULTIPLIERS)))
        + " pixels.",
    )
    num_heads: int = flag(4, "Attention heads.", minimum=1)
    num_heads_upsample: int = flag(-1, "Attention heads on the way up; -1 for num_heads.")
    attention_resolutions: str = flag("16,8", "Resolutions with attention, in pixels, separated by commas.")
    dropout: float = flag(0.0, "Share of features dropped inside residual blocks.", minimum=0.0, below=1.0)
    use_scale_shift_norm: bool = flag(True, "The timestep scales and shifts features; otherwise it is added to them.")
    use_checkpoint: bool = flag(False, "Compute blocks again in the backward pass: less memory, same numbers.")

    learn_sigma: bool = flag(
        False, "The network also gives the variance, between two bounds.", group="Diffusion process"
    )
    sigma_small: bool = flag(False, "Without learn_sigma: the smaller of the two fixed variances.")
    diffusion_steps: int = flag(1000, "Steps from an image to noise.", minimum=2)
    noise_schedule: str = flag("linear", "How noise grows with the step.", choices=("linear", "cosine"))
    timestep_respacing: str = flag(
        "", "Train on some of the steps only: their number, numbers for each of equal sections (10,15,20), or ddimN."
    )
    predict_xstart: bool = flag(False, "The network predicts the image instead of the noise.")
    use_kl: bool = flag(False, "Train on the variational bound.")
    rescale_learned_sigmas: bool = flag(
        True, "The bound's weight in the hybrid objective is that of the paper (0.001 of its sum); else 1 a term."
    )
    rescale_timesteps: bool = flag(True, "The network sees steps as numbers from 0 to 1000.")
    schedule_sampler: str = flag("uniform", "How training steps are chosen.", choices=("uniform", "loss-second-moment"))
    label_dropout: float = flag(
        0.0,
        "Share of labels hidden in training, so that samples can be guided without a classifier; 0: no row for it.",
        minimum=0.0,
        below=1.0,
    )

    lr: float = flag(1e-4, "Learning rate.", minimum=0.0, group="Optimisation")
    weight_decay: float = flag(0.0, "Decoupled weight decay of all variables, a multiple of the rate.", minimum=0.0)
    lr_anneal_steps: int = flag(
        0, "Updates over which the rate falls to 0; the run ends with them. 0: constant, until --steps.", minimum=0
    )
    batch_size: int = flag(1, "Images per rank and update.", minimum=1)
    microbatch: int = flag(-1, "Images computed at a time, the rest after them; -1 for all.")
    microbatch_average: bool = flag(
        False, "Average the gradients of microbatches; the original adds them, which Adam hardly notices."
    )
    ema_rate: str = flag(
        "0.9999", "Decay of the averaged weights; several, separated by commas, keep several averages."
    )
    use_fp16: bool = flag(False, "16-bit compute on a GPU (--precision chooses otherwise).")
    fp16_scale_growth: float = flag(1e-3, "Growth of log2 of the loss scale in a good update.", minimum=0.0)
    seed: int = flag(0, "Seed of initial weights, data order and noise.", minimum=0, maximum=_LARGEST_SEED)

    log_interval: int = flag(10, "Updates between log records.", minimum=1, group="Logging and saving")
    save_interval: int = flag(10000, "Updates between checkpoints.", minimum=1)
    resume_checkpoint: str = flag("", "modelNNNNNN.pt of the original code to start from, and the files beside it.")

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def side(self) -> int:
        """Height and width of the images made, in pixels."""
        return self.large_size if self.super_resolution else self.image_size

    @property
    def ema_decays(self) -> tuple[float, ...]:
        """The decays of `ema_rate`, in order."""
        return tuple(float(word) for word in self.ema_rate.split(","))

    def network_shape(self, dtype: str = "float32") -> UNetShape:
        """The shape of the network that computes in `dtype`. Raises `ShapeError`."""
        return unet_shape(
            image_size=self.side,
            num_channels=self.num_channels,
            num_res_blocks=self.num_res_blocks,
            num_heads=self.num_heads,
            num_heads_upsample=self.num_heads_upsample,
            attention_resolutions=self.attention_resolutions,
            dropout=self.dropout,
            learn_sigma=self.learn_sigma,
            class_cond=self.class_cond,
            use_scale_shift_norm=self.use_scale_shift_norm,
            use_checkpoint=self.use_checkpoint,
            channel_mult=tuple(int(word) for word in self.channel_mult.split(",")) if self.channel_mult else (),
            num_classes=self.num_classes,
            null_class=self.label_dropout > 0,
            low_res=self.super_resolution,
            dtype=dtype,
        )

    def check(self) -> None:
        """Raises `SettingsError` for settings that contradict each other, whatever the images are."""
        # Lists written as text.
        for name, of, least in (("ema_rate", float, 0), ("channel_mult", int, 1), ("attention_resolutions", int, 1)):
            text = getattr(self, name)
            try:
                values = [of(word) for word in text.split(",")] if text else []
            except ValueError:
                values = [-1]
            if any(value < least for value in values):
                raise SettingsError(f"--{name}={text}: expected numbers of at least {least}, separated by commas")
        decays = self.ema_decays if self.ema_rate else ()
        if any(decay >= 1 for decay in decays) or len(set(decays)) < len(decays) or not decays:
            raise SettingsError(
                f"--ema_rate={self.ema_rate}: expected different numbers from 0 to below 1, such as 0.9999"
            )

        # The process.
        try:
            noise_schedules.betas(self.noise_schedule, self.diffusion_steps)
        except ValueError as error:
            raise SettingsError(f"--diffusion_steps={self.diffusion_steps}: {error}") from error
        try:
            kept = kept_steps(self.diffusion_steps, self.timestep_respacing)
        except ValueError as error:
            raise SettingsError(f"--timestep_respacing={self.timestep_respacing}: {error}") from error
        if len(kept) < noise_schedules.MIN_STEPS:
            raise SettingsError(
                f"--timestep_respacing={self.timestep_respacing} keeps {len(kept)} step(s), expected at least "
                f"{noise_schedules.MIN_STEPS}"
            )

        # The network. Flags that contradict each other are named before it would refuse them in its own words.
        if self.super_resolution and self.small_size > self.large_size:
            raise SettingsError(
                f"--small_size={self.small_size} is above --large_size={self.large_size}: the small images are made "
                "from the large ones"
            )
        if self.super_resolution and self.sigma_small:
            raise SettingsError("--sigma_small: the original has it for image models only, not with --super_resolution")
        if self.label_dropout and not self.class_cond:
            raise SettingsError(f"--label_dropout={self.label_dropout} hides labels: it needs --class_cond")
        if self.num_heads_upsample != -1 and self.num_heads_upsample < 1:
            raise SettingsError(
                f"--num_heads_upsample={self.num_heads_upsample}: expected -1 (num_heads) or at least 1"
            )
        side, name = self.side, "large_size" if self.super_resolution else "image_size"
        try:
            self.network_shape().check_image(side, side)
        except ShapeError as error:
            raise SettingsError(f"--{name}={side}, --num_channels={self.num_channels}: {error}") from error
        if self.microbatch > self.batch_size:
            raise SettingsError(
                f"--microbatch={self.microbatch} is above --batch_size={self.batch_size}, the images of an update"
            )

    def validate(self, spec: ImageSpec) -> None:
        """Raises `SettingsError` for settings that contradict each other or the images."""
        self.check()
        data = self.dataset or "the image folder"
        if (spec.height, spec.width) != (self.side, self.side):
            name = "large_size" if self.super_resolution else "image_size"
            raise SettingsError(
                f"images of {data} are {spec.height}x{spec.width}, expected --{name}={self.side}: set it to the size "
                "of the images; of an image folder given by --data_dir they are resized"
            )
        if spec.channels != CHANNELS:
            raise SettingsError(f"images of {data} have {spec.channels} channel(s), expected {CHANNELS} (RGB)")
        if self.class_cond and spec.num_classes is None:
            raise SettingsError(
                f"--class_cond: the images of {data} have no labels; leave it out, or use labelled images"
            )
        if self.class_cond and spec.num_classes is not None and spec.num_classes < 2:
            raise SettingsError(
                f"--class_cond: the labels of {data} tell {spec.num_classes} class, expected at least 2: leave it out, "
                "or use images of several classes"
            )
        if self.class_cond and spec.num_classes is not None and spec.num_classes > self.num_classes:
            raise SettingsError(
                f"--class_cond: {data} has {spec.num_classes} classes and the network {self.num_classes}: "
                f"set --num_classes={spec.num_classes}"
            )
