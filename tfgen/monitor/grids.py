"""Pictures of many images at once."""

from __future__ import annotations

import io
import math
import os

import numpy as np
from PIL import Image

from tfgen.files import atomic_path

VISIBLE_SIDE = 64  # pixels; smaller images are hard to judge on a screen


def tile(
    images: np.ndarray,
    rows: int | None = None,
    columns: int | None = None,
    border: int = 1,
    border_value: int = 255,
) -> np.ndarray:
    """Lays images out on a grid, row by row, with a border around and between them.

    Args:
      images: uint8 [N, H, W, C], C = 1 or 3, N >= 1.
      rows, columns: the layout. One alone determines the other; without both it is the nearly square one.
      border: width in pixels.
      border_value: level of the border and of cells without an image, 0 to 255.

    Returns:
      uint8 [rows * (H + border) + border, columns * (W + border) + border, C].

    Raises:
      ValueError: images of another shape or dtype, or a layout too small for them.
    """
    images = _checked(images, "images", "[N, H, W, C]")
    count, height, width, channels = images.shape
    rows, columns = _layout(count, rows, columns)
    if border < 0 or not 0 <= border_value <= 255:
        raise ValueError(f"expected border >= 0 and border_value in 0..255, found {border} and {border_value}")
    row_step, column_step = height + border, width + border
    grid = np.full((rows * row_step + border, columns * column_step + border, channels), border_value, np.uint8)
    for index, image in enumerate(images):
        top = border + index // columns * row_step
        left = border + index % columns * column_step
        grid[top : top + height, left : left + width] = image
    return grid


def enlarge(images: np.ndarray, factor: int) -> np.ndarray:
    """Repeats every pixel `factor` times along both axes (nearest neighbour): uint8 [..., H, W, C]."""
    if factor < 1:
        raise ValueError(f"expected a factor of at least 1, found {factor}")
    return images.repeat(factor, axis=-3).repeat(factor, axis=-2)  # [..., H * factor, W * factor, C]


def display_scale(side: int) -> int:
    """The factor by which images of `side` pixels are enlarged to be seen without a magnifier (8 -> 8, 32 -> 2)."""
    if side < 1:
        raise ValueError(f"expected a side of at least 1 pixel, found {side}")
    return math.ceil(VISIBLE_SIDE / side)


def display_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """The grid shown to people, enlarged to a visible size: uint8 [N, H, W, C] -> [H', W', C].

    Args:
      columns: images side by side; without it the grid is nearly square.
    """
    images = _checked(images, "images", "[N, H, W, C]")
    return tile(enlarge(images, display_scale(min(images.shape[1:3]))), columns=columns, border=2)


def encode_png(image: np.ndarray) -> bytes:
    """PNG file contents of a uint8 [H, W, C] image, grey or RGB, without loss."""
    buffer = io.BytesIO()
    _pillow(image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a uint8 [H, W, C] image, atomically.

    Raises:
      ValueError: an image of another shape or dtype.
      OSError: the disk refuses it; no partial file is left behind.
    """
    picture = _pillow(image)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def _layout(count: int, rows: int | None, columns: int | None) -> tuple[int, int]:
    for name, extent in (("rows", rows), ("columns", columns)):
        if extent is not None and extent < 1:
            raise ValueError(f"expected {name} >= 1, found {extent}")
    if columns is None:
        columns = math.ceil(math.sqrt(count)) if rows is None else math.ceil(count / rows)
    if rows is None:
        rows = math.ceil(count / columns)
    if rows * columns < count:
        raise ValueError(f"a grid of {rows} x {columns} has no room for {count} images; leave rows or columns out")
    return rows, columns


def _pillow(image: np.ndarray) -> Image.Image:
    image = _checked(image, "image", "[H, W, C]")
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _checked(images: np.ndarray, name: str, shape: str) -> np.ndarray:
    images = np.asarray(images)
    rank = shape.count(",") + 1
    if images.dtype != np.uint8 or images.ndim != rank or images.shape[-1] not in (1, 3) or images.size == 0:
        raise ValueError(
            f"expected {name} as non-empty uint8 {shape} with C = 1 or 3, found {images.dtype} {list(images.shape)}"
        )
    return images
