from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from tfgen.ops.block_lists import BLOCK_SIZES, BlockListError, BlockLists, RowLists, from_layout
from tfgen.ops.patterns import Pattern


def kept_blocks(lists: RowLists) -> list[dict[tuple[int, int], int]]:
    """For each layout, the mask index of every (row, column), read one entry at a time."""
    layouts = []
    for offsets in lists.offsets:
        blocks: dict[tuple[int, int], int] = {}
        for row, (begin, end) in enumerate(itertools.pairwise(offsets)):
            assert not blocks.keys() & {(row, int(column)) for column in lists.columns[begin:end]}
            blocks |= {(row, int(lists.columns[i])): int(lists.masks[i]) for i in range(begin, end)}
        layouts.append(blocks)
    return layouts


def kept_pairs(lists: RowLists, size: int) -> list[set[tuple[int, int]]]:
    """For each layout, the kept pairs, bit by bit."""
    return [
        {
            (row * size + r, column * size + c)
            for (row, column), mask in blocks.items()
            for r, c in itertools.product(range(size), repeat=2)
            if mask < 0 or lists.mask_bits[mask, r, c // 32] >> np.uint32(c % 32) & np.uint32(1)
        }
        for blocks in kept_blocks(lists)
    ]


def check(lists: BlockLists, dense: np.ndarray) -> None:
    """Against bool [layouts, T, T]: the kept pairs by row and by column, and that full blocks are marked as such."""
    size, blocks = lists.blocksize, dense.shape[1] // lists.blocksize
    for layout, mask in enumerate(dense):
        pairs = {(int(q), int(k)) for q, k in np.argwhere(mask)}
        assert kept_pairs(lists.rows, size)[layout] == pairs
        assert kept_pairs(lists.columns, size)[layout] == {(k, q) for q, k in pairs}
        tiles = mask.reshape(blocks, size, blocks, size).transpose(0, 2, 1, 3)
        listed = kept_blocks(lists.rows)[layout]
        for (row, column), index in listed.items():
            assert (index < 0) == tiles[row, column].all()
        assert set(listed) == {(int(r), int(c)) for r, c in np.argwhere(tiles.any(axis=(2, 3)))}
    np.testing.assert_array_equal(lists.mask(), dense)


PATTERNS = [
    ("a", 64, 8, 16), ("a_all", 64, 8, 8), ("b", 96, 16, 8), ("b", 96, 32, 16), ("b", 192, 64, 64), ("bT", 96, 6, 8),
    ("c", 96, 6, 8), ("b0", 96, 6, 16), ("a", 256, 8, 128), ("bT", 192, 3, 64), ("b", 24, 8, 8), ("b", 96, 96, 32),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "length", "window", "blocksize"), PATTERNS)
def test_lists_of_a_pattern_are_its_mask(mode, length, window, blocksize):
    pattern = Pattern(mode, length, window, blocksize)
    check(pattern.block_lists(), pattern.mask()[None])


@pytest.mark.parametrize("mode", ["b_all", "bT_all"])
def test_patterns_without_partial_blocks(mode):
    pattern = Pattern(mode, 1024, 32, 32)
    lists = pattern.block_lists()
    np.testing.assert_array_equal(lists.mask()[0], pattern.mask())
    assert lists.rows.mask_bits.shape == (0, 32, 1)
    assert set(lists.rows.masks) == {-1}


@pytest.mark.parametrize("blocksize", BLOCK_SIZES)
@pytest.mark.parametrize("layouts", [1, 3])
def test_any_layout_with_masks(blocksize, layouts):
    random = np.random.RandomState(blocksize + layouts)
    blocks = 256 // blocksize if blocksize > 16 else 5
    layout = random.rand(layouts, blocks, blocks) < 0.4
    layout[:, 0] = False  # a row without blocks
    tiles = random.rand(layout.sum(), blocksize, blocksize) < random.choice([0.0, 0.5, 1.0, 1.0], [layout.sum(), 1, 1])
    dense = np.zeros([layouts, blocks, blocks, blocksize, blocksize], bool)
    dense[layout] = tiles
    length = blocks * blocksize
    check(from_layout(layout, blocksize, tiles), dense.transpose(0, 1, 3, 2, 4).reshape(layouts, length, length))


def test_one_layout_without_an_axis_and_without_masks():
    layout = np.eye(4, dtype=bool)
    lists = from_layout(layout, 8)
    assert (lists.layouts, lists.blocks, lists.entries) == (1, 4, 4)
    np.testing.assert_array_equal(lists.layout(), layout[None])
    check(lists, np.kron(layout, np.ones([8, 8], bool))[None])


