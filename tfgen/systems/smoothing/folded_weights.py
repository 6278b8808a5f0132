"""The weights of PixelCNN++ as incremental sampling uses them: normalised once, and as matrices.

A 2-row kernel becomes two matrices: what it reads in the row above, of which all columns are known before a row
begins, and what it reads in its own row. A matrix has one row of weights for each tap and input channel, taps from left
to right. Letters as in `pixelcnn`; L residual blocks of a stream at a level, first those of the way up, then those of
the way down; t columns that a kernel reads, 3 for `u` and 2 for `ul`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfgen.systems.smoothing.pixelcnn import LEVELS, GatedResnet, PixelCNN, WeightNormalized


class Known(NamedTuple):
    """What the blocks of a stream read of what is known before the row begins, stacked over blocks.

    Attributes:
      inputs: [L, t 2 F, F] of `conv_input`; for `ul` [L, t 2 F + 2 F, F], the last 2 F for `u` at the position itself.
      inputs_bias: [L, 1, 1, F], of `conv_input` and `nin_skip`.
      outputs: [L, t 2 F, 2 F] of `conv_out`.
      outputs_bias: [L, 1, 1, 2 F].
    """

    inputs: tf.Tensor
    inputs_bias: tf.Tensor
    outputs: tf.Tensor
    outputs_bias: tf.Tensor


class StreamWeights(NamedTuple):
    """The residual blocks of a stream at one level.

    Attributes:
      known: see there.
      inputs: L matrices [t 2 F, F] of `conv_input` in the row itself, on the way down [t 2 F + 2 F, F], the last 2 F
        for the skip of the same stream.
      outputs: L matrices [t 2 F, 2 F] of `conv_out` in the row itself.
    """

    known: Known
    inputs: list[tf.Tensor]
    outputs: list[tf.Tensor]


class BetweenLevels(NamedTuple):
    """Of the layers between a level and the next coarser one.

    Attributes:
      down_u: [2 * 3 F, F], the row above first.
      down_ul_above, down_ul: [2 F, F], in the row above and in the row itself.
      down_u_bias, down_ul_bias: [F].
      up_u: [F, 2 * 3 F], to the upper and to the lower row, of each to three columns.
      up_ul: two matrices [F, 2 F], to the upper and to the lower row, of each to two columns.
      up_u_bias, up_ul_bias: [F].
    """

    down_u: tf.Tensor
    down_u_bias: tf.Tensor
    down_ul_above: tf.Tensor
    down_ul: tf.Tensor
    down_ul_bias: tf.Tensor
    up_u: tf.Tensor
    up_u_bias: tf.Tensor
    up_ul: list[tf.Tensor]
    up_ul_bias: tf.Tensor


class FirstLayers(NamedTuple):
    """`u_init` and `ul_init`, on pixels with their channel of ones. Their shifts are part of what they read.

    Where the network shifts in a zero, no bias may be added. A bias is therefore the weight of a channel of ones: that
    of the pixel above or to the left, which is not there, and 0, in the first row and column.

    Attributes:
      u: [2 * 3 (C + 1), F], two rows up, one row up.
      ul_above: [3 (C + 1), F], one row up.
      ul_left: [C, F], the pixel to the left.
      ul_left_exists: [F], added where there is a pixel to the left.
    """

    u: tf.Tensor
    ul_above: tf.Tensor
    ul_left: tf.Tensor
    ul_left_exists: tf.Tensor


class FoldedWeights(NamedTuple):
    """All weights of a network. `u`, `ul` and `between` are by level, `between[i]` of levels i and i + 1."""

    first: FirstLayers
    u: list[StreamWeights]
    ul: list[StreamWeights]
    between: list[BetweenLevels]
    head: tf.Tensor  # [F, 10 K or 3 K]
    head_bias: tf.Tensor

    def of_pixel(self, due: int) -> FoldedWeights:
        """Those of `ul` at the finest levels, and the head."""
        return self._replace(u=[], ul=self.ul[:due], between=self.between[: due - 1])


def fold(network: PixelCNN, dtype: tf.DType = tf.float32) -> FoldedWeights:
    """The weights that the variables of the network stand for now, computed in a dtype."""
    levels = [(network.up_layers[level], network.down_layers[LEVELS - 1 - level]) for level in range(LEVELS)]
    return FoldedWeights(
        first=_first_layers(network, dtype),
        u=[_stream(up.u_stream, down.u_stream, 0, dtype) for up, down in levels],
        ul=[_stream(up.ul_stream, down.ul_stream, 1, dtype) for up, down in levels],
        between=[_between(network, level, dtype) for level in range(LEVELS - 1)],
        head=_kernel(network.nin_out, dtype),
        head_bias=tf.cast(network.nin_out.bias, dtype),
    )


def _kernels(layers: Sequence[WeightNormalized], dtype: tf.DType) -> tf.Tensor:
    """Kernels of layers of one shape, [L, ..., N], normalised as `pixelcnn.normalized` does, all at once."""
    v = tf.cast(tf.stack([layer.v for layer in layers]), dtype)
    squares = tf.reduce_sum(tf.square(v), axis=list(range(1, v.shape.rank - 1)), keepdims=True)
    g = tf.cast(tf.reshape(tf.stack([layer.g for layer in layers]), squares.shape), dtype)
    return v * (g / tf.sqrt(squares))


def _kernel(layer: WeightNormalized, dtype: tf.DType) -> tf.Tensor:
    return _kernels([layer], dtype)[0]


def _biases(layers: Sequence[WeightNormalized], dtype: tf.DType) -> tf.Tensor:
    """[L, 1, 1, N]."""
    return tf.cast(tf.stack([layer.bias for layer in layers]), dtype)[:, tf.newaxis, tf.newaxis]


def _rows(kernels: tf.Tensor) -> list[tf.Tensor]:
    """[..., 2, t, in, out] -> two of [..., t in, out]: the row above, and the row itself."""
    *others, _, _, _, outputs = kernels.shape
    return tf.unstack(tf.reshape(kernels, [*others, 2, -1, outputs]), axis=-3)


def _stream(
    way_up: Sequence[GatedResnet], way_down: Sequence[GatedResnet], skips_known: int, dtype: tf.DType
) -> StreamWeights:
    """Args: skips_known: how many of the skips of a block, the first ones, are known before the row begins."""
    groups = [_blocks(blocks, skips_known, dtype) for blocks in (way_up, way_down)]
    return StreamWeights(
        known=Known(*(tf.concat(part, axis=0) for part in zip(*(group.known for group in groups), strict=True))),
        inputs=[matrix for group in groups for matrix in group.inputs],
        outputs=[matrix for group in groups for matrix in group.outputs],
    )


def _blocks(blocks: Sequence[GatedResnet], skips_known: int, dtype: tf.DType) -> StreamWeights:
    """Blocks of one shape."""
    known, own = ([rows] for rows in _rows(_kernels([block.conv_input for block in blocks], dtype)))
    bias = _biases([block.conv_input for block in blocks], dtype)
    pointwise = [block.nin_skip for block in blocks if block.nin_skip is not None]
    if pointwise:
        # The rows of a matrix: ELU(a), ELU(b), ELU(-a), ELU(-b) of skips a and b.
        matrices = _kernels(pointwise, dtype)
        filters = matrices.shape[-1]
        skips = tf.unstack(tf.reshape(matrices, [len(blocks), 2, -1, filters, filters]), axis=2)
        skips = [tf.reshape(skip, [len(blocks), 2 * filters, filters]) for skip in skips]
        known += skips[:skips_known]
        own += skips[skips_known:]
        bias += _biases(pointwise, dtype)
    known_outputs, own_outputs = _rows(_kernels([block.conv_out for block in blocks], dtype))
    return StreamWeights(
        known=Known(
            inputs=tf.concat(known, axis=1),
            inputs_bias=bias,
            outputs=known_outputs,
            outputs_bias=_biases([block.conv_out for block in blocks], dtype),
        ),
        inputs=tf.unstack(tf.concat(own, axis=1)),
        outputs=tf.unstack(own_outputs),
    )


def _between(network: PixelCNN, level: int, dtype: tf.DType) -> BetweenLevels:
    down_u, down_ul = network.downsize_u_stream[level], network.downsize_ul_stream[level]
    # Upsizing goes the other way: its last layer is that to the finest level.
    up_u, up_ul = network.upsize_u_stream[-1 - level], network.upsize_ul_stream[-1 - level]
    down_ul_above, down_ul_own = _rows(_kernel(down_ul, dtype))
    filters = network.filters
    return BetweenLevels(
        down_u=tf.reshape(_kernel(down_u, dtype), [-1, filters]),
        down_u_bias=tf.cast(down_u.bias, dtype),
        down_ul_above=down_ul_above,
        down_ul=down_ul_own,
        down_ul_bias=tf.cast(down_ul.bias, dtype),
        up_u=tf.reshape(tf.transpose(_kernel(up_u, dtype), [3, 0, 1, 2]), [filters, -1]),
        up_u_bias=tf.cast(up_u.bias, dtype),
        up_ul=[tf.reshape(tf.transpose(row, [2, 0, 1]), [filters, -1]) for row in tf.unstack(_kernel(up_ul, dtype))],
        up_ul_bias=tf.cast(up_ul.bias, dtype),
    )


def _first_layers(network: PixelCNN, dtype: tf.DType) -> FirstLayers:
    filters, ones = network.filters, network.channels  # the channel of ones is the last
    u, above, left = network.u_init, *network.ul_init
    one_up = tf.scatter_nd([[1, 1, ones]], tf.cast(u.bias, dtype)[tf.newaxis], u.v.shape)
    above_centre = tf.scatter_nd([[0, 1, ones]], tf.cast(above.bias, dtype)[tf.newaxis], above.v.shape)
    left_above, left_own = tf.unstack(_kernel(left, dtype)[:, 0])  # [C + 1, F]
    ul_above = (
        _kernel(above, dtype)
        + above_centre
        + tf.pad(left_above[tf.newaxis, tf.newaxis], [[0, 0], [0, 2], [0, 0], [0, 0]])
    )
    return FirstLayers(
        u=tf.reshape(_kernel(u, dtype) + one_up, [-1, filters]),
        ul_above=tf.reshape(ul_above, [-1, filters]),
        ul_left=left_own[:ones],
        ul_left_exists=left_own[ones] + tf.cast(left.bias, dtype),
    )
