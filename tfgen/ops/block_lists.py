"""Which blocks a block-sparse operation visits: lists by row and by column, built once on the host.

A sequence of T positions is cut into n = T / blocksize blocks. Of the n x n blocks of (query, key) pairs, the lists
name those that hold a kept pair. A block is *full* when all its pairs are kept, *partial* otherwise; a partial block
points at the bits of its mask. `kernels/blocksparse/blocksparse.h` defines the same arrays for the kernels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

BLOCK_SIZES = (8, 16, 32, 64, 128)
FULL = -1


class BlockListError(ValueError):
    """Block lists that no layout has, or a layout that does not fit its block size or masks."""


@dataclasses.dataclass(frozen=True, eq=False)
class RowLists:
    """The kept blocks of each block row.

    Attributes:
      offsets: int32 [layouts, n + 1]; row r of layout l owns entries offsets[l, r] .. offsets[l, r + 1] - 1.
      columns: int32 [entries], strictly rising within a row.
      masks: int32 [entries], index into `mask_bits`, or -1 for a full block.
      mask_bits: uint32 [masks, blocksize, words], words = ceil(blocksize / 32); bit c % 32 of word c // 32 says whether
        column c of the block is kept in this row.
    """

    offsets: np.ndarray
    columns: np.ndarray
    masks: np.ndarray
    mask_bits: np.ndarray

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.offsets, self.columns, self.masks, self.mask_bits

    def validate(self, blocksize: int) -> None:
        """Checks dtypes, shapes, counts, ranges and order.

        Raises:
          BlockListError: says what is wrong, and where.
        """
        words = -(-blocksize // 32)
        expected = {
            "offsets": (np.int32, 2),
            "columns": (np.int32, 1),
            "masks": (np.int32, 1),
            "mask_bits": (np.uint32, 3),
        }
        for name, (dtype, rank) in expected.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != rank:
                raise BlockListError(
                    f"{name} must be {np.dtype(dtype).name} of rank {rank}, found {array.dtype.name} {array.shape}"
                )
        if self.mask_bits.shape[1:] != (blocksize, words):
            raise BlockListError(
                f"mask_bits must have shape [masks, {blocksize}, {words}], found {self.mask_bits.shape}"
            )
        entries, blocks = len(self.columns), self.offsets.shape[1] - 1
        if len(self.masks) != entries:
            raise BlockListError(f"there are {entries} columns but {len(self.masks)} masks")
        # Layouts follow one another: each begins where the one before it ends.
        begins = np.concatenate([[0], self.offsets[:-1, -1]])
        if blocks < 1 or (self.offsets[:, 0] != begins).any() or self.offsets[-1, -1] != entries:
            raise BlockListError(f"offsets must lead from 0 through all layouts to the {entries} entries")
        if (np.diff(self.offsets, axis=1) < 0).any():
            raise BlockListError("offsets must not fall")
        if entries and (self.columns.min() < 0 or self.columns.max() >= blocks):
            raise BlockListError(f"columns must be in 0 .. {blocks - 1}")
        rows = np.repeat(np.arange(self.offsets.shape[0] * blocks), np.diff(self.offsets, axis=1).ravel())
        if ((np.diff(self.columns) <= 0) & (np.diff(rows) == 0)).any():
            raise BlockListError("columns must rise within a row, without duplicates")
        if entries and (self.masks.min() < FULL or self.masks.max() >= len(self.mask_bits)):
            raise BlockListError(f"masks must be in -1 .. {len(self.mask_bits) - 1}")


@dataclasses.dataclass(frozen=True, eq=False)
class BlockLists:
    """The kept blocks by row and, transposed, by column.

    Attributes:
      blocksize: side of a block; one of `BLOCK_SIZES`.
      rows: keys of each query block.
      columns: queries of each key block, with transposed masks; entry for entry the same blocks as `rows`.
    """

    blocksize: int
    rows: RowLists
    columns: RowLists

    @property
    def layouts(self) -> int:
        """1, or the number of heads where each has its own layout."""
        return self.rows.offsets.shape[0]

    @property
    def blocks(self) -> int:
        """n, blocks a side."""
        return self.rows.offsets.shape[1] - 1

    @property
    def entries(self) -> int:
        """Kept blocks of all layouts."""
        return len(self.rows.columns)

    def layout(self) -> np.ndarray:
        """bool [layouts, n, n], the kept blocks."""
        layout = np.zeros([self.layouts, self.blocks, self.blocks], bool)
        layout[(*_owners(self.rows), self.rows.columns)] = True
        return layout

    def mask(self) -> np.ndarray:
        """bool [layouts, T, T], the kept pairs. For tests and small T: its size is what the lists avoid."""
        size = self.blocksize
        blocks = np.zeros([self.layouts, self.blocks, self.blocks, size, size], bool)
        tiles = np.concatenate([_unpack(self.rows.mask_bits, size), np.ones([1, size, size], bool)])  # FULL is the last
        blocks[(*_owners(self.rows), self.rows.columns)] = tiles[self.rows.masks]
        length = self.blocks * size
        return blocks.transpose(0, 1, 3, 2, 4).reshape(self.layouts, length, length)

    @functools.cached_property
    def _eager_tensors(self) -> tuple[tf.Tensor, ...]:
        return self._constants()

    def _constants(self) -> tuple[tf.Tensor, ...]:
        # On the host even where the operation runs on a GPU: it checks the lists, and keeps its own copy of them there.
        with tf.device("CPU:0"):
            return tuple(tf.constant(array) for array in (*self.rows.arrays(), *self.columns.arrays()))

    def tensors(self) -> tuple[tf.Tensor, ...]:
        """The arrays of `rows`, then those of `columns`, as tensors in host memory; constants within a graph."""
        return self._eager_tensors if tf.executing_eagerly() else self._constants()


def from_layout(layout: np.ndarray, blocksize: int, masks: np.ndarray | None = None) -> BlockLists:
    """Lists of any layout.

    Args:
      layout: bool [n, n], or [layouts, n, n] with one layout or one for each head: the kept (query, key) blocks.
      blocksize: side of a block, one of `BLOCK_SIZES`.
      masks: bool [kept blocks, blocksize, blocksize], the kept pairs of each kept block, in the order of
        `np.argwhere(layout)`; None where all blocks are full. Blocks that keep no pair are left out of the lists.

    Raises:
      BlockListError: if the arguments do not fit together.
    """
    layout = np.asarray(layout)
    layout = layout[None] if layout.ndim == 2 else layout
    if layout.dtype != bool or layout.ndim != 3 or layout.shape[1] != layout.shape[2] or 0 in layout.shape:
        raise BlockListError(f"a layout must be bool [layouts, n, n] or [n, n], found {layout.dtype} {layout.shape}")
    layouts, rows, columns = np.nonzero(layout)
    if masks is None:
        return _build(layout.shape, blocksize, (layouts, rows, columns), np.full(len(rows), FULL), [])
    masks = np.asarray(masks)
    if masks.dtype != bool or masks.shape != (len(rows), blocksize, blocksize):
        raise BlockListError(
            f"masks must be bool {(len(rows), blocksize, blocksize)}, one for each kept block, found {masks.dtype} "
            f"{masks.shape}"
        )
    kept = masks.any(axis=(1, 2))
    layouts, rows, columns, masks = layouts[kept], rows[kept], columns[kept], masks[kept]
    full = masks.all(axis=(1, 2))
    indices = np.full(len(rows), FULL)
    distinct: np.ndarray = masks[:0]
    if not full.all():
        distinct, indices[~full] = np.unique(masks[~full], axis=0, return_inverse=True)
    return _build(layout.shape, blocksize, (layouts, rows, columns), indices, list(distinct))


def from_differences(layout: np.ndarray, blocksize: int, mask_of: Callable[[int, int], np.ndarray]) -> BlockLists:
    """Lists of a layout whose masks depend only on how far the key block lies behind the query block.

    So it is for every pattern whose kept pairs depend on the distance q - k alone, and the masks of few blocks stand
    for all: a layout for T = 12288 takes milliseconds and never a T x T array.

    Args:
      layout: bool [n, n].
      blocksize: side of a block, one of `BLOCK_SIZES`.
      mask_of: bool [blocksize, blocksize] of block (query block, key block).
    """
    rows, columns = np.nonzero(layout)
    differences, first, inverse = np.unique(rows - columns, return_index=True, return_inverse=True)
    distinct: list[np.ndarray] = []
    index_of = np.full(len(differences), FULL)
    for i, entry in enumerate(first):
        mask = mask_of(int(rows[entry]), int(columns[entry]))
        if not mask.all():
            index_of[i] = len(distinct)
            distinct.append(mask)
    return _build((1, *layout.shape), blocksize, (np.zeros_like(rows), rows, columns), index_of[inverse], distinct)


def _build(
    shape: tuple[int, ...],
    blocksize: int,
    entries: tuple[np.ndarray, np.ndarray, np.ndarray],
    masks: np.ndarray,
    distinct: list[np.ndarray],
) -> BlockLists:
    """Both lists from the (layout, row, column) of each kept block, sorted, and the index of its mask."""
    if blocksize not in BLOCK_SIZES:
        raise BlockListError(f"blocksize must be one of {BLOCK_SIZES}, found {blocksize}")
    layouts, rows, columns = entries
    tiles = np.stack(distinct) if distinct else np.zeros([0, blocksize, blocksize], bool)
    order = np.lexsort((rows, columns, layouts))
    lists = BlockLists(
        blocksize,
        _row_lists(shape, layouts, rows, columns, masks, _pack(tiles)),
        _row_lists(shape, layouts[order], columns[order], rows[order], masks[order], _pack(tiles.transpose(0, 2, 1))),
    )
    lists.rows.validate(blocksize)
    lists.columns.validate(blocksize)
    return lists


def _row_lists(
    shape: tuple[int, ...],
    layouts: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    masks: np.ndarray,
    bits: np.ndarray,
) -> RowLists:
    count, blocks = shape[:2]
    # Entry number of the first entry of every (layout, row), and of the end of each layout's last row.
    starts = np.searchsorted(layouts * blocks + rows, np.arange(count * blocks + 1))
    offsets = np.concatenate([starts[:-1].reshape(count, blocks), starts[blocks::blocks, None]], axis=1)
    arrays = (offsets.astype(np.int32), columns.astype(np.int32), masks.astype(np.int32), bits)
    for array in arrays:
        array.setflags(write=False)
    return RowLists(*arrays)


def _owners(lists: RowLists) -> tuple[np.ndarray, np.ndarray]:
    """Layout and row of each entry."""
    counts = np.diff(lists.offsets, axis=1)
    layouts, rows = np.indices(counts.shape)
    return np.repeat(layouts.ravel(), counts.ravel()), np.repeat(rows.ravel(), counts.ravel())


def _pack(tiles: np.ndarray) -> np.ndarray:
    """bool [M, b, b] -> uint32 [M, b, ceil(b / 32)]."""
    count, size, _ = tiles.shape
    padded = np.zeros([count, size, -(-size // 32) * 32], bool)
    padded[:, :, :size] = tiles
    words = np.packbits(padded, axis=2, bitorder="little")  # [M, b, 4 * words]
    return words.view("<u4").astype(np.uint32)


def _unpack(bits: np.ndarray, size: int) -> np.ndarray:
    """uint32 [M, b, words] -> bool [M, b, b]."""
    octets = bits.astype("<u4").view(np.uint8)
    return np.unpackbits(octets, axis=2, count=size, bitorder="little").astype(bool)
