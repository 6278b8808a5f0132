"""Spectral normalisation of weights by power iteration (Miyato et al., arXiv:1802.05957), with the original's rules.

A weight W with `out` outputs counts as the matrix M = reshape(W, [-1, out]). Of its largest singular value only an
estimate is known, by a row vector u [1, out] that is kept from step to step and improved a little in each.

Nothing here changes a variable: the improved u is returned, and stored by whoever wants the estimate to go on.
"""

from __future__ import annotations

import tensorflow as tf

_SMALLEST_SQUARE = 1e-12  # a vector whose sum of squares is less is divided by 1e-6 instead of its norm
_MARGIN = 1e-6  # added to the norm of weights that begin as zero


def unit(vector: tf.Tensor) -> tf.Tensor:
    """vector / sqrt(max(sum of squares, 1e-12)): of length 1, or less for vectors shorter than 1e-6.

    The bound matters: the weights that begin as zero are 1e-10, and their u shrinks towards 0 until they have grown.
    """
    return vector / tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(vector)), _SMALLEST_SQUARE))


def power_iteration(matrix: tf.Tensor, u: tf.Tensor, iterations: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Approximate singular vectors of the largest singular value (Miyato et al., algorithm 1).

    Args:
      matrix: [in, out].
      u: [1, out], from the last time.
      iterations: 1 or more.

    Returns:
      v [1, in] and the new u [1, out], constants to a gradient.

    Raises:
      ValueError: no iteration.
    """
    if iterations < 1:
        raise ValueError(f"{iterations} power iterations, expected 1 or more: without one there is no estimate")
    matrix = tf.stop_gradient(matrix)
    for _ in range(iterations):
        v = unit(tf.matmul(u, matrix, transpose_b=True))
        u = unit(tf.matmul(v, matrix))
    return tf.stop_gradient(v), tf.stop_gradient(u)


def normalized(
    weight: tf.Tensor, u: tf.Tensor, *, iterations: int = 1, target: float = 1.0, zero: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """A weight over the estimate s = v M u^T of its spectral norm, times `target`.

    Args:
      weight: [..., out].
      u: [1, out], from the last time.
      iterations: of the power iteration.
      target: spectral norm of the result.
      zero: of a weight that begins as zero. It is only scaled down, where s + 1e-6 is above 1, and never up.

    Returns:
      The weight, like `weight`, and the new u. The gradient takes u and v for constants, and s for a function of M.
    """
    matrix = tf.reshape(weight, [-1, weight.shape[-1]])
    v, u = power_iteration(matrix, u, iterations)
    norm = tf.reshape(tf.matmul(tf.matmul(v, matrix), u, transpose_b=True), [])
    if not zero:
        return weight / norm * target, u
    norm += _MARGIN
    # Not simplified where the norm is below 1 and the quotient cancels: rounding is to match the original's.
    return weight / norm * tf.minimum(norm, 1.0) * target, u
