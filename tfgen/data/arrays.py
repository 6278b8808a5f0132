"""Images in NumPy files: `.npy` (memory-mapped) and `.npz`."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import zipfile
import zlib
from typing import IO, Literal

import numpy as np

from tfgen.data.errors import DataError
from tfgen.data.source import ImageSpec, Source

Layout = Literal["interleaved", "planar"]

IMAGE_KEYS = ("images", "x", "arr_0")
LABEL_KEYS = ("labels", "y", "label", "arr_1")
LARGEST_LOAD = 8 * 2**30  # bytes of one array of an .npz, which unlike an .npy must fit in memory
_LARGEST_MEMBER_COUNT = 10_000


class ArraySource(Source):
    """Images of an array in memory or memory-mapped from a file.

    Args:
      images: uint8, one of
        [N, H, W, C] (with `layout="planar"`: [N, C, H, W]), C = 1 or 3;
        [N, H, W], grey;
        [N, D], flat rows of `shape`, D = H * W * C.
      name: for messages.
      shape: (H, W, C), needed for flat rows only.
      layout: order within an image: "interleaved" (H, W, C) or "planar" (C, H, W). Grey images are the same in both.
      labels: optional integers [N] >= 0.
      num_classes: number of classes; by default the largest label + 1.

    Raises:
      DataError: anything else; the text says how to convert it.
    """

    def __init__(
        self,
        images: np.ndarray,
        name: str,
        *,
        shape: tuple[int, int, int] | None = None,
        layout: Layout = "interleaved",
        labels: np.ndarray | None = None,
        num_classes: int | None = None,
    ):
        if layout not in ("interleaved", "planar"):
            raise DataError(f"{name}: expected layout 'interleaved' or 'planar', found {layout!r}")
        check_pixels(images.shape, images.dtype, name, sample=images)
        self.name, self._images, self._planar = name, images, layout == "planar"
        self._labels = None if labels is None else _checked_labels(labels, len(images), name)
        if self._labels is not None and num_classes is None:
            num_classes = int(self._labels.max()) + 1
        self._shape = _image_shape(images.shape, shape, self._planar, name)
        self.spec = ImageSpec(*self._shape, num_classes if labels is not None else None)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images = np.asarray(self._images[indices])  # a copy, also of a memory map
        height, width, channels = self._shape
        if self._planar:
            images = images.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        batch = {"image": np.ascontiguousarray(images).reshape(-1, height, width, channels)}  # [n, H, W, C]
        if self._labels is not None:
            batch["label"] = self._labels[indices]
        return batch


def open_array(
    path: str | os.PathLike,
    *,
    shape: tuple[int, int, int] | None = None,
    layout: Layout = "interleaved",
    largest_load: int = LARGEST_LOAD,
) -> ArraySource:
    """Opens an `.npy` file (memory-mapped) or an `.npz` file (loaded); see `ArraySource` for shapes and layouts.

    The labels of `NAME.npy`, if any, are the integer vector in the file `NAME_labels.npy` beside it.

    The images of an `.npz` are its array "images", "x" or "arr_0", else its only uint8 array of rank two or more;
    labels, if any, are its integer vector "labels", "y", "label" or "arr_1" of the same length. Object arrays are
    never loaded, since that would run code from the file. The sizes that an `.npz` declares are checked before memory
    is taken: a small file can declare terabytes.

    Raises:
      DataError: a damaged file, an object array, another dtype than uint8, or more than `largest_load` bytes.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"no file {path}")
    labels = None
    if path.suffix.lower() == ".npy":
        images = _map_npy(path)
        beside = labels_path(path)
        if beside.is_file():
            check_pixels(images.shape, images.dtype, path.name, sample=images)
            labels = _checked_labels(_map_npy(beside), len(images), beside.name)
    elif path.suffix.lower() == ".npz":
        images, labels = _load_npz(path, largest_load)
    else:
        raise DataError(f"{path}: expected a name that ends in .npy or .npz")
    return ArraySource(images, path.name, shape=shape, layout=layout, labels=labels)


def labels_path(path: pathlib.Path) -> pathlib.Path:
    """Where the labels of the images in an `.npy` file are: "x/cats.npy" -> "x/cats_labels.npy"."""
    return path.with_name(f"{path.stem}_labels.npy")


def check_pixels(shape: tuple[int, ...], dtype: np.dtype, name: str, sample: np.ndarray | None = None) -> None:
    """Raises `DataError` unless `shape` and `dtype` can be those of images. `sample` is looked at for advice."""
    if dtype.hasobject:
        raise DataError(
            f"{name} holds Python objects, which are never loaded since that can run code from the file: "
            "save the images as one uint8 array"
        )
    if dtype != np.uint8:
        raise DataError(f"{name} holds {dtype} values; expected uint8 levels 0..255: {_conversion(dtype, sample)}")
    if len(shape) not in (2, 3, 4) or math.prod(shape) == 0:
        raise DataError(f"{name} has shape {list(shape)}; expected non-empty [N, H, W, C], [N, H, W] or [N, D]")


