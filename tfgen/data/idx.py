"""Arrays of bytes in the IDX format, that of the MNIST files: LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist."""

from __future__ import annotations

import gzip
import io
import math
import pathlib
import struct
import zlib

import numpy as np

from tfgen.data.errors import DataError

LARGEST_ARRAY = 2**30  # bytes; the images of MNIST have 47 million
_LARGEST_RANK = 4
_UNSIGNED_BYTE = 8
_GZIP_MARK = b"\x1f\x8b"


def read_idx(path: pathlib.Path) -> np.ndarray:
    """The uint8 array of an IDX file, compressed by gzip or not, whatever it is called.

    The format: two zero bytes, the type of the entries, the rank, the size of each axis as big-endian 32 bits, and the
    entries in row-major order. Declared sizes are checked before memory is taken.

    Raises:
      DataError: no such file; not an IDX file of bytes; truncated, damaged, or with something after its end; more than
        `LARGEST_ARRAY` bytes.
    """
    if not path.is_file():
        raise DataError(f"no file {path}")
    try:
        with open(path, "rb") as stream:
            compressed = stream.read(2) == _GZIP_MARK
        with gzip.open(path) if compressed else open(path, "rb") as stream:
            return _read(stream, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or truncated ({error}): download it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _read(stream: io.BufferedIOBase, path: pathlib.Path) -> np.ndarray:
    start = stream.read(4)
    if len(start) < 4 or start[:3] != bytes([0, 0, _UNSIGNED_BYTE]) or not 1 <= start[3] <= _LARGEST_RANK:
        raise DataError(
            f"{path} is not an IDX file of bytes: expected it to begin with 00 00 08 and a rank of 1 to "
            f"{_LARGEST_RANK}, found {start.hex(' ') or 'nothing'}"
        )
    rank = start[3]
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataError(f"{path} is truncated: it ends within its header. Download it again")
    shape = struct.unpack(f">{rank}I", sizes)
    count = math.prod(shape)
    if count > LARGEST_ARRAY:
        raise DataError(f"{path} is refused: it declares {count} bytes, more than {LARGEST_ARRAY}")
    content = stream.read(count)
    if len(content) < count:
        raise DataError(
            f"{path} is truncated: {list(shape)} are {count} bytes, found {len(content)}. Download it again"
        )
    if stream.read(1):
        raise DataError(f"{path} is damaged: something follows its {count} bytes. Download it again")
    return np.frombuffer(content, np.uint8).reshape(shape)
