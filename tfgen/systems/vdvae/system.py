"""VDVAE as a `System`: configuration to network, loss, sampler, evaluation and export.

Child, "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images", ICLR 2021.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from tfgen.data.source import ImageSpec, Splits
from tfgen.likelihood import logistic_mixture
from tfgen.likelihood.bits import bits_per_dim
from tfgen.randomness import Key
from tfgen.settings import flag
from tfgen.systems.base import Batch, Loss, SampleCallback, System
from tfgen.systems.vdvae import data, published
from tfgen.systems.vdvae.config import Config
from tfgen.systems.vdvae.network import VDVAE, Draw
from tfgen.systems.vdvae.preprocess import preprocessing
from tfgen.training.optimizers import AdamW
from tfgen.training.recipe import Recipe
from tfgen.training.schedules import LinearWarmup
from tfgen.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Extra flags of `tfgen.sample`."""

    temperature: str = flag("1", "factor on the standard deviation of the prior: a number, or one for each layer")


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Extra flags of `tfgen.evaluate`."""

    importance_samples: int = flag(
        1, "latents drawn for each image; above 1 also the importance-weighted bound of that many", minimum=1
    )
    noise_seed: int = flag(0, "image i is evaluated with noise that is a function of this seed and i")


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
    window_statistics = {
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
        self.buckets = logistic_mixture.FIVE_BIT if self.preprocessing.low_bit else logistic_mixture.EIGHT_BIT
        self.network = VDVAE(self.architecture, config.zdim, config.num_mixtures, config.seed)

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
            learning_rate=LinearWarmup(config.lr, config.warmup_iters),
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

    def bound(self, inputs: tf.Tensor, targets: tf.Tensor, draw: Draw, sampled_kl: bool = False) -> Bound:
        """The negative evidence lower bound of images, term by term (paper, equation 2).

        Args:
          inputs: preprocessed images, float32 [B, R, R, 3].
          targets: the same images in [-1, 1], of the same shape.
          draw: noise of the stochastic layers.
          sampled_kl: see `network.inference_layer`.
        """
        inferred = self.network.infer(inputs, draw, sampled_kl)
        parameters = self.network.mixture_parameters(inferred.features)
        log_prob = logistic_mixture.log_prob(parameters, targets, self.buckets)  # [B, R, R]
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

    def sample(
        self, count: int, key: Key, options: SampleOptions, callback: SampleCallback | None = None
    ) -> np.ndarray:
        """Unconditional samples. See `System.sample`."""
        size = self.config.sample_batch
        temperatures = tf.constant(self._temperatures(options.temperature), tf.float32)
        parts = []
        for first in range(0, count, size):
            # A short last batch is drawn whole: one compiled sampler serves all.
            drawn = key.skip(first)
            parts.append(self._draw(size, drawn.seed, drawn.first_sample, temperatures).numpy()[: count - first])
            if callback is not None:
                callback(min(first + size, count), count, None)
        return np.concatenate(parts)

    def _temperatures(self, text: str) -> list[float]:
        """One temperature for each stochastic layer, from "0.8" or "1,1,0.9,..."."""
        layers = len(self.architecture.decoder)
        try:
            values = [float(item) for item in text.split(",")]
        except ValueError:
            values = []
        if len(values) not in (1, layers) or any(not 0 <= value < math.inf for value in values):
            raise ValueError(
                f"--temperature={text}: expected one number of at least 0, or one for each of the {layers} layers, "
                "separated by commas"
            )
        return values * layers if len(values) == 1 else values

    @tf.function(autograph=False, reduce_retracing=True)
    def _draw(self, count, seed, first_sample, temperatures) -> tf.Tensor:
        """uint8 [count, R, R, 3]."""
        key = Key(seed, first_sample)
        features = self.network.generate(count, latent_noise(key), temperatures=tf.unstack(temperatures))
        return self.draw_images(features, key)

    def draw_images(self, features: tf.Tensor, key: Key) -> tf.Tensor:
        """uint8 [B, R, R, 3], drawn from the head given the decoder's features [B, R, R, width]."""
        parameters = self.network.mixture_parameters(features)
        shape = tf.unstack(tf.shape(features))[:3]
        mixture = key.fold("mixture").uniform([*shape, self.config.num_mixtures])
        logistic = key.fold("logistic").uniform([*shape, 3])
        images = logistic_mixture.sample(
            parameters, logistic_mixture.open_interval(mixture), logistic_mixture.open_interval(logistic)
        )
        return logistic_mixture.to_uint8(images)

    def evaluate(
        self, batches: Iterable[dict[str, np.ndarray]], options: EvaluateOptions, folder: pathlib.Path
    ) -> dict[str, float]:
        """The evidence lower bound, from one draw of the latents for each image. See `System.evaluate`."""
        raise NotImplementedError

    def signatures(self) -> dict[str, tf.types.experimental.GenericFunction]:
        raise NotImplementedError

    def load_published(self, path: str, state: TrainState) -> None:
        raise NotImplementedError


def latent_noise(key: Key) -> Draw:
    """The noise of every stochastic layer, as a function of the key."""
    stream = key.fold("latents")
    return lambda layer, shape: stream.fold(layer).normal(shape)
