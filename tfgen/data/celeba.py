"""CelebA faces at 32x32 as distribution smoothing prepares and splits them.

Meng et al., "Improved Autoregressive Modeling with Distribution Smoothing" (2021). The images: Liu et al., "Deep
Learning Face Attributes in the Wild" (2015). Pillow does the decoding and resizing since no other library rounds as it
does.
"""

from __future__ import annotations

import logging
import pathlib
from typing import BinaryIO

import numpy as np
from PIL import Image

from tfgen.data import image_codec
from tfgen.data.errors import DataError
from tfgen.data.folder import open_files
from tfgen.data.image_codec import UnusableImageError
from tfgen.data.image_files import ImageFiles
from tfgen.data.reading import UsableFiles, attempt
from tfgen.data.source import ImageSpec, Source, Subset

SPEC = ImageSpec(32, 32, 3)
PUBLISHED_IMAGES = 202_599
_CROP = 140  # pixels of a side; the aligned images have 178 columns and 218 rows
_PLACES = ("celeba", "img_align_celeba", "img_align_celeba.zip")
_SPLIT_SEED = 2020

_log = logging.getLogger(__name__)


def open_celeba(data_dir: pathlib.Path) -> tuple[Source, Source]:
    """Training and test images, uint8 32x32x3 without labels.

    They are those of the folder `celeba` or `img_align_celeba`, or of `img_align_celeba.zip`, in `data_dir`; else those
    of `data_dir` itself.

    Raises:
      DataError: no folder, no images in it, or too few for both parts.
      RejectedImagesError: more than 1 % of the files cannot be used.
    """
    place = next((data_dir / name for name in _PLACES if (data_dir / name).exists()), data_dir)
    if not place.exists():
        raise DataError(
            f"no folder {place}: CelebA is the images of --data_dir=FOLDER, or of {' or '.join(_PLACES)} in it: the "
            "aligned and cropped .jpg files of the original"
        )
    faces = CelebAFaces(open_files(place))
    if len(faces) != PUBLISHED_IMAGES:
        _log.warning(
            "%s has %d images; CelebA has %d. They are split by the same rule, but results do not compare with "
            "published ones",
            faces.name,
            len(faces),
            PUBLISHED_IMAGES,
        )
    train, test = split(len(faces))
    return Subset(faces, train, f"{faces.name} train"), Subset(faces, test, f"{faces.name} test")


def split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images among `count`.

    With p = RandomState(2020).permutation(count), they are the first 70 % of p and the 10 % that follow. The rest is
    not used.

    Returns:
      Two int64 vectors, training first.

    Raises:
      DataError: one of them would be empty.
    """
    first, last = int(0.7 * count), int(0.8 * count)
    if not 0 < first < last:
        raise DataError(
            f"cannot split {count} image(s) of CelebA, 70 % to train and 10 % to test on: add some, 7 suffice"
        )
    order = np.random.RandomState(_SPLIT_SEED).permutation(count)
    return order[:first], order[first:last]


class CelebAFaces(Source):
    """Faces of image files, prepared when they are read (`prepare`).

    Files are in the order in which torchvision's image folders have them: by first sub-folder, then by the rest of the
    folder, then by name. Opening reads the header of every file. Files that cannot be used are logged, kept in
    `rejects` and left out, as in `tfgen.data.folder.ImageFolder`.

    Args:
      files: a folder's or an archive's.

    Attributes:
      names: paths of the images.
      rejects: reason by name of the files that are left out.

    Raises:
      DataError: no images.
      RejectedImagesError: more than 1 % of the files cannot be used.
      UnreadableFileError: the operating system refuses a file, several times.
    """

    spec = SPEC

    def __init__(self, files: ImageFiles):
        self.name = files.title
        names = [name for name in files.names if name.lower().endswith(image_codec.SUFFIXES)]
        if not names:
            raise DataError(
                f"{files.title} has no images: looked for {', '.join(image_codec.SUFFIXES)} files, sub-folders included"
            )
        remedy = f"CelebA's aligned images are RGB files of 178x218 pixels, at least {_CROP}x{_CROP}."
        self._usable = UsableFiles(files, sorted(names, key=_place), self.name, remedy)
        self._usable.inspect(lambda name: attempt(_inspect, files, name))
        self.names, self.rejects = self._usable.names, self._usable.rejects

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images, _ = self._usable.read(np.asarray(indices).tolist(), _read)
        return {"image": np.stack(images)}  # uint8 [n, 32, 32, 3]


def prepare(image: Image.Image) -> np.ndarray:
    """The middle 140x140 pixels, resized to 32x32 by Pillow's bilinear filter (which averages when it shrinks).

    Args:
      image: RGB, at least 140x140.

    Returns:
      uint8 [32, 32, 3].
    """
    face = image.crop(crop_box(image.width, image.height))
    return np.asarray(face.resize((SPEC.width, SPEC.height), Image.Resampling.BILINEAR))


def crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom edge of the middle 140x140 pixels; half pixels go to the even number."""
    left, top = round((width - _CROP) / 2), round((height - _CROP) / 2)
    return left, top, left + _CROP, top + _CROP


def _inspect(stream: BinaryIO) -> None:
    header = image_codec.inspect(stream)
    _check_size(header.width, header.height)


def _read(stream: BinaryIO) -> np.ndarray:
    image = image_codec.open_image(stream)
    _check_size(*image.size)  # again: the file may have changed since
    image_codec.load_pixels(image)
    return prepare(image.convert("RGB"))


def _check_size(width: int, height: int) -> None:
    if min(width, height) < _CROP:
        raise UnusableImageError(f"{height}x{width} pixels, expected at least {_CROP}x{_CROP}")


def _place(name: str) -> tuple[str, str, str]:
    """First sub-folder, folder, file name."""
    folder, _, file = name.rpartition("/")
    return folder.partition("/")[0], folder, file
