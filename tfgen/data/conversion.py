"""Many image files into one `.npy` file, which is read without decoding.

Two passes: `take_inventory` looks at every header and settles the size, `write_array` decodes. Memory does not grow
with the pixels: 1.28 million images need a few hundred megabytes for their names.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import shutil
import struct
import warnings
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image

from tfgen.data.errors import DataError, RejectedImagesError
from tfgen.data.image_codec import SUFFIXES, Header, UnusableImageError, decode, inspect
from tfgen.data.image_files import ImageFiles
from tfgen.data.reading import attempt, in_threads
from tfgen.files import atomic_path

OnProgress = Callable[[int], None]  # called with the number of files done

_CHANNELS = 3
_MOST_AT_ONCE = 1024  # files handed to the threads
_BYTES_AT_ONCE = 64 * 2**20  # decoded pixels that wait for the disk
_LEAST_AT_ONCE = 8  # keeps all threads busy on large images
_HEADER_BYTES = 128


@dataclasses.dataclass
class Inventory:
    """What is to be converted.

    Attributes:
      files: where the images are.
      height, width: size of every image that is taken, in pixels.
      names: files that are taken, sorted by path.
      rejects: reason by name of those that are not; `write_array` adds what turns out to be damaged.
      wanted: what files must be converted to in order to be taken, for messages.
    """

    files: ImageFiles
    height: int
    width: int
    names: list[str]
    rejects: dict[str, str]
    wanted: str = "8-bit RGB images of one size"

    @property
    def image_bytes(self) -> int:
        return self.height * self.width * _CHANNELS

    @property
    def total_bytes(self) -> int:
        """Size of the array file."""
        return _HEADER_BYTES + len(self.names) * self.image_bytes


def take_inventory(
    files: ImageFiles, size: tuple[int, int] | None = None, on_progress: OnProgress = lambda done: None
) -> Inventory:
    """Looks at the header of every file.

    Taken is what becomes 8-bit RGB without loss: RGB, palette, grey and black-and-white images of `SUFFIXES`.
    Rejected are files of other types, damaged ones, more than 8 bits per channel, CMYK, any transparency, animations,
    and images of another size; nothing is resized or cropped. Colour profiles and EXIF rotation are not applied.

    Args:
      files: a folder's or an archive's.
      size: (height, width) of the images; by default that of most of them, the first by path where two are as many.
      on_progress: called after each file.

    Raises:
      DataError: no files, or none that can be taken.
      UnreadableFileError: the operating system refuses a file, several times.
    """
    names = files.names
    if not names:
        raise DataError(f"{files.title} is empty: looked for {', '.join(SUFFIXES)} files, sub-folders included")

    def examine(name: str) -> tuple[int, int] | str:
        """Height and width, or why the file cannot be used."""
        if not name.lower().endswith(SUFFIXES):
            return f"not an image by its name; expected {', '.join(SUFFIXES)}"
        try:
            header = attempt(inspect, files, name)
        except UnusableImageError as error:
            return str(error)
        return header.height, header.width

    found: list[tuple[int, int] | str] = []
    shared: dict[tuple[int, int] | str, tuple[int, int] | str] = {}  # one object for each size, not for each file
    with warnings.catch_warnings():
        # Pillow warns of sizes that `inspect` rejects. Set around all threads: filters belong to the process.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for result in in_threads(examine, names, _MOST_AT_ONCE):
            found.append(shared.setdefault(result, result))
            on_progress(len(found))
    sizes = collections.Counter(result for result in found if isinstance(result, tuple))
    if not sizes:
        raise DataError(f"{files.title} has no usable image among its {len(names)} file(s); {names[0]}: {found[0]}")
    height, width = size or sizes.most_common(1)[0][0]
    taken, rejects = [], {}
    for name, result in zip(names, found, strict=True):
        if result == (height, width):
            taken.append(name)
        elif isinstance(result, str):
            rejects[name] = result
        else:
            rejects[name] = f"{result[0]}x{result[1]} pixels, expected {height}x{width}"
    if not taken:
        listed = ", ".join(f"{h}x{w} ({count})" for (h, w), count in sizes.most_common(5))
        raise DataError(f"{files.title} has no image of {height}x{width} pixels; it has {listed}")
    return Inventory(files, height, width, taken, rejects)


def write_array(
    inventory: Inventory,
    path: pathlib.Path,
    allow_rejects: bool = False,
    on_progress: OnProgress = lambda done: None,
    read: Callable[[BinaryIO], np.ndarray] | None = None,
) -> int:
    """Writes the images as uint8 [N, H, W, 3] in the order of `inventory.names`; returns N.

    `path` appears when the file is whole, in place of one that may be there.

    Args:
      inventory: what to write.
      path: of the array file.
      allow_rejects: leave out what cannot be used.
      on_progress: called after each file.
      read: gives the uint8 [H, W, 3] pixels of an opened file, or raises `UnusableImageError`; by default those of
        the whole picture.

    Raises:
      RejectedImagesError: something was rejected, now or before, and `allow_rejects` does not permit it, or nothing is
        left; nothing was written.
      DataError: the disk has too little room.
      UnreadableFileError: the operating system refuses a file, several times.
    """
    header = Header(inventory.height, inventory.width, _CHANNELS)

    def pixels(name: str) -> np.ndarray | UnusableImageError:
        try:
            return attempt(read or (lambda stream: decode(stream, header)), inventory.files, name)
        except UnusableImageError as error:
            return error

    count = 0
    _check_rejects(inventory, path, allow_rejects, left=len(inventory.names))
    with atomic_path(path) as temporary:
        _check_room(inventory, path, shutil.disk_usage(temporary.parent).free)
        with open(temporary, "wb") as stream:
            # Written in order rather than memory-mapped: a full disk is then an error, not a signal that kills.
            stream.write(_array_header(len(inventory.names), header))
            at_once = min(max(_LEAST_AT_ONCE, _BYTES_AT_ONCE // inventory.image_bytes), _MOST_AT_ONCE)
            results = in_threads(pixels, inventory.names, at_once)
            for done, (name, result) in enumerate(zip(inventory.names, results, strict=True), start=1):
                if isinstance(result, UnusableImageError):
                    inventory.rejects[name] = str(result)
                else:
                    stream.write(np.ascontiguousarray(result).data)
                    count += 1
                on_progress(done)
            stream.seek(0)
            stream.write(_array_header(count, header))
        _check_rejects(inventory, path, allow_rejects, left=count)
    return count


def rejects_table(rejects: dict[str, str], most: int = 50) -> str:
    """Lines with the rejected files and the reasons, sorted by path; after `most` of them, a count by reason."""
    shown = sorted(rejects)[:most]
    width = max((len(name) for name in shown), default=0)
    lines = [f"  {name:<{width}}  {rejects[name]}" for name in shown]
    if len(rejects) > most:
        lines.append(f"  and {len(rejects) - most} more; by reason:")
        lines += [
            f"  {count:>9}  {reason}" for reason, count in collections.Counter(rejects.values()).most_common(most)
        ]
    return "\n".join(lines)


def _check_rejects(inventory: Inventory, path: pathlib.Path, allowed: bool, left: int) -> None:
    if inventory.rejects and not (allowed and left):
        remedy = "move them away, or leave them out with --allow_rejects" if left else "none is left"
        raise RejectedImagesError(
            f"{len(inventory.rejects)} of the {len(inventory.files.names)} files of {inventory.files.title} cannot be "
            f"used, and {path} was not written: convert them to {inventory.wanted}; {remedy}"
        )


def _check_room(inventory: Inventory, path: pathlib.Path, free: int) -> None:
    if inventory.total_bytes > free:
        raise DataError(
            f"{path} needs {inventory.total_bytes:,} bytes and its disk has {free:,}: make room, or name another place"
        )


def _array_header(count: int, image: Header) -> bytes:
    """Header of an `.npy` file, version 1.0, always of the same length so that `count` can be corrected at the end.

    Format: numpy.lib.format, "Format Version 1.0".
    """
    shape = (count, image.height, image.width, image.channels)
    start = np.lib.format.magic(1, 0)
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode("ascii")
    length = _HEADER_BYTES - len(start) - 2
    return start + struct.pack("<H", length) + text.ljust(length - 1) + b"\n"
