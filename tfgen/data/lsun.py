"""LSUN: from the records of its LMDB databases to a folder of square PNG files, as improved diffusion makes it.

Yu et al., "LSUN: Construction of a Large-scale Image Dataset using Deep Learning with Humans in the Loop" (2015).
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from PIL import Image

from tfgen.data import crops, image_codec
from tfgen.data.errors import DataError, RejectedImagesError
from tfgen.data.image_codec import UnusableImageError
from tfgen.data.reading import in_threads
from tfgen.files import sync_folder

_AT_ONCE = 256  # records in memory


class Records(Protocol):
    """Encoded images in the order of their keys."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Pairs (key, contents of an image file)."""


@contextlib.contextmanager
def open_records(path: str | os.PathLike) -> Iterator[Records]:
    """The records of an LMDB folder, for as long as the context lasts.

    Raises:
      DataError: no such database, or the package `lmdb` is not installed.
    """
    try:
        import lmdb  # here: nothing else needs it
    except ImportError as error:
        raise DataError("reading LSUN needs the package lmdb: type `pip install lmdb`") from error

    if not pathlib.Path(path, "data.mdb").is_file():
        raise DataError(f"no LMDB database in {path}: expected the unpacked folder of LSUN, with a file data.mdb")
    try:
        # Without a lock, so that a folder that cannot be written to can be read.
        database = lmdb.open(os.fspath(path), readonly=True, create=False, lock=False, readahead=False)
    except lmdb.Error as error:
        raise DataError(f"{path} is not an LMDB database, or damaged: {error}") from error
    with database:
        yield _LmdbRecords(database)


class _LmdbRecords:
    def __init__(self, database):
        self._database = database

    def __len__(self) -> int:
        return self._database.stat()["entries"]

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        with self._database.begin() as transaction, transaction.cursor() as cursor:
            yield from cursor


def prepare(image: Image.Image, size: int) -> np.ndarray:
    """A crop from the middle of an image whose shorter side was resized to `size` by one box filter.

    Args:
      image: RGB.
      size: side of the crop in pixels. Unlike in `crops.prepare`, nothing is halved first.

    Returns:
      uint8 [size, size, 3].
    """
    scale = size / min(image.size)
    image = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BOX)
    return crops.centre(image, size)


def write_folder(
    records: Records,
    out: pathlib.Path,
    size: int,
    prefix: str,
    allow_rejects: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, str]:
    """Writes `prepare` of each record as a file PREFIX_IIIIIII.png of `out`, seven digits: its place among the keys.

    `out` appears when it is whole; until then the files are in the folder `partial_folder` beside it, where the next
    call with the same arguments goes on.

    Args:
      allow_rejects: leave records out that cannot be used; the numbers of the others stay.
      on_progress: called with the number of records done.

    Returns:
      The reason by file name of what was left out.

    Raises:
      DataError: no records, or `out` is there and not empty.
      RejectedImagesError: a record that is not an RGB image, or damaged, unless `allow_rejects`; or none is left.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists already and is not an empty folder: choose another name, or move it away")
    if not len(records):
        raise DataError("the database has no records")
    partial = partial_folder(out, size, prefix, len(records))
    partial.mkdir(parents=True, exist_ok=True)
    done = {name for name in os.listdir(partial) if _is_whole(partial / name)}

    def convert(item: tuple[int, tuple[bytes, bytes]]) -> tuple[str, str | None]:
        """The file name, and why there is no such file."""
        number, (key, content) = item
        name = f"{prefix}_{number:07d}.png"
        if name in done:
            return name, None
        try:
            pixels = _decoded_crop(content, size)
        except UnusableImageError as error:
            return name, f"record {key.decode('ascii', 'backslashreplace')}: {error}"
        temporary = partial / f".{name}"
        Image.fromarray(pixels).save(temporary, "PNG")
        os.replace(temporary, partial / name)
        return name, None

    rejects = {}
    for count, (name, reason) in enumerate(in_threads(convert, enumerate(records), _AT_ONCE), start=1):
        if reason is not None:
            rejects[name] = reason
        on_progress(count)
    if rejects and not (allow_rejects and len(rejects) < len(records)):
        remedy = "leave them out with --allow_rejects" if len(rejects) < len(records) else "none is left"
        raise RejectedImagesError(
            f"{len(rejects)} of the {len(records)} records cannot be used, for example {next(iter(rejects.values()))}. "
            f"{out} was not written: {remedy}. What is done stays in {partial}, and the same command goes on from there"
        )
    for name in os.listdir(partial):  # of a write that was cut short
        if name.startswith("."):
            (partial / name).unlink()
    os.replace(partial, out)
    sync_folder(out.parent)
    return rejects


def partial_folder(out: pathlib.Path, size: int, prefix: str, count: int) -> pathlib.Path:
    """Where `write_folder` works. Another size, prefix or number of records has another folder."""
    return out.with_name(f".{out.name}.{prefix}-{size}-{count}.partial")


def _decoded_crop(content: bytes, size: int) -> np.ndarray:
    stream = io.BytesIO(content)
    if not content:
        raise UnusableImageError("zero bytes")
    image = image_codec.open_image(stream)
    if image.mode != "RGB":
        raise UnusableImageError(f"Pillow mode {image.mode}, expected RGB")
    crops.check(image, size)
    image_codec.load_pixels(image)
    return prepare(image, size)


def _is_whole(path: pathlib.Path) -> bool:
    """Whether a PNG file ends as it should; what a crash of the machine leaves may be empty or cut short."""
    with open(path, "rb") as stream:
        try:
            return not path.name.startswith(".") and image_codec.read_end(stream).endswith(image_codec.END_MARKS["PNG"])
        except UnusableImageError:
            return False
