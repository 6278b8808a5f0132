"""A Gaussian cut into the 256 levels of a sub-pixel: Ho et al. (2020), section 3.3, equation 13.

Pixels live in [-1, 1]: level x of 256 is at x / 127.5 - 1. A level stands for the interval of 1 / 255 to both sides;
the lowest and the highest level extend to infinity.
"""

from __future__ import annotations

import math

import tensorflow as tf

_MIN_MASS = 1e-12
_HALF_WIDTH = 1 / 255
_LOWEST, _HIGHEST = -0.999, 0.999


def log_prob(x: tf.Tensor, mean: tf.Tensor, log_std: tf.Tensor) -> tf.Tensor:
    """Log of the mass in the interval of each level, in nats.

    Floored at ln(1e-12) = -27.6, where the gradient is 0. In float32 the mass of an interval in the tails is a
    difference of two rounded numbers and reaches the floor at about 5 standard deviations; below -12 nats the result is
    rounding. Published likelihoods have these tails, so that nothing more exact stands here.

    Args:
      x: floating point, in [-1, 1], on the grid of the levels.
      mean, log_std: same dtype; shapes broadcast against each other.

    Returns:
      Of the broadcast shape.
    """
    distance, precision = x - mean, tf.exp(-log_std)
    below_upper = approximate_normal_cdf(precision * (distance + _HALF_WIDTH))
    below_lower = approximate_normal_cdf(precision * (distance - _HALF_WIDTH))
    # Each logarithm has a floored argument of its own: a branch that is not taken still has a gradient, and it must be
    # a number for tf.where to multiply it by 0.
    return tf.where(
        x < _LOWEST,
        _floored_log(below_upper),
        tf.where(x > _HIGHEST, _floored_log(1 - below_lower), _floored_log(below_upper - below_lower)),
    )


def approximate_normal_cdf(x: tf.Tensor) -> tf.Tensor:
    """Standard normal distribution function, to 3e-4: Page (1977), Approximations to the cumulative normal function."""
    scaled = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
    # TensorFlow's float32 tanh may be off by its last digit near -1 and 1. That is half a percent of a mass of 1e-5, so
    # the digit is taken from float64.
    return 0.5 * (1 + tf.cast(tf.tanh(tf.cast(scaled, tf.float64)), x.dtype))


def _floored_log(mass: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.maximum(mass, _MIN_MASS))
