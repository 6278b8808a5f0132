"""Two networks that learn on a cross of factors, tested on combinations that they have not seen.

The original's task gentest (Du & Mordatch, arXiv:1903.08689, section 4.3). A network of one factor (size, shape or
rotation) and one of the position learn together, on images that vary in one of both at a time. The chain that draws
their negatives is one of its own: noise is added twice, then the gradient of the position is taken away, always that
at the chain's start, then the gradient of the other factor where the chain is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfgen.data.errors import DataError
from tfgen.data.source import Source
from tfgen.randomness import Key, host_generator
from tfgen.systems.ebm import combination, concepts, sampler, sprites
from tfgen.systems.ebm.combination import Arithmetic, Energy, FusedArithmetic
from tfgen.systems.ebm.networks import EnergyNetwork, Weights
from tfgen.systems.ebm.objective import Objective, total_loss
from tfgen.systems.ebm.replay import ReplayBuffer, goes_on
from tfgen.systems.ebm.sampler import Chain
from tfgen.training.clipped_adam import ClippedAdam

_REPLAYED = 0.05  # share of the chains that begin at earlier samples
_START_MEAN, _START_DEVIATION, _TEST_DEVIATION = 0.5, 0.5, 1.0
_TEST_CALLS = 3  # of the sampler, each beginning where the one before ended
_TEST_PARTS = 120
_OBJECTIVE = Objective()  # contrastive divergence, squares of energies and the gradient through the sampler


class DivergedError(RuntimeError):
    """Training whose loss is no number any more."""


# Rows ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of the data set, int64: what is learned (some of them more than once), and what is tested."""

    training: np.ndarray
    unseen: np.ndarray


