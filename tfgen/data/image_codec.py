"""Looking at and decoding one image file, trusting nothing in it."""

from __future__ import annotations

import dataclasses
import os
from typing import BinaryIO

import numpy as np
from PIL import Image

# An explicit list: Pillow knows many formats more, some of which run other programs or expand without bound.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
LARGEST_PIXELS = 4096 * 4096
LARGEST_FILE = 64 * 2**20  # bytes; 4096 x 4096 uncompressed pixels are 48 MiB

END_MARKS = {"PNG": b"\0\0\0\0IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "GIF": b";"}
_PNG_DEPTH_AT = 24  # offset of the bit depth in the IHDR chunk
_CHANNELS = {"1": 1, "L": 1, "RGB": 3, "P": 3}
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


class UnusableImageError(Exception):
    """Why a file cannot be used as an image."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of its image: size in pixels and channels (1 or 3)."""

    height: int
    width: int
    channels: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.channels}"


def inspect(stream: BinaryIO) -> Header:
    """Reads the header of an image file and checks that its end is there.

    Pixels are decoded only if the format has no end mark or it is not the last thing in the file, and then only after
    the declared size was found acceptable.

    Raises:
      UnusableImageError: an empty, truncated or non-image file; 16 bits per channel, CMYK, transparency or animation;
        more than `LARGEST_PIXELS` pixels or `LARGEST_FILE` bytes.
      OSError: the file cannot be read (`errno` is set).
    """
    start = stream.read(_PNG_DEPTH_AT + 1)
    end = read_end(stream)
    image = open_image(stream)
    header = _checked_header(image, start)
    if not is_complete(image, end):
        load_pixels(image)
    return header


def decode(stream: BinaryIO, expected: Header) -> np.ndarray:
    """The pixels of an image file: uint8 [H, W, C]. Grey becomes RGB, exactly, where `expected` has 3 channels.

    Raises:
      UnusableImageError: a damaged file, or one that is no longer of the size `expected`.
      OSError: the file cannot be read (`errno` is set).
    """
    image = open_image(stream)
    if image.size != (expected.width, expected.height):
        raise UnusableImageError(f"{image.height}x{image.width} pixels, was {expected.height}x{expected.width}")
    load_pixels(image)
    mode = "RGB" if expected.channels == 3 else "L"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(expected.height, expected.width, expected.channels)


def read_end(stream: BinaryIO) -> bytes:
    """The last bytes of a file, for `is_complete`. Raises `UnusableImageError` if it is empty or too large."""
    size = stream.seek(0, os.SEEK_END)
    if size == 0:
        raise UnusableImageError("zero bytes")
    if size > LARGEST_FILE:
        raise UnusableImageError(f"{size} bytes, more than {LARGEST_FILE}")
    stream.seek(max(0, size - max(map(len, END_MARKS.values()))))
    return stream.read()


def open_image(stream: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The image of a file whose contents, whatever its name, are of one of `formats`; its pixels are not yet decoded.

    Raises:
      UnusableImageError: other contents, a damaged header, or far too many pixels.
      OSError: the file cannot be read (`errno` is set).
    """
    stream.seek(0)
    try:
        return Image.open(stream, formats=formats)
    except Image.UnidentifiedImageError as error:
        raise UnusableImageError(f"not a {', '.join(formats)} image, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise UnusableImageError(f"too large: {error}") from error
    except Exception as error:  # what a decoder raises on damaged bytes has no bounds
        raise _unless_disk(error, "damaged header") from error


def is_complete(image: Image.Image, end: bytes) -> bool:
    """Whether the end mark of the image's format is the last thing in its file; False where the format has none."""
    mark = END_MARKS.get(image.format or "")
    return mark is not None and end.endswith(mark)


def load_pixels(image: Image.Image) -> None:
    """Decodes the pixels of an opened image, in place.

    Raises:
      UnusableImageError: they are truncated or damaged.
      OSError: the file cannot be read (`errno` is set).
    """
    try:
        image.load()
    except Exception as error:  # as above
        raise _unless_disk(error, "truncated or damaged") from error


def _unless_disk(error: Exception, what: str) -> Exception:
    """The file's fault, unless the operating system gave the error: Pillow's own `OSError`s have no errno."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return UnusableImageError(f"{what}: {error}")


def _checked_header(image: Image.Image, start: bytes) -> Header:
    width, height = image.size
    if width * height > LARGEST_PIXELS:
        raise UnusableImageError(f"too large: {height}x{width} pixels, more than {LARGEST_PIXELS}")
    # Pillow reduces 16-bit RGB files to 8 bits without a word, so the file itself is asked.
    if image.mode.startswith(("I", "F")) or (image.format == "PNG" and start[_PNG_DEPTH_AT] == 16):
        raise UnusableImageError("more than 8 bits per channel (16-bit or float)")
    if image.mode == "CMYK":
        raise UnusableImageError("CMYK colours, expected grey or RGB")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        raise UnusableImageError("an alpha channel (transparency), expected grey or RGB")
    if image.mode not in _CHANNELS:
        raise UnusableImageError(f"Pillow mode {image.mode}, expected grey or RGB")
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise UnusableImageError("an animation, expected one picture")
    return Header(height, width, _CHANNELS[image.mode])
