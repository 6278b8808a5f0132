from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.block_lists import band, block_lists, classes, dense_mask, kernel_order, random_mask


@pytest.mark.parametrize("blocksize", [8, 16, 32, 64])
def test_lists_hold_the_pairs_of_the_mask(blocksize):
    mask = random_mask(np.random.default_rng(blocksize), layouts=2, length=2 * blocksize, blocksize=blocksize)
    lists = block_lists(mask, blocksize)
    np.testing.assert_array_equal(dense_mask(lists, blocksize), mask)
    for layout in range(lists.layouts):
        for first, last in zip(lists.offsets[layout], lists.offsets[layout, 1:], strict=False):
            assert (np.diff(lists.columns[first:last]) > 0).all()


def test_whole_blocks_have_no_mask():
    lists = block_lists(np.ones([1, 32, 32], bool), 16)
    assert lists.masks.tolist() == [-1] * 4
    assert lists.mask_bits.shape == (0, 16, 1)


def test_equal_masks_are_stored_once():
    lists = block_lists(band(256, 32), 32)
    assert lists.offsets.tolist() == [[0, 1, 3, 5, 7, 9, 11, 13, 15]]
    assert len(lists.mask_bits) == 2  # the diagonal's and the band's end


def test_classes_are_blocks_on_the_diagonal():
    assert kernel_order(12, 3).tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    lists = block_lists(classes(96, 6), 16)
    assert lists.columns.tolist() == list(range(6))
