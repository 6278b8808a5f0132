"""Resizing against its definition, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.systems.diffusion.resizing import area, bilinear, to_uint8

RANDOM = np.random.default_rng(SEED)
SIZES = [
    ((4, 4), (16, 16)),
    ((5, 7), (12, 16)),
    ((6, 6), (10, 9)),
    ((3, 3), (3, 3)),
    ((1, 2), (4, 3)),
    ((9, 8), (4, 3)),
]


def images(height: int, width: int) -> np.ndarray:
    return RANDOM.standard_normal([2, height, width, 3]).astype(np.float32)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_bilinear(before, after):
    x = images(*before)

    def position(index: int, inputs: int, outputs: int) -> tuple[int, int, float]:
        source = max((index + 0.5) * inputs / outputs - 0.5, 0.0)
        lower = min(int(source), inputs - 1)
        return lower, min(lower + 1, inputs - 1), source - lower

    expected = np.zeros([2, *after, 3])
    for row in range(after[0]):
        top, bottom, down = position(row, before[0], after[0])
        for column in range(after[1]):
            left, right, across = position(column, before[1], after[1])
            upper = (1 - across) * x[:, top, left] + across * x[:, top, right]
            lower = (1 - across) * x[:, bottom, left] + across * x[:, bottom, right]
            expected[:, row, column] = (1 - down) * upper + down * lower
    np.testing.assert_allclose(bilinear(tf.constant(x), *after), expected, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [*SIZES, ((20, 20), (8, 8)), ((32, 16), (8, 4))])
def test_area(before, after):
    x = images(*before)
    expected = np.zeros([2, *after, 3])
    for row in range(after[0]):
        rows = slice(row * before[0] // after[0], int(np.ceil((row + 1) * before[0] / after[0])))
        for column in range(after[1]):
            columns = slice(column * before[1] // after[1], int(np.ceil((column + 1) * before[1] / after[1])))
            expected[:, row, column] = x[:, rows, columns].mean(axis=(1, 2))
    np.testing.assert_allclose(area(tf.constant(x), *after), expected, atol=1e-5)


def test_bytes_are_truncated():
    levels = np.arange(256)
    x = np.concatenate([levels / 127.5 - 1, (levels + 0.99) / 127.5 - 1, [-1.5, -1.0, 1.0, 1.5]]).astype(np.float32)
    found = to_uint8(tf.constant(x)).numpy()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[256:], [*levels, 0, 0, 255, 255])
    # On the grid itself rounding decides between a level and the one below.
    assert set(levels - found[:256]) <= {0, 1}
