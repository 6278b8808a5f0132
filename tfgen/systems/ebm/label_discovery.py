"""The size of what an image shows, found by a chain of labels that descends the energy of the image.

The original's task labeldiscover. Its chain has noise before each update, like chains of images.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfgen.randomness import Key
from tfgen.systems.ebm import networks, sampler
from tfgen.systems.ebm.networks import EnergyNetwork
from tfgen.systems.ebm.sampler import Chain, FusedMoves, Moves, Noise, PlainMoves

LOW, HIGH = 0.5, 1.0  # range of sizes
_STEP_SIZE, _NOISE = 1.0, 0.03


def starts(generator: np.random.RandomState, count: int) -> np.ndarray:
    """Where chains begin: anywhere in the range of sizes, float64 [count, 1]."""
    return generator.uniform(LOW, HIGH, [count, 1])


class Discovery:
    """Chains of labels under the energy of given images.

    Args:
      network: conditional on a label of one value, the size.
      steps: of a chain.
      advance: keep what a call has improved in the vectors of the power iteration, as the original does.

    Raises:
      ValueError: labels of another width.
    """

    def __init__(self, network: EnergyNetwork, steps: int, advance: bool = False):
        if network.shape.label_columns != 1:
            raise ValueError(f"a network with labels of {network.shape.label_columns} values, expected 1, the size")
        self.network, self.advance = network, advance
        self.chain = Chain(steps, _STEP_SIZE, _NOISE, LOW, HIGH)
        self._compiled = tf.function(self._find, reduce_retracing=True)

    def run(self, images: tf.Tensor, labels: tf.Tensor, noise: Noise) -> tf.Tensor:
        """Labels at the end of the chain, float32 [B, 1].

        Args:
          images: float32 [B, side, side] or [B, side, side, channels].
          labels: where chains begin, float32 [B, 1].
          noise: see `sampler.drawn` and `sampler.given`.
        """
        return self._run(images, labels, lambda energy: PlainMoves(energy, self.chain, noise))

    def find(self, images: tf.Tensor, labels: tf.Tensor, key: Key) -> tf.Tensor:
        """`run` as one compiled function with fused updates. Label i is a function of its image, start, key and i."""
        return self._compiled(tf.convert_to_tensor(images), tf.cast(labels, tf.float32), key.seed, key.first_sample)

    def _find(self, images, labels, seed, first_sample):
        key = Key(seed, first_sample)
        return self._run(images, labels, lambda energy: FusedMoves(energy, self.chain, key))

    def _run(self, images: tf.Tensor, labels: tf.Tensor, moves_of) -> tf.Tensor:
        weights = self.network.normalized()

        def energy(labels: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
            del step
            return self.network.energy(weights, images, labels, networks.OFF)

        moves: Moves = moves_of(energy)
        found = sampler.run(labels, self.chain.steps, moves)
        if self.advance:
            self.network.store_vectors(weights)
        return found


def mean_error(found: np.ndarray, true: np.ndarray) -> float:
    """Mean of |found - true| over labels [n, 1]."""
    return float(np.mean(np.abs(np.asarray(found, np.float64) - true)))
