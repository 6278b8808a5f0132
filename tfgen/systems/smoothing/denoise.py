"""Smoothed images without their noise, by one step along the gradient of their log-density.

Meng et al., "Improved Autoregressive Modeling with Distribution Smoothing" (2021). The mean of the images that may lie
behind a smoothed one s is, with Tweedie's formula (Efron, 2011), s + noise^2 * grad ln p(s).
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfgen.likelihood.continuous_mixture import log_density


def denoise(
    network: Callable[[tf.Tensor], tf.Tensor], smoothed: tf.Tensor, noise: float, through_network: bool
) -> tf.Tensor:
    """One step from smoothed images: s + noise^2 * score.

    Args:
      network: from images [B, H, W, C] to the parameters of their mixtures, [B, H, W, 10 M] or [B, H, W, 3 M].
      smoothed: s, floating point [B, H, W, C]; pixels in [-1, 1] but for the noise.
      noise: standard deviation of the smoothing.
      through_network: whether the score is the gradient of ln p, as the formula has it. Otherwise the network's output
        is held constant, as in the published code: of what a pixel changes, only its own density is seen, and not that
        of the pixels after it.

    Returns:
      As `smoothed`; not clipped.
    """
    with tf.GradientTape() as tape:
        tape.watch(smoothed)
        parameters = network(smoothed)
        if not through_network:
            parameters = tf.stop_gradient(parameters)
        log_likelihood = log_density(parameters, smoothed)
    return smoothed + noise**2 * tape.gradient(log_likelihood, smoothed)
