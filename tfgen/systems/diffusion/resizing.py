"""Resizing of float images as the networks and the data of improved diffusion need it, and their way to bytes."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def bilinear(x: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Bilinear interpolation with half-pixel centres, repeated edges and no antialiasing.

    Output pixel i reads the input at max((i + 0.5) m / n - 0.5, 0), m and n the input's and the output's size.

    Args:
      x: [B, H, W, C], float32.

    Returns:
      float32 [B, height, width, C].
    """
    rows, columns = _interpolation(x.shape[1], height), _interpolation(x.shape[2], width)
    return _along_both(x, rows, columns)


def area(x: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Adaptive average pooling: output cell i is the mean of the inputs floor(i m / n) to ceil((i + 1) m / n) - 1.

    Cells overlap where n does not divide m, other than in TensorFlow's resizing by area.

    Args:
      x: [B, H, W, C], float32.

    Returns:
      float32 [B, height, width, C].
    """
    return _along_both(x, _pooling(x.shape[1], height), _pooling(x.shape[2], width))


def from_uint8(images: np.ndarray | tf.Tensor) -> tf.Tensor:
    """Bytes to float32 in [-1, 1]: value / 127.5 - 1."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def to_uint8(x: tf.Tensor) -> tf.Tensor:
    """[-1, 1] to bytes as the original's programs do it: (x + 1) 127.5, clipped to 0 ... 255 and truncated."""
    return tf.cast(tf.clip_by_value((x + 1.0) * 127.5, 0.0, 255.0), tf.uint8)


def _along_both(x: tf.Tensor, rows: np.ndarray, columns: np.ndarray) -> tf.Tensor:
    """Weighted sums along height and width: [B, H, W, C] by [H', H] and [W', W] -> [B, H', W', C]."""
    wide = tf.einsum("wv,bhvc->bhwc", tf.constant(columns), tf.cast(x, tf.float32))
    return tf.einsum("hg,bgwc->bhwc", tf.constant(rows), wide)


def _interpolation(inputs: int, outputs: int) -> np.ndarray:  # float32 [outputs, inputs]
    source = np.maximum((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0.0)
    lower = np.minimum(np.floor(source).astype(int), inputs - 1)
    upper = np.minimum(lower + 1, inputs - 1)
    weights = np.zeros([outputs, inputs])
    np.add.at(weights, (np.arange(outputs), lower), 1.0 - (source - lower))
    np.add.at(weights, (np.arange(outputs), upper), source - lower)
    return weights.astype(np.float32)


def _pooling(inputs: int, outputs: int) -> np.ndarray:  # float32 [outputs, inputs]
    weights = np.zeros([outputs, inputs])
    for cell in range(outputs):
        first, end = cell * inputs // outputs, -(-(cell + 1) * inputs // outputs)
        weights[cell, first:end] = 1.0 / (end - first)
    return weights.astype(np.float32)
