"""Mixtures of logistic distributions over the sub-pixels of an image, as densities on the real line.

Meng et al. (2021), "Improved Autoregressive Modeling with Distribution Smoothing", model images with Gaussian noise
added. Those have no levels, so that what PixelCNN++ (Salimans et al., 2017) cuts into buckets is left whole. Parameters
are laid out, and colours depend on one another, as in `tfgen.likelihood.logistic_mixture`.
"""

from __future__ import annotations

import tensorflow as tf

from tfgen.likelihood.logistic_mixture import combine, conditional_means, split_parameters


def log_density(parameters: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Log-density of each pixel, all its colours together.

    A density is one per unit of `target`, and has no upper bound but that of the narrowest component: 7 - ln 4 for each
    colour. Targets may lie anywhere.

    Args:
      parameters: floating point [..., 10 M] for three colours, [..., 3 M] for one; layout as in
        `logistic_mixture.split_parameters`, which floors the log-scales at -7.
      target: same dtype [..., C].

    Returns:
      [...], nats.

    Raises:
      ValueError: parameters and target whose last axes do not go together.
    """
    mixture = split_parameters(parameters, target.shape[-1])
    distance = target[..., tf.newaxis] - conditional_means(mixture, target)  # [..., C, M]
    by_colour = logistic_log_density(distance, mixture.log_scales)  # [..., C, M]
    return combine(mixture.logits, tf.reduce_sum(by_colour, axis=-2))


def logistic_log_density(distance: tf.Tensor, log_scales: tf.Tensor) -> tf.Tensor:
    """Log-density of logistic distributions, in nats: with z = distance exp(-log_scale),

        ln f = z - log_scale - 2 ln(1 + exp(z))

    Args:
      distance: value minus mean, floating point.
      log_scales: same dtype; shapes broadcast against each other.
    """
    scaled = distance * tf.exp(-log_scales)  # z
    return scaled - log_scales - 2 * tf.nn.softplus(scaled)