def test_equal_masks_are_stored_once():
    assert len(Pattern("b", 3072, 96, 32).block_lists().rows.mask_bits) == 2  # the diagonal and the far end
    tiles = np.stack([np.tri(8, dtype=bool)] * 3)
    assert len(from_layout(np.eye(3, dtype=bool), 8, tiles).rows.mask_bits) == 1


def test_the_longest_published_length_needs_little_time_and_memory():
    pattern = Pattern("a", 12288, 64, 32)
    tracemalloc.start()
    begin = time.process_time()
    lists = pattern.block_lists()
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lists.entries == 384 * 385 // 2
    assert seconds < 1
    assert peak < 12288 * 12288 / 8  # even the bits of a T x T mask


def test_lists_are_built_once_and_cannot_be_changed():
    lists = Pattern("b", 96, 16, 8).block_lists()
    assert lists is Pattern("b", 96, 16, 8).block_lists()
    with pytest.raises(ValueError, match="read-only"):
        lists.rows.columns[0] = 1


@pytest.mark.parametrize(
    ("pattern", "blocksize"),
    [
        (Pattern("b", 96, 16, 8), 8),  # its own, though 16 would fit
        (Pattern("b", 96, 32, 64), 32),
        (Pattern("a", 1024, 64, 12), 128),
        (Pattern("bT", 3072, 96, 64), 32),
        (Pattern("bT_all", 1024, 32, 32), 32),
        (Pattern("b", 96, 12, 8), None),
        (Pattern("a", 50, 64, 8), None),
    ],
)
def test_choice_of_the_blocksize(pattern, blocksize):
    form = pattern.block_form()
    assert (form and form.blocksize) == blocksize


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones([2, 3], bool), 8), r"bool \[layouts, n, n\] or \[n, n\], found bool \(1, 2, 3\)"),
        ((np.ones([2, 2]), 8), "found float64"),
        ((np.ones([0, 0], bool), 8), r"found bool \(1, 0, 0\)"),
        ((np.ones([2, 2], bool), 12), r"blocksize must be one of \(8, 16, 32, 64, 128\), found 12"),
        ((np.eye(2, dtype=bool), 8, np.ones([3, 8, 8], bool)), r"bool \(2, 8, 8\), one for each kept block"),
        ((np.eye(2, dtype=bool), 8, np.ones([2, 8, 8])), "found float64"),
    ],
)
def test_layouts_that_do_not_fit(arguments, message):
    with pytest.raises(BlockListError, match=message):
        from_layout(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": [0, 2]}, r"columns must be in 0 \.\. 1"),
        ({"columns": [-1, 1]}, r"columns must be in 0 \.\. 1"),
        ({"offsets": [[0, 2, 2]], "columns": [1, 1]}, "rise within a row, without duplicates"),
        ({"offsets": [[0, 2, 2]], "columns": [1, 0]}, "rise within a row, without duplicates"),
        ({"offsets": [[0, 1, 3]]}, "to the 2 entries"),
        ({"offsets": [[1, 1, 2]]}, "from 0"),
        ({"offsets": [[0, 3, 2]]}, "must not fall"),
        ({"masks": [-1]}, "2 columns but 1 masks"),
        ({"masks": [-1, 1]}, r"masks must be in -1 \.\. 0"),
        ({"masks": [-2, 0]}, r"masks must be in -1 \.\. 0"),
        ({"offsets": [0, 1, 2]}, "offsets must be int32 of rank 2"),
        ({"mask_bits": np.zeros([1, 8, 2], np.uint32)}, r"shape \[masks, 8, 1\], found \(1, 8, 2\)"),
    ],
)
def test_lists_of_no_layout(changes, message):
    lists = from_layout(np.eye(2, dtype=bool), 8, np.stack([np.ones([8, 8], bool), np.tri(8, dtype=bool)])).rows
    names = ("offsets", "columns", "masks", "mask_bits")
    arrays = {name: np.asarray(changes.get(name, getattr(lists, name)), getattr(lists, name).dtype) for name in names}
    with pytest.raises(BlockListError, match=message):
        RowLists(**arrays).validate(8)


def test_dtypes_are_checked():
    lists = from_layout(np.eye(2, dtype=bool), 8).rows
    with pytest.raises(BlockListError, match="columns must be int32 of rank 1, found int64"):
        RowLists(lists.offsets, lists.columns.astype(np.int64), lists.masks, lists.mask_bits).validate(8)
