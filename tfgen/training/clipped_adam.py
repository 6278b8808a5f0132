"""Adam that limits every entry of a gradient by what the entry has been: the optimizer of the energy-based models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfgen.training.optimizers import Adam
from tfgen.training.subgraph import subgraph

_DEVIATIONS, _ALWAYS = 3.0, 0.1  # an entry may be this many root mean squares, and so much besides
_ANY_SHAPE, _SCALAR = tf.TensorSpec(None, tf.float32), tf.TensorSpec([], tf.float32)


class ClippedAdam(Adam):
    """Adam (Kingma & Ba, arXiv:1412.6980, end of section 2) with a clip of single entries, of the code published with
    Du & Mordatch, arXiv:1903.08689. In update t = 1, 2, ...

        b <- 3 sqrt(v / (1 - beta2^t)) + 0.1
        g <- min(max(g, -b), b)
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon)

    The bound is taken before v is updated, yet corrected for t and not for t - 1, as in the original. In the first
    update it is 0.1. Attributes, and the errors of `apply`, are those of `Adam`.

    Args:
      beta1, beta2, epsilon: as above. The published runs have beta1 = 0.

    Raises:
      ValueError: an argument outside its range.
    """

    def __init__(self, beta1: float = 0.0, beta2: float = 0.999, epsilon: float = 1e-8):
        super().__init__(beta1, beta2, epsilon)

    def apply(
        self,
        gradients: Sequence[tf.Tensor | tf.IndexedSlices],
        learning_rate: float | tf.Tensor,
        take: tf.Tensor | None = None,
    ) -> None:
        """One update of all variables; arguments and errors as in `Adam.apply`."""
        correction = 1.0 - self.beta2_power
        dense = self._targets.dense(gradients)
        clipped = [
            self._clipped(gradient, variance.read_value(), correction)
            for gradient, variance in zip(dense, self.second_moments, strict=True)
        ]
        super().apply(clipped, learning_rate, take)

    @subgraph(_ANY_SHAPE, _ANY_SHAPE, _SCALAR)
    def _clipped(self, gradient, variance, correction):
        """One gradient within its bound."""
        bound = np.float32(_DEVIATIONS) * tf.sqrt(variance / correction) + np.float32(_ALWAYS)
        return tf.clip_by_value(gradient, -bound, bound)

    @subgraph(*[_ANY_SHAPE] * 4, _SCALAR, _SCALAR)
    def _updated(self, value, mean, variance, gradient, keep, step_size):
        """New value, m and v of one variable. There is no weight decay: `keep` is 1."""
        del keep
        beta1, beta2 = np.float32(self.beta1), np.float32(self.beta2)
        # Rounded as in the fused operation of the original, which also has 1 - beta in float32.
        mean = mean + (gradient - mean) * (np.float32(1.0) - beta1)
        variance = variance + (tf.square(gradient) - variance) * (np.float32(1.0) - beta2)
        return value - step_size * mean / (tf.sqrt(variance) + self.epsilon), mean, variance
