"""The replay buffer: earlier samples, at which chains begin (Du & Mordatch, arXiv:1903.08689, section 3.2).

All of it is in variables, so that a checkpoint holds it, and all methods work inside a `tf.function`. The variables
lie in the memory of the host: ten thousand images of 128 pixels are half a gigabyte of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfgen.randomness import Key

_HOST = "/CPU:0"
_LEVELS = 256


def to_bytes(images: tf.Tensor, high: float) -> tf.Tensor:
    """uint8 of images between 0 and `high`, cut down to the next of 256 levels of 1/255; others are clipped."""
    return tf.cast(255.0 * tf.clip_by_value(images, 0.0, high) / high, tf.uint8)


def from_bytes(stored: tf.Tensor, uniforms: tf.Tensor, high: float) -> tf.Tensor:
    """float32 images of uint8, between 0 and `high`, with noise within their level.

    The levels are 1/256 here and 1/255 in `to_bytes`: each trip through the buffer makes an image darker by 255/256,
    in the original as well.

    Args:
      uniforms: in [0, 1), like `stored`.
    """
    return (tf.cast(stored, tf.float32) + uniforms) * (high / _LEVELS)


def goes_on(uniforms: tf.Tensor, restart: float) -> tf.Tensor:
    """bool, like the uniforms in [0, 1): which chains go on at an earlier sample, all but a share `restart`."""
    return uniforms > restart


class Replayed(NamedTuple):
    """What `ReplayBuffer.at` finds: images as they are stored, and labels [B, K] or None."""

    images: tf.Tensor
    labels: tf.Tensor | None


class ReplayBuffer(tf.Module):
    """A buffer of images, and optionally their labels.

    The newest images take the place of the oldest. With `truncates` the buffer works as the original's list does: as
    long as it has not come to its capacity, all of a batch is appended, which may exceed the capacity by less than a
    batch; images beyond it are lost when the cursor comes round.

    Args:
      capacity: images.
      batch_size: images of one `add`, at most `capacity`.
      image_shape: of one image.
      dtype: uint8, for `to_bytes`, or float32.
      label_columns: of stored labels; 0 for none.
      truncates: see above.

    Attributes:
      images: variable [capacity or more, ...].
      labels: float32 variable [capacity or more, label_columns], or None.
      length, cursor: int64 scalars, images that are there and the row of the next one.

    Raises:
      ValueError: a batch larger than the buffer.
    """

    def __init__(
        self,
        capacity: int,
        batch_size: int,
        image_shape: Sequence[int],
        dtype: tf.DType = tf.uint8,
        label_columns: int = 0,
        truncates: bool = False,
    ):
        super().__init__(name="replay_buffer")
        if not 1 <= batch_size <= capacity:
            raise ValueError(f"a buffer of {capacity} images cannot take batches of {batch_size}: make it larger")
        self.capacity, self.batch_size, self.truncates = capacity, batch_size, truncates
        rows = capacity + batch_size - 1 if truncates else capacity
        with tf.device(_HOST):
            self.images = _variable(np.zeros([rows, *image_shape], dtype.as_numpy_dtype), "images")
            labels = np.zeros([rows, label_columns], np.float32)
            self.labels = _variable(labels, "labels") if label_columns else None
            self.length = _variable(np.int64(0), "length")
            self.cursor = _variable(np.int64(0), "cursor")

    def add(self, images: tf.Tensor, labels: tf.Tensor | None = None, take: tf.Tensor | None = None) -> None:
        """Puts a batch into the buffer.

        Args:
          images: [batch_size, ...], of the buffer's dtype.
          labels: float32 [batch_size, label_columns]; not read by a buffer without labels.
          take: bool scalar; where it is False nothing changes. None: always.

        Raises:
          ValueError: images of another number or type, or no labels where the buffer has them.
        """
        if images.shape[0] != self.batch_size or images.dtype != self.images.dtype:
            raise ValueError(
                f"{images.shape[0]} images of {images.dtype.name}, expected {self.batch_size} of "
                f"{self.images.dtype.name}"
            )
        if self.labels is not None and labels is None:
            raise ValueError("the buffer keeps labels with its images: pass labels")
        with tf.device(_HOST):
            rows, length = self._place()
            self._write(self.images, rows, images, take)
            if self.labels is not None:
                self._write(self.labels, rows, labels, take)
            cursor = (self.cursor + self.batch_size) % self.capacity
            self.length.assign(length if take is None else tf.where(take, length, self.length))
            self.cursor.assign(cursor if take is None else tf.where(take, cursor, self.cursor))

    def _place(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows of the next batch, int64 [batch_size], and the length after it."""
        filling = self.cursor >= self.length
        beyond = self.cursor + tf.range(self.batch_size, dtype=tf.int64)
        around = beyond % self.capacity
        if not self.truncates:
            return around, tf.minimum(tf.maximum(self.length, self.cursor + self.batch_size), self.capacity)
        passes_end = self.cursor + self.batch_size >= self.capacity
        kept = tf.where(passes_end, tf.constant(self.capacity, tf.int64), self.length)
        return tf.where(filling, beyond, around), tf.where(filling, self.length + self.batch_size, kept)

    def _write(self, variable: tf.Variable, rows: tf.Tensor, values: tf.Tensor, take: tf.Tensor | None) -> None:
        if take is not None:
            values = tf.where(take, values, tf.gather(variable, rows))
        variable.scatter_nd_update(rows[:, tf.newaxis], values)

    def at(self, indices: tf.Tensor) -> Replayed:
        """The images and labels in rows `indices`, int64 [B], which must be below `length`."""
        with tf.device(_HOST):
            labels = tf.gather(self.labels, indices) if self.labels is not None else None
            return Replayed(tf.gather(self.images, indices), labels)

    def replace(self, indices: tf.Tensor, images: tf.Tensor, labels: tf.Tensor | None = None) -> None:
        """Puts images, and labels where the buffer has them, in the place of those in rows `indices`, int64 [B].

        Of a row that is named twice the last one counts.
        """
        with tf.device(_HOST):
            order = tf.range(tf.size(indices))
            same_row = indices[:, tf.newaxis] == indices[tf.newaxis, :]
            named_again = tf.reduce_any(same_row & (order[:, tf.newaxis] < order[tf.newaxis, :]), axis=1)
            last = tf.boolean_mask(order, ~named_again)
            rows = tf.gather(indices, last)
            self._write(self.images, rows, tf.gather(images, last), take=None)
            if self.labels is not None:
                self._write(self.labels, rows, tf.gather(labels, last), take=None)

    def draw(self, key: Key, count: int) -> tf.Tensor:
        """Rows drawn uniformly and with replacement, int64 [count]; all 0 while the buffer is empty."""
        # In float64: products of a float32 below 1 and a length may round up to the length.
        share = tf.cast(key.fold("rows").uniform([count]), tf.float64)
        return tf.cast(share * tf.cast(self.length, tf.float64), tf.int64)

    def starts(
        self, fresh: tf.Tensor, fresh_labels: tf.Tensor | None, key: Key, *, high: float, restart: float
    ) -> Replayed:
        """Where the chains of a step begin: at earlier samples, and with probability `restart` anew.

        While the buffer has no more than `batch_size` images all begin anew, as in the original.

        Args:
          fresh: chains that begin anew, float32 [B, ...], between 0 and `high`.
          fresh_labels: of the step's images, float32 [B, K], or None. Without labels in the buffer, earlier samples get
            these as well.
          key: draws the rows, which chains begin anew, and the noise of images that are bytes.

        Returns:
          Images, float32 [B, ...], and labels.
        """
        # The static shape, where there is one: B need not be the size of the batches that are added.
        count = fresh.shape[0] if fresh.shape[0] is not None else tf.shape(fresh)[0]
        stored = self.at(self.draw(key, count))
        images = stored.images
        if images.dtype == tf.uint8:
            images = from_bytes(images, key.fold("levels").uniform([count, *fresh.shape[1:]]), high)
        old = goes_on(key.fold("restart").uniform([count]), restart) & (self.length > self.batch_size)
        labels = fresh_labels
        if stored.labels is not None and fresh_labels is not None:
            labels = tf.where(old[:, tf.newaxis], stored.labels, fresh_labels)
        return Replayed(tf.where(tf.reshape(old, [-1] + [1] * (fresh.shape.rank - 1)), images, fresh), labels)


def _variable(value: np.ndarray | np.int64, name: str) -> tf.Variable:
    return tf.Variable(value, trainable=False, name=f"replay_buffer/{name}")
