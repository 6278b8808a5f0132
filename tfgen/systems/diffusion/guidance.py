"""Classifier-free guidance: Ho & Salimans (2022), arXiv 2207.12598."""

from __future__ import annotations

import tensorflow as tf


def guided(
    output_conditional: tf.Tensor, output_unconditional: tf.Tensor, scale: float | tf.Tensor, image_channels: int
) -> tf.Tensor:
    """Extrapolates from the unconditional through the conditional prediction: equation 6 with w = scale - 1.

        unconditional + scale (conditional - unconditional)

    It may predict noise, x_0 or the mean alike: for given x_t one is a linear function of the other.

    Args:
      output_conditional, output_unconditional: of the network for the same x and t, [B, H, W, C or 2 C].
      scale: 1 gives the conditional output, exactly; 0 its unconditional mean.
      image_channels: C; channels after these are a learned variance, and the conditional one is kept.

    Raises:
      ValueError: outputs of different shapes, or of other than C or 2 C channels.
    """
    channels = output_conditional.shape[-1]
    if channels not in (image_channels, 2 * image_channels) or output_unconditional.shape[-1] != channels:
        raise ValueError(
            f"expected two outputs of {image_channels} or {2 * image_channels} channels, found shapes "
            f"{list(output_conditional.shape)} and {list(output_unconditional.shape)}"
        )
    mean = output_conditional[..., :image_channels]
    # In this form scale 1 does not round.
    mean = scale * mean + (1 - scale) * output_unconditional[..., :image_channels]
    return tf.concat([mean, output_conditional[..., image_channels:]], axis=-1)
