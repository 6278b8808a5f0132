"""From an image file of any size to a square RGB crop, as improved diffusion prepares its training images.

Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021). Pillow does the decoding and resizing
since no other library rounds as it does.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image

from tfgen.data import image_codec
from tfgen.data.image_codec import UnusableImageError

FORMATS = (*image_codec.FORMATS, "GIF")
LARGEST_PIXELS = 89_478_485  # of a file or of an enlarged image; from here on Pillow warns of decompression bombs
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")


def prepare(image: Image.Image, size: int, convert_first: bool = False) -> np.ndarray:
    """A crop of `size` x `size` pixels from the middle of an image whose shorter side was resized to `size`.

    While the shorter side has at least twice that many pixels, both sides are halved (rounded down) with a box filter;
    the rest is one bicubic resize, which enlarges small images. Sizes are rounded half to even.

    Args:
      image: in any mode that Pillow resizes and converts to RGB.
      convert_first: convert to RGB before, not after resizing. As in the original it comes after: Pillow then resizes
        images with palettes, and black-and-white ones, by nearest neighbours, and weights colours by their opacity.
        Transparency is dropped in the end in both cases.

    Returns:
      uint8 [size, size, 3].
    """
    # Pillow warns that a conversion to RGB drops the transparency of a palette; that is what is wanted here.
    image.info.pop("transparency", None)
    if convert_first:
        image = image.convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return centre(image.convert("RGB"), size)


def centre(image: Image.Image, size: int) -> np.ndarray:
    """The middle `size` x `size` pixels of an RGB image; where they cannot be centred, half a pixel up and left.

    Returns:
      uint8 [size, size, 3].
    """
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


def inspect(stream: BinaryIO, size: int) -> None:
    """Reads the header of an image file and checks that its end is there, as `image_codec.inspect` does.

    Taken are the contents `FORMATS` whatever the file is called, with palettes, transparency or CMYK colours as well;
    of animations the first picture. PNG files of 16 bits per colour are read as 8 bits.

    Raises:
      UnusableImageError: an empty, truncated or non-image file; grey levels of more than 8 bits, which Pillow would
        clip to white; too many pixels in the file, or when resized for a crop of `size` pixels.
      OSError: the file cannot be read (`errno` is set).
    """
    end = image_codec.read_end(stream)
    image = image_codec.open_image(stream, FORMATS)
    check(image, size)
    if not image_codec.is_complete(image, end):
        image_codec.load_pixels(image)


def read(stream: BinaryIO, size: int, convert_first: bool = False) -> np.ndarray:
    """`prepare` of an image file: uint8 [size, size, 3].

    Raises:
      UnusableImageError: as `inspect`, and damaged pixels.
      OSError: the file cannot be read (`errno` is set).
    """
    image = image_codec.open_image(stream, FORMATS)
    check(image, size)
    image_codec.load_pixels(image)
    return prepare(image, size, convert_first)


def check(image: Image.Image, size: int) -> None:
    width, height = image.size
    if image.mode not in _MODES:
        more = "more than 8 bits per grey level" if image.mode.startswith(("I", "F")) else f"Pillow mode {image.mode}"
        raise UnusableImageError(f"{more}, expected 8-bit grey, palette, RGB or CMYK")
    if min(width, height) < 1 or width * height > LARGEST_PIXELS:
        raise UnusableImageError(f"{height}x{width} pixels, expected 1 to {LARGEST_PIXELS}")
    if size * size * max(width, height) / min(width, height) > LARGEST_PIXELS:
        raise UnusableImageError(f"too narrow: {height}x{width} pixels with the shorter side resized to {size}")
