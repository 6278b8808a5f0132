"""From pixels to what the encoder reads and what the head predicts: one table, one formula.

Child, "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images" (ICLR 2021), released code.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

_LOW_BITS = 0b111  # dropped from targets of 5 bits
_MIDDLE, _PER_HALF_RANGE = np.float32(-127.5), np.float32(1 / 127.5)  # 0..255 to [-1, 1]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How the pixels of one data set are scaled. The four constants are float32, the same for all channels.

    With x the pixel values, 0 to 255 (0 to 1 where `unit_range`):

        input = (x + shift) * scale
        target = (q + shift_loss) * scale_loss, with q = x, or 8 * floor(x / 8) where `low_bit`

    Targets lie in [-1, 1]; those of `low_bit` end at (248 - 127.5) / 127.5 = 0.9450981. The input keeps all 8 bits.

    Attributes:
      shift, scale: make the encoder's input about zero-mean and unit-variance.
      shift_loss, scale_loss: map the levels to [-1, 1].
      low_bit: the target has the upper 5 of 8 bits (32 levels).
      unit_range: the constants are for x / 255.
    """

    shift: np.float32
    scale: np.float32
    shift_loss: np.float32 = _MIDDLE
    scale_loss: np.float32 = _PER_HALF_RANGE
    low_bit: bool = False
    unit_range: bool = False

    def input_and_target(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The encoder's input and the head's target, both float32 [B, H, W, 3].

        Args:
          images: uint8 [B, H, W, 3].

        Raises:
          TypeError: `images` are not uint8.
        """
        images = tf.convert_to_tensor(images)
        if images.dtype != tf.uint8:
            raise TypeError(f"expected uint8 images, found {images.dtype.name}")
        kept = tf.bitwise.bitwise_and(images, np.uint8(255 - _LOW_BITS)) if self.low_bit else images
        inputs = (self._values(images) + self.shift) * self.scale
        targets = (self._values(kept) + self.shift_loss) * self.scale_loss
        return inputs, targets

    def _values(self, images: tf.Tensor) -> tf.Tensor:
        values = tf.cast(images, tf.float32)
        return values / 255.0 if self.unit_range else values


# shift is minus the mean, scale one over the standard deviation (divided in double precision, then rounded).
PREPROCESSING = {
    "cifar10": Preprocessing(np.float32(-120.63838), np.float32(1 / 64.16736)),
    "imagenet32": Preprocessing(np.float32(-116.2373), np.float32(1 / 69.37404)),
    "imagenet64": Preprocessing(np.float32(-115.92961967), np.float32(1 / 69.37404)),
    "ffhq_256": Preprocessing(np.float32(-112.8666757481), np.float32(1 / 69.84780273), low_bit=True),
    "ffhq_1024": Preprocessing(
        np.float32(-0.4387), np.float32(1 / 0.2743), np.float32(-0.5), np.float32(2.0), unit_range=True
    ),
}

# Data sets that the original did not know: the input equals the target. Their statistics are near enough to those above
# for the network's first convolution. Mean and standard deviation over all pixels and channels of the training images,
# `x = source.read(np.arange(len(source)))["image"]; x.mean(), x.std()`: digits 77.9 and 95.8, photos 111.3 and 84.2.
GENERIC = Preprocessing(_MIDDLE, _PER_HALF_RANGE)


def preprocessing(dataset: str) -> Preprocessing:
    """The constants of a data set by its name; `GENERIC` for any that the original did not know."""
    return PREPROCESSING.get(dataset, GENERIC)
