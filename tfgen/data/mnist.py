"""MNIST and Fashion-MNIST: the four IDX files of each, and what they say of themselves.

LeCun et al., "Gradient-based learning applied to document recognition" (1998); Xiao et al., "Fashion-MNIST" (2017).
"""

from __future__ import annotations

import pathlib

import numpy as np

from tfgen.data.arrays import ArraySource
from tfgen.data.errors import DataError
from tfgen.data.idx import read_idx
from tfgen.data.source import ImageSpec, Source
from tfgen.data.tfds import two_splits

CLASSES = 10
SPEC = ImageSpec(28, 28, 1, CLASSES)
FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}  # by TFDS' names: those of torchvision
_PREFIXES = {"train": "train", "test": "t10k"}


def open_mnist(data_dir: pathlib.Path, name: str = "mnist") -> tuple[Source, Source]:
    """The training and test images, uint8 28x28x1 with labels: the IDX files below `data_dir`, else TFDS'.

    TFDS has the same images in another order.

    Args:
      name: "mnist" or "fashion_mnist".

    Raises:
      DataError: neither is there, or what is there is damaged or incomplete.
    """
    folder = find_folder(data_dir, name)
    if folder is not None:
        return open_files(folder, name)
    places = f"{data_dir / FOLDERS[name] / 'raw'} or {data_dir / name}"
    return two_splits(name, ("train", "test"), str(data_dir), f"{', '.join(_file_names())}, as .gz or not, in {places}")


def find_folder(data_dir: pathlib.Path, name: str = "mnist") -> pathlib.Path | None:
    """The folder with the files, or None: `<data_dir>/MNIST/raw`, where torchvision puts them, or `<data_dir>/mnist`.

    For the former also `MNIST` itself. The two data sets have files of the same names, so that the folder has to tell.
    """
    places = (data_dir / FOLDERS[name] / "raw", data_dir / FOLDERS[name], data_dir / name)
    return next((place for place in places if any(_find(place, file) for file in _file_names())), None)


def open_files(folder: pathlib.Path, name: str = "mnist") -> tuple[ArraySource, ArraySource]:
    """The images of the four files in `folder`, in their order.

    Raises:
      DataError: a file that is missing, damaged, or does not belong to the others.
    """
    missing = [file for file in _file_names() if _find(folder, file) is None]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}, as .gz or not: place all four files there")
    return _source(folder, "train", name), _source(folder, "test", name)


def _source(folder: pathlib.Path, part: str, name: str) -> ArraySource:
    files = [_find(folder, file) for file in _file_names(part)]
    images_file, labels_file = (file for file in files if file is not None)  # `open_files` has looked
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.ndim != 3 or images.shape[1:] != SPEC.shape[:2] or labels.shape != images.shape[:1] or not len(images):
        raise DataError(
            f"{images_file} holds {list(images.shape)} and {labels_file} {list(labels.shape)}; expected images "
            f"[N, {SPEC.height}, {SPEC.width}] and labels [N]"
        )
    if labels.max() >= CLASSES:
        raise DataError(f"{labels_file} has the label {labels.max()}; expected 0 to {CLASSES - 1}")
    return ArraySource(images, f"{name} {part}", labels=labels.astype(np.int32), num_classes=CLASSES)


def _file_names(*parts: str) -> list[str]:
    """Images, then labels, of each part; by default of both."""
    return [f"{_PREFIXES[part]}-{kind}-ubyte" for part in parts or _PREFIXES for kind in ("images-idx3", "labels-idx1")]


def _find(folder: pathlib.Path, file: str) -> pathlib.Path | None:
    """The file or its compressed form. Archives spell the names with a dot as well: `train-images.idx3-ubyte`."""
    names = (file, f"{file}.gz", file.replace("-idx", ".idx"), f"{file.replace('-idx', '.idx')}.gz")
    return next((folder / name for name in names if (folder / name).is_file()), None)
