"""Image files for the tests, good and bad."""

from __future__ import annotations

import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image


def pixels(number: int, height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    """uint8 [H, W, C], another picture for each number; its first value is the number."""
    image = np.random.RandomState(number).randint(0, 256, (height, width, channels)).astype(np.uint8)
    image[0, 0, 0] = number
    return image


def encode(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def damaged_inside(number: int) -> bytes:
    """A PNG whose header and end are good and whose pixels are not."""
    content = bytearray(encode(pixels(number)))
    data = content.index(b"IDAT") + 4
    content[data : data + 20] = bytes(20)
    return bytes(content)


BAD = {
    "zero.png": (b"", "zero bytes"),
    "text.png": (b"not an image at all", "not a PNG, JPEG, BMP, WEBP image"),
    "truncated.png": (encode(pixels(1, 64, 64))[:-2000], "truncated"),
    "truncated.jpg": (encode(pixels(2, 64, 64), "JPEG")[:-500], "truncated"),
    "header_only.png": (encode(pixels(3))[:20], "header is damaged|damaged header"),
    "grey16.png": (encode(Image.fromarray(np.arange(30, dtype=np.uint16).reshape(6, 5))), "more than 8 bits"),
    "rgb16.png": (png_header(5, 6, depth=16), "more than 8 bits"),
    "cmyk.jpg": (encode(Image.new("CMYK", (5, 6)), "JPEG"), "CMYK"),
    "rgba.png": (encode(Image.new("RGBA", (5, 6))), "alpha"),
    "grey_alpha.png": (encode(Image.new("LA", (5, 6))), "alpha"),
    "palette_alpha.png": (encode(Image.new("P", (5, 6)), transparency=0), "alpha"),
    "alpha.webp": (encode(Image.new("RGBA", (5, 6), (1, 2, 3, 4)), "WEBP", lossless=True), "alpha"),
    "bomb.png": (png_header(12_000, 12_000), "too large: 12000x12000 pixels"),
    "huge_bomb.png": (png_header(60_000, 60_000), "too large"),
    "film.gif": (encode(Image.new("L", (5, 6)), "GIF"), "not an image by its name"),
    "animation.png": (
        encode(Image.new("L", (5, 6)), save_all=True, append_images=[Image.new("L", (5, 6), 9)]),
        "animation",
    ),
    "notes.txt": (b"remember the milk", "not an image by its name"),
}


def write_folder(root: pathlib.Path, names: list[str], **size: int) -> list[np.ndarray]:
    """Writes one picture for each name; picture i of the sorted names is `pixels(i)`."""
    pictures = []
    for number, name in enumerate(sorted(names)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pictures.append(pixels(number, **size))
        (root / name).write_bytes(encode(pictures[-1]))
    return pictures
