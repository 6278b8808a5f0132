"""Random access to the records of TFRecord files.

A record is its length (8 bytes, little endian), a checksum of that (4), the content, and a checksum of that (4):
TensorFlow, "TFRecord and tf.train.Example" (guide of version 2.15).
"""

from __future__ import annotations

import pathlib
import struct
import threading
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from tfgen.data.errors import DataError
from tfgen.data.image_codec import LARGEST_FILE
from tfgen.data.image_files import FolderFiles
from tfgen.data.reading import attempt

_HEADER, _CHECKSUM = 12, 4  # bytes
_LARGEST_RECORD = LARGEST_FILE + 2**20  # an image and what is said of it


class RecordFiles:
    """The records of several files as one sequence, in the order of the files.

    Where the records of a file begin is found out when the first of them is read. May be used from several threads.

    Args:
      folder: where the files are.
      counts: number of records by name of the file, in order.

    Raises:
      DataError: no such folder, missing files, or not a record in them.
    """

    def __init__(self, folder: pathlib.Path, counts: Mapping[str, int]):
        missing = [name for name in counts if not (folder / name).is_file()]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise DataError(f"{folder} lacks {', '.join(missing[:3])}{more}: place all {len(counts)} files there")
        self._files = FolderFiles(folder, lambda _: list(counts))
        self._counts = list(counts.values())
        self._ends = np.cumsum(self._counts)
        if not len(self._ends) or not self._ends[-1]:
            raise DataError(f"{folder} has no records")
        self._offsets: dict[int, np.ndarray] = {}
        self._locks = [threading.Lock() for _ in self._counts]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> bytes:
        """The content of a record.

        Raises:
          DataError: the file is damaged, or has another number of records than it should.
          UnreadableFileError: the operating system refuses the file, several times.
        """
        place, number = self._place(index)
        offset = int(self._offsets_of(place)[number])
        return attempt(lambda stream: _content(stream, offset), self._files, self._files.names[place])

    def title(self, index: int) -> str:
        """Names a record in messages."""
        place, number = self._place(index)
        return f"record {number} of {self._files.root / self._files.names[place]}"

    def _place(self, index: int) -> tuple[int, int]:
        place = int(np.searchsorted(self._ends, index, side="right"))
        return place, int(index - (self._ends[place] - self._counts[place]))

    def _offsets_of(self, place: int) -> np.ndarray:
        with self._locks[place]:
            if place not in self._offsets:
                name = self._files.names[place]
                path, expected = self._files.root / name, self._counts[place]
                offsets = attempt(lambda stream: record_offsets(stream, str(path)), self._files, name)
                if len(offsets) != expected:
                    raise DataError(f"{path} has {len(offsets)} records, its index says {expected}")
                self._offsets[place] = offsets
            return self._offsets[place]


def record_offsets(stream: BinaryIO, title: str) -> np.ndarray:
    """Where the records of an opened file begin, int64 [N]: from header to header, without reading the contents.

    Raises:
      DataError: a record that reaches beyond the end of the file, or is far too long.
    """
    size = stream.seek(0, 2)
    offsets: list[int] = []
    offset = 0
    while offset < size:
        stream.seek(offset)
        header = stream.read(_HEADER)
        length = struct.unpack_from("<Q", header)[0] if len(header) == _HEADER else 0
        end = offset + _HEADER + length + _CHECKSUM
        if len(header) < _HEADER or length > _LARGEST_RECORD or end > size:
            raise DataError(
                f"{title} is no TFRecord file, or damaged: record {len(offsets)} at byte {offset} of {size} has "
                f"{length} bytes by its header; copy the file anew"
            )
        offsets.append(offset)
        offset = end
    return np.array(offsets, np.int64)


def _content(stream: BinaryIO, offset: int) -> bytes:
    stream.seek(offset)
    (length,) = struct.unpack_from("<Q", stream.read(_HEADER))
    return stream.read(length)
