"""White shapes on black by their latent values: dSprites itself, and a renderer of images like its own.

Matthey et al., "dSprites: Disentanglement testing Sprites dataset" (2017): one image for each combination of its latent
values [N, 6]: colour (1), shape (1 square, 2 ellipse, 3 heart), scale (0.5 to 1), rotation (0 to 2 pi), and position x
(0 to 1, from the left) and y (0 to 1, from the top).
"""

from __future__ import annotations

import functools
import itertools
import math
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfgen.data.arrays import LARGEST_LOAD, Header, read_header
from tfgen.data.errors import DataError
from tfgen.data.reading import in_threads
from tfgen.data.source import ImageSpec, Source
from tfgen.data.tfds import replacing_builder

ARCHIVE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
ARCHIVE_SPEC = ImageSpec(64, 64, 1)
SPEC = ImageSpec(32, 32, 1)  # of the images that come with the library
LATENTS = 6
_PLACES = ("", "dsprites", "dsprites-dataset")
_SHAPE, _SCALE, _ROTATION, _X, _Y = range(1, LATENTS)
_WHITE = 255
_AT_ONCE = 4096  # images in memory that are not packed
# Latent values of TFDS' items, in the order of the columns after the colour.
_TFDS_VALUES = ("value_shape", "value_scale", "value_orientation", "value_x_position", "value_y_position")

# Values of dSprites that the built-in images have: every size, each third of the 40 rotations (the last of which is the
# first again) and each fifth of the 32 places. The subsets of one size, rotation or place are fixed at values of these.
_SCALES = np.linspace(0.5, 1, 6)
_ROTATIONS = np.linspace(0, 2 * math.pi, 40)[:-1:3]
_POSITIONS = np.linspace(0, 1, 32)[1::5]

# The renderer's shapes lie in the unit circle. Of the largest sprites it has this radius, as a share of the image's
# side, and its centre keeps that distance from the edges.
_RADIUS = 0.25
_ELLIPSE = 0.5  # its short axis
_HEART_SCALE, _HEART_LIFT = 1.25, 0.25  # so that it just fits into the circle


class SpriteSource(Source):
    """Black and white images with their latent values, in memory, one bit a pixel.

    `read` gives "image", uint8 [n, side, side, 1] of 0 and 255, and "latents", float32 [n, 6].

    Args:
      bits: uint8 [N, bytes]: the pixels of each image, packed by `numpy.packbits`.
      latents: [N, 6].
      side: pixels of a side.
    """

    def __init__(self, bits: np.ndarray, latents: np.ndarray, side: int, name: str):
        self.name, self.latents, self._bits = name, latents, bits
        self.spec = ImageSpec(side, side, 1)

    def __len__(self) -> int:
        return len(self._bits)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        pixels = np.unpackbits(self._bits[indices], axis=1, count=self.spec.dims)
        images = (_WHITE * pixels).reshape(-1, *self.spec.shape)  # [n, side, side, 1]
        return {"image": images, "latents": self.latents[indices].astype(np.float32)}


# Rendered images ---------------------------------------------------------------------------------------------


@functools.cache
def sprites(side: int = SPEC.height) -> SpriteSource:
    """The sprites that come with the library, about eleven thousand: every combination of some of dSprites' values.

    Shapes, sizes, 13 rotations and 7 x 7 places; the last factor (y) runs fastest, as in dSprites.
    """
    factors = ([1.0], [1.0, 2.0, 3.0], _SCALES, _ROTATIONS, _POSITIONS, _POSITIONS)
    latents = np.array(list(itertools.product(*factors)))
    parts = [latents[first : first + _AT_ONCE] for first in range(0, len(latents), _AT_ONCE)]
    bits = [np.packbits(render(part, side).reshape(len(part), -1) > 0, axis=1) for part in parts]
    return SpriteSource(np.concatenate(bits), latents, side, "sprites")


def render(latents: np.ndarray, side: int) -> np.ndarray:
    """Images of latent values: uint8 [n, side, side, 1], 255 where a pixel's centre lies inside the shape, else 0.

    The shapes are drawn from their formulas. They are like those of dSprites and not the same to the pixel.

    Args:
      latents: [n, 6], see above; rotations are counter-clockwise, and positions 0 and 1 as far out as the largest
        sprite fits.
      side: pixels of a side, any number.

    Raises:
      ValueError: another number of columns, or a shape other than 1, 2 and 3.
    """
    latents = np.asarray(latents, np.float64)
    if latents.ndim != 2 or latents.shape[1] != LATENTS:
        raise ValueError(f"latent values of shape {list(latents.shape)}, expected [n, {LATENTS}]")
    unknown = set(np.unique(latents[:, _SHAPE])) - {1.0, 2.0, 3.0}
    if unknown:
        raise ValueError(f"shape {min(unknown):g} among the latent values, expected 1, 2 or 3")
    centres = (np.arange(side) + 0.5) / side
    columns = latents.T[:, :, np.newaxis, np.newaxis]  # each [n, 1, 1]
    radius = _RADIUS * columns[_SCALE]
    right = (centres[np.newaxis, np.newaxis, :] - _place(columns[_X])) / radius  # [n, 1, side]
    down = (centres[np.newaxis, :, np.newaxis] - _place(columns[_Y])) / radius  # [n, side, 1]
    cosine, sine = np.cos(columns[_ROTATION]), np.sin(columns[_ROTATION])
    across, up = cosine * right - sine * down, -sine * right - cosine * down  # turned back, [n, side, side]
    inside = np.zeros(across.shape, bool)
    for shape, contains in enumerate((_in_square, _in_ellipse, _in_heart), start=1):
        chosen = latents[:, _SHAPE] == shape
        inside[chosen] = contains(across[chosen], up[chosen])
    return (_WHITE * inside.astype(np.uint8))[..., np.newaxis]


