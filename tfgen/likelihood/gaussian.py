"""Gaussian distributions with independent entries, given by their mean and the log of their standard deviation.

`kl_divergence_of_log_variances` takes the log of the variance, which diffusion models predict.
"""

from __future__ import annotations

import math

import tensorflow as tf


def draw(mean: tf.Tensor, log_std: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """mean + exp(log_std) * noise: Kingma & Welling (2014), section 2.4.

    Args:
      mean, log_std: floating point, shapes that broadcast against each other.
      noise: standard normal numbers, of the shape of the result.
    """
    return tf.exp(log_std) * noise + mean


def log_prob(x: tf.Tensor, mean: tf.Tensor, log_std: tf.Tensor) -> tf.Tensor:
    """Log-density of each entry of `x`, in nats. Floating point; shapes broadcast against each other."""
    return -0.5 * tf.square((x - mean) / tf.exp(log_std)) - log_std - 0.5 * math.log(2.0 * math.pi)


def kl_divergence(mean_q: tf.Tensor, log_std_q: tf.Tensor, mean_p: tf.Tensor, log_std_p: tf.Tensor) -> tf.Tensor:
    """KL(q || p) of each entry, in nats.

        ln(std_p / std_q) - 1/2 + (std_q^2 + (mean_q - mean_p)^2) / (2 std_p^2)

    Nothing is clamped: a log_std_p below about -44 divides by a float32 zero and the result is infinite or NaN, which
    the rules about steps to skip have to see.

    Args:
      mean_q, log_std_q, mean_p, log_std_p: floating point, shapes that broadcast against each other.

    Returns:
      Non-negative up to rounding, of the broadcast shape.
    """
    spread = tf.square(tf.exp(log_std_q)) + tf.square(mean_q - mean_p)
    return log_std_p - log_std_q - 0.5 + 0.5 * spread / tf.square(tf.exp(log_std_p))


def kl_divergence_of_log_variances(
    mean_q: tf.Tensor, log_variance_q: tf.Tensor, mean_p: tf.Tensor, log_variance_p: tf.Tensor
) -> tf.Tensor:
    """KL(q || p) of each entry, in nats. Of the variances only the ratio and 1 / variance of p are formed.

        (-1 + lv_p - lv_q + exp(lv_q - lv_p) + (mean_q - mean_p)^2 exp(-lv_p)) / 2

    Divergences of the size of float32 rounding, 1e-7, are its cancellation and may be negative.

    Args:
      mean_q, log_variance_q, mean_p, log_variance_p: floating point, shapes that broadcast against each other.

    Returns:
      Of the broadcast shape.
    """
    ratio = tf.exp(log_variance_q - log_variance_p)
    distance = tf.math.squared_difference(mean_q, mean_p) * tf.exp(-log_variance_p)
    return 0.5 * (-1.0 + log_variance_p - log_variance_q + ratio + distance)
