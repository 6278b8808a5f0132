"""The Describable Textures at 32x32 pixels, as the published energy-based model reads them.

Cimpoi et al., "Describing Textures in the Wild" (2014), arXiv:1311.3618. The model: Du & Mordatch, "Implicit Generation
and Generalization in Energy Based Models" (2019), arXiv:1903.08689.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from tfgen.data import crops, image_codec
from tfgen.data.errors import DataError
from tfgen.data.image_codec import UnusableImageError
from tfgen.data.image_files import FolderFiles, ImageFiles
from tfgen.data.reading import UsableFiles, attempt, in_threads
from tfgen.data.source import ImageSpec, Source
from tfgen.data.tfds import replacing_builder

SIDE = 32
SPEC = ImageSpec(SIDE, SIDE, 3)
_PLACES = ("dtd/images", "dtd")
_TFDS_SPLITS = ("train", "validation", "test")
_ROUNDS = 2  # how often the original counts each file


def open_textures(data_dir: pathlib.Path) -> Source:
    """The upper left corners of all images, uint8 32x32x3 without labels, gone through twice as in the original.

    They are the files below `<data_dir>/dtd/images` or `<data_dir>/dtd`, in the order of their paths; else TFDS'.

    Raises:
      DataError: neither is there, or no images are in the folder.
      RejectedImagesError: more than 1 % of the files cannot be used.
    """
    place = next((data_dir / name for name in _PLACES if (data_dir / name).is_dir()), None)
    if place is not None:
        return TextureFiles(FolderFiles(place))
    return TfdsTextures(replacing_builder("dtd", str(data_dir), f"the folder images of dtd in {data_dir / 'dtd'}"))


def corner(image: np.ndarray) -> np.ndarray:
    """The upper left 32x32 pixels of an image [H, W, C]. Raises `UnusableImageError` for a smaller one."""
    if min(image.shape[:2]) < SIDE:
        raise UnusableImageError(f"{image.shape[0]}x{image.shape[1]} pixels, expected at least {SIDE}x{SIDE}")
    return image[:SIDE, :SIDE]


class TextureFiles(Source):
    """Corners of image files. Those that cannot be used are logged, kept in `rejects` and left out."""

    spec = SPEC

    def __init__(self, files: ImageFiles):
        self.name = files.title
        names = [name for name in files.names if name.lower().endswith(image_codec.SUFFIXES)]
        if not names:
            raise DataError(
                f"{files.title} has no images: looked for {', '.join(image_codec.SUFFIXES)} files, sub-folders included"
            )
        self._usable = UsableFiles(files, names, self.name, "Unpack dtd-r1.0.1.tar.gz anew.")
        self._usable.inspect(lambda name: attempt(lambda stream: crops.inspect(stream, SIDE), files, name))
        self.names, self.rejects = self._usable.names, self._usable.rejects

    def __len__(self) -> int:
        return _ROUNDS * len(self.names)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images, _ = self._usable.read((np.asarray(indices) % len(self.names)).tolist(), _read)
        return {"image": np.stack(images)}  # uint8 [n, 32, 32, 3]


class TfdsTextures(Source):
    """Corners of the images of TFDS' "dtd", of all its splits.

    Args:
      builder: see `tfds.prepared_builder`.
    """

    spec = SPEC

    def __init__(self, builder: Any):
        self.name = builder.info.full_name
        self._parts: list[Sequence[Any]] = [builder.as_data_source(split) for split in _TFDS_SPLITS]
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return _ROUNDS * int(self._ends[-1])

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": np.stack(list(in_threads(self._corner, np.asarray(indices).tolist())))}

    def _corner(self, index: int) -> np.ndarray:
        index %= int(self._ends[-1])
        place = int(np.searchsorted(self._ends, index, side="right"))
        part = self._parts[place]
        try:
            return corner(part[int(index - (self._ends[place] - len(part)))]["image"])
        except UnusableImageError as error:
            raise DataError(f"image {index} of {self.name}: {error}") from error


def _read(stream: BinaryIO) -> np.ndarray:
    image = image_codec.open_image(stream, crops.FORMATS)
    crops.check(image, SIDE)
    image_codec.load_pixels(image)
    return corner(np.asarray(image.convert("RGB")))
