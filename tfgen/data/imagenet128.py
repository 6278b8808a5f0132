"""ImageNet at 128x128 pixels as the published energy-based model reads it: TFRecord files of JPEG images.

Du & Mordatch, "Implicit Generation and Generalization in Energy Based Models" (2019), arXiv:1903.08689. The images:
Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge" (2015).
"""

from __future__ import annotations

import io
import json
import pathlib

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from tfgen.data import image_codec
from tfgen.data.errors import DataError
from tfgen.data.image_codec import UnusableImageError
from tfgen.data.reading import in_threads
from tfgen.data.source import ImageSpec, Source
from tfgen.data.tfrecords import RecordFiles

CLASSES = 1000
SIDE = 128
SPEC = ImageSpec(SIDE, SIDE, 3, CLASSES)
FOLDER, INDEX = "imagenet_big", "index.json"
_TRAIN, _VALID = "train", "validation"  # what the names of the files begin with
_IMAGE, _LABEL = "image/encoded", "image/class/label"  # features of a record
_LARGEST_INDEX = 64 * 2**20  # bytes


def open_imagenet128(data_dir: pathlib.Path, path: str = "") -> tuple[Source, Source]:
    """Training and validation images: all records of the files train* and of the files validation*, in their order.

    The original gives each process a range of the training files. Here one shuffled order of all images is dealt out to
    the processes, and there are no ranges.

    Args:
      path: the folder of the files and of `index.json`; "" for `<data_dir>/imagenet_big`.

    Raises:
      DataError: files that are missing or damaged.
    """
    folder = pathlib.Path(path).expanduser() if path else data_dir / FOLDER
    counts = record_counts(folder)
    sources = []
    for prefix in (_TRAIN, _VALID):
        chosen = {name: counts[name] for name in sorted(counts) if name.startswith(prefix)}
        if not chosen:
            raise DataError(f"{folder / INDEX} names no files {prefix}*; it names {', '.join(list(counts)[:3])} ...")
        sources.append(JpegRecords(RecordFiles(folder, chosen), f"imagenet 128x128 {prefix}"))
    return sources[0], sources[1]


def record_counts(folder: pathlib.Path) -> dict[str, int]:
    """The number of records by name of the file, as `index.json` of `folder` has it under "record_counts".

    Raises:
      DataError: no such file, or other contents.
    """
    path = folder / INDEX
    if not path.is_file():
        raise DataError(
            f"no file {path}: ImageNet 128x128 is TFRecord files train* and validation* in one folder with {INDEX}, "
            '{"record_counts": {file: records}}; name it with --imagenet_datadir=FOLDER'
        )
    if path.stat().st_size > _LARGEST_INDEX:
        raise DataError(f"{path} has {path.stat().st_size} bytes, expected a few thousand")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    counts = content.get("record_counts") if isinstance(content, dict) else None
    if not isinstance(counts, dict) or not counts:
        raise DataError(f'{path}: expected {{"record_counts": {{file: records}}}}')
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise DataError(f"{path}: expected the number of records of {name}, found {count!r}")
        if "/" in name or name.startswith("."):
            raise DataError(f"{path}: expected names of files beside it, found {name!r}")
    return counts


class JpegRecords(Source):
    """Images of records, prepared when they are read.

    `read` gives "image", uint8 [n, 128, 128, 3], "label", int32 [n], and "pixels", float32 [n, 128, 128, 3]: the
    resized image in [0, 255] before it was rounded to "image", which the original trains on.
    """

    spec = SPEC

    def __init__(self, records: RecordFiles, name: str):
        self.name, self._records = name, records

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        prepared = list(in_threads(self._item, np.asarray(indices).tolist()))
        pixels = np.stack([image for image, _ in prepared])
        labels = np.array([label for _, label in prepared], np.int32)
        return {"image": np.rint(pixels).astype(np.uint8), "pixels": pixels, "label": labels}

    def _item(self, index: int) -> tuple[np.ndarray, int]:
        content = self._records.read(index)
        try:
            encoded, label = parsed(content)
            return resized_crop(decoded(encoded), SIDE), label
        except (UnusableImageError, DataError) as error:
            raise DataError(f"{self._records.title(index)} cannot be used: {error}; copy the file anew") from error


def parsed(content: bytes) -> tuple[bytes, int]:
    """The JPEG file and the class, 0 to 999, of a record, whose label runs from 1 to 1000. Raises `DataError`."""
    try:
        features = tf.train.Example.FromString(content).features.feature
    except DecodeError as error:
        raise DataError(f"it is no tf.train.Example: {error}") from error
    images, labels = features[_IMAGE].bytes_list.value, features[_LABEL].int64_list.value
    if len(images) != 1 or len(labels) != 1:
        raise DataError(f"expected one {_IMAGE} and one {_LABEL}, found {len(images)} and {len(labels)}")
    return images[0], class_of(labels[0])


def class_of(record_label: int) -> int:
    """The class, 0 to 999, of the label of a record. Raises `DataError`."""
    if not 1 <= record_label <= CLASSES:
        raise DataError(f"label {record_label}, expected 1 to {CLASSES}")
    return int(record_label) - 1


def decoded(encoded: bytes) -> np.ndarray:
    """The pixels of a JPEG file, uint8 [H, W, 3], by TensorFlow's decoder as in the original.

    Raises:
      UnusableImageError: a damaged file, or more than `image_codec.LARGEST_PIXELS` pixels.
    """
    width, height = image_codec.open_image(io.BytesIO(encoded), ("JPEG", "PNG")).size
    if width * height > image_codec.LARGEST_PIXELS:
        raise UnusableImageError(f"too large: {height}x{width} pixels, more than {image_codec.LARGEST_PIXELS}")
    try:
        with tf.device("/CPU:0"):
            return tf.io.decode_jpeg(encoded, channels=3).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise UnusableImageError(f"truncated or damaged: {error.message}") from error


def resized_crop(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image whose shorter side was resized to `side`, the longer to ceil(length side / shorter).

    Bilinear as in TensorFlow 1: pixel i of the result is at i times (length before / length after), so that the image
    moves by up to half a pixel, and nothing is averaged where it shrinks.

    Args:
      image: uint8 [H, W, C].

    Returns:
      float32 [side, side, C] in [0, 255], not rounded.
    """
    shorter = min(image.shape[:2])
    (top, bottom, down), (left, right, across) = (_taps(length, shorter, side) for length in image.shape[:2])
    across, down = across[:, np.newaxis], down[:, np.newaxis, np.newaxis]

    def row(rows: np.ndarray) -> np.ndarray:  # [side, side, C]
        lines = image[rows]
        first, second = lines[:, left].astype(np.float32), lines[:, right].astype(np.float32)
        return first + (second - first) * across

    upper, lower = row(top), row(bottom)
    return upper + (lower - upper) * down


def _taps(length: int, shorter: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two neighbours of each pixel of the result along one axis, int64 [side], and the second's share, float32."""
    resized = -(-length * side // shorter)
    places = np.arange((resized - side) // 2, (resized - side) // 2 + side)
    positions = places.astype(np.float32) * (np.float32(length) / np.float32(resized))
    first = positions.astype(np.int64)  # rounded down: all are positive
    return first, np.minimum(first + 1, length - 1), positions - first.astype(np.float32)
