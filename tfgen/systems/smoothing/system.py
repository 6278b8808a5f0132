"""Distribution smoothing as a `System`: configuration to network, loss, sampler, evaluation and export.

Meng, Song, Song, Zhao & Ermon, "Improved Autoregressive Modeling with Distribution Smoothing", ICLR 2021,
arXiv:2103.15089. Stage 1 learns images with Gaussian noise; stage 2 learns images given those. The same network
without noise is a plain PixelCNN++ (Salimans et al., arXiv:1701.05517).
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tfgen.data.source import ImageSpec, Splits
from tfgen.likelihood import continuous_mixture, logistic_mixture
from tfgen.monitor.window import Statistic
from tfgen.randomness import Key
from tfgen.settings import SettingsError, read_run
from tfgen.systems.base import Batch, Loss, SampleCallback, System
from tfgen.systems.smoothing import data, exported, published
from tfgen.systems.smoothing.config import NO_STAGE1, Config, Stage
from tfgen.systems.smoothing.evaluation import EvaluateOptions, Evaluator, loss_metrics
from tfgen.systems.smoothing.pixelcnn import PixelCNN
from tfgen.systems.smoothing.sampling import SampleOptions, Sampler
from tfgen.training.optimizers import AdamW
from tfgen.training.recipe import Recipe
from tfgen.training.run_folder import RunFolder
from tfgen.training.schedules import ExponentialDecay
from tfgen.training.state import TrainState

_GRID_IMAGES = 25


class DistributionSmoothing(System):
    """A PixelCNN++ of smoothed images, of images given smoothed ones, or of images."""

    name = "smoothing"
    config_class = Config
    sample_options_class = SampleOptions
    evaluate_options_class = EvaluateOptions
    export_options_class = exported.ExportOptions
    window_statistics: ClassVar[Mapping[str, Statistic]] = {}

    network: PixelCNN

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        config.validate(spec)
        precision = tf.keras.mixed_precision.global_policy().name
        if precision != "float32":
            raise SettingsError(f"PixelCNN++ computes in float32, found --precision={precision}: leave the flag out")
        self.stage = config.stage
        self.network = PixelCNN(
            spec.channels, config.nr_filters, config.nr_resnet, config.nr_logistic_mix, config.seed, config.dropout
        )
        self.sampler = Sampler(self)
        self.evaluator = Evaluator(self)

    # Before the network exists --------------------------------------------------------------------------

    @classmethod
    def image_spec(cls, config: Config) -> ImageSpec | None:
        return data.known_spec(config.dataset)

    @classmethod
    def open_data(cls, config: Config, data_dir: str) -> Splits:
        config.check()
        return data.open_splits(config.dataset, data_dir)

    @classmethod
    def half_precision(cls, config: Config) -> bool:
        return False

    @classmethod
    def companion_runs(cls, config: Config, options: Any) -> dict[str, str]:
        """Stage 1 of a run of stage 2, where it is known. See `System.companion_runs`."""
        folder = getattr(options, "stage1_run", "") or config.stage1_run
        if folder and config.stage is not Stage.REVERSE:
            raise SettingsError(f"--stage1_run={folder} belongs to runs of stage 2, found one of {config.runner}")
        not_needed = isinstance(options, SampleOptions) and not options.draws_smoothed
        return {} if not_needed or folder in ("", NO_STAGE1) else {"stage1": folder}

    # Training -------------------------------------------------------------------------------------------

    @property
    def stage1(self) -> DistributionSmoothing | None:
        """Stage 1 of a system of stage 2, where it was restored with it."""
        found = self.companions.get("stage1")
        if found is None:
            return None
        assert isinstance(found, DistributionSmoothing)
        return found

    def accept_companions(self, companions: Mapping[str, System]) -> None:
        """See `System.accept_companions`."""
        for system in companions.values():
            self._check_stage1(system.config, system.spec, "--stage1_run: that run")
        super().accept_companions(companions)

    def check_training(self) -> None:
        """Compares stage 2 with the settings of its stage 1. See `System.check_training`."""
        folder = self.config.stage1_run
        if folder:
            config, newest = read_run(folder).config, RunFolder(folder).checkpoints().newest()
            if newest is None:
                raise SettingsError(f"--stage1_run={folder} has no checkpoint yet: train stage 1 first")
            self._check_stage1(config, newest.spec, f"--stage1_run={folder}")

    def _check_stage1(self, config: Any, spec: ImageSpec, run: str) -> None:
        if not isinstance(config, Config) or config.stage is not Stage.SMOOTHED:
            found = config.runner if isinstance(config, Config) else "another system"
            raise SettingsError(
                f"{run}: expected a run of {Stage.SMOOTHED.value}, found {found}; train one with "
                "--hps=digits_smoothed or another preset whose name ends in _smoothed"
            )
        if spec.shape != self.spec.shape:
            raise SettingsError(
                f"{run} models images of {_size(spec)} ({config.dataset}), expected "
                f"{_size(self.spec)} as in {self.config.dataset}: both stages need the same --dataset"
            )
        if config.noise != self.config.noise:
            raise SettingsError(
                f"{run} smooths with noise {config.noise:g}, this run expects {self.config.noise:g}: "
                f"set --noise={config.noise:g}"
            )

    def recipe(self, train_size: int, ranks: int) -> Recipe:
        config = self.config
        per_epoch = max(train_size // (ranks * config.batch_size), 1)
        return Recipe(
            seed=config.seed,
            batch_size=config.batch_size,
            steps=config.max_epochs * per_epoch,
            # The original minimises the sum over the batch, which differs from the mean in this place only.
            optimizer=AdamW(0.9, 0.999, epsilon=published.ADAM_EPSILON / (ranks * config.batch_size)),
            learning_rate=ExponentialDecay(config.lr, config.lr_decay),
            non_finite="skip",
            skipped_steps_count=True,
            ema_decays=(config.ema_rate,) if config.ema else (),
            ema_rounded_rate=True,
            log_every=config.print_every,
            eval_every=per_epoch,
            eval_split="test",
            save_every=config.save_interval * per_epoch,
            keep_every=2 * config.save_interval * per_epoch,
            sample_every=config.epochs_per_samples * per_epoch,
            sample_count=_GRID_IMAGES,
            restore_path=config.ckpt_path,
        )

    def loss(self, batch: Batch, key: Key, training: bool) -> Loss:
        """Negative log-likelihood of the stage's images in nats (Meng et al., section 3), the mean over images."""
        images = data.scaled(batch["image"])  # [B, H, W, C]
        masks = None
        if training and self.config.dropout:
            masks = self.network.dropout_masks(key.fold("dropout"), tf.shape(images)[0])
        smoothed, target = self.noisy(images, key)
        nats = -tf.reduce_mean(tf.reduce_sum(self.log_prob(target, smoothed, masks), axis=[1, 2]))
        return Loss(nats, loss_metrics(self.stage, nats, self.spec.dims))

    def noisy(
        self, images: tf.Tensor, key: Key, smoothing_key: Key | None = None
    ) -> tuple[tf.Tensor | None, tf.Tensor]:
        """What the stage is conditioned on and what it learns of images in [-1, 1], float32 [B, H, W, C].

        Args:
          smoothing_key: of the smoothing noise, if that is another one.

        Returns:
          The smoothed images, or None where there is no condition; and the target.
        """
        if self.stage is Stage.PLAIN:
            return None, images
        noise = (smoothing_key or key).fold("noise").normal(tf.unstack(tf.shape(images)))
        smoothed = images + self.config.noise * noise
        if self.stage is Stage.SMOOTHED:
            return None, smoothed
        clean = images + self.config.clean_noise * key.fold("clean noise").normal(tf.unstack(tf.shape(images)))
        return smoothed, clean

    def log_prob(
        self, target: tf.Tensor, smoothed: tf.Tensor | None = None, masks: dict[str, tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Log-likelihood of each pixel in nats, float32 [B, H, W]: a density, or, of a plain model, a probability.

        Arguments as for `parameters`.
        """
        return self.density(self.parameters(target, smoothed, masks), target)

    def parameters(
        self, target: tf.Tensor, smoothed: tf.Tensor | None = None, masks: dict[str, tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Parameters of the mixtures at the pixels of the target, float32 [B, H, W, 10 M] or [B, H, W, 3 M].

        Args:
          target: float32 [B, H, W, C]; of a plain model the levels of 8-bit images.
          smoothed: of stage 2, of the same shape.
          masks: of `PixelCNN.dropout_masks`.
        """
        if smoothed is None:
            return self.network(target, masks)
        # Above each other as in the original: every pixel of the target has the whole condition before it.
        inputs = tf.concat([smoothed, target], axis=1)
        return self.network(inputs, masks, first_row=self.spec.height)

    def density(self, parameters: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        """Log-likelihood of each pixel in nats, float32 [B, H, W], from the parameters of its mixture."""
        if self.stage is Stage.PLAIN:
            return logistic_mixture.log_prob(parameters, target, logistic_mixture.EIGHT_BIT_EXACT)
        return continuous_mixture.log_density(parameters, target)

    # What the commands need -----------------------------------------------------------------------------

    def images_wanted(self, first: int, count: int, options: SampleOptions) -> np.ndarray:
        return np.arange(first, first + count) if options.from_images else np.zeros(0, np.int64)

    def sample(
        self,
        count: int,
        key: Key,
        options: SampleOptions,
        callback: SampleCallback | None = None,
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples of the run, or of both stages. See `System.sample`."""
        del labels
        return self.sampler.sample(count, key, options, callback, images)

    def sample_tensors(self, options: SampleOptions) -> dict[str, tuple[int, ...]]:
        return self.sampler.tensors(options)

    def sample_grid(self, samples: np.ndarray, originals: np.ndarray, options: SampleOptions) -> np.ndarray:
        return self.sampler.grid(samples, originals, options)

    def default_sample_options(self) -> SampleOptions:
        """Stage 2 shows what it makes of images with noise, without stage 1."""
        return SampleOptions(from_images=self.stage is Stage.REVERSE)

    def evaluate(
        self, batches: Iterable[dict[str, np.ndarray]], options: EvaluateOptions, folder: pathlib.Path
    ) -> dict[str, float]:
        """Likelihoods. See `System.evaluate`."""
        return self.evaluator.evaluate(batches, options)

    def signatures(self) -> dict[str, tf.types.experimental.GenericFunction]:
        return exported.signatures(self)

    def load_published(self, path: str, state: TrainState) -> None:
        """See `System.load_published`."""
        averages = state.averages[0].averages if state.averages else None
        state.step.assign(published.load_into(path, self.network, averages, state.optimizer))


def _size(spec: ImageSpec) -> str:
    return "x".join(map(str, spec.shape))
