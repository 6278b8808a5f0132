"""Settings of distribution smoothing: the flags of the original program and the keys of its YAML files, and our own."""

from __future__ import annotations

import dataclasses
import enum
from typing import ClassVar

from tfgen.data.source import ImageSpec
from tfgen.settings import SettingsError, check_values, flag

SIDES_DIVISOR = 4  # the network halves the sides twice
NO_STAGE1 = "none"  # in place of a run folder
STAGE1_HELP = f"stage 2: run folder of stage 1, if it is not where it was in training; {NO_STAGE1} to do without"
_LARGEST_SEED = 2**32 - 1  # of numpy.random.RandomState


class Stage(enum.Enum):
    """What a run learns."""

    PLAIN = "PixelCNNPPTrainRunner"  # p(x), 8-bit images
    SMOOTHED = "SmoothedPixelCNNPPTrainRunner"  # p(noisy x)
    REVERSE = "ReversePixelCNNPPTrainRunner"  # p(x | noisy x)


_SAMPLING_RUNNERS = {
    "PixelCNNPPSamplerRunner": "python -m tfgen.sample --run=DIR",
    "PixelCNNPPGradientSamplerRunner": "python -m tfgen.sample --run=STAGE1_DIR --denoise=gradient",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run of distribution smoothing.

    Values are checked one by one on construction and against each other by `check`; `validate` adds the data set.
    All of them raise `SettingsError`.
    """

    runner: str = flag(
        Stage.SMOOTHED.value,
        f"What to learn: images with noise ({Stage.SMOOTHED.value}, stage 1), images given the same with noise "
        f"({Stage.REVERSE.value}, stage 2), or images as they are ({Stage.PLAIN.value}, a plain PixelCNN++, not in the "
        "original). The original's sampling runners are commands of their own here.",
        choices=(*(stage.value for stage in Stage), *_SAMPLING_RUNNERS),
        group="What is learned",
    )
    stage1_run: str = flag(
        "", "Run folder of stage 1, whose samples stage 2 begins from; --noise and images must be those of that run."
    )
    noise: float = flag(
        0.3,
        "Standard deviation of the smoothing noise, where pixels lie in [-1, 1]; the same in both stages.",
        above=0.0,
    )
    clean_noise: float = flag(
        0.01,
        "Standard deviation of the noise on the images that stage 2 learns; it stands for dequantisation.",
        above=0,
    )
    config: str = flag("", "The original's YAML file; here --hps=NAME, without .yml.")

    dataset: str = flag(
        "CIFAR10",
        "Images to learn: MNIST, FashionMNIST, CIFAR10, celeba, digits, photos, the path of an array file or image "
        "folder, or any TensorFlow Datasets name.",
        group="Data",
    )
    input_channels: int | None = flag(
        None, "Colours of the images, 1 or 3; None for those of the data.", choices=(None, 1, 3)
    )

    nr_resnet: int = flag(5, "Residual blocks in a row.", minimum=1, group="Network")
    nr_filters: int = flag(160, "Filters of every layer.", minimum=1)
    nr_logistic_mix: int = flag(10, "Logistic components at each pixel.", minimum=1)
    dropout: float = flag(
        0.5, "Share of feature maps dropped in every residual block; the original's is 0.5.", minimum=0.0, below=1.0
    )

    batch_size: int = flag(80, "Images per rank and update.", minimum=1, group="Optimisation")
    lr: float = flag(0.0002, "Learning rate of the first update.", minimum=0.0)
    lr_decay: float = flag(0.999995, "Factor on the learning rate after each update.", above=0.0, maximum=1.0)
    max_epochs: int = flag(1000, "Epochs after which the run ends.", minimum=1)
    ema: bool = flag(False, "Keep an average of the weights, for evaluation and samples.")
    ema_rate: float = flag(0.999, "Decay of the average, per update.", minimum=0.0, below=1.0)
    seed: int = flag(1234, "Seed of initial weights, data order and noise.", minimum=0, maximum=_LARGEST_SEED)

    print_every: int = flag(50, "Steps between log records.", minimum=1, group="Logging and saving")
    save_interval: int = flag(10, "Epochs between checkpoints; every second one is kept for ever.", minimum=1)
    epochs_per_samples: int = flag(10, "Epochs between sample grids.", minimum=1)
    sample_batch: int = flag(25, "Samples drawn at a time on one rank.", minimum=1)
    ckpt_path: str = flag("", "Checkpoint (.pth) of the original code to start from.")
    with_logit: bool = flag(False, "Show samples through a sigmoid, as those of models of logits.")
    comment: str = flag("", "Noted in the settings of the run.")

    doc: str = flag("0", "Name of the experiment.", unused="the run folder has it: --run=DIR")
    verbose: str = flag(
        "info", "Level of the log.", unused="the log of a run is in its folder: TensorBoard and metrics.jsonl"
    )
    test: bool = flag(False, "Evaluate instead.", unused="python -m tfgen.evaluate --run=DIR does")
    resume_training: bool = flag(False, "Go on with a run.", unused="the same command always does")
    ni: bool = flag(False, "Delete an old run without asking.", unused="runs are not deleted: --restart_from_scratch")
    image_folder: str = flag("images", "Folder of pictures.", unused="the original never reads it")

    stages: ClassVar[dict[str, Stage]] = {stage.value: stage for stage in Stage}

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def stage(self) -> Stage:
        """What the run learns."""
        return self.stages[self.runner]

    @property
    def image_rows_factor(self) -> int:
        """Images that lie above each other in the network's input."""
        return 2 if self.stage is Stage.REVERSE else 1

    def check(self) -> None:
        """Raises `SettingsError` for settings that contradict each other, whatever the images are."""
        if self.runner in _SAMPLING_RUNNERS:
            raise SettingsError(f"--runner={self.runner} trains nothing: type {_SAMPLING_RUNNERS[self.runner]}")
        if self.config:
            name = self.config.rpartition("/")[2].removesuffix(".yml")
            raise SettingsError(
                f"--config={self.config}: expected a preset in its place, --hps={name} (--list_hps lists them)"
            )
        if self.stage1_run and self.stage is not Stage.REVERSE:
            raise SettingsError(
                f"--stage1_run={self.stage1_run} belongs to stage 2, found --runner={self.runner}: name a preset of "
                f"stage 2 (--hps=cifar10_reverse), or --runner={Stage.REVERSE.value}"
            )

    def validate(self, spec: ImageSpec) -> None:
        """Raises `SettingsError` for settings that contradict each other or the images."""
        self.check()
        size = f"images of {self.dataset} are {spec.height}x{spec.width}x{spec.channels}"
        if spec.channels not in (1, 3):
            raise SettingsError(f"{size}: the mixture of logistics is made for 1 or 3 colours; convert the images")
        if self.input_channels not in (None, spec.channels):
            raise SettingsError(f"--input_channels={self.input_channels}, but {size}: leave the flag out")
        if spec.height % SIDES_DIVISOR or spec.width % SIDES_DIVISOR:
            raise SettingsError(
                f"{size}: PixelCNN++ halves both sides twice and needs multiples of {SIDES_DIVISOR}; crop or resize "
                "the images"
            )


def parameter_count(config: Config, channels: int) -> int:
    """Number of trainable parameters, from the settings alone."""
    n, f = config.nr_resnet, config.nr_filters

    def convolution(area: int, inputs: int, outputs: int) -> int:
        return (area * inputs + 2) * outputs  # direction, gain, bias

    def resnet(area: int, skips: int) -> int:
        skip = convolution(1, 2 * skips * f, f) if skips else 0
        return convolution(area, 2 * f, f) + skip + convolution(area, 2 * f, 2 * f)

    up = 3 * n * (resnet(6, 0) + resnet(4, 1))
    down = (3 * n + 2) * (resnet(6, 1) + resnet(4, 2))
    between = 2 * 2 * (convolution(6, f, f) + convolution(4, f, f))  # strided and transposed, of both streams
    first = convolution(6, channels + 1, f) + convolution(3, channels + 1, f) + convolution(2, channels + 1, f)
    last = convolution(1, f, (10 if channels == 3 else 3) * config.nr_logistic_mix)
    return up + down + between + first + last
