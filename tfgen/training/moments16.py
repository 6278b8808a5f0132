"""Adam moments in 16 bits: two number formats made for them, which no framework knows.

Neither is IEEE half precision. Both spend 6 bits on an exponent that starts at 2^-60, far below the 2^-24 of
IEEE halves, because second moments are squares of small numbers:

    variance    eeeeee mmmmmmmmmm      2^(e - 60) (1 + m / 1024)        never negative
    mean      s eeeeee  mmmmmmmmm   +- 2^(e - 60) (1 + m / 512)

and the word 0 is the number 0. A float32 has the same layout with more mantissa bits and another exponent
bias, so that both directions are a shift and an addition on bit patterns: exact, and the same on every device.

`encode`/`decode` are the NumPy forms (uint16 words), `pack`/`unpack` the TensorFlow forms. The latter type the
words as tf.float16, as the checkpoints of the DistAug code do: TensorFlow has variables, assignment and
collectives for float16 on every device, but not for uint16 on a GPU. Such tensors may be moved, saved and
bitcast; their values as halves mean nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from tfgen.training.subgraph import subgraph

_FLOAT32_MANTISSA_BITS = 23
_REBIAS = (127 - 60) << _FLOAT32_MANTISSA_BITS  # bit pattern of 2^-60, where both formats start
_MAGNITUDE = 0x7FFFFFFF  # a float32 without its sign


@dataclasses.dataclass(frozen=True)
class MomentFormat:
    """A 16-bit floating-point format: [sign,] 6 exponent bits, mantissa.

    Numbers are rounded to nearest, ties away from zero. Those beyond the largest (just below 16) become it, inf
    and NaN as well; those below the smallest positive one become 0. An unsigned format keeps the magnitude.
    """

    mantissa_bits: int
    signed: bool

    @property
    def _shift(self) -> int:
        return _FLOAT32_MANTISSA_BITS - self.mantissa_bits

    @property
    def _word_mask(self) -> int:
        return 0x7FFF if self.signed else 0xFFFF

    @property
    def _smallest(self) -> int:
        """Bit pattern of the value of word 1."""
        return _REBIAS + (1 << self._shift)

    @property
    def _largest(self) -> int:
        """Bit pattern of the value of the highest (positive) word."""
        return _REBIAS + (self._word_mask << self._shift)

    @property
    def _to_word(self) -> int:
        """Added to a bit pattern before it is shifted down: the other exponent bias, and half a unit to round."""
        return (1 << (self._shift - 1)) - _REBIAS

    def encode(self, values: np.ndarray) -> np.ndarray:
        """float32 to uint16 words, any shape."""
        bits = np.asarray(values, np.float32).view(np.uint32).astype(np.int64)
        # Non-negative floats are ordered as their bit patterns: the limits are integer comparisons.
        magnitude = np.minimum(bits & _MAGNITUDE, self._largest)
        word = (magnitude + self._to_word) >> self._shift
        if self.signed:
            word |= bits >> 16 & 0x8000
        return np.where(magnitude < self._smallest, 0, word).astype(np.uint16)

    def decode(self, words: np.ndarray) -> np.ndarray:
        """uint16 words to float32, any shape."""
        words = np.asarray(words, np.uint16).astype(np.int64)
        bits = ((words & self._word_mask) << self._shift) + _REBIAS
        if self.signed:
            bits |= (words & 0x8000) << 16
        return np.where(words == 0, 0, bits).astype(np.uint32).view(np.float32)

    # The device forms compute in int64: additions and comparisons of int32 run on the host even on a GPU.

    @subgraph(tf.TensorSpec(None, tf.float32))
    def pack(self, values: tf.Tensor) -> tf.Tensor:
        """float32 to words typed as float16, any shape. The same words as `encode`."""
        bits = tf.cast(tf.bitcast(values, tf.int32), tf.int64)
        magnitude = tf.minimum(tf.bitwise.bitwise_and(bits, _MAGNITUDE), self._largest)
        word = tf.bitwise.right_shift(magnitude + self._to_word, self._shift)
        if self.signed:
            word = tf.where(bits < 0, word + 0x8000, word)
        word = tf.where(magnitude < self._smallest, tf.constant(0, tf.int64), word)
        return tf.bitcast(tf.cast(word, tf.uint16), tf.float16)

    @subgraph(tf.TensorSpec(None, tf.float16))
    def unpack(self, words: tf.Tensor) -> tf.Tensor:
        """Words typed as float16 to float32, any shape. The same values as `decode`."""
        word = tf.cast(tf.bitcast(words, tf.uint16), tf.int64)
        magnitude = tf.bitwise.bitwise_and(word, self._word_mask)
        bits = tf.bitwise.left_shift(magnitude, self._shift) + _REBIAS
        if self.signed:
            bits = tf.where(word > magnitude, bits + tf.int32.min, bits)
        bits = tf.where(tf.equal(word, 0), tf.constant(0, tf.int64), bits)
        return tf.bitcast(tf.cast(bits, tf.int32), tf.float32)


MEAN = MomentFormat(mantissa_bits=9, signed=True)
VARIANCE = MomentFormat(mantissa_bits=10, signed=False)

encode_mean, decode_mean = MEAN.encode, MEAN.decode
encode_variance, decode_variance = VARIANCE.encode, VARIANCE.decode
pack_mean, unpack_mean = MEAN.pack, MEAN.unpack
pack_variance, unpack_variance = VARIANCE.pack, VARIANCE.unpack
