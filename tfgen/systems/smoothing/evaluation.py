"""Likelihoods: of smoothed images, of images given smoothed ones, and the bound that both stages give together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen.likelihood import gaussian
from tfgen.likelihood.bits import bits_per_dim
from tfgen.randomness import Key
from tfgen.settings import SettingsError, flag
from tfgen.systems.smoothing import bounds, data
from tfgen.systems.smoothing.config import STAGE1_HELP, Stage

if TYPE_CHECKING:
    from tfgen.systems.smoothing.system import DistributionSmoothing

# What a stage minimises, in bits per dimension of its images.
OWN_METRIC = {
    Stage.PLAIN: "bits_per_dim",
    Stage.SMOOTHED: "bits_per_dim_smoothed",
    Stage.REVERSE: "bits_per_dim_given_smoothed",
}


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Extra flags of `tfgen.evaluate`."""

    importance_samples: int = flag(
        1,
        "smoothed images drawn for each image in the bound of both stages; above 1 also the importance-weighted bound",
        minimum=1,
    )
    noise_seed: int = flag(0, "image i is evaluated with noise that is a function of this seed and i")
    stage1_run: str = flag("", STAGE1_HELP)
    original_average: bool = flag(
        False,
        "also the number that the original prints, on one process: whole batches, and one less in the denominator",
    )


def loss_metrics(stage: Stage, nats: tf.Tensor, dims: int) -> dict[str, tf.Tensor]:
    """What is logged of a training step.

    Args:
      nats: negative log-likelihood of an image, the mean over the batch.
      dims: sub-pixels of an image.
    """
    return {OWN_METRIC[stage]: bits_per_dim(nats / dims)}


