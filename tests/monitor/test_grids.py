from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tfgen.monitor import grids


def pictures(count: int, height: int = 4, width: int = 5, channels: int = 3) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 255, (count, height, width, channels)).astype(np.uint8)


def test_images_are_laid_out_row_by_row_between_borders():
    images = pictures(6)
    grid = grids.tile(images, rows=2, columns=3, border=2, border_value=7)
    assert grid.shape == (2 * 6 + 2, 3 * 7 + 2, 3)
    for index, image in enumerate(images):
        top, left = 2 + index // 3 * 6, 2 + index % 3 * 7
        np.testing.assert_array_equal(grid[top : top + 4, left : left + 5], image)
        grid[top : top + 4, left : left + 5] = 7
    assert (grid == 7).all()


@pytest.mark.parametrize(
    ("count", "rows", "columns", "layout"),
    [
        (1, None, None, (1, 1)),
        (4, None, None, (2, 2)),
        (5, None, None, (2, 3)),
        (7, None, None, (3, 3)),
        (5, 1, None, (1, 5)),
        (5, None, 2, (3, 2)),
        (5, 4, 4, (4, 4)),
    ],
)
def test_layout(count, rows, columns, layout):
    images = pictures(count, 1, 1, 1)
    grid = grids.tile(images, rows, columns, border=0)[..., 0]
    assert grid.shape == layout
    np.testing.assert_array_equal(grid.ravel()[:count], images.ravel())
    assert (grid.ravel()[count:] == 255).all()


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (pictures(5), {"rows": 2, "columns": 2}, "no room for 5 images"),
        (pictures(5), {"rows": 0}, "rows >= 1, found 0"),
        (pictures(5), {"border": -1}, "border >= 0"),
        (pictures(5), {"border_value": 256}, "0..255"),
        (pictures(0), {}, r"\[0, 4, 5, 3\]"),
        (pictures(1, channels=2), {}, "C = 1 or 3"),
        (pictures(1).astype(np.float32), {}, "found float32"),
        (pictures(1)[0], {}, r"\[N, H, W, C\]"),
    ],
)
def test_what_cannot_be_tiled(images, options, message):
    with pytest.raises(ValueError, match=message):
        grids.tile(images, **options)


def test_enlarge_repeats_pixels():
    images = pictures(2)
    large = grids.enlarge(images, 3)
    assert large.shape == (2, 12, 15, 3)
    for row in range(3):
        for column in range(3):
            np.testing.assert_array_equal(large[:, row::3, column::3], images)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        grids.enlarge(images, 0)


def test_small_images_are_shown_large():
    assert [grids.display_scale(side) for side in (1, 8, 28, 32, 64, 256)] == [64, 8, 3, 2, 1, 1]
    assert grids.display_grid(pictures(16, 8, 8, 1)).shape == (4 * 66 + 2, 4 * 66 + 2, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_every_pixel(tmp_path, channels):
    image = pictures(1, channels=channels)[0]
    path = tmp_path / "samples" / "grid.png"
    grids.save_png(path, image)
    assert path.read_bytes() == grids.encode_png(image)
    with Image.open(path) as read:
        assert read.mode == {1: "L", 3: "RGB"}[channels]
        np.testing.assert_array_equal(np.asarray(read).reshape(image.shape), image)


def test_a_picture_that_does_not_fit_leaves_the_old_one(tmp_path, no_file_larger_than):
    path = tmp_path / "grid.png"
    grids.save_png(path, pictures(1)[0])
    before = path.read_bytes()
    with no_file_larger_than(1000), pytest.raises(OSError, match="File too large"):
        grids.save_png(path, pictures(1, 64, 64)[0])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
