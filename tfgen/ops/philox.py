"""Random numbers as a function of (seed, step, stream, element): Philox4x32-10, compiled and in plain TensorFlow.

Element i of a stream, counted in C order from `first_element` on, takes word i % 4 of the block whose counter is
(low half of i / 4, high half of i / 4, step, stream) and whose key is the seed (Salmon et al., "Parallel Random
Numbers: As Easy as 1, 2, 3", SC 2011). So a number depends neither on the shape that it is drawn in nor on what else is
drawn: a part of a tensor, on another rank or in another chunk, gets its numbers by the number of its first element.
Words and uniform numbers are the same bits on every device and in both forms, normal numbers the same within 2e-6.

`tfgen.randomness.Key` is for draws by sample; this is for draws by element inside a kernel.
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from tfgen.ops import library

_WORDS = 4  # of a block
_HALF = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85  # added to the key from round to round
# Blocks are drawn in multiples of this. TensorFlow computes the last few elements of an array, which fill no vector of
# the processor, by other functions, whose logarithms and sines differ in the last bit.
_TOGETHER = 64
_EXACT_BITS = 24  # of a word, that float32 holds

Integer: TypeAlias = int | np.integer | tf.Tensor


class Stream(enum.IntEnum):
    """What the numbers of a stream are for."""

    LANGEVIN_NOISE = 0
    CHAIN_START = 1
    DEQUANTISATION = 2
    HMC_MOMENTUM = 3
    HMC_ACCEPTANCE = 4
    DROPOUT = 5
    CORRUPTION = 6
    ATTACK_START = 7


class Source(NamedTuple):
    """Which numbers are drawn, as the operations take it.

    Attributes:
      seed, step, first_element: int64 scalars; the seed's bits are those of an unsigned number.
      stream: from 0 to 2^32 - 1.
    """

    seed: tf.Tensor
    step: tf.Tensor
    first_element: tf.Tensor
    stream: int

    @classmethod
    def checked(cls, seed: Integer, step: Integer, first_element: Integer, stream: int) -> Source:
        """Raises: ValueError for a number that is out of range, as far as numbers are known."""
        seed, step, first_element = (int(x) if isinstance(x, np.integer) else x for x in (seed, step, first_element))
        if isinstance(seed, int) and not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed must be a number of 64 bits, found {seed}")
        for name, number, most in (("step", step, _HALF), ("first_element", first_element, 2**63 - 1)):
            if isinstance(number, int) and not 0 <= number <= most:
                raise ValueError(f"{name} must be in 0 .. {most}, found {number}")
        if not 0 <= stream <= _HALF:
            raise ValueError(f"stream must be in 0 .. {_HALF}, found {stream}")
        if isinstance(seed, int):
            seed = seed - 2**64 if seed >= 2**63 else seed
        bits = tf.bitcast(seed, tf.int64) if getattr(seed, "dtype", None) == tf.uint64 else tf.cast(seed, tf.int64)
        return cls(bits, tf.cast(step, tf.int64), tf.cast(first_element, tf.int64), int(stream))


def philox_words(
    shape: Sequence[int] | tf.Tensor, seed: Integer, step: Integer = 0, stream: int = 0, first_element: Integer = 0
) -> tf.Tensor:
    """Random words, uint32, all values alike.

    Args:
      shape: of the result, integers.
      seed: 64 bits, signed or unsigned.
      step: from 0 to 2^32 - 1.
      stream: what the numbers are for, see `Stream`; from 0 to 2^32 - 1.
      first_element: number of the first element in the stream, from 0.

    Raises:
      ValueError: a number that is out of range.
      tf.errors.InvalidArgumentError: the same, where it is known only when a graph runs (compiled form).
    """
    source = Source.checked(seed, step, first_element, stream)
    kernels = compiled()
    if kernels is not None:
        return kernels.operations.tfgen_philox_words(tf.cast(shape, tf.int64), *source[:3], stream=source.stream)
    return tf.cast(words_reference(shape, source), tf.uint32)


def philox_uniform(
    shape: Sequence[int] | tf.Tensor, seed: Integer, step: Integer = 0, stream: int = 0, first_element: Integer = 0
) -> tf.Tensor:
    """float32 multiples of 2^-24 in [0, 1). Arguments and errors as of `philox_words`."""
    source = Source.checked(seed, step, first_element, stream)
    kernels = compiled()
    if kernels is not None:
        return kernels.operations.tfgen_philox_uniform(tf.cast(shape, tf.int64), *source[:3], stream=source.stream)
    return _fraction(words_reference(shape, source))


def philox_normal(
    shape: Sequence[int] | tf.Tensor, seed: Integer, step: Integer = 0, stream: int = 0, first_element: Integer = 0
) -> tf.Tensor:
    """float32 standard normal numbers, within 1e-6 of Box and Muller's of the same words; at most 5.8 in size.

    Arguments and errors as of `philox_words`.
    """
    source = Source.checked(seed, step, first_element, stream)
    kernels = compiled()
    if kernels is not None:
        return kernels.operations.tfgen_philox_normal(tf.cast(shape, tf.int64), *source[:3], stream=source.stream)
    return normal_reference(shape, source)


def compiled() -> library.Library | None:
    """The library whose operations run here; None where it is plain TensorFlow. The choice is logged once."""
    kernels = library.load()
    if kernels is None:
        return None
    if not kernels.cuda and library.gpu_visible():
        library.log_once(
            logging.WARNING, "Langevin steps in plain TensorFlow: there is a GPU, and the kernels are for the CPU only"
        )
        return None
    library.log_once(logging.INFO, "Langevin steps: compiled operation")
    return kernels


# Plain TensorFlow ----------------------------------------------------------------------------------------
#
# Words are int64 numbers below 2^32: products and shifts exist on every device for this type, not for unsigned ones.


def words_reference(shape: Sequence[int] | tf.Tensor, source: Source) -> tf.Tensor:
    """int64 words, each below 2^32."""
    return _of_elements(tf.stack(_blocks(tf.reduce_prod(tf.cast(shape, tf.int64)), source), axis=1), shape, source)


def normal_reference(shape: Sequence[int] | tf.Tensor, source: Source) -> tf.Tensor:
    words = _blocks(tf.reduce_prod(tf.cast(shape, tf.int64)), source)
    normals = [*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])]
    return _of_elements(tf.stack(normals, axis=1), shape, source)


def _blocks(count: tf.Tensor, source: Source) -> list[tf.Tensor]:
    """The four words, each int64 [blocks], of the blocks that `count` elements touch, and of some more."""
    first = source.first_element // _WORDS
    blocks = (source.first_element + count + _WORDS - 1) // _WORDS - first
    numbers = first + tf.range((blocks + _TOGETHER - 1) // _TOGETHER * _TOGETHER)
    step, stream = (tf.ones_like(numbers) * tf.cast(number, tf.int64) for number in (source.step, source.stream))
    words = [_low(numbers), _high(numbers), _low(step), stream]
    key = [_low(source.seed), _high(source.seed)]
    for _ in range(_ROUNDS):
        # Of 64 bits, sign included: what overflows is cut off, as it should be.
        products = [words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]]
        words = [
            _xor(_high(products[1]), words[1], key[0]),
            _low(products[1]),
            _xor(_high(products[0]), words[3], key[1]),
            _low(products[0]),
        ]
        key = [_low(word + weyl) for word, weyl in zip(key, _WEYL, strict=True)]
    return words


def _of_elements(by_block: tf.Tensor, shape: Sequence[int] | tf.Tensor, source: Source) -> tf.Tensor:
    """[blocks, 4] -> `shape`, from the first element on."""
    flat, skipped = tf.reshape(by_block, [-1]), source.first_element % _WORDS
    count = tf.reduce_prod(tf.cast(shape, tf.int64))
    return tf.reshape(flat[skipped : skipped + count], shape)


def _low(words: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_and(words, tf.constant(_HALF, tf.int64))


def _high(words: tf.Tensor) -> tf.Tensor:
    return _low(tf.bitwise.right_shift(words, tf.constant(32, tf.int64)))


def _xor(*words: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(words[0], words[1]), words[2])


def _exact(words: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.right_shift(words, tf.constant(32 - _EXACT_BITS, tf.int64))


def _fraction(words: tf.Tensor) -> tf.Tensor:
    return tf.cast(_exact(words), tf.float32) * 2.0**-_EXACT_BITS


def _box_muller(radius_words: tf.Tensor, angle_words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Of u1 in (0, 1] and u2 in [0, 1): sqrt(-2 ln u1) times the cosine and the sine of 2 pi u2."""
    radius = tf.sqrt(-2.0 * tf.math.log(tf.cast(_exact(radius_words) + 1, tf.float32) * 2.0**-_EXACT_BITS))
    # 2 pi u2 in float32 would be off by 1e-7 of 2 pi. Whole quarters of the circle come off exactly before.
    quarter_size = 2 ** (_EXACT_BITS - 2)
    angle = _exact(angle_words)
    quarter = (angle + quarter_size // 2) // quarter_size  # 0 to 4
    rest = tf.cast(angle - quarter * quarter_size, tf.float32) * (math.pi / 2 / quarter_size)
    sine, cosine = tf.sin(rest), tf.cos(rest)
    exchanged = quarter % 2 == 1
    first, second = tf.where(exchanged, sine, cosine), tf.where(exchanged, cosine, sine)
    first_negative, second_negative = (quarter + 1) % 4 >= 2, quarter % 4 >= 2
    return radius * tf.where(first_negative, -first, first), radius * tf.where(second_negative, -second, second)
