"""The "python version" of CIFAR-10, with its usual split, and of CIFAR-100.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

from __future__ import annotations

import logging
import math
import pathlib

import numpy as np

from tfgen.data import pickled
from tfgen.data.arrays import ArraySource
from tfgen.data.errors import DataError
from tfgen.data.source import Source
from tfgen.data.tfds import one_split, two_splits

_log = logging.getLogger(__name__)

SHAPE = (32, 32, 3)
CLASSES, CLASSES_100 = 10, 100
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILE = "test_batch"
ARCHIVE_FOLDER = "cifar-10-batches-py"  # what cifar-10-python.tar.gz unpacks to
ARCHIVE_FOLDER_100 = "cifar-100-python"
TRAIN_IMAGES = 50_000
DEFAULT_VALID_IMAGES = 5_000
_SPLIT_SEED = 11172018
_LARGEST_FILE = 128 * 2**20  # bytes; a batch of 10,000 images has 31 MB


def open_cifar10(data_dir: pathlib.Path) -> tuple[Source, Source]:
    """The stored training and test images: the original's batches below `data_dir`, else TFDS' with a warning.

    Raises:
      DataError: neither is there, or what is there is damaged.
    """
    folder = find_folder(data_dir)
    if folder is not None:
        return open_batches(folder)
    places = f"{data_dir / 'cifar10'} or {data_dir / ARCHIVE_FOLDER}"
    sources = two_splits(
        "cifar10", ("train", "test"), str(data_dir), f"the batches of cifar-10-python.tar.gz in {places}"
    )
    _log.warning(
        "cifar10 comes from TFDS, whose order is not that of the original batches: the split has the same sizes "
        "but other images, and validation results differ a little from published ones"
    )
    return sources


def split(count: int, valid_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation images among `count` stored training images, as published models were split.

    With p = RandomState(11172018).permutation(count): validation is p[:valid_size], training is what follows. This
    equals scikit-learn's `train_test_split` and `ShuffleSplit` with that random state.

    Returns:
      Two int64 vectors, training first.

    Raises:
      DataError: no image would be left to train or to validate on.
    """
    if not 1 <= valid_size < count:
        raise DataError(f"cannot hold {valid_size} of {count} cifar10 image(s) out: expected 1 to {count - 1}")
    order = np.random.RandomState(_SPLIT_SEED).permutation(count)
    return order[valid_size:], order[:valid_size]


def find_folder(data_dir: pathlib.Path) -> pathlib.Path | None:
    """The folder with the batches: `<data_dir>/cifar10`, or the archive's own there or in `data_dir`; else None."""
    for folder in (data_dir / "cifar10", data_dir / "cifar10" / ARCHIVE_FOLDER, data_dir / ARCHIVE_FOLDER):
        if (folder / TRAIN_FILES[0]).exists():
            return folder
    return None


def open_batches(folder: pathlib.Path) -> tuple[ArraySource, ArraySource]:
    """The training images (all batches, in order) and the test images, uint8 32x32x3 with labels.

    Raises:
      DataError: a missing or damaged file, or one that asks for more than data.
    """
    missing = [name for name in (*TRAIN_FILES, TEST_FILE) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}: unpack the whole of cifar-10-python.tar.gz there")
    return _source(folder, TRAIN_FILES, "cifar10 train"), _source(folder, (TEST_FILE,), "cifar10 test")


def _source(folder: pathlib.Path, files: tuple[str, ...], name: str) -> ArraySource:
    batches = [read_batch(folder / file) for file in files]
    images = np.concatenate([images for images, _ in batches])  # [N, 3072], planar
    labels = np.concatenate([labels for _, labels in batches])
    return ArraySource(images, name, shape=SHAPE, layout="planar", labels=labels, num_classes=CLASSES)


def read_batch(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """One batch file: images uint8 [N, 3072] in planar order (channel, row, column), labels int64 [N].

    Raises:
      DataError: see `pickled.read_batch`.
    """
    return pickled.read_batch(path, "a CIFAR-10 python batch", math.prod(SHAPE), _LARGEST_FILE)


# CIFAR-100 ---------------------------------------------------------------------------------------------------


def open_cifar100_test(data_dir: pathlib.Path) -> Source:
    """The test images of CIFAR-100, uint8 32x32x3 with their 100 fine labels.

    They are those of the file `cifar-100-python/test` of the archive, in `data_dir` or in `<data_dir>/cifar100`; else
    TFDS'.

    Raises:
      DataError: neither is there, or what is there is damaged.
    """
    places = [data_dir / ARCHIVE_FOLDER_100 / "test", data_dir / "cifar100" / ARCHIVE_FOLDER_100 / "test"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        files = f"test of cifar-100-python.tar.gz as {' or '.join(map(str, places))}"
        return one_split("cifar100", "test", str(data_dir), files)
    images, labels = pickled.read_batch(
        path, "a CIFAR-100 python batch", math.prod(SHAPE), _LARGEST_FILE, label_key="fine_labels"
    )
    if labels.size and not 0 <= labels.min() <= labels.max() < CLASSES_100:
        raise DataError(f"{path} has labels {labels.min()} to {labels.max()}; expected 0 to {CLASSES_100 - 1}")
    return ArraySource(images, "cifar100 test", shape=SHAPE, layout="planar", labels=labels, num_classes=CLASSES_100)
