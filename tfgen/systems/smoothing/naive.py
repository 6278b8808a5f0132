"""Sampling from PixelCNN++ as the original does it: the network on the whole image, once for each pixel.

The reference of `incremental`, with the same arguments and results.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from tfgen.systems.smoothing.incremental import Draw
from tfgen.systems.smoothing.pixelcnn import PixelCNN


def sample(
    network: PixelCNN,
    height: int,
    width: int,
    batch: int,
    draw: Draw,
    numbers: tuple[Any, ...] = (),
    given: tf.Tensor | None = None,
) -> tf.Tensor:
    """See `IncrementalSampler.sample`."""
    above = tf.zeros([batch, 0, width, network.channels]) if given is None else tf.convert_to_tensor(given)
    first = above.shape[1]
    step = tf.function(functools.partial(pixel, network, draw=draw, first=first, numbers=numbers), autograph=False)
    images = tf.concat([above, tf.zeros([batch, height, width, network.channels])], axis=1)
    for index in range(height * width):
        images = step(images, *(tf.constant(place) for place in divmod(index, width)))
    return images[:, first:]


def pixel(
    network: PixelCNN,
    images: tf.Tensor,
    row: tf.Tensor,
    column: tf.Tensor,
    draw: Draw,
    first: int = 0,
    numbers: tuple[Any, ...] = (),
) -> tf.Tensor:
    """`images`, [B, first + H, W, C], with the pixel at row `first + row` drawn."""
    _, rows, width, _ = images.shape
    drawn = draw(network(images)[:, first + row, column], row, column, *numbers)
    here = (tf.range(rows)[:, tf.newaxis] == first + row) & (tf.range(width) == column)  # [first + H, W]
    return tf.where(here[..., tf.newaxis], drawn[:, tf.newaxis, tf.newaxis], images)
