"""Files of a folder or of a zip archive, behind one small interface."""

from __future__ import annotations

import io
import os
import pathlib
import re
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

from tfgen.data.errors import DataError
from tfgen.data.image_codec import LARGEST_FILE, UnusableImageError

LARGEST_ENTRY_COUNT = 500_000
_SMALLEST_DIRECTORY_ENTRY = 46  # bytes of one entry in the directory of a zip archive, without its name
_LARGEST_DIRECTORY = LARGEST_ENTRY_COUNT * (_SMALLEST_DIRECTORY_ENTRY + 100)


class ImageFiles(Protocol):
    """Named files.

    Attributes:
      title: for messages.
      names: paths relative to the root with "/" between parts; sorted and without hidden files unless asked otherwise.
    """

    title: str
    names: list[str]

    def open(self, name: str) -> BinaryIO:
        """A seekable stream of the contents.

        Raises:
          OSError: the operating system's refusal; worth another attempt.
          UnusableImageError: the contents are damaged; not worth one.
        """


class FolderFiles:
    """Files below a folder. Links are followed; a folder that is reached twice is listed once.

    Args:
      root: the folder.
      listing: a function of `root` that gives `names` where another choice or order is wanted.
    """

    def __init__(self, root: str | os.PathLike, listing: Callable[[pathlib.Path], list[str]] | None = None):
        self.root = pathlib.Path(root)
        self.title = str(root)
        if not self.root.is_dir():
            raise DataError(f"no folder {root}")
        self.names = sorted(self._list()) if listing is None else listing(self.root)

    def open(self, name: str) -> BinaryIO:
        return open(self.root / name, "rb")

    def _list(self) -> list[str]:
        names = []
        seen = set()
        for folder, subfolders, files in os.walk(self.root, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                subfolders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            subfolders.sort()
            relative = pathlib.Path(folder).relative_to(self.root)
            names += [(relative / file).as_posix() for file in files]
        return [name for name in names if not is_hidden(name)]


class ZipFiles:
    """Files of a zip archive, read in place: nothing is ever extracted.

    Args:
      path: the archive.
      hidden: whether `names` has hidden files too.

    Raises:
      DataError: not a zip archive; one with more than `LARGEST_ENTRY_COUNT` entries, with encrypted entries, or with
        names or links that would lead out of the archive if it were extracted.
    """

    def __init__(self, path: str | os.PathLike, hidden: bool = False):
        self.title = str(path)
        if not os.path.isfile(path):
            raise DataError(f"no file {path}")
        _refuse_huge_directory(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise DataError(f"{path} is not a zip archive, or damaged: {error}") from error
        entries = self._archive.infolist()
        if len(entries) > LARGEST_ENTRY_COUNT:
            raise DataError(_too_many(path))
        self._entries = {entry.filename: entry for entry in entries if not entry.is_dir()}
        for entry in entries:
            _refuse_unsafe(entry, path)
        self.names = sorted(name for name in self._entries if hidden or not is_hidden(name))
        self._lock = threading.Lock()  # the archive counts its open entries without one

    def open(self, name: str) -> BinaryIO:
        entry = self._entries[name]
        if entry.file_size > LARGEST_FILE:
            raise UnusableImageError(f"declares {entry.file_size} bytes, more than {LARGEST_FILE}")
        try:
            with self._lock:
                return io.BytesIO(self._archive.read(entry))
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise UnusableImageError(f"damaged in the archive: {error}") from error


def is_hidden(name: str) -> bool:
    """Whether a path is what systems leave behind unasked: ".DS_Store", "__MACOSX/...", anything below ".git"."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _refuse_unsafe(entry: zipfile.ZipInfo, path: str | os.PathLike) -> None:
    name = entry.orig_filename
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise DataError(f"{path} is refused: its entry {name!r} points outside the archive")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"{path} is refused: its entry {name!r} is a link")
    if entry.flag_bits & 1:
        raise DataError(f"{path} is refused: its entry {name!r} is encrypted")


def _refuse_huge_directory(path: str | os.PathLike) -> None:
    """Checks the size of the archive's directory before `zipfile` loads all of it into memory.

    The end record is the last 22 bytes, or lies before a comment of up to 65535 bytes. It holds the number of entries
    at offset 10 and the size of the directory at offset 12; all ones there mean that the 64-bit record, which starts
    56 bytes before its own 20-byte locator, has them at offsets 32 and 40 (PKWARE APPNOTE 4.3.14 to 4.3.16).
    The size is checked too since it, unlike the number, cannot be understated.
    """
    with open(path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        start = max(0, size - (22 + 65535 + 56 + 20))
        stream.seek(start)
        tail = stream.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) - end < 22:
        return  # no zip archive; `zipfile` says so
    count, directory = struct.unpack_from("<HI", tail, end + 10)
    wide = end - 20 - 56
    if (count == 0xFFFF or directory == 0xFFFFFFFF) and wide >= 0 and tail[wide : wide + 4] == b"PK\6\6":
        count, directory = struct.unpack_from("<QQ", tail, wide + 32)
    if count > LARGEST_ENTRY_COUNT or directory > _LARGEST_DIRECTORY:
        raise DataError(_too_many(path))


def _too_many(path: str | os.PathLike) -> str:
    return f"{path} is refused: more than {LARGEST_ENTRY_COUNT} entries; unpack it and name the folder instead"