class Evaluator:
    """Evaluates a system. All batches, of any size, and all draws share one compiled function."""

    def __init__(self, system: DistributionSmoothing):
        self._system = system
        numbers = [tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int64)]
        signature = [tf.TensorSpec([None, *system.spec.shape], tf.uint8), *numbers]
        self._compiled = tf.function(self._terms_in_graph, input_signature=signature, autograph=False)

    def evaluate(self, batches: Iterable[dict[str, np.ndarray]], options: EvaluateOptions) -> dict[str, float]:
        """Means over the images of what `image_metrics` gives, and "examples". See `System.evaluate`."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in self._names(options)}
        own = OWN_METRIC[self._system.stage]
        examples, size, whole = 0, 0, []
        for batch in batches:
            images = batch["image"]
            examples += len(images)
            size = max(size, len(images))
            metrics = self.image_metrics(images, int(batch["index"][0]), options)
            for name, column in columns.items():
                column.append(metrics[name])
            if len(images) == size:
                whole.append(metrics[own].mean())
        # A rank without images counts as none of them in the mean over ranks, whatever it reports.
        means = {name: float(np.concatenate(column).mean()) if column else 0.0 for name, column in columns.items()}
        if options.original_average:
            means["original_average"] = _original_average(whole, getattr(batches, "ranks", 1))
        return {**means, "examples": examples}

    def image_metrics(self, images: np.ndarray, first: int, options: EvaluateOptions) -> dict[str, np.ndarray]:
        """What is known of each image, float64 [B] by name.

        * A plain model: "bits_per_dim", exact.
        * Stage 1: "bits_per_dim_smoothed", of the density of the image with noise, where pixels lie in [-1, 1].
        * Stage 2: "bits_per_dim_given_smoothed", of the density of the image (with its slight noise) given the smoothed
          one. Where stage 1 is there, also "bits_per_dim_two_stage_bound" and, with several importance samples,
          "bits_per_dim_two_stage_iw_bound": see `bounds`.
        * "..._8bit" of each density: the same where pixels have the unit of a level of 256.
        * "nats": the first one for a whole image.

        Args:
          images: uint8 [B, H, W, C].
          first: index of the first of them; the others follow.
        """
        system, dims = self._system, self._system.spec.dims
        terms = [self._terms(images, first, options.noise_seed, draw) for draw in range(self._draws(options))]
        own = terms[0].own
        metrics = {OWN_METRIC[system.stage]: bits_per_dim(own / dims)}
        if system.stage is Stage.REVERSE and system.stage1 is not None:
            bound = own + terms[0].prior - bounds.gaussian_entropy(system.config.noise, dims)
            metrics["bits_per_dim_two_stage_bound"] = bits_per_dim(bound / dims)
            if options.importance_samples > 1:
                bound = bounds.importance_weighted([-(term.own + term.prior + term.log_q) for term in terms])
                metrics["bits_per_dim_two_stage_iw_bound"] = bits_per_dim(bound / dims)
        if system.stage is not Stage.PLAIN:
            metrics |= {f"{name}_8bit": bounds.in_levels(value) for name, value in metrics.items()}
        return {**metrics, "nats": own}

    def _draws(self, options: EvaluateOptions) -> int:
        weighted = self._system.stage is Stage.REVERSE and self._system.stage1 is not None
        return options.importance_samples if weighted else 1

    def _names(self, options: EvaluateOptions) -> list[str]:
        """Names of `image_metrics`, which a rank without images has to know as well."""
        stage = self._system.stage
        names = [OWN_METRIC[stage]]
        if stage is Stage.REVERSE and self._system.stage1 is not None:
            names += ["bits_per_dim_two_stage_bound"]
            names += ["bits_per_dim_two_stage_iw_bound"] if options.importance_samples > 1 else []
        if stage is not Stage.PLAIN:
            names += [f"{name}_8bit" for name in names]
        return [*names, "nats"]

    def _terms(self, images: np.ndarray, first: int, noise_seed: int, draw: int) -> Terms:
        key = Key.create(noise_seed, "evaluation")
        numbers = tf.constant(first, tf.int64), tf.constant(draw, tf.int64)
        own, prior, log_q = self._compiled(tf.constant(images), key.seed, *numbers)
        return Terms(*(value.numpy().astype(np.float64) for value in (own, prior, log_q)))

    def _terms_in_graph(
        self, images: tf.Tensor, seed: tf.Tensor, first: tf.Tensor, draw: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        system, clean = self._system, data.scaled(images)
        key = Key(seed, first)
        # The image with its slight noise is the same at every draw of the smoothed one: the bound is of that image.
        smoothed, target = system.noisy(clean, key.fold(0), key.fold(draw))
        own = -tf.reduce_sum(system.log_prob(target, smoothed), axis=[1, 2])
        if smoothed is None or system.stage1 is None:
            return own, tf.zeros_like(own), tf.zeros_like(own)
        prior = -tf.reduce_sum(system.stage1.log_prob(smoothed), axis=[1, 2])
        deviation = tf.fill(tf.shape(clean), tf.math.log(system.config.noise))
        return own, prior, tf.reduce_sum(gaussian.log_prob(smoothed, clean, deviation), axis=[1, 2, 3])


def _original_average(whole_batches: list[float], ranks: int) -> float:
    """The mean over whole batches with one batch less in the denominator."""
    if ranks > 1:
        raise SettingsError(f"--original_average is of one process, found {ranks}: leave it out, or horovodrun")
    if len(whole_batches) < 2:
        raise SettingsError(
            f"--original_average divides by the whole batches less one, found {len(whole_batches)}: lower --batch_size"
        )
    return float(np.sum(whole_batches)) / (len(whole_batches) - 1)


@dataclasses.dataclass(frozen=True)
class Terms:
    """Terms of the bound of both stages for one draw of the smoothed images, float64 [B], in nats.

    Attributes:
      own: negative log-likelihood under the run's own stage.
      prior: -log p(smoothed) under stage 1; 0 without it.
      log_q: log q(smoothed | image) of the draw; 0 without stage 1.
    """

    own: np.ndarray
    prior: np.ndarray
    log_q: np.ndarray