def _conversion(dtype: np.dtype, sample: np.ndarray | None) -> str:
    if dtype.kind != "f":
        return "if the levels are within 0..255, save images.astype('uint8')"
    if sample is not None and sample.size:
        first = np.asarray(sample[:16], np.float64)
        if first.min() < 0 and first.min() >= -1 and first.max() <= 1:
            return "for values in [-1, 1], save np.rint((images + 1) * 127.5).astype('uint8')"
        if first.max() > 1:
            return "for values in [0, 255], save np.rint(images).clip(0, 255).astype('uint8')"
    return "for values in [0, 1], save np.rint(images * 255).astype('uint8')"


def _image_shape(
    stored: tuple[int, ...], shape: tuple[int, int, int] | None, planar: bool, name: str
) -> tuple[int, int, int]:
    """(H, W, C) of the images of an array of shape `stored`."""
    if len(stored) == 2:
        if shape is None:
            raise DataError(
                f"{name} has flat rows of {stored[1]} values, which do not tell height, width and order of channels: "
                "save it reshaped to [N, H, W, C]"
            )
        if math.prod(shape) != stored[1]:
            raise DataError(f"{name} has rows of {stored[1]} values; images of {shape} have {math.prod(shape)}")
        found = shape
    elif len(stored) == 3:
        found = stored[1], stored[2], 1
    elif planar:
        found = stored[2], stored[3], stored[1]
    else:
        found = stored[1], stored[2], stored[3]
    if found[2] not in (1, 3):
        advice = ""
        if len(stored) == 4 and not planar and stored[1] in (1, 3):
            advice = "; its second axis looks like the channels: save images.transpose(0, 2, 3, 1)"
        raise DataError(f"{name} has shape {list(stored)}: expected 1 or 3 channels, found {found[2]}{advice}")
    if shape is not None and tuple(shape) != found:
        raise DataError(f"{name} holds images of {found}, expected {tuple(shape)}")
    return found


def _checked_labels(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(
            f"{name}: expected {count} labels as non-negative integers [{count}], "
            f"found {labels.dtype} {list(labels.shape)}" + (" with negative ones" if labels.dtype.kind == "i" else "")
        )
    return labels.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Header:
    """What an `.npy` stream says of itself before its data."""

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int  # bytes before the data
    column_major: bool

    @property
    def total_bytes(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes], name: str) -> Header:
    """The header that an `.npy` stream begins with; raises `DataError`."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(stream)
        if version not in readers:  # version 3 is for field names in other alphabets, which images do not have
            raise ValueError(f"format version {version}")
        shape, column_major, dtype = readers[version](stream)
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise DataError(f"{name} is not a NumPy array file, or damaged: {error}") from error
    return Header(shape, dtype, stream.tell(), column_major)


def _map_npy(path: pathlib.Path) -> np.ndarray:
    with open(path, "rb") as stream:
        header = read_header(stream, path.name)
    size = path.stat().st_size
    if not header.dtype.hasobject and size < header.total_bytes:
        raise DataError(f"{path.name} is truncated: it declares {header.total_bytes} bytes and has {size}")
    if header.dtype.hasobject or math.prod(header.shape) == 0:
        check_pixels(header.shape, header.dtype, path.name)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _load_npz(path: pathlib.Path, largest_load: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The images and labels of an `.npz`, each member checked by its header before it is loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > _LARGEST_MEMBER_COUNT:
                raise DataError(
                    f"{path.name} has {len(members)} members; more than {_LARGEST_MEMBER_COUNT} are refused"
                )
            headers = {}
            for member in members:
                label = f"{path.name}[{member.filename!r}]"
                with archive.open(member) as stream:
                    headers[member.filename.removesuffix(".npy")] = header = read_header(stream, label)
                if not header.dtype.hasobject and header.total_bytes != member.file_size:
                    raise DataError(
                        f"{label} is damaged: {header.total_bytes} bytes declared, {member.file_size} stored"
                    )
        key = _image_key(headers, path.name)
        label_key = _label_key(headers, headers[key].shape[0])
        chosen = [key] if label_key is None else [key, label_key]
        declared = sum(headers[name].total_bytes for name in chosen)
        if declared > largest_load:
            raise DataError(
                f"{path.name} declares {declared} bytes, more than the limit of {largest_load}: "
                "save the images as .npy, which is read from the disk as needed"
            )
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[key], None if label_key is None else arrays[label_key]
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{path.name} is not an .npz file, or damaged: {error}") from error


def _image_key(headers: dict[str, Header], name: str) -> str:
    found = ", ".join(f"{key} {header.dtype} {list(header.shape)}" for key, header in list(headers.items())[:8])
    key = next((key for key in IMAGE_KEYS if key in headers), None)
    if key is None:
        candidates = [key for key, header in headers.items() if header.dtype == np.uint8 and len(header.shape) >= 2]
        if len(candidates) != 1:
            raise DataError(
                f"{name}: expected images as a uint8 array named {', '.join(IMAGE_KEYS)}, or exactly one uint8 array "
                f"of rank two or more; found {found or 'no array'}"
            )
        key = candidates[0]
    check_pixels(headers[key].shape, headers[key].dtype, f"{name}[{key!r}]")
    return key


def _label_key(headers: dict[str, Header], count: int) -> str | None:
    for key in LABEL_KEYS:
        if key in headers and headers[key].shape == (count,) and headers[key].dtype.kind in "iu":
            return key
    return None