def _place(position: np.ndarray) -> np.ndarray:
    return _RADIUS + (1 - 2 * _RADIUS) * position


def _in_square(across: np.ndarray, up: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(across), np.abs(up)) <= math.sqrt(0.5)


def _in_ellipse(across: np.ndarray, up: np.ndarray) -> np.ndarray:
    return across**2 + (up / _ELLIPSE) ** 2 <= 1


def _in_heart(across: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The curve (x^2 + y^2 - 1)^3 = x^2 y^3."""
    x, y = _HEART_SCALE * across, _HEART_SCALE * up + _HEART_LIFT
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


# dSprites ----------------------------------------------------------------------------------------------------


def open_dsprites(data_dir: pathlib.Path, path: str = "") -> SpriteSource | TfdsSprites:
    """All images of dSprites: those of its archive, else TFDS'. Both give what `SpriteSource` does.

    Args:
      path: the archive; "" looks for it in `data_dir` and in its folders `dsprites` and `dsprites-dataset`.

    Raises:
      DataError: neither is there, or what is there is damaged.
    """
    if path:
        return open_archive(pathlib.Path(path).expanduser())
    places = [data_dir / place / ARCHIVE for place in _PLACES]
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        return open_archive(found)
    return TfdsSprites(replacing_builder("dsprites", str(data_dir), f"{ARCHIVE} in {data_dir}, or --dsprites_path"))


def open_archive(path: pathlib.Path) -> SpriteSource:
    """The images `imgs` and the `latents_values` of an archive. Images are packed as they are read: 0.4 of 3 GB.

    Raises:
      DataError: a missing or damaged file, or arrays of other types and shapes.
    """
    if not path.is_file():
        raise DataError(f"no file {path}: expected {ARCHIVE}, the archive of dSprites")
    try:
        with zipfile.ZipFile(path) as archive:
            missing = [name for name in ("imgs", "latents_values") if f"{name}.npy" not in archive.namelist()]
            if missing:
                raise DataError(f"{path} has no array {' and no array '.join(missing)}: it is not {ARCHIVE}")
            header, bits = _packed_images(archive, path)
            with archive.open("latents_values.npy") as stream:
                values = read_header(stream, f"{path.name}['latents_values']")
                expected = (header.shape[0], LATENTS)
                if values.shape != expected or values.dtype.kind != "f" or values.column_major:
                    raise DataError(
                        f"{path}: latents_values is {values.dtype} {list(values.shape)}; expected floating point "
                        f"{list(expected)}, a row an image"
                    )
                content = stream.read(math.prod(values.shape) * values.dtype.itemsize)
                latents = np.frombuffer(content, values.dtype).reshape(expected)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not an .npz file, or damaged: {error}") from error
    return SpriteSource(bits, latents, header.shape[1], "dsprites")


def _packed_images(archive: zipfile.ZipFile, path: pathlib.Path) -> tuple[Header, np.ndarray]:
    with archive.open("imgs.npy") as stream:
        header = read_header(stream, f"{path.name}['imgs']")
        shape = header.shape
        if header.dtype not in (np.uint8, bool) or len(shape) != 3 or shape[1] != shape[2] or header.column_major:
            raise DataError(f"{path}: imgs is {header.dtype} {list(shape)}; expected uint8 [N, side, side]")
        declared, stored = header.total_bytes, archive.getinfo("imgs.npy").file_size
        if math.prod(shape) == 0 or declared != stored or declared > LARGEST_LOAD:
            raise DataError(f"{path}: imgs declares {declared} bytes and has {stored}; expected the same, and some")
        pixels = shape[1] * shape[2]
        bits = np.empty((shape[0], -(-pixels // 8)), np.uint8)
        for first in range(0, shape[0], _AT_ONCE):
            count = min(_AT_ONCE, shape[0] - first)
            images = np.frombuffer(stream.read(count * pixels), np.uint8).reshape(count, pixels)
            if images.max() > 1:
                raise DataError(f"{path}: imgs has the value {images.max()}; expected 0 and 1")
            bits[first : first + count] = np.packbits(images, axis=1)
    return header, bits


class TfdsSprites(Source):
    """dSprites as TFDS has it, in its stored order.

    Args:
      builder: the prepared builder of "dsprites", see `tfds.prepared_builder`.
    """

    spec = ARCHIVE_SPEC

    def __init__(self, builder: Any):
        self.name = f"{builder.info.full_name} train"
        self._builder = builder
        self._items: Sequence[Any] = builder.as_data_source("train")
        self._latents: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def latents(self) -> np.ndarray:
        """float32 [N, 6]. The first call goes through all records, though not through their pixels: minutes."""
        if self._latents is None:
            import tensorflow_datasets as tfds  # here: it takes seconds, and most runs do without

            items = self._builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
            self._latents = np.stack(list(in_threads(lambda index: _latents(items[index]), range(len(items)))))
        return self._latents

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        items = list(in_threads(self._items.__getitem__, np.asarray(indices).tolist()))
        images = np.stack([item["image"] for item in items])
        if images.shape[1:] != self.spec.shape:
            raise DataError(f"{self.name} has images of {list(images.shape[1:])}, expected {list(self.spec.shape)}")
        return {
            "image": np.where(images > 0, _WHITE, 0).astype(np.uint8),
            "latents": np.stack([_latents(item) for item in items]),
        }


def _latents(item: dict[str, Any]) -> np.ndarray:
    return np.array([1.0, *(item[name] for name in _TFDS_VALUES)], np.float32)
