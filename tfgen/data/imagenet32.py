"""ImageNet at 32x32 pixels with labels: the pickles of its publication.

Chrabaszcz, Loshchilov & Hutter, "A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets" (2017),
arXiv:1707.08819.
"""

from __future__ import annotations

import math
import pathlib

import numpy as np

from tfgen.data import pickled
from tfgen.data.arrays import ArraySource
from tfgen.data.errors import DataError
from tfgen.data.source import ImageSpec, Source
from tfgen.data.tfds import two_splits

CLASSES = 1000
SPEC = ImageSpec(32, 32, 3, CLASSES)
TRAIN_FILES = tuple(f"train_data_batch_{number}" for number in range(1, 11))
VALID_FILE = "val_data"
FOLDER = "imagenet"
_LARGEST_FILE = 2**30  # bytes; a training file of 128,116 images has 394 million


def open_imagenet32(data_dir: pathlib.Path, path: str = "") -> tuple[Source, Source]:
    """The training and the validation images, uint8 32x32x3 with labels 0..999, in the order of the files.

    They take 4 GB of memory. Without the files they are those of TFDS' "imagenet_resized/32x32", in another order and
    read from the disk.

    Args:
      path: the folder of the ten training files and of the validation file; "" for `<data_dir>/imagenet`.

    Raises:
      DataError: neither is there, or what is there is damaged or incomplete.
    """
    folder = pathlib.Path(path).expanduser() if path else data_dir / FOLDER
    if path or any((folder / name).exists() for name in (*TRAIN_FILES, VALID_FILE)):
        return open_files(folder)
    files = f"{TRAIN_FILES[0]} to {TRAIN_FILES[-1].rpartition('_')[2]} and {VALID_FILE} in {folder}"
    return two_splits("imagenet_resized/32x32", ("train", "validation"), str(data_dir), files)


def open_files(folder: pathlib.Path) -> tuple[Source, Source]:
    """The images of the files in `folder`; raises `DataError`."""
    missing = [name for name in (*TRAIN_FILES, VALID_FILE) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}: unpack the files of ImageNet 32x32 there, all eleven")
    return (
        JoinedSource([_read(folder / name) for name in TRAIN_FILES], "imagenet 32x32 train"),
        JoinedSource([_read(folder / VALID_FILE)], "imagenet 32x32 valid"),
    )


def _read(path: pathlib.Path) -> ArraySource:
    images, labels = pickled.read_batch(path, "a file of ImageNet 32x32", math.prod(SPEC.shape), _LARGEST_FILE)
    if not len(labels):
        raise DataError(f"{path} has no images")
    if not 1 <= labels.min() <= labels.max() <= CLASSES:
        raise DataError(f"{path} has labels {labels.min()} to {labels.max()}; expected 1 to {CLASSES}")
    return ArraySource(images, path.name, shape=SPEC.shape, layout="planar", labels=labels - 1, num_classes=CLASSES)


class JoinedSource(Source):
    """The images of several sources, one after the other; all must have the same columns.

    Raises:
      DataError: images of different shapes.
    """

    def __init__(self, parts: list[ArraySource], name: str):
        self.name, self.spec, self._parts = name, parts[0].spec, parts
        other = next((part for part in parts if part.spec != self.spec), None)
        if other is not None:
            raise DataError(f"{other.name} has images of {other.spec}, {parts[0].name} of {self.spec}")
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        indices = np.asarray(indices)
        places = np.searchsorted(self._ends, indices, side="right")
        batch: dict[str, np.ndarray] = {}
        for place in np.unique(places):
            part, chosen = self._parts[place], places == place
            for key, values in part.read(indices[chosen] - (self._ends[place] - len(part))).items():
                batch.setdefault(key, np.empty((len(indices), *values.shape[1:]), values.dtype))[chosen] = values
        return batch
