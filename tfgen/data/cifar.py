"""The CIFAR-10 "python version" batches, read without running anything that is in them, and their usual split.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

from __future__ import annotations

import logging
import pathlib
import pickle
from typing import Any

import numpy as np

from tfgen.data.arrays import ArraySource
from tfgen.data.errors import DataError
from tfgen.data.source import Source
from tfgen.data.tfds import two_splits

_log = logging.getLogger(__name__)

SHAPE = (32, 32, 3)
CLASSES = 10
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILE = "test_batch"
ARCHIVE_FOLDER = "cifar-10-batches-py"  # what cifar-10-python.tar.gz unpacks to
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
      DataError: a damaged file, or a pickle that asks for anything but dicts, lists, text, numbers and byte arrays.
    """
    if path.stat().st_size > _LARGEST_FILE:
        raise DataError(f"{path} has {path.stat().st_size} bytes; a CIFAR-10 batch has about 31 million")
    try:
        with open(path, "rb") as stream:
            content = _DataUnpickler(stream, encoding="bytes").load()
    except DataError:
        raise
    except Exception as error:  # `pickle` raises nearly anything on damaged files
        raise DataError(f"{path} is not a CIFAR-10 python batch, or damaged: {error}") from error
    fields = {_text(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    if not {"data", "labels"} <= fields.keys() or not isinstance(fields["data"], _PickledArray):
        raise DataError(f"{path} is not a CIFAR-10 python batch: expected a dict with an array 'data' and 'labels'")
    images = fields["data"].to_bytes_array(path)
    labels = np.array(fields["labels"])
    row = SHAPE[0] * SHAPE[1] * SHAPE[2]
    if images.ndim != 2 or images.shape[1] != row or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds images {list(images.shape)} and {labels.dtype} labels {list(labels.shape)}; "
            f"expected [N, {row}] and integers [N]"
        )
    return images, labels


def _text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


class _PickledType:
    """Stands for `numpy.dtype` and `numpy.ndarray` while a pickle is read: keeps the arguments, does nothing."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        del state  # byte order and the like, which single bytes do not have


class _PickledArray:
    """Stands for an array while a pickle is read: keeps its state and does nothing."""

    def __init__(self, *arguments: Any):
        del arguments  # always "an empty array"; the contents follow as the state
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def to_bytes_array(self, path: pathlib.Path) -> np.ndarray:
        """The uint8 array, built from the recorded shape and bytes."""
        try:
            _, shape, dtype, column_major, content = self._state
            code = _text(dtype.arguments[0])
            array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if column_major else "C")
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(f"{path}: the array 'data' is damaged: {error}") from error
        if code not in ("u1", "|u1", "uint8"):
            raise DataError(f"{path}: the array 'data' is of type {code}, expected u1 (bytes)")
        return array


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 written by Python 3 spell bytes: `_codecs.encode(text, "latin1")`."""
    if encoding != "latin1":
        raise DataError(f"expected bytes written as latin1, found {encoding!r}")
    return text.encode("latin1")


class _DataUnpickler(pickle.Unpickler):
    """Admits the four names that a CIFAR batch needs, and gives inert stand-ins even for those."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _PickledArray
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _PickledType
        if (module, name) == ("_codecs", "encode"):
            return _latin1_bytes
        raise DataError(
            f"the pickle asks for {module}.{name}, which a CIFAR-10 batch does not need and which could run code: "
            "it is not loaded"
        )
