"""Sampling from PixelCNN++ with every feature computed once, when what it depends on is known.

The original computes the network on the whole image for each pixel. Here the features of the last row and the last
column are kept (Ramachandran et al., "Fast Generation for Convolutional Autoregressive Models", arXiv:1704.06001), so
that an image takes the multiplications of one pass of the network. They are done in two phases:

* before a row, for all of its columns: `u`, and what `ul` takes from `u` and from the row above;
* for each pixel: what `ul` takes from its own row, two matrix products of [B, ...] a residual block.

Levels have half and a quarter of the rows and columns, so that rows and columns come in groups of four.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfgen.systems.smoothing.folded_weights import FoldedWeights, fold
from tfgen.systems.smoothing.pixelcnn import LEVELS, PIXELS_DIVISOR, PixelCNN, with_ones
from tfgen.systems.smoothing.streams import (
    Before,
    UpLeftPixel,
    UpLeftRow,
    UpRow,
    before_blocks,
    below_coarse_ul,
    left_and_even,
    product,
    with_left,
    with_neighbours,
)

# draw(parameters [B, 10 K or 3 K], row, column, *numbers) -> pixels [B, C]; row and column are int32 scalars.
Draw = Callable[..., tf.Tensor]
Pixel = Callable[..., tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor]]  # `run_pixel` with a `draw`
Progress = Callable[[int, int, np.ndarray], None]  # (rows drawn, in all, images so far [B, H, W, C])
GROUP = PIXELS_DIVISOR  # rows or columns after which the levels that are due repeat
DUE = (3, 1, 2, 1)  # levels that are due at each row or column of a group


class State(NamedTuple):
    """What is kept between rows; lists are by level, features as in `streams`.

    Attributes:
      pixels: of the two rows above, with their channel of ones, [2, W, B, C + 1].
      u, ul: of the row above of the level: inputs and hidden features of the blocks, [2 L, w, B, F].
      u_tops, ul_tops: of the same row, last features of the way up, [w, B, F]. Levels 0 and 1.
      u_below: features from the next coarser level for the row below, [w, B, F]. Levels 0 and 1.
      ul_coarse: last features of the next coarser level, [w / 2, B, F]. Levels 0 and 1.
    """

    pixels: tf.Tensor
    u: list[tf.Tensor]
    ul: list[tf.Tensor]
    u_tops: list[tf.Tensor]
    ul_tops: list[tf.Tensor]
    u_below: list[tf.Tensor]
    ul_coarse: list[tf.Tensor]


class UpLeftDone(NamedTuple):
    """`ul` of a row; lists are by level, of the levels that were due."""

    features: list[tf.Tensor]  # [2 L, w, B, F]
    tops: list[tf.Tensor]  # [w, B, F]
    coarse: list[tf.Tensor]  # [w / 2, B, F], of the next coarser level
    pixels: tf.Tensor  # [W, B, C]


class IncrementalSampler:
    """Draws images from a network, pixel by pixel in raster order.

    Results are those of `naive.sample`, up to rounding. Weights are read at each call.

    Args:
      network: see there.
      dtype: of the computation and of the images. float64 shows what is rounding and what is not.
    """

    def __init__(self, network: PixelCNN, dtype: tf.DType = tf.float32):
        self.network, self.dtype = network, dtype
        self._fold = tf.function(functools.partial(fold, network, dtype), autograph=False)
        self._known_rows = tf.function(known_rows, autograph=False)
        self._drawn_rows = functools.lru_cache(maxsize=4)(_compiled_rows)

    def sample(
        self,
        height: int,
        width: int,
        batch: int,
        draw: Draw,
        numbers: tuple[Any, ...] = (),
        given: tf.Tensor | None = None,
        progress: Progress | None = None,
    ) -> tf.Tensor:
        """Draws images four rows at a time, by a compiled function.

        It is kept with the `draw` that it was compiled for: pass the same object at each call, and what differs, such
        as random numbers, as `numbers`.

        Args:
          height, width: H and W, multiples of 4.
          batch: B.
          draw: called as draw(parameters, i, j, *numbers) with the parameters of the mixtures at pixel (i, j), of dtype
            [B, 10 K] or, for one colour, [B, 3 K], and int32 scalars; gives the pixels, [B, C].
          numbers: tensors, or nests of them.
          given: known rows above the first one, [B, any multiple of 4, W, C].
          progress: called after every four rows, with the images so far (0 where not drawn yet).

        Returns:
          [B, H, W, C] of the dtype, without the given rows.

        Raises:
          ValueError: sides that are not multiples of 4; given rows of another shape.
        """
        self._check(height, width, batch, given)
        weights, state = self._fold(), initial_state(self.network, width, batch, self.dtype)
        if given is not None:
            rows = tf.cast(rows_first(given), self.dtype)
            for first in range(0, rows.shape[0], GROUP):
                state = self._known_rows(weights, state, rows[first : first + GROUP])
        four_rows = self._drawn_rows(draw)
        images = np.zeros([height, width, batch, self.network.channels], self.dtype.as_numpy_dtype)
        for first in range(0, height, GROUP):
            state, rows = four_rows(weights, numbers, state, tf.constant(first))
            images[first : first + GROUP] = rows.numpy()
            if progress is not None:
                progress(first + GROUP, height, images.transpose(2, 0, 1, 3))
        return tf.constant(images.transpose(2, 0, 1, 3))

    def sample_in_graph(
        self,
        height: int,
        width: int,
        batch: int | tf.Tensor,
        draw: Draw,
        numbers: tuple[Any, ...] = (),
        given: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The same as operations of the graph that is being built, such as that of a SavedModel.

        Arguments and result as of `sample`; `batch` may be a tensor, and the batch of `given` unknown.
        """
        self._check(height, width, batch, given)
        weights, state = fold(self.network, self.dtype), initial_state(self.network, width, batch, self.dtype)
        if given is not None:
            rows = tf.cast(rows_first(given), self.dtype)
            _, state = tf.while_loop(
                lambda first, _: first < rows.shape[0],
                lambda first, state: (first + GROUP, known_rows(weights, state, rows[first : first + GROUP])),
                [tf.constant(0), state],
                parallel_iterations=1,
            )

        pixel = _compiled_pixel(draw)

        def four_rows(first: tf.Tensor, state: State, drawn: tf.TensorArray) -> tuple:
            state, rows = drawn_rows(weights, pixel, numbers, state, first)
            return first + GROUP, state, drawn.write(first // GROUP, rows)

        shape = [GROUP, *state.pixels.shape[1:3], self.network.channels]
        drawn = tf.TensorArray(self.dtype, height // GROUP, element_shape=shape)
        loop = [tf.constant(0), state, drawn]
        _, _, drawn = tf.while_loop(lambda first, *_: first < height, four_rows, loop, parallel_iterations=1)
        return tf.transpose(drawn.concat(), [2, 0, 1, 3])

    def _check(self, height: int, width: int, batch: int | tf.Tensor, given: tf.Tensor | None) -> None:
        if height % GROUP or width % GROUP or min(height, width) < GROUP:
            raise ValueError(f"expected sides that are multiples of {GROUP}, found {height} x {width}")
        if given is None:
            return
        size, rows, *others = given.shape
        known_batch = None if tf.is_tensor(batch) else batch
        fits = None in (size, known_batch) or size == known_batch
        if not fits or others != [width, self.network.channels] or rows is None or rows % GROUP:
            expected = (
                f"[{'B' if known_batch is None else batch}, a multiple of {GROUP}, {width}, {self.network.channels}]"
            )
            raise ValueError(f"expected given rows of shape {expected}, found {list(given.shape)}")


def initial_state(network: PixelCNN, width: int, batch: int | tf.Tensor, dtype: tf.DType) -> State:
    """The state above the first row: nothing is there."""

    def zeros(*shape: int | tf.Tensor) -> tf.Tensor:
        return tf.zeros(shape, dtype)

    widths = [width >> level for level in range(LEVELS)]
    slots = [2 * (2 * network.blocks + (level < LEVELS - 1)) for level in range(LEVELS)]
    features = [zeros(count, w, batch, network.filters) for count, w in zip(slots, widths, strict=True)]
    rows = [zeros(w, batch, network.filters) for w in widths]
    return State(
        pixels=zeros(2, width, batch, network.channels + 1),
        u=features,
        ul=features,
        u_tops=rows[:-1],
        ul_tops=rows[:-1],
        u_below=rows[:-1],
        ul_coarse=rows[1:],
    )


def rows_first(images: tf.Tensor) -> tf.Tensor:
    """[B, H, W, C] -> [H, W, B, C]."""
    return tf.transpose(images, [1, 2, 0, 3])


def _compiled_pixel(draw: Draw) -> Pixel:
    """`run_pixel`, an operation of the graphs that call it: traced for each number of levels that may be due."""
    return tf.function(functools.partial(run_pixel, draw), autograph=False, experimental_attributes={"_noinline": True})


def _compiled_rows(draw: Draw) -> tf.types.experimental.GenericFunction:
    """`drawn_rows` of weights, numbers, state and first row."""

    def rows(weights: FoldedWeights, numbers: tuple, state: State, first: tf.Tensor) -> tuple[State, tf.Tensor]:
        return drawn_rows(weights, pixel, numbers, state, first)

    pixel = _compiled_pixel(draw)
    return tf.function(rows, autograph=False)


# Rows ------------------------------------------------------------------------------------------------------


def known_rows(weights: FoldedWeights, state: State, rows: tf.Tensor) -> State:
    """The state below four rows whose pixels, [4, W, B, C], are known."""
    for due, pixels in zip(DUE, tf.unstack(rows, GROUP), strict=True):
        state = next_row(weights, state, due, functools.partial(known_pixels, weights, pixels))
    return state


def drawn_rows(
    weights: FoldedWeights, pixel: Pixel, numbers: tuple[Any, ...], state: State, first: tf.Tensor
) -> tuple[State, tf.Tensor]:
    """Draws rows `first` to `first` + 3: the state below them, and their pixels, [4, W, B, C].

    Args:
      pixel: `run_pixel`, compiled.
    """
    rows = []
    for row, due in enumerate(DUE):
        state = next_row(weights, state, due, functools.partial(drawn_pixels, weights, pixel, first + row, numbers))
        rows.append(state.pixels[1, ..., :-1])
    return state, tf.stack(rows)


def next_row(weights: FoldedWeights, state: State, due: int, run_ul: Callable[[Before], UpLeftDone]) -> State:
    """The state below a row.

    Args:
      due: how many levels are.
      run_ul: computes `ul`, and knows or draws the pixels.
    """
    u = UpRow(weights.u[:due], weights.between[: due - 1], before_u(weights, state, due), state.u_tops)
    u.run()
    ul = run_ul(before_ul(weights, state, u))

    def updated(old: list[tf.Tensor], new: list[tf.Tensor]) -> list[tf.Tensor]:
        return [*new[: len(old)], *old[len(new) :]]

    return State(
        pixels=tf.stack([state.pixels[1], with_ones(ul.pixels[tf.newaxis])[0]]),
        u=updated(state.u, [u.kept(level) for level in range(due)]),
        ul=updated(state.ul, ul.features),
        u_tops=updated(state.u_tops, u.tops),
        ul_tops=updated(state.ul_tops, ul.tops),
        u_below=updated(state.u_below, u.below[: due - 1]),
        ul_coarse=updated(state.ul_coarse, ul.coarse),
    )


def before_u(weights: FoldedWeights, state: State, due: int) -> Before:
    """What `u` takes from the rows above."""
    blocks = [
        before_blocks(features, None, with_neighbours, list(stream.known))
        for stream, features in zip(weights.u[:due], state.u[:due], strict=True)
    ]
    inputs, outputs = zip(*blocks, strict=True)
    first = product(_read_pixels(state.pixels), weights.first.u)
    return Before(first, list(inputs), list(outputs), [], state.u_below[due - 1 : due])


def before_ul(weights: FoldedWeights, state: State, u: UpRow) -> Before:
    """What `ul` takes from the row above and from `u`."""
    due = len(u.tops)
    blocks = [
        before_blocks(features, tf.stack(skips), with_left, list(stream.known))
        for stream, features, skips in zip(weights.ul[:due], state.ul[:due], u.outputs, strict=True)
    ]
    inputs, outputs = zip(*blocks, strict=True)
    downsized = [
        product(left_and_even(state.ul_tops[level]), between.down_ul_above) + between.down_ul_bias
        for level, between in enumerate(weights.between[: due - 1])
    ]
    upsized = [
        below_coarse_ul(coarse, between, 1)
        for coarse, between in zip(state.ul_coarse[due - 1 : due], weights.between[due - 1 : due], strict=True)
    ]
    first = product(_read_pixels(state.pixels[1:]), weights.first.ul_above)
    has_left = tf.constant(np.arange(first.shape[0]) > 0, first.dtype)[:, tf.newaxis, tf.newaxis]
    return Before(first + has_left * weights.first.ul_left_exists, list(inputs), list(outputs), downsized, upsized)


def _read_pixels(pixels: tf.Tensor) -> tf.Tensor:
    """[rows, W, B, C + 1] -> [W, B, rows 3 (C + 1)]: what the first layers read of the rows above."""
    return tf.concat([column for row in tf.unstack(pixels) for column in with_neighbours(row)], axis=-1)


def known_pixels(weights: FoldedWeights, pixels: tf.Tensor, before: Before) -> UpLeftDone:
    """`ul` of a row whose pixels, [W, B, C], are known."""
    due = len(before.inputs)
    first = before.first + product(with_left(pixels)[0], weights.first.ul_left)
    ul = UpLeftRow(weights.ul[:due], weights.between[: due - 1], before._replace(first=first))
    ul.run()
    features = [ul.kept(level) for level in range(due)]
    return UpLeftDone(features, ul.tops, list(itertools.chain(*ul.coarse)), pixels)


# Pixels ----------------------------------------------------------------------------------------------------


def drawn_pixels(
    weights: FoldedWeights, pixel: Pixel, row: tf.Tensor, numbers: tuple[Any, ...], before: Before
) -> UpLeftDone:
    """`ul` of a row, and its pixels, which are drawn in a loop over groups of four columns.

    Args:
      pixel: `run_pixel`, compiled.
    """
    due, slots = len(before.inputs), [2 * rows.shape[0] for rows in before.inputs]
    kept = [slot + 1 + (level > 0) for level, slot in enumerate(slots)]  # of a column, see UpLeftPixel.kept
    width, batch, filters = before.first.shape
    channels = weights.first.ul_left.shape[0]
    known = before._replace(
        inputs=[tf.transpose(rows, [1, 0, 2, 3]) for rows in before.inputs],  # [w, L, B, F]
        outputs=[tf.transpose(rows, [1, 0, 2, 3]) for rows in before.outputs],
    )

    def four_columns(group: tf.Tensor, left: list, right: list, drawn: tf.Tensor, done: list, pixels: tf.TensorArray):
        left, right, done = list(left), list(right), list(done)
        starts = [group * (GROUP // 2**level) for level in range(due)]
        for index, column_due in enumerate(DUE):
            levels = min(due, column_due)
            columns = [starts[level] + index // 2**level for level in range(due)]  # of each level
            # Of the next coarser level, if it is not due: from the row above, or else from a column to the left.
            upsized = [tf.gather(rows, columns[-1]) for rows in before.upsized]
            upsized = upsized if levels == due else right[levels - 1 : levels]
            of_levels = weights.of_pixel(levels), known.of_levels(levels, upsized), left[:levels]
            new, right[: levels - 1], drawn = pixel(*of_levels, drawn, row, columns[:levels], numbers)
            left[:levels] = new
            for level, features in enumerate(new):
                done[level] = done[level].write(columns[level], features)
            pixels = pixels.write(columns[0], drawn)
        return group + 1, left, right, drawn, done, pixels

    def zeros(*shape: int) -> tf.Tensor:
        return tf.zeros([*shape[:-1], tf.shape(before.first)[1], shape[-1]], before.first.dtype)

    def array(count: int, *shape: int) -> tf.TensorArray:
        return tf.TensorArray(before.first.dtype, count, element_shape=[*shape[:-1], batch, shape[-1]])

    *_, done, pixels = tf.while_loop(
        lambda group, *_: group < width // GROUP,
        four_columns,
        [
            tf.constant(0),
            [zeros(count, filters) for count in kept],
            [zeros(filters)] * (due - 1),
            zeros(channels),
            [array(width >> level, count, filters) for level, count in enumerate(kept)],
            array(width, channels),
        ],
        parallel_iterations=1,
    )
    rows = [tf.transpose(level.stack(), [1, 0, 2, 3]) for level in done]  # [kept, w, B, F]
    return UpLeftDone(
        features=[level[:slot] for level, slot in zip(rows, slots, strict=True)],
        tops=[level[slot] for level, slot in zip(rows, slots, strict=True)],
        coarse=[level[-1] for level in rows[1:]],
        pixels=pixels.stack(),
    )


def run_pixel(
    draw: Draw,
    weights: FoldedWeights,
    known: Before,
    left: list[tf.Tensor],
    drawn: tf.Tensor,
    row: tf.Tensor,
    columns: list[tf.Tensor],
    numbers: tuple[Any, ...],
) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor]:
    """Draws a pixel.

    Args:
      weights, known: of the levels that are due. `known` is of the whole row, [w, B, F] and [w, L, B, F], but for
        `upsized`, [B, F].
      left: what is kept of the column to the left, by level; see `UpLeftPixel.kept`.
      drawn: the pixel to the left, [B, C].
      row: int32 scalar.
      columns: of the pixel at each level, int32 scalars.

    Returns:
      What is kept of this column, by level; what the column to the right has from the next coarser level, by level; the
      pixel, [B, C].
    """
    inputs, outputs = (
        [tf.gather(rows, column) for rows, column in zip(levels, columns, strict=True)]
        for levels in (known.inputs, known.outputs)
    )
    downsized = [tf.gather(rows, column) for rows, column in zip(known.downsized, columns[1:], strict=True)]
    first = tf.gather(known.first, columns[0]) + product(drawn, weights.first.ul_left)
    here = Before(first, inputs, outputs, downsized, known.upsized)
    ul = UpLeftPixel(weights.ul, weights.between, here, left)
    parameters = product(tf.nn.elu(ul.run()), weights.head) + weights.head_bias
    pixel = tf.ensure_shape(draw(parameters, row, columns[0], *numbers), drawn.shape)
    return [ul.kept(level) for level in range(len(left))], ul.right, pixel
