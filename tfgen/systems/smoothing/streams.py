"""The two streams of PixelCNN++ at one row, or one pixel, from what earlier rows and pixels left.

A row is computed when the rows above it are known: `UpRow`, then `UpLeftRow` or, pixel by pixel, `UpLeftPixel`.
Position (i, j) of level l is *due* with pixel (2^l i, 2^l j) of the image. Where a level is not due, the next finer one
takes what the last position of it that was due left for this row or column.

Rows are columns-first, [w, B, F], so that a column is contiguous and the columns of a batch are the rows of a matrix.
Letters as in `pixelcnn` and `folded_weights`.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfgen.systems.smoothing.folded_weights import BetweenLevels, FoldedWeights, Known, StreamWeights
from tfgen.systems.smoothing.pixelcnn import LEVELS, concat_elu

# Arithmetic of rows ----------------------------------------------------------------------------------------


def product(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """[..., in] -> [..., out], as one matrix product."""
    if x.shape.rank == 2:
        return tf.matmul(x, matrix)
    inputs, outputs = matrix.shape
    return tf.reshape(tf.matmul(tf.reshape(x, [-1, inputs]), matrix), [*x.shape[:-2], -1, outputs])


def with_left(rows: tf.Tensor) -> list[tf.Tensor]:
    """[..., w, B, in] at the column to the left, 0 for the first, and at the column itself."""
    return [tf.pad(rows[..., :-1, :, :], _columns(rows, 1, 0)), rows]


def with_neighbours(rows: tf.Tensor) -> list[tf.Tensor]:
    """[..., w, B, in] at the columns to the left, at, and to the right; 0 beyond the ends."""
    return [*with_left(rows), tf.pad(rows[..., 1:, :, :], _columns(rows, 0, 1))]


def _columns(rows: tf.Tensor, before: int, after: int) -> list[list[int]]:
    """Padding of the axis of columns."""
    return [[0, 0]] * (rows.shape.rank - 3) + [[before, after], [0, 0], [0, 0]]


def interleaved(even: tf.Tensor, odd: tf.Tensor) -> tf.Tensor:
    """Two of [w / 2, B, F] -> [w, B, F]."""
    return tf.reshape(tf.stack([even, odd], axis=1), [2 * even.shape[0], -1, even.shape[-1]])


def left_and_even(rows: tf.Tensor) -> tf.Tensor:
    """[w, B, F] -> [w / 2, B, 2 F]: columns 2 j - 1 and 2 j, what downsizing of `ul` reads of a row."""
    return tf.concat([with_left(rows[1::2])[0], rows[::2]], axis=-1)


def below_coarse_ul(coarse: tf.Tensor, between: BetweenLevels, row: int) -> tf.Tensor:
    """Upsizing of `ul`: [w / 2, B, F] -> [w, B, F], the upper row (0) or the lower row (1) of the finer level."""
    spread = product(coarse, between.up_ul[row])  # [w / 2, B, 2 F]
    return interleaved(*tf.split(spread, 2, axis=-1)) + between.up_ul_bias


class BeforeRow(NamedTuple):
    """What a stream knows before a row begins; lists are by level, of the levels that are due.

    Attributes:
      first: features of the first layer, of `ul` without the pixel to the left, [W, B, F].
      inputs: parts of `conv_input` and `nin_skip`, [L, w, B, F].
      outputs: parts of `conv_out`, [L, w, B, 2 F].
      downsized: parts of the convolution from each level to the next coarser one, [w / 2, B, F]; of `ul` only.
      upsized: of the coarsest level due, from the next coarser one, [w, B, F]; nothing if all levels are due.
    """

    first: tf.Tensor
    inputs: list[tf.Tensor]
    outputs: list[tf.Tensor]
    downsized: list[tf.Tensor]
    upsized: list[tf.Tensor]


def before_row_of_blocks(known: Known, read: list[tf.Tensor], skip: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """What the blocks of a stream take from the row above.

    Args:
      read: concat_elu of inputs and hidden features of the row above at the columns that a kernel reads, t of
        [2 L, w, B, 2 F].
      skip: of `nin_skip`, in the row itself, [L, w, B, F].

    Returns:
      [L, w, B, F] and [L, w, B, 2 F].
    """
    inputs, hidden = tf.split(tf.concat(read, axis=-1), 2)
    if skip is not None:
        inputs = tf.concat([inputs, concat_elu(skip)], axis=-1)
    return (
        _products(inputs, known.inputs) + known.inputs_bias,
        _products(hidden, known.outputs) + known.outputs_bias,
    )


def _products(rows: tf.Tensor, matrices: tf.Tensor) -> tf.Tensor:
    """[L, w, B, in] and [L, in, out] -> [L, w, B, out]."""
    blocks, width, _, inputs = rows.shape
    flat = tf.matmul(tf.reshape(rows, [blocks, -1, inputs]), matrices)
    return tf.reshape(flat, [blocks, width, -1, matrices.shape[-1]])


# Streams ---------------------------------------------------------------------------------------------------


class Stream(abc.ABC):
    """A stream at the positions that are computed together, features [..., F].

    Args:
      stream: weights of its blocks, by level.
      between: weights of the layers between levels.
      known_inputs, known_outputs: what `conv_input` and `conv_out` of each block take from before the row, by level and
        block, [..., F] and [..., 2 F].
      upsized: of the coarsest level due, from an earlier row or pixel; None if all levels are due.

    Attributes:
      inputs, hidden: features before `conv_input` and before `conv_out`, by level and block.
      outputs: what each block gave, by level and block.
      tops: last features of the way up, by level.
      coarse: last features of the way down, by level; nothing for the finest.
    """

    def __init__(
        self,
        stream: list[StreamWeights],
        between: list[BetweenLevels],
        known_inputs: Sequence[Sequence[tf.Tensor]],
        known_outputs: Sequence[Sequence[tf.Tensor]],
        upsized: tf.Tensor | None = None,
    ):
        self.stream, self.between = stream, between
        self.known_inputs, self.known_outputs, self.upsized = known_inputs, known_outputs, upsized
        levels = range(len(known_inputs))
        self.inputs: list[list[tf.Tensor]] = [[] for _ in levels]
        self.hidden: list[list[tf.Tensor]] = [[] for _ in levels]
        self.outputs: list[list[tf.Tensor]] = [[] for _ in levels]
        self.tops: list[tf.Tensor] = []
        self.coarse: list[list[tf.Tensor]] = [[] for _ in levels]
        self._elu: dict = {}

    @abc.abstractmethod
    def read(self, level: int, slot: int, features: tf.Tensor) -> list[tf.Tensor]:
        """Columns of the row that a kernel reads.

        Args:
          slot: which features of the level, 0 to 2 L - 1: inputs of the blocks, then hidden ones.
          features: concat_elu of them, at the positions themselves.
        """

    @abc.abstractmethod
    def downsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        """From features of `level` to the next coarser one."""

    @abc.abstractmethod
    def upsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        """To features of `level` from the next coarser one."""

    def run(self, first: tf.Tensor) -> tf.Tensor:
        """From the features of the first layer to the last ones, up and down through the levels that are due."""
        due = len(self.known_inputs)
        up_blocks = len(self.stream[-1].inputs) // 2
        x, skips = first, []
        for level in range(due):
            if level:
                x = self.downsize(level - 1, x)
            kept = [x]
            for index in range(up_blocks):
                x = self.block(level, index, x)
                kept.append(x)
            self.tops.append(x)
            skips.append(kept)
        x = skips[-1].pop() if due == LEVELS else self.upsized
        for level in reversed(range(due)):
            for index in range(up_blocks, len(self.stream[level].inputs)):
                x = self.block(level, index, x, skips[level].pop())
            if level:
                self.coarse[level].append(x)
                x = self.upsize(level - 1, x)
        return x

    def block(self, level: int, index: int, x: tf.Tensor, skip: tf.Tensor | None = None) -> tf.Tensor:
        """`pixelcnn.GatedResnet`; `skip` is that of the stream itself."""
        weights = self.stream[level]
        read = self.read(level, index, self._concat_elu(x))
        if skip is not None:
            read = [*read, self._concat_elu(skip)]
        hidden = product(tf.concat(read, axis=-1), weights.inputs[index]) + self.known_inputs[level][index]
        read = self.read(level, len(weights.inputs) + index, concat_elu(hidden))
        out = product(tf.concat(read, axis=-1), weights.outputs[index]) + self.known_outputs[level][index]
        values, gates = tf.split(out, 2, axis=-1)
        self.inputs[level].append(x)
        self.hidden[level].append(hidden)
        self.outputs[level].append(x + values * tf.sigmoid(gates))
        return self.outputs[level][-1]

    def _concat_elu(self, x: tf.Tensor) -> tf.Tensor:
        """Computed once for features that are the input of one block and the skip of another."""
        if x.ref() not in self._elu:
            self._elu[x.ref()] = concat_elu(x)
        return self._elu[x.ref()]


class UpRow(Stream):
    """A row of `u`.

    Args:
      tops_above: last features of the way up in the row above, by level, [w, B, F].

    Attributes:
      below: what the row below has from the next coarser level, by level, [w, B, F].
    """

    def __init__(self, weights: FoldedWeights, before: BeforeRow, tops_above: list[tf.Tensor]):
        known = [tf.unstack(x) for x in before.inputs], [tf.unstack(x) for x in before.outputs]
        super().__init__(weights.u, weights.between, *known, *before.upsized)
        self.tops_above, self.below = tops_above, {}

    def read(self, level: int, slot: int, features: tf.Tensor) -> list[tf.Tensor]:
        return with_neighbours(features)

    def downsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        between = self.between[level]
        read = []
        for row in (self.tops_above[level], x):
            left, odd = with_left(row[1::2])
            read += [left, row[::2], odd]  # columns 2 j - 1, 2 j, 2 j + 1
        return product(tf.concat(read, axis=-1), between.down_u) + between.down_u_bias

    def upsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        between = self.between[level]
        rows = []
        for row in tf.split(product(x, between.up_u), 2, axis=-1):
            left, centre, right = tf.split(row, 3, axis=-1)  # what goes to columns 2 j - 1, 2 j, 2 j + 1
            right += with_neighbours(left)[2]
            rows.append(interleaved(centre, right) + between.up_u_bias)
        self.below[level] = rows[1]
        return rows[0]


class UpLeftRow(Stream):
    """A row of `ul` of which all pixels are known."""

    def __init__(self, weights: FoldedWeights, before: BeforeRow):
        known = [tf.unstack(x) for x in before.inputs], [tf.unstack(x) for x in before.outputs]
        super().__init__(weights.ul, weights.between, *known, *before.upsized)
        self.downsized = before.downsized

    def read(self, level: int, slot: int, features: tf.Tensor) -> list[tf.Tensor]:
        return with_left(features)

    def downsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        return product(left_and_even(x), self.between[level].down_ul) + self.downsized[level]

    def upsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        return below_coarse_ul(x, self.between[level], 0)


class Left(NamedTuple):
    """What a pixel reads of those to the left of it; lists are by level.

    Attributes:
      features: concat_elu of the inputs and hidden features of the blocks, 2 L of [B, 2 F].
      tops: last features of the way up, [B, F].
      upsized: of levels 0 and 1, what the last pixel of the next coarser level left for this column, [B, F].
    """

    features: list[list[tf.Tensor]]
    tops: list[tf.Tensor]
    upsized: list[tf.Tensor | None]


class UpLeftPixel(Stream):
    """`ul` at one pixel.

    Args:
      downsized: by level, [B, F].
      left: of the column to the left, of each level; `after` is that of the next column.
    """

    def __init__(
        self,
        weights: FoldedWeights,
        known_inputs: list[list[tf.Tensor]],
        known_outputs: list[list[tf.Tensor]],
        downsized: list[tf.Tensor],
        upsized: tf.Tensor | None,
        left: Left,
    ):
        super().__init__(weights.ul, weights.between, known_inputs, known_outputs, upsized)
        self.downsized, self.left = downsized, left
        self.after = Left([list(level) for level in left.features], list(left.tops), list(left.upsized))

    def read(self, level: int, slot: int, features: tf.Tensor) -> list[tf.Tensor]:
        self.after.features[level][slot] = features
        return [self.left.features[level][slot], features]

    def downsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        read = tf.concat([self.left.tops[level], x], axis=-1)
        return product(read, self.between[level].down_ul) + self.downsized[level]

    def upsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        between = self.between[level]
        here, right = tf.split(product(x, between.up_ul[0]), 2, axis=-1)
        self.after.upsized[level] = right + between.up_ul_bias
        return here + between.up_ul_bias

    def run(self, first: tf.Tensor) -> tf.Tensor:
        x = super().run(first)
        self.after.tops[: len(self.tops)] = self.tops
        return x
