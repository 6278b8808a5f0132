"""Randomness as a function of (seed, purpose, step, sample index); nothing is stored.

Two forms, for the two places where random numbers are drawn:

* `Key`: on the device, inside `tf.function`. Drawing is counter based (Philox), and the counter of a
  sample depends on its index in the global batch only. Sample 17 therefore gets the same numbers at
  any batch size and on any number of ranks.
* `StepDraws`: on the host, in NumPy, while a batch is prepared. Every rank draws for the whole global
  batch and keeps its own rows, which gives the same guarantee for small integer draws.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_PHILOX = 1  # tf.random.Algorithm.PHILOX, as the raw operations spell it
# One 128-bit Philox output holds four 32-bit words: a float32 draw of n numbers advances the counter by ceil(n / 4).
_WORDS = 4
_HALVES = 2  # of a word


def purpose_word(purpose: str) -> int:
    """A stable 31-bit number for a purpose name ("dropout", "sample" ...)."""
    return zlib.crc32(purpose.encode()) & 0x7FFFFFFF


def _entropy(seed: int, purpose: str, *data: int) -> np.random.SeedSequence:
    """Mixes all arguments. SeedSequence pads with zeros: every number takes two words, and the count ends the list."""
    words = [purpose_word(purpose)]
    for number in (seed, *data):
        words += [number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF]
    return np.random.SeedSequence([*words, 1 + len(data)])


class Key:
    """A random stream, indexed by sample.

    Args:
      seed: int32 tensor [2].
      first_sample: scalar integer (Python or int64 tensor), index of this batch's first sample in the
        global batch. Drawing [B, ...] with `first_sample=f` gives rows f .. f+B-1 of the endless stream.

    All drawing methods take shapes whose first axis is the sample.
    """

    def __init__(self, seed: tf.Tensor, first_sample: int | tf.Tensor = 0):
        self.seed = tf.convert_to_tensor(seed, tf.int32)
        self.first_sample = tf.cast(first_sample, tf.int64)

    @classmethod
    def create(cls, seed: int, purpose: str, first_sample: int | tf.Tensor = 0) -> Key:
        """The stream of `purpose` under the user's `seed` (any integer; taken modulo 2^64)."""
        words = _entropy(seed, purpose).generate_state(2)
        return cls(tf.constant(words.view(np.int32)), first_sample)

    def fold(self, *data: int | str | tf.Tensor) -> Key:
        """An independent stream for each value of `data` (step, layer index, purpose name)."""
        seed = self.seed
        for item in data:
            word = purpose_word(item) if isinstance(item, str) else item
            seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(word, tf.int64))
        return Key(tf.cast(seed, tf.int32), self.first_sample)

    def skip(self, samples: int | tf.Tensor) -> Key:
        """The same stream, seen from `samples` samples further on (a later chunk or microbatch)."""
        return Key(self.seed, self.first_sample + tf.cast(samples, tf.int64))

    def uniform(self, shape: Sequence[int | tf.Tensor]) -> tf.Tensor:
        """float32 numbers in [0, 1)."""
        return self._draw(tf.raw_ops.StatelessRandomUniformV2, shape, tf.float32)

    def normal(self, shape: Sequence[int | tf.Tensor]) -> tf.Tensor:
        """float32 standard normal numbers."""
        return self._draw(tf.raw_ops.StatelessRandomNormalV2, shape, tf.float32)

    def bits(self, shape: Sequence[int | tf.Tensor]) -> tf.Tensor:
        """int16 numbers, all 65,536 values alike: half a random word each, where a `uniform` number takes a whole."""
        return self._draw(tf.raw_ops.StatelessRandomUniformFullIntV2, shape, tf.uint32, _HALVES)

    def _draw(self, operation, shape, dtype, parts: int = 1) -> tf.Tensor:
        """What the operation draws, numbers of 32 bits; with `parts` 2, each as two int16."""
        per_sample = 1
        for extent in shape[1:]:
            per_sample = per_sample * extent
        blocks = (per_sample + parts * _WORDS - 1) // (parts * _WORDS)
        key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=self.seed)
        offset = tf.stack([self.first_sample * tf.cast(blocks, tf.int64), tf.constant(0, tf.int64)])
        # uint64 addition has no kernel on every device; two's complement int64 addition is the same bits.
        counter = tf.bitcast(tf.bitcast(counter, tf.int64) + offset, tf.uint64)
        drawn = operation(shape=[shape[0], blocks * _WORDS], key=key, counter=counter, alg=_PHILOX, dtype=dtype)
        if parts == _HALVES:
            drawn = tf.reshape(tf.bitcast(drawn, tf.int16), [shape[0], blocks * _WORDS * _HALVES])
        return tf.reshape(drawn[:, :per_sample], shape)


class StepDraws:
    """Host-side draws of one training step, equal on every rank; `mine` keeps this rank's rows.

    Args:
      seed: the user's seed.
      step: training step, from 0.
      rank, ranks: this process and their number.
      batch_size: samples per rank. Rank r owns rows r * batch_size .. (r + 1) * batch_size - 1.
    """

    def __init__(self, seed: int, step: int, rank: int, ranks: int, batch_size: int):
        self.seed, self.step = seed, step
        self.rank, self.ranks, self.batch_size = rank, ranks, batch_size

    @property
    def global_batch_size(self) -> int:
        return self.ranks * self.batch_size

    def generator(self, purpose: str, seed: int | None = None) -> np.random.RandomState:
        """A fresh generator for `purpose` at this step (`seed` replaces the user's seed)."""
        return host_generator(self.seed if seed is None else seed, purpose, self.step)

    def mine(self, values: np.ndarray) -> np.ndarray:
        """This rank's rows of an array drawn for the global batch."""
        first = self.rank * self.batch_size
        return values[first : first + self.batch_size]


def host_generator(seed: int, purpose: str, *data: int) -> np.random.RandomState:
    """A NumPy generator that is a function of (seed, purpose, data)."""
    return np.random.RandomState(_entropy(seed, purpose, *data).generate_state(8))
