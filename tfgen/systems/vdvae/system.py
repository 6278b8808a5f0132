"""VDVAE as a `System`: configuration to network, loss, sampler, evaluation and export.

Child, "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images", ICLR 2021.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import numpy as np
import tensorflow as tf

from tfgen.data.source import ImageSpec, Splits
from tfgen.likelihood import logistic_mixture
from tfgen.likelihood.bits import bits_per_dim
from tfgen.monitor.window import Statistic
from tfgen.randomness import Key
from tfgen.systems.base import Batch, Loss, SampleCallback, System
from tfgen.systems.vdvae import data, exported, published, sampling
from tfgen.systems.vdvae.config import Config
from tfgen.systems.vdvae.evaluation import EvaluateOptions, Evaluator
from tfgen.systems.vdvae.network import VDVAE, Draw
from tfgen.systems.vdvae.pictures import picture_grid, picture_rows
from tfgen.systems.vdvae.preprocess import preprocessing
from tfgen.systems.vdvae.sampling import Noise, SampleOptions, Sampler, latent_noise, posterior_noise
from tfgen.training.optimizers import AdamW
from tfgen.training.recipe import Recipe
from tfgen.training.schedules import LinearWarmup
from tfgen.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Bound:
    """The terms of the negative evidence lower bound, in nats per dimension (sub-pixel).

    Attributes:
      distortion: float32 [B], negative log-likelihood of the images given their latents.
      rates: one float32 [B] for each stochastic layer, its KL divergence from the prior.
    """

    distortion: tf.Tensor
    rates: list[tf.Tensor]

    @property
    def rate(self) -> tf.Tensor:
        """float32 [B], of all layers."""
        return tf.add_n(self.rates)


class VeryDeepVAE(System):
    """Hierarchical VAE whose decoder has a stochastic layer in every block."""

    name = "vdvae"
    config_class = Config
    sample_options_class = SampleOptions
    evaluate_options_class = EvaluateOptions
    window_statistics: ClassVar[Mapping[str, Statistic]] = {
        "elbo": "mean_and_finite",
        "grad_norm": "largest",
        "rate_nans": "sum",
        "distortion_nans": "sum",
        "skipped": "sum",
    }

    network: VDVAE

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        config.validate(spec)
        self.architecture = config.architecture(spec.height)
        self.preprocessing = preprocessing(config.dataset)
        low_bit = self.preprocessing.low_bit
        self.buckets = logistic_mixture.FIVE_BIT if low_bit else logistic_mixture.EIGHT_BIT
        self.exact_buckets = logistic_mixture.FIVE_BIT_EXACT if low_bit else logistic_mixture.EIGHT_BIT_EXACT
        self.network = VDVAE(self.architecture, config.zdim, config.num_mixtures, config.seed)
        # Where the warm-up began anew, see --restart_warmup; -1 if it did not.
        self.state.restored_step = tf.Variable(-1, dtype=tf.int64, trainable=False, name="restored_step")
        if config.restart_warmup:
            # That of the optimizer file, of the first step alone; -1 without one.
            self.state.restored_rate = tf.Variable(-1, dtype=tf.float32, trainable=False, name="restored_rate")
        self._sampler = Sampler(self.network, self.preprocessing, self._picture_columns)
        self._evaluator = Evaluator(self)

    # Before the network exists --------------------------------------------------------------------------

    @classmethod
    def image_spec(cls, config: Config) -> ImageSpec | None:
        return data.known_spec(config.dataset)

    @classmethod
    def open_data(cls, config: Config, data_dir: str) -> Splits:
        config.check()
        return data.open_splits(config, data_dir)

    @classmethod
    def half_precision(cls, config: Config) -> bool:
        return False

    # Training -------------------------------------------------------------------------------------------

    def recipe(self, train_size: int, ranks: int) -> Recipe:
        config = self.config
        per_epoch = max(train_size // (ranks * config.n_batch), 1)
        return Recipe(
            seed=config.seed,
            batch_size=config.n_batch,
            steps=config.num_epochs * per_epoch,
            optimizer=AdamW(config.adam_beta1, config.adam_beta2, weight_decay=config.wd),
            learning_rate=self.learning_rate,
            max_grad_norm=config.grad_clip,
            clip_epsilon=1e-6,
            max_update_norm=None if config.skip_threshold == -1 else config.skip_threshold,
            non_finite="skip",
            skipped_steps_count=True,
            ema_decays=(config.ema_rate,),
            ema_rounded_rate=True,
            log_every=config.iters_per_print,
            eval_every=config.epochs_per_eval * per_epoch,
            save_every=config.iters_per_save,
            keep_every=config.iters_per_ckpt,
            sample_every=config.iters_per_images,
            picture_images=config.num_images_visualize,
            initial_evaluation=config.test_eval,
            stop_before_training=config.test_eval,
            eval_split="test" if config.test_eval else "valid",
            restore_path=config.restore_path or config.restore_ema_path,
        )

    def learning_rate(self, step: tf.Tensor) -> tf.Tensor:
        """The rate of a step (int64): a warm-up that may have begun anew at `restored_step`.

        The original restores an optimizer after its schedule was attached: the first step still has the rate that was
        saved with it, whatever `lr` is, the next ones climb from lr / warmup_iters. Without an optimizer file the
        schedule begins as that of a new run does, at 0.
        """
        schedule = LinearWarmup(self.config.lr, self.config.warmup_iters)
        if not self.config.restart_warmup:
            return schedule(step)
        began = self.state.restored_step
        since = tf.cast(step, tf.int64) - tf.maximum(began, 0)
        saved = self.state.restored_rate
        return tf.where((began >= 0) & (since == 0) & (saved >= 0), saved, schedule(since))

    def loss(self, batch: Batch, key: Key, training: bool) -> Loss:
        del training  # the network is the same in both
        inputs, targets = self.preprocessing.input_and_target(batch["image"])
        bound = self.bound(inputs, targets, latent_noise(key))
        distortion, rate = tf.reduce_mean(bound.distortion), tf.reduce_mean(bound.rate)
        elbo = distortion + rate
        metrics = {
            "elbo": elbo,
            "bits_per_dim_bound": bits_per_dim(elbo),
            "distortion": distortion,
            "rate": rate,
            "distortion_nans": tf.cast(tf.math.is_nan(distortion), tf.float32),
            "rate_nans": tf.cast(tf.math.is_nan(rate), tf.float32),
        }
        if self.config.rate_per_resolution:
            metrics |= self._rates_by_resolution(bound)
        return Loss(distortion + self.config.rate_weight * rate, metrics)

    def bound(
        self, inputs: tf.Tensor, targets: tf.Tensor, draw: Draw, sampled_kl: bool = False, exact: bool = False
    ) -> Bound:
        """The negative evidence lower bound of images, term by term (paper, equation 2).

        Args:
          inputs: preprocessed images, float32 [B, R, R, 3].
          targets: the same images in [-1, 1], of the same shape.
          draw: noise of the stochastic layers.
          sampled_kl: see `network.inference_layer`.
          exact: whether the probabilities of all levels sum to 1, which those of the published buckets do not.
        """
        inferred = self.network.infer(inputs, draw, sampled_kl)
        parameters = self.network.mixture_parameters(inferred.features)
        buckets = self.exact_buckets if exact else self.buckets
        log_prob = logistic_mixture.log_prob(parameters, targets, buckets)  # [B, R, R]
        return Bound(
            distortion=tf.reduce_sum(log_prob, axis=[1, 2]) / -self.spec.dims,
            rates=[tf.reduce_sum(kl, axis=[1, 2, 3]) / self.spec.dims for kl in inferred.kls],
        )

    def _rates_by_resolution(self, bound: Bound) -> dict[str, tf.Tensor]:
        totals: dict[str, list[tf.Tensor]] = {}
        for block, rate in zip(self.architecture.decoder, bound.rates, strict=True):
            totals.setdefault(f"rate_at_{block.resolution}", []).append(rate)
        return {name: tf.reduce_mean(tf.add_n(rates)) for name, rates in totals.items()}

    # What the commands need -----------------------------------------------------------------------------

    def images_wanted(self, first: int, count: int, options: SampleOptions) -> np.ndarray:
        return sampling.images_wanted(first, count, options)

    def sample(
        self,
        count: int,
        key: Key,
        options: SampleOptions,
        callback: SampleCallback | None = None,
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples of the kind that `options` ask for. See `System.sample`."""
        del labels
        batch_size = options.sample_batch or self.config.sample_batch
        return self._sampler.sample(count, key, options, batch_size, callback, images)

    def sample_shape(self, options: SampleOptions) -> tuple[int, ...]:
        """Of `--kind=pictures` a sample is a column of the grid. See `System.sample_shape`."""
        height, width, channels = self.spec.shape
        config = self.config
        rows = picture_rows(config.num_variables_visualize, config.num_temperatures_visualize)
        return (rows * height if options.kind == "pictures" else height, width, channels)

    def sample_grid(self, samples: np.ndarray, originals: np.ndarray, options: SampleOptions) -> np.ndarray:
        return sampling.sample_grid(samples, originals, options)

    def evaluate(
        self, batches: Iterable[dict[str, np.ndarray]], options: EvaluateOptions, folder: pathlib.Path
    ) -> dict[str, float]:
        """The evidence lower bound, from one draw of the latents for each image. See `System.evaluate`."""
        return self._evaluator.evaluate(batches, options)

    def evaluation_result(self, means: dict[str, float | np.ndarray]) -> dict[str, float | np.ndarray]:
        """Turns "elbo_filtered" into the mean over the images with a finite bound. See `System.evaluation_result`."""
        finite = 1 - means["non_finite"]  # share of the images whose bounds "elbo_filtered" has the sum of
        return means | {"elbo_filtered": means["elbo_filtered"] / finite if finite > 0 else 0.0}

    def pictures(self, images: np.ndarray, key: Key) -> dict[str, np.ndarray]:
        """Originals, partial reconstructions and samples as one grid. See `System.pictures`."""
        return {"pictures": self._picture_grid(images, key)}

    def _picture_grid(self, images: np.ndarray, key: Key) -> np.ndarray:
        """uint8 [rows R, B R, 3]."""

        def noises() -> Iterator[Noise]:
            yield dataclasses.replace(Noise.of(key), latents=posterior_noise(key))
            yield from (Noise.of(key.fold(row)) for row in itertools.count(1))

        inputs, _ = self.preprocessing.input_and_target(images)
        config = self.config
        rows = config.num_variables_visualize, config.num_temperatures_visualize
        return picture_grid(self.network, images, inputs, noises(), *rows)

    def _picture_columns(self, images: np.ndarray, key: Key) -> np.ndarray:
        """Column i of the grid is a function of the key, i and image i alone: uint8 [B, rows R, R, 3]."""
        return np.stack(np.split(self._picture_grid(images, key), len(images), axis=1))

    def signatures(self) -> dict[str, tf.types.experimental.GenericFunction]:
        return exported.signatures(self)

    def load_published(self, path: str, state: TrainState) -> None:
        """See `System.load_published`. Of a path that no flag names, the files with the same stem are read, too."""
        config = self.config
        files = published.Files(
            config.restore_path, config.restore_ema_path, config.restore_optimizer_path, config.restore_log_path
        )
        if path not in (files.weights, files.averages):
            files = published.files_beside(path)
        for what, name in dataclasses.asdict(files).items():
            logging.info("%s: %s", what, name or "none")
        rate = self.state.restored_rate if config.restart_warmup else None
        step = published.load_into(files, self.network, state.averages[0].averages, state.optimizer, rate)
        state.step.assign(step)
        if config.restart_warmup:
            self.state.restored_step.assign(step)
