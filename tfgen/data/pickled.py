"""Batches of images in Python pickles, read without running anything that is in them.

CIFAR (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009) and the downsampled ImageNet
(Chrabaszcz et al., "A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets", 2017) come like that.
"""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

import numpy as np

from tfgen.data.errors import DataError


def read_batch(
    path: pathlib.Path, kind: str, row: int, largest: int, label_key: str = "labels"
) -> tuple[np.ndarray, np.ndarray]:
    """One batch file, a dict with "data" and labels: images uint8 [N, row], labels int64 [N].

    Args:
      kind: what the file is, with its article, for messages ("a CIFAR-10 batch").
      row: bytes of an image.
      largest: bytes of a file; a larger one is refused.
      label_key: of the labels in the dict.

    Raises:
      DataError: a damaged file, or a pickle that asks for anything but dicts, lists, text, numbers and byte arrays.
    """
    size = path.stat().st_size
    if size > largest:
        raise DataError(f"{path} has {size} bytes, more than {largest}: it is not {kind}")
    try:
        with open(path, "rb") as stream:
            content = _DataUnpickler(stream, kind).load()
    except DataError:
        raise
    except Exception as error:  # `pickle` raises nearly anything on damaged files
        raise DataError(f"{path} is not {kind}, or damaged: {error}") from error
    fields = {_text(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    if not {"data", label_key} <= fields.keys() or not isinstance(fields["data"], _PickledArray):
        raise DataError(f"{path} is not {kind}: expected a dict with an array 'data' and {label_key!r}")
    images = fields["data"].to_bytes_array(path)
    try:
        labels = np.array(fields[label_key])
    except ValueError as error:  # lists of several lengths
        raise DataError(f"{path}: {label_key!r} is damaged, expected integers: {error}") from error
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
    """Admits the four names that arrays of bytes need, and gives inert stand-ins even for those."""

    def __init__(self, stream: Any, kind: str):
        super().__init__(stream, encoding="bytes")
        self._kind = kind

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _PickledArray
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _PickledType
        if (module, name) == ("_codecs", "encode"):
            return _latin1_bytes
        raise DataError(
            f"the pickle asks for {module}.{name}, which {self._kind} does not need and which could run code: "
            "it is not loaded"
        )
