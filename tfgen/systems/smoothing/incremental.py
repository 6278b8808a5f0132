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
from tfgen.systems.smoothing.pixelcnn import LEVELS, PIXELS_DIVISOR, PixelCNN, concat_elu, with_ones
from tfgen.systems.smoothing.streams import (
    BeforeRow,
    Left,
    UpLeftPixel,
    UpLeftRow,
    UpRow,
    before_row_of_blocks,
    below_coarse_ul,
    left_and_even,
    product,
    with_left,
    with_neighbours,
)

# draw(parameters [B, 10 K or 3 K], row, column, *numbers) -> pixels [B, C]; row and column are int32 scalars.
Draw = Callable[..., tf.Tensor]
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
    """

    def __init__(self, network: PixelCNN):
        self.network = network
        self._fold = tf.function(lambda: fold(network), autograph=False)
        self._known_rows = tf.function(known_rows, autograph=False)
        self._drawn_rows = functools.lru_cache(maxsize=4)(self._compiled)

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
          draw: called as draw(parameters, i, j, *numbers) with the parameters of the mixtures at pixel (i, j), float32
            [B, 10 K] or, for one colour, [B, 3 K], and int32 scalars; gives the pixels, float32 [B, C].
          numbers: tensors, or nests of them.
          given: known rows above the first one, float32 [B, any multiple of 4, W, C].
          progress: called after every four rows, with the images so far (0 where not drawn yet).

        Returns:
          float32 [B, H, W, C], without the given rows.

        Raises:
          ValueError: sides that are not multiples of 4; given rows of another shape.
        """
        self._check(height, width, given)
        weights, state = self._fold(), initial_state(self.network, width, batch)
        if given is not None:
            rows = rows_first(given)
            for first in range(0, rows.shape[0], GROUP):
                state = self._known_rows(weights, state, rows[first : first + GROUP])
        function = self._drawn_rows(draw)
        images = np.zeros([height, width, batch, self.network.channels], np.float32)
        for first in range(0, height, GROUP):
            state, rows = function(weights, state, tf.constant(first), numbers)
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
        self._check(height, width, given)
        weights, state = fold(self.network), initial_state(self.network, width, batch)
        if given is not None:
            rows = rows_first(given)
            _, state = tf.while_loop(
                lambda first, _: first < rows.shape[0],
                lambda first, state: (first + GROUP, known_rows(weights, state, rows[first : first + GROUP])),
                [tf.constant(0), state],
                parallel_iterations=1,
            )

        def four_rows(first: tf.Tensor, state: State, drawn: tf.TensorArray) -> tuple:
            state, rows = drawn_rows(weights, state, first, draw, numbers)
            return first + GROUP, state, drawn.write(first // GROUP, rows)

        shape = [GROUP, *state.pixels.shape[1:3], self.network.channels]
        drawn = tf.TensorArray(tf.float32, height // GROUP, element_shape=shape)
        loop = [tf.constant(0), state, drawn]
        _, _, drawn = tf.while_loop(lambda first, *_: first < height, four_rows, loop, parallel_iterations=1)
        return tf.transpose(drawn.concat(), [2, 0, 1, 3])

    def _compiled(self, draw: Draw) -> tf.types.experimental.GenericFunction:
        @tf.function(autograph=False)
        def rows(weights: FoldedWeights, state: State, first: tf.Tensor, numbers: tuple) -> tuple[State, tf.Tensor]:
            return drawn_rows(weights, state, first, draw, numbers)

        return rows

    def _check(self, height: int, width: int, given: tf.Tensor | None) -> None:
        if height % GROUP or width % GROUP or min(height, width) < GROUP:
            raise ValueError(f"expected sides that are multiples of {GROUP}, found {height} x {width}")
        if given is None:
            return
        _, rows, *others = given.shape
        if others != [width, self.network.channels] or rows is None or rows % GROUP:
            raise ValueError(
                f"expected given rows of shape [B, a multiple of {GROUP}, {width}, {self.network.channels}], found "
                f"{list(given.shape)}"
            )


def initial_state(network: PixelCNN, width: int, batch: int | tf.Tensor) -> State:
    """The state above the first row: nothing is there."""

    def zeros(*shape: int | tf.Tensor) -> tf.Tensor:
        return tf.zeros(shape)

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


# Rows ------------------------------------------------------------------------------------------------------


def known_rows(weights: FoldedWeights, state: State, rows: tf.Tensor) -> State:
    """The state below four rows whose pixels, [4, W, B, C], are known."""
    for due, pixels in zip(DUE, tf.unstack(rows, GROUP), strict=True):
        state = next_row(weights, state, due, functools.partial(known_pixels, weights, pixels=pixels))
    return state


def drawn_rows(
    weights: FoldedWeights, state: State, first: tf.Tensor, draw: Draw, numbers: tuple[Any, ...]
) -> tuple[State, tf.Tensor]:
    """Draws rows `first` to `first` + 3: the state below them, and their pixels, [4, W, B, C]."""
    rows = []
    for index, due in enumerate(DUE):
        row = first + index
        at_pixel = functools.partial(_draw_at, draw=draw, row=row, numbers=numbers)
        state = next_row(weights, state, due, functools.partial(drawn_pixels, weights, draw=at_pixel))
        rows.append(state.pixels[1, ..., :-1])
    return state, tf.stack(rows)


def _draw_at(parameters: tf.Tensor, column: tf.Tensor, draw: Draw, row: tf.Tensor, numbers: tuple) -> tf.Tensor:
    return draw(parameters, row, column, *numbers)


def next_row(weights: FoldedWeights, state: State, due: int, run_ul: Callable[[BeforeRow], UpLeftDone]) -> State:
    """The state below a row.

    Args:
      due: how many levels are.
      run_ul: computes `ul`, and knows or draws the pixels.
    """
    before = before_u(weights, state, due)
    u = UpRow(weights, before, state.u_tops)
    u.run(before.first)
    ul = run_ul(before_ul(weights, state, u))

    def updated(old: list[tf.Tensor], new: list[tf.Tensor]) -> list[tf.Tensor]:
        return [*new[: len(old)], *old[len(new) :]]

    features = [tf.stack([*inputs, *hidden]) for inputs, hidden in zip(u.inputs, u.hidden, strict=True)]
    return State(
        pixels=tf.stack([state.pixels[1], with_ones(ul.pixels[tf.newaxis])[0]]),
        u=updated(state.u, features),
        ul=updated(state.ul, ul.features),
        u_tops=updated(state.u_tops, u.tops),
        ul_tops=updated(state.ul_tops, ul.tops),
        u_below=updated(state.u_below, [u.below[level] for level in range(due - 1)]),
        ul_coarse=updated(state.ul_coarse, ul.coarse),
    )


def _read_pixels(pixels: tf.Tensor) -> list[tf.Tensor]:
    """[rows, W, B, C + 1] -> [W, B, C + 1] at all columns that the first layers read, row after row."""
    return [column for row in tf.unstack(pixels) for column in with_neighbours(row)]


def before_u(weights: FoldedWeights, state: State, due: int) -> BeforeRow:
    """What `u` takes from the row above."""
    blocks = [
        before_row_of_blocks(stream.known, with_neighbours(concat_elu(features)), None)
        for stream, features in zip(weights.u[:due], state.u[:due], strict=True)
    ]
    inputs, outputs = zip(*blocks, strict=True)
    upsized = state.u_below[due - 1 : due]
    first = product(tf.concat(_read_pixels(state.pixels), axis=-1), weights.first.u)
    return BeforeRow(first, list(inputs), list(outputs), [], upsized)


def before_ul(weights: FoldedWeights, state: State, u: UpRow) -> BeforeRow:
    """What `ul` takes from the row above and from `u`."""
    due = len(u.tops)
    blocks = [
        before_row_of_blocks(stream.known, with_left(concat_elu(features)), tf.stack(skips))
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
    first = product(tf.concat(_read_pixels(state.pixels[1:]), axis=-1), weights.first.ul_above)
    has_left = np.arange(first.shape[0], dtype=np.float32)[:, np.newaxis, np.newaxis] > 0
    first += has_left.astype(np.float32) * weights.first.ul_left_exists
    return BeforeRow(first, list(inputs), list(outputs), downsized, upsized)


def known_pixels(weights: FoldedWeights, before: BeforeRow, pixels: tf.Tensor) -> UpLeftDone:
    """`ul` of a row whose pixels, [W, B, C], are known."""
    ul = UpLeftRow(weights, before)
    ul.run(before.first + product(with_left(pixels)[0], weights.first.ul_left))
    features = [tf.stack([*inputs, *hidden]) for inputs, hidden in zip(ul.inputs, ul.hidden, strict=True)]
    return UpLeftDone(features, ul.tops, [*itertools.chain(*ul.coarse)], pixels)


# Pixels ----------------------------------------------------------------------------------------------------


def drawn_pixels(
    weights: FoldedWeights, before: BeforeRow, draw: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
) -> UpLeftDone:
    """`ul` of a row, and its pixels, which are drawn: a loop over groups of four columns.

    Args:
      draw: of parameters and column.
    """
    width, _, filters = before.first.shape
    batch = tf.shape(before.first)[1]
    slots = [2 * rows.shape[0] for rows in before.inputs]
    # Kept of a column: inputs and hidden features, the last ones of the way up and, below the finest level, down.
    kept = [slot + 1 + (level > 0) for level, slot in enumerate(slots)]
    groups, channels = width // GROUP, weights.first.ul_left.shape[0]
    known = tf.nest.map_structure(lambda rows: _grouped(rows, groups), before)

    def array(*shape: int) -> tf.TensorArray:
        return tf.TensorArray(tf.float32, groups, element_shape=[shape[0], before.first.shape[1], shape[1]])

    def four_columns(group: tf.Tensor, left: list, pixel: tf.Tensor, features: list, pixels: tf.TensorArray) -> tuple:
        at = tf.nest.map_structure(lambda rows: tf.unstack(tf.gather(rows, group)), known)
        beside = Left(
            features=[tf.unstack(concat_elu(column[:slot])) for column, slot in zip(left, slots, strict=True)],
            tops=[column[slot] for column, slot in zip(left, slots, strict=True)],
            upsized=[None] * len(slots),
        )
        new, drawn = draw_four(weights, at, beside, pixel, lambda parameters, c: draw(parameters, GROUP * group + c))
        return (
            group + 1,
            [level[-count:] for level, count in zip(new, kept, strict=True)],
            drawn[-1],
            [level.write(group, rows) for level, rows in zip(features, new, strict=True)],
            pixels.write(group, drawn),
        )

    _, _, _, features, pixels = tf.while_loop(
        lambda group, *_: group < groups,
        four_columns,
        [
            tf.constant(0),
            [tf.zeros([count, batch, filters]) for count in kept],
            tf.zeros([batch, channels]),
            [array(count * (GROUP >> level), filters) for level, count in enumerate(kept)],
            array(GROUP, channels),
        ],
        parallel_iterations=1,
    )
    rows = []
    for level, count in enumerate(kept):
        columns = tf.reshape(features[level].stack(), [width >> level, count, -1, filters])
        rows.append(tf.transpose(columns, [1, 0, 2, 3]))
    return UpLeftDone(
        features=[level[:slot] for level, slot in zip(rows, slots, strict=True)],
        tops=[level[slot] for level, slot in zip(rows, slots, strict=True)],
        coarse=[level[-1] for level in rows[1:]],
        pixels=pixels.concat(),
    )


def _grouped(rows: tf.Tensor, groups: int) -> tf.Tensor:
    """[w, B, N] or [L, w, B, N], of which the blocks of a column come together -> [W / 4, 4 w / W or 4 w / W L, B, N]."""
    if rows.shape.rank == 4:
        rows = tf.transpose(rows, [1, 0, 2, 3])
    per_group = rows.shape[:-2].num_elements() // groups
    return tf.reshape(rows, [groups, per_group, -1, rows.shape[-1]])


def draw_four(
    weights: FoldedWeights,
    at: BeforeRow,
    left: Left,
    pixel: tf.Tensor,
    draw: Callable[[tf.Tensor, int], tf.Tensor],
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Draws four pixels.

    Args:
      at: of the group's columns, lists of [B, ...] in place of rows.
      left: of the column to the left of the group.
      pixel: the pixel there, [B, C].
      draw: of parameters and column of the group.

    Returns:
      By level, what is kept of the columns that are due, one after the other; the pixels, [4, B, C].
    """
    due = len(at.inputs)
    features: list[list[tf.Tensor]] = [[] for _ in range(due)]
    pixels = []
    for column, column_due in enumerate(DUE):
        ul = pixel_stream(weights, at, left, column, min(due, column_due))
        x = ul.run(at.first[column] + product(pixel, weights.first.ul_left))
        parameters = product(tf.nn.elu(x), weights.head) + weights.head_bias
        pixel = tf.ensure_shape(draw(parameters, column), pixel.shape)
        pixels.append(pixel)
        left = ul.after
        for level, top in enumerate(ul.tops):
            features[level] += [*ul.inputs[level], *ul.hidden[level], top, *ul.coarse[level]]
    return [tf.stack(level) for level in features], tf.stack(pixels)


def pixel_stream(weights: FoldedWeights, at: BeforeRow, left: Left, column: int, due: int) -> UpLeftPixel:
    """`ul` at a column of a group; arguments as in `draw_four`.

    Args:
      due: how many levels are, at this row and column.
    """

    def blocks(known: list[list[tf.Tensor]]) -> list[list[tf.Tensor]]:
        taken = []
        for level, stream in enumerate(weights.ul[:due]):
            first = (column >> level) * len(stream.inputs)
            taken.append(known[level][first : first + len(stream.inputs)])
        return taken

    upsized = None
    if due < LEVELS:  # the next coarser level was due in an earlier row, or else at an earlier column
        upsized = at.upsized[0][column >> (due - 1)] if due == len(at.inputs) else left.upsized[due - 1]
    downsized = [at.downsized[level][column >> (level + 1)] for level in range(due - 1)]
    return UpLeftPixel(weights, blocks(at.inputs), blocks(at.outputs), downsized, upsized, left)
