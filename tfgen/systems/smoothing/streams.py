"""The two streams of PixelCNN++ at one row, or one pixel, from what earlier rows and pixels left.

A row is computed when the rows above it are known: `UpRow`, then `UpLeftRow` or, pixel by pixel, `UpLeftPixel`.
Position (i, j) of level l is *due* with pixel (2^l i, 2^l j) of the image. Where a level is not due, the next finer one
takes what the last position of it that was due left for this row or column.

Rows are columns-first, [w, B, F], so that a column is contiguous and the columns of a batch are the rows of a matrix.
Letters as in `pixelcnn` and `folded_weights`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfgen.ops.concat_elu import concat_elu
from tfgen.ops.traced import traced_once
from tfgen.systems.smoothing.folded_weights import BetweenLevels, Known, StreamWeights
from tfgen.systems.smoothing.pixelcnn import LEVELS

# From features of a row to the same at each column that a kernel reads.
Columns = Callable[[tf.Tensor], list[tf.Tensor]]

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


class Before(NamedTuple):
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

    def of_levels(self, due: int, upsized: list[tf.Tensor]) -> Before:
        """Of the finest levels only."""
        return Before(self.first, self.inputs[:due], self.outputs[:due], self.downsized[: due - 1], upsized)


@traced_once
def before_blocks(
    features: tf.Tensor, skip: tf.Tensor | None, columns: Columns, weights: list[tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """What the blocks of a stream at a level take from the row above.

    Args:
      features: inputs and hidden features of the row above, [2 L, w, B, F].
      skip: of `nin_skip`, in the row itself, [L, w, B, F], or None.
      columns: which ones a kernel reads.
      weights: those of `Known`.

    Returns:
      [L, w, B, F] and [L, w, B, 2 F].
    """
    known = Known(*weights)
    inputs, hidden = tf.split(tf.concat(columns(concat_elu(features)), axis=-1), 2)
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


def residual_block(
    x: tf.Tensor,
    read_x: tf.Tensor,
    read_hidden: Callable[[tf.Tensor], tf.Tensor],
    matrices: list[tf.Tensor],
    known: list[tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """`pixelcnn.GatedResnet` in one row, where everything but the row itself is known.

    Args:
      x: [..., F].
      read_x: what `conv_input` and `nin_skip` read in this row, [..., in].
      read_hidden: from the features before `conv_out` to what it reads in this row, [..., in].
      matrices: of `conv_input` and `conv_out`.
      known: what the same take from before the row, [..., F] and [..., 2 F].

    Returns:
      The hidden features before `conv_out`, and the output, [..., F].
    """
    hidden = product(read_x, matrices[0]) + known[0]
    values, gates = tf.split(product(read_hidden(hidden), matrices[1]) + known[1], 2, axis=-1)
    return hidden, x + values * tf.sigmoid(gates)


@traced_once
def _row_block(
    x: tf.Tensor, skip: tf.Tensor | None, columns: Columns, matrices: list[tf.Tensor], known: list[tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """`residual_block` of a row, [w, B, F]."""

    def read(features: tf.Tensor) -> tf.Tensor:
        return tf.concat(columns(concat_elu(features)), axis=-1)

    read_x = read(x) if skip is None else tf.concat([read(x), concat_elu(skip)], axis=-1)
    return residual_block(x, read_x, read, matrices, known)


class Stream(abc.ABC):
    """A stream at the positions that are computed together, features [..., F].

    Args:
      blocks: weights of its residual blocks, by level that is due.
      between: weights of the layers between these levels.
      before: what is known, each at these positions: without an axis of columns for a pixel.

    Attributes:
      inputs, hidden: features before `conv_input` and before `conv_out`, by level and block.
      outputs: what each block gave, by level and block.
      tops: last features of the way up, by level.
      coarse: last features of the way down, by level; nothing for the finest.
    """

    def __init__(self, blocks: list[StreamWeights], between: list[BetweenLevels], before: Before):
        self.blocks, self.between, self.before = blocks, between, before
        self.known = [
            [list(block) for block in zip(tf.unstack(inputs), tf.unstack(outputs), strict=True)]
            for inputs, outputs in zip(before.inputs, before.outputs, strict=True)
        ]
        self.inputs: list[list[tf.Tensor]] = [[] for _ in blocks]
        self.hidden: list[list[tf.Tensor]] = [[] for _ in blocks]
        self.outputs: list[list[tf.Tensor]] = [[] for _ in blocks]
        self.tops: list[tf.Tensor] = []
        self.coarse: list[list[tf.Tensor]] = [[] for _ in blocks]

    @abc.abstractmethod
    def residual(self, level: int, index: int, x: tf.Tensor, skip: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """`residual_block` number `index` of a level."""

    @abc.abstractmethod
    def downsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        """From features of `level` to the next coarser one."""

    @abc.abstractmethod
    def upsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        """To features of `level` from the next coarser one."""

    def run(self) -> tf.Tensor:
        """The last features: up through the levels that are due, and down again."""
        due, up_blocks = len(self.blocks), len(self.blocks[0].inputs) // 2
        x, skips = self.before.first, []
        for level in range(due):
            if level:
                x = self.downsize(level - 1, x)
            kept = [x]
            for index in range(up_blocks):
                x = self._block(level, index, x)
                kept.append(x)
            self.tops.append(x)
            skips.append(kept)
        x = skips[-1].pop() if due == LEVELS else self.before.upsized[0]
        for level in reversed(range(due)):
            for index in range(up_blocks, len(self.known[level])):
                x = self._block(level, index, x, skips[level].pop())
            if level:
                self.coarse[level].append(x)
                x = self.upsize(level - 1, x)
        return x

    def kept(self, level: int) -> tf.Tensor:
        """Inputs and hidden features of the blocks, [2 L, ..., F]."""
        return tf.stack([*self.inputs[level], *self.hidden[level]])

    def _block(self, level: int, index: int, x: tf.Tensor, skip: tf.Tensor | None = None) -> tf.Tensor:
        hidden, out = self.residual(level, index, x, skip)
        self.inputs[level].append(x)
        self.hidden[level].append(hidden)
        self.outputs[level].append(out)
        return out

    def _matrices(self, level: int, index: int) -> list[tf.Tensor]:
        return [self.blocks[level].inputs[index], self.blocks[level].outputs[index]]


class UpRow(Stream):
    """A row of `u`.

    Args:
      tops_above: last features of the way up in the row above, by level, [w, B, F].

    Attributes:
      below: what the row below has from the next coarser level, by level, [w, B, F].
    """

    def __init__(
        self,
        blocks: list[StreamWeights],
        between: list[BetweenLevels],
        before: Before,
        tops_above: list[tf.Tensor],
    ):
        super().__init__(blocks, between, before)
        self.tops_above, self.below = tops_above, list(tops_above)

    def residual(self, level: int, index: int, x: tf.Tensor, skip: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return _row_block(x, skip, with_neighbours, self._matrices(level, index), self.known[level][index])

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
            rows.append(interleaved(centre, right + with_neighbours(left)[2]) + between.up_u_bias)
        self.below[level] = rows[1]
        return rows[0]


class UpLeftRow(Stream):
    """A row of `ul` of which all pixels are known."""

    def residual(self, level: int, index: int, x: tf.Tensor, skip: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return _row_block(x, skip, with_left, self._matrices(level, index), self.known[level][index])

    def downsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        return product(left_and_even(x), self.between[level].down_ul) + self.before.downsized[level]

    def upsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        return below_coarse_ul(x, self.between[level], 0)


class UpLeftPixel(Stream):
    """`ul` at one pixel.

    Operations count here, more than what they compute: ELU is taken of all that a matrix is multiplied by, at once.

    Args:
      left: of the column to the left, by level, what `kept` gave.

    Attributes:
      right: what the column to the right has from the next coarser level, by level, [B, F].
    """

    def __init__(
        self, blocks: list[StreamWeights], between: list[BetweenLevels], before: Before, left: list[tf.Tensor]
    ):
        super().__init__(blocks, between, before)
        self.left = [tf.unstack(column) for column in left]
        self.right: list[tf.Tensor] = []
        self._negatives = {
            x.ref(): negative
            for column, level in zip(left, self.left, strict=True)
            for x, negative in zip(level, tf.unstack(-column), strict=True)
        }

    def residual(self, level: int, index: int, x: tf.Tensor, skip: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        left_x, left_hidden = self.left[level][index], self.left[level][len(self.known[level]) + index]
        read_x = self._read([left_x, x] if skip is None else [left_x, x, skip])
        return residual_block(
            x,
            read_x,
            lambda hidden: self._read([left_hidden, hidden]),
            self._matrices(level, index),
            self.known[level][index],
        )

    def _read(self, features: list[tf.Tensor]) -> tf.Tensor:
        """concat_elu of each of them, [B, F] each, one after the other."""
        signed = []
        for x in features:
            if x.ref() not in self._negatives:
                self._negatives[x.ref()] = -x  # of an input it is needed again, of a block that it skips to
            signed += [x, self._negatives[x.ref()]]
        return tf.nn.elu(tf.concat(signed, axis=-1))

    def downsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        top = self.left[level][2 * len(self.known[level])]
        product_of_both = product(tf.concat([top, x], axis=-1), self.between[level].down_ul)
        return product_of_both + self.before.downsized[level]

    def upsize(self, level: int, x: tf.Tensor) -> tf.Tensor:
        bias = self.between[level].up_ul_bias
        here, right = tf.split(product(x, self.between[level].up_ul[0]), 2, axis=-1)
        self.right.insert(0, right + bias)  # coarser levels come first
        return here + bias

    def kept(self, level: int) -> tf.Tensor:
        """Also the last features of the way up and, below the finest level, down: [2 L + 1 or 2 L + 2, B, F]."""
        return tf.stack([*self.inputs[level], *self.hidden[level], self.tops[level], *self.coarse[level]])
