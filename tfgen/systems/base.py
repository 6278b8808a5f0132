"""The System contract: all that the trainer and the commands know of a published system.

A system binds a configuration to a network, a loss, a sampler, an evaluation and an export. The training
loop, the checkpoints and the commands call these members and nothing else; there is no `if system ==`.
"""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tensorflow as tf

from tfgen.data.source import ImageSpec, Source, Splits
from tfgen.monitor import grids
from tfgen.monitor.window import Statistic
from tfgen.randomness import Key, StepDraws
from tfgen.training.recipe import Recipe

if TYPE_CHECKING:
    from tfgen.training.state import TrainState

Batch = dict[str, Any]  # arrays on the host, tensors on the device; first axis is the sample
# (steps done, steps in all, None or a function that gives a preview of the images being drawn, uint8 [B, H, W, C])
SampleCallback = Callable[[int, int, Callable[[], np.ndarray] | None], None]


@dataclasses.dataclass(frozen=True)
class Loss:
    """What one forward pass yields.

    Attributes:
      objective: float32 scalar to minimise, the mean over this rank's samples.
      metrics: float32 scalars to log, also means over this rank's samples ("bits_per_dim", ...).
      partial_metrics: float32 [2] to log: sum and number of a value that only some samples have. What is logged is
        the mean over those of all ranks and steps, and nothing where there was none.
      settle: called in the compiled step, when all ranks know whether they take it, with that as a bool scalar: what a
        system keeps of a step (samples, power iterations) must not change where it is False.
      observations: values of each sample, first axis [B], that `System.observe` wants to see for the samples of all
        ranks; float64, or exactly representable in it.
    """

    objective: tf.Tensor
    metrics: dict[str, tf.Tensor]
    partial_metrics: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)
    observations: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)
    settle: Callable[[tf.Tensor], None] | None = None


@dataclasses.dataclass(frozen=True)
class TaskRun:
    """What a task of `tfgen.evaluate --task=NAME` works with.

    Attributes:
      source: the images, of the split that was asked for, as many as were asked for.
      splits: all images of the run's data set.
      data_dir: where files of other data sets are looked for.
      folder: where pictures and arrays go; it exists.
      run: the folder of the run.
      batch_size: images of a pass.
      key: of the random numbers.
      step: of the checkpoint that the weights are from; None for the newest.
      weights: "ema" or "raw", see `tfgen.restore.restore`.
      images: how many images were asked for; None for all.
    """

    source: Source
    splits: Splits
    data_dir: str
    folder: pathlib.Path
    run: pathlib.Path
    batch_size: int
    key: Key
    step: int | None = None
    weights: str = "ema"
    images: int | None = None


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """No flags beside those of the command."""