def rows_of(factor: str, latents: np.ndarray, fraction: float, generator: np.random.RandomState) -> Rows:
    """Rows of the crosses and of the rest of their plane.

    The position's cross has all positions of the smallest first shape in one rotation, the factor's all its values in
    the middle. With N and n images the first is learned N // n times for each time of the second, as in the original.

    Args:
      factor: "size", "shape" or "rot".
      latents: of the data set, [n, 6].
      fraction: share of the plane's images, without the one of both crosses, that is learned as well.
      generator: draws which.

    Raises:
      DataError: there are no such images.
    """
    positions, values = sprites.mode("dpos_only"), sprites.mode(concepts.CONCEPTS[factor].subsets[0])
    shared = dict(positions.fixed.items() & values.fixed.items())
    plane = dataclasses.replace(positions, fixed=shared).rows(latents)
    of_position, of_factor = positions.rows(latents), values.rows(latents)
    unseen = np.setdiff1d(plane, np.union1d(of_position, of_factor))
    if not (len(of_position) and len(of_factor) and len(unseen)):
        raise DataError(
            f"{len(of_position)} images that differ in their position, {len(of_factor)} in their {factor} and "
            f"{len(unseen)} in both: expected some of each; name dSprites, --dataset=dsprites"
        )
    others = np.setdiff1d(plane, np.intersect1d(of_position, of_factor))
    drawn = others[generator.permutation(len(others))[: int(fraction * len(others))]]
    repeats = max(len(of_position) // len(of_factor), 1)
    training = np.concatenate([np.tile(of_position, repeats), of_factor, drawn])
    return Rows(training, np.setdiff1d(unseen, drawn))


# The chain -------------------------------------------------------------------------------------------------


class JointMoves:
    """`sampler.Moves` of the joint chain; see the top of this file.

    Args:
      factor: energy whose gradient is taken where the chain is.
      position: energy whose gradient is taken at the start, once.
      starts: where the chain begins, float32 [B, ...].
      arithmetic: two draws for each step.
    """

    def __init__(self, factor: Energy, position: Energy, starts: tf.Tensor, arithmetic: Arithmetic):
        self._factor, self._arithmetic = factor, arithmetic
        self._at_start = combination.gradient_of(position, starts)

    def begin(self, x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return self._noised(x, step)

    def move(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return self._noised(self.end(y, step), step + 1)

    def end(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        del step
        y = self._arithmetic.moved(y, self._at_start)
        return self._arithmetic.moved(y, combination.gradient_of(self._factor, y))

    def _noised(self, x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return self._arithmetic.noised(self._arithmetic.noised(x, 2 * step), 2 * step + 1)


def joint_chain(starts: tf.Tensor, factor: Energy, position: Energy, steps: int, arithmetic: Arithmetic) -> tf.Tensor:
    """Images at the end of a chain, float32 [B, ...] like the starts. A gradient can go back through every step."""
    return sampler.run(starts, steps, JointMoves(factor, position, starts, arithmetic))


@dataclasses.dataclass(frozen=True)
class Pair:
    """The network of the factor and that of the position."""

    factor: EnergyNetwork
    position: EnergyNetwork

    def normalized(self) -> tuple[Weights, Weights]:
        return self.factor.normalized(), self.position.normalized()

    def energies(self, weights: tuple[Weights, Weights], labels: Sequence[tf.Tensor]) -> tuple[Energy, Energy]:
        """Energies given labels of the factor and of the position, [B, K] each."""
        networks = (self.factor, self.position)
        factor, position = map(combination.concept, networks, weights, labels)
        return factor, position

    def store_vectors(self, weights: tuple[Weights, Weights]) -> None:
        for network, part in zip((self.factor, self.position), weights, strict=True):
            network.store_vectors(part)

    @property
    def trained(self) -> list[tf.Variable]:
        return [*self.factor.trained.values(), *self.position.trained.values()]


# Training --------------------------------------------------------------------------------------------------


class JointTraining:
    """Steps of the training of a pair, each a compiled function.

    Args:
      pair: the networks, which are changed.
      chain: settings of the joint chain.
      batch_size: images of a step.
      learning_rate: of the clipped Adam.
      capacity: images of the replay buffer, which keeps them as they are.
      key: of all random numbers.
      keep_vectors: keep what a step has improved of the power iteration.

    Raises:
      ValueError: a buffer that is smaller than a batch.
    """

    def __init__(
        self,
        pair: Pair,
        chain: Chain,
        batch_size: int,
        learning_rate: float,
        capacity: int,
        key: Key,
        keep_vectors: bool = True,
    ):
        side = pair.factor.shape.side
        self._pair, self._chain, self._learning_rate, self._key = pair, chain, learning_rate, key
        self._keep_vectors, self._optimizer = keep_vectors, ClippedAdam()
        self._optimizer.build(pair.trained)
        self.buffer = ReplayBuffer(capacity, batch_size, [side, side, 1], tf.float32)
        self._compiled = tf.function(self._step)

    def step(self, images: np.ndarray, labels: Sequence[np.ndarray], number: int) -> dict[str, tf.Tensor]:
        """One update; returns float32 scalars by name.

        Args:
          images: positives, float32 [batch_size, side, side, 1].
          labels: of the factor and of the position, [batch_size, K] each.
          number: of the step, from 0.
        """
        labels = tuple(tf.constant(label, tf.float32) for label in labels)
        return self._compiled(tf.constant(images), labels, tf.constant(number, tf.int64))

    def _step(self, images, labels, number):
        key = self._key.fold(number)
        starts = self.starts(key, images.shape)
        with tf.GradientTape() as tape:
            weights = self._pair.normalized()
            loss, metrics, negatives = self.loss(
                weights, images, labels, starts, FusedArithmetic(self._chain, key.fold("chain"))
            )
        self._optimizer.apply(tape.gradient(loss, self._pair.trained), self._learning_rate)
        if self._keep_vectors:
            self._pair.store_vectors(weights)
        self.buffer.add(negatives)
        return metrics

    def starts(self, key: Key, shape: Sequence[int]) -> tf.Tensor:
        """Where chains begin: at noise, and one in twenty at an earlier sample where there are any."""
        fresh = _START_MEAN + _START_DEVIATION * key.fold("starts").normal(shape)
        stored = self.buffer.at(self.buffer.draw(key.fold("replay"), shape[0])).images
        old = goes_on(key.fold("replayed").uniform([shape[0]]), 1.0 - _REPLAYED) & (self.buffer.length > 0)
        return tf.where(old[:, tf.newaxis, tf.newaxis, tf.newaxis], stored, fresh)

    def loss(
        self,
        weights: tuple[Weights, Weights],
        images: tf.Tensor,
        labels: Sequence[tf.Tensor],
        starts: tf.Tensor,
        arithmetic: Arithmetic,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor], tf.Tensor]:
        """The loss of a batch, what is logged, and the negatives as constants."""
        factor, position = self._pair.energies(weights, labels)
        both = combination.conjunction([factor, position])
        drawn = joint_chain(starts, factor, position, self._chain.steps, arithmetic)
        negatives = tf.stop_gradient(drawn)
        stopped = combination.conjunction(self._pair.energies((weights[0].stopped(), weights[1].stopped()), labels))
        positive, negative, of_chain = both(images), both(negatives), stopped(drawn)
        loss, _ = total_loss(positive, negative, of_chain, _OBJECTIVE)
        metrics = {
            "loss": loss,
            "energy_positive": tf.reduce_mean(positive),
            "energy_negative": tf.reduce_mean(negative),
        }
        return loss, metrics, negatives


def batches(rows: np.ndarray, batch_size: int, epochs: int, limit: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of each step. An epoch ends after `limit` steps, or where less than a batch is left.

    Raises:
      DataError: fewer rows than a batch has.
    """
    if len(rows) < batch_size:
        raise DataError(f"{len(rows)} images to learn, expected {batch_size} or more: lower --batch_size")
    for epoch in range(epochs):
        order = rows[host_generator(seed, "order of the images", epoch).permutation(len(rows))]
        steps = min(len(rows) // batch_size, limit)
        yield from order[: steps * batch_size].reshape(steps, batch_size)


# Test ------------------------------------------------------------------------------------------------------


class Generalization:
    """The test: how far samples, given labels of combinations, are from the images of these.

    Args:
      pair: trained networks.
      chain: settings of the joint chain.
      advance: keep what a call has improved in the vectors of the power iteration, as the original does.
    """

    def __init__(self, pair: Pair, chain: Chain, advance: bool = False):
        self._pair, self._chain, self._advance = pair, chain, advance
        self._compiled = tf.function(self._sample, reduce_retracing=True)

    def sample(self, labels: Sequence[np.ndarray], key: Key) -> np.ndarray:
        """Images float32 [B, side, side, 1] after three chains in a row.

        Args:
          labels: of the factor and of the position, [B, K] each.
          key: sample i is a function of its labels, the key and i.
        """
        side = self._pair.factor.shape.side
        labels = tuple(tf.constant(label, tf.float32) for label in labels)
        normal = key.fold("starts").normal([len(labels[0]), side, side, 1])
        images = _START_MEAN + _TEST_DEVIATION * normal
        for call in range(_TEST_CALLS):
            call_key = key.fold("chain", call)
            images = self._compiled(images, labels, call_key.seed, call_key.first_sample)
        return images.numpy()

    def _sample(self, starts, labels, seed, first_sample):
        weights = self._pair.normalized()
        factor, position = self._pair.energies(weights, labels)
        arithmetic = FusedArithmetic(self._chain, Key(seed, first_sample))
        images = joint_chain(starts, factor, position, self._chain.steps, arithmetic)
        if self._advance:
            self._pair.store_vectors(weights)
        return images


def parts_of(rows: np.ndarray) -> list[np.ndarray]:
    """The test's rows in 120 parts, or as many as there are rows."""
    return np.array_split(rows, min(_TEST_PARTS, len(rows)))


def mean_squared_errors(
    source: Source,
    parts: Sequence[np.ndarray],
    sample: Callable[[np.ndarray, int], np.ndarray],
    scaled: Callable[[np.ndarray], np.ndarray],
) -> Iterator[float]:
    """Mean over the pixels of (sample - image)^2, part by part.

    Args:
      parts: rows of the source.
      sample: float32 [n, side, side, 1] for latent values [n, 6] and the number of the images before them.
      scaled: float32 of images, uint8.
    """
    first = 0
    for part in parts:
        images, latents = concepts.read(source, part)
        yield float(np.mean(np.square(sample(latents, first) - scaled(images))))
        first += len(part)