class System(abc.ABC):
    """One published system.

    Args:
      config: instance of `config_class`.
      spec: shape of the images it models.

    Class attributes:
      name: folder under `tfgen/systems` and `flags/`, value of `--system`.
      config_class: frozen dataclass, every flag of the original script (see `tfgen.settings.flag`).
      sample_options_class, evaluate_options_class, export_options_class: frozen dataclasses of the extra flags of
        `tfgen.sample`, `tfgen.evaluate` and `tfgen.export`.
      window_statistics: what is logged of a metric over several steps; see `tfgen.monitor.window.summarize`.

    Attributes:
      companions: restored systems of other runs by role, see `companion_runs`; none while a run is trained.
      tensors: what `sample` made last beside the images, see `sample_tensors`.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]
    sample_options_class: ClassVar[type]
    evaluate_options_class: ClassVar[type]
    export_options_class: ClassVar[type] = NoOptions
    window_statistics: ClassVar[Mapping[str, Statistic]] = {}

    network: tf.keras.Model  # what is saved, averaged (EMA) and exported
    state: tf.Module  # what else must survive a restart (sampler history), the same on all ranks; may be empty
    rank_state: tf.Module  # what each rank has of its own and must survive as well (replay buffer); may be empty

    def __init__(self, config: Any, spec: ImageSpec):
        self.config, self.spec = config, spec
        self.state, self.rank_state = tf.Module(), tf.Module()
        self.companions: Mapping[str, System] = {}
        self.tensors: dict[str, np.ndarray] = {}

    # Before the network exists --------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def open_data(cls, config: Any, data_dir: str) -> Splits:
        """Opens the data sets that `config` names; files are looked for under `data_dir`."""

    @classmethod
    @abc.abstractmethod
    def image_spec(cls, config: Any) -> ImageSpec | None:
        """Shape of the images as far as `config` tells it without opening data; None when only the data know."""

    @classmethod
    @abc.abstractmethod
    def half_precision(cls, config: Any) -> bool:
        """Whether the settings ask for 16-bit compute (`--precision=auto` follows it on a GPU)."""

    @classmethod
    def companion_runs(cls, config: Any, options: Any) -> dict[str, str]:
        """Run folders of other systems that samples or evaluations of this one need, by role.

        The commands restore them, with the same choice of weights, and hand them to `accept_companions`.

        Args:
          options: instance of `sample_options_class`, `evaluate_options_class` or `export_options_class`.
        """
        del config, options
        return {}

    # Training -------------------------------------------------------------------------------------------

    def check_training(self) -> None:  # noqa: B027  (most systems have nothing to check)
        """Raises `SettingsError` for settings that a new run cannot begin with, before its first step."""

    @abc.abstractmethod
    def recipe(self, train_size: int, ranks: int) -> Recipe:
        """How it is trained: optimizer, schedule, EMA, clipping, batch size and intervals."""

    def prepare(self, batch: dict[str, np.ndarray], draws: StepDraws) -> dict[str, np.ndarray]:
        """Host-side work on a training batch (augmentation). `batch["image"]`: uint8 [B, H, W, C].

        Runs in a background thread; must be a function of its arguments.
        """
        del draws
        return batch

    @abc.abstractmethod
    def loss(self, batch: Batch, key: Key, training: bool) -> Loss:
        """Objective of a prepared batch. `key` is the step's; fold a purpose into it before drawing."""

    def observe(self, observations: dict[str, tf.Tensor]) -> None:
        """Takes note of `Loss.observations` in `state`, inside the compiled step, after the forward pass of each
        microbatch and before the next is computed: rows of the first rank, then of the second, ...

        It is called on steps that are skipped, too: leave out what is not finite. Every rank sees the same rows, and
        must come to the same state.
        """
        del observations

    def after_update(self, step: int, outputs: dict[str, Any]) -> None:
        """Called on the host after each step with its averaged metrics, for systems that keep track of them."""
        del step, outputs

    # What the commands need -----------------------------------------------------------------------------

    def check_data(self, spec: ImageSpec, options: Any) -> None:  # noqa: B027  (most systems take any of the right shape)
        """Raises `SettingsError` for data of a command, of the run's shape, that do not go with the model.

        Args:
          options: instance of `sample_options_class` or `evaluate_options_class`.
        """

    def images_wanted(self, first: int, count: int, options: Any) -> np.ndarray:
        """Which images samples `first` to `first + count - 1` are made from: ascending indices, int64 [n].

        None unless a system says otherwise: samples are made from noise.
        """
        del first, count, options
        return np.zeros(0, np.int64)

    @abc.abstractmethod
    def sample(
        self,
        count: int,
        key: Key,
        options: Any,
        callback: SampleCallback | None = None,
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """uint8 [count, H, W, C]. Sample i depends on (key, i) and the images it is made from only, not on `count`.

        Args:
          key: its `first_sample` is the number of the first sample.
          options: instance of `sample_options_class`.
          images: those at `images_wanted(first sample, count, options)`, uint8 [n, H, W, C].
          labels: their labels, [n], where the data have them.
        """

    def accept_companions(self, companions: Mapping[str, System]) -> None:
        """Takes the restored systems of `companion_runs`; raises `SettingsError` for one that does not fit."""
        self.companions = companions

    def sample_shape(self, options: Any) -> tuple[int, ...]:
        """Shape of a sample, [H, W, C]: that of the images unless a system says otherwise."""
        del options
        return self.spec.shape

    def sample_tensors(self, options: Any) -> dict[str, tuple[int, ...]]:
        """Shapes, without the first axis, of float32 arrays that `sample` leaves in `tensors`, one row an image.

        They are gathered from all ranks and written to `tensors.npz` beside the images.
        """
        del options
        return {}

    def default_sample_options(self) -> Any:
        """The `sample_options_class` instance of the sample grids during training."""
        return self.sample_options_class()

    def sample_files(
        self, samples: np.ndarray, key: Key, options: Any, labels: np.ndarray | None = None
    ) -> dict[str, dict[str, np.ndarray]]:
        """Further `.npz` files about samples, arrays by name of the file and of the array.

        Args:
          samples: uint8 [N, H, W, C], those that `sample` gives for the same `key`, `options` and `labels`.
        """
        del samples, key, options, labels
        return {}

    def sample_grid(self, samples: np.ndarray, originals: np.ndarray, options: Any) -> np.ndarray:
        """The picture of samples that people look at, uint8 [height, width, C].

        Args:
          samples: uint8 [count, H, W, C].
          originals: the images they were made from, uint8 [n, H, W, C].
        """
        del originals, options
        return grids.display_grid(samples)

    def default_evaluate_options(self) -> Any:
        """The `evaluate_options_class` instance of evaluations during training."""
        return self.evaluate_options_class()

    @abc.abstractmethod
    def evaluate(
        self, batches: Iterable[dict[str, np.ndarray]], options: Any, folder: pathlib.Path
    ) -> Mapping[str, float | np.ndarray]:
        """Metrics over raw batches as `EvaluationBatches` gives them, and "examples", the number of images.

        The names say what is a likelihood and what a bound. Each metric is a mean over the examples, so that
        ranks can be combined; a metric may be an array, of the same shape on every rank, even
        one without images. `batches` can be iterated more than once; the last batch may be smaller.
        Per-image results that `options` (an instance of `evaluate_options_class`) asks for go to `folder`.
        """

    def evaluation_result(self, means: dict[str, float | np.ndarray]) -> dict[str, float | np.ndarray]:
        """What is reported of the means that `evaluate` gave, taken over the examples of all ranks."""
        return means

    def run_task(self, task: str, options: Any, job: TaskRun) -> dict[str, float]:
        """One of the system's other evaluations, in a single process; pictures and arrays go to `job.folder`.

        Args:
          task: the value of `--task`, a flag of `evaluate_options_class` of systems that have tasks.

        Returns:
          What is printed and recorded, by name.
        """
        raise NotImplementedError(f"{self.name} has no task {task}")

    def pictures(self, images: np.ndarray, key: Key) -> dict[str, np.ndarray]:
        """Further pictures for the run's log, beside the sample grid: uint8 [height, width, 3 or 1] by name.

        Args:
          images: the first `Recipe.picture_images` images of the evaluation split, uint8 [B, H, W, C].
          key: the same at every step of a run.
        """
        del images, key
        return {}

    @abc.abstractmethod
    def signatures(self) -> dict[str, tf.types.experimental.GenericFunction]:
        """Functions of the exported SavedModel by name, in plain TensorFlow operations."""

    @abc.abstractmethod
    def load_published(self, path: str, state: TrainState) -> None:
        """Reads a checkpoint of the original code into the network, averages, optimizer and step of `state`.

        Raises:
          ValueError: the file does not hold this network; the text names the first tensor that does not fit.
        """
