from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from tfgen.data import idx
from tfgen.data.errors import DataError


def encode(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def numbers(*shape: int) -> np.ndarray:
    return np.random.RandomState(len(shape)).randint(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (2, 3, 4, 1)])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_reads_arrays_compressed_or_not_by_their_contents(tmp_path, shape, compress):
    path = tmp_path / "array.gz"
    path.write_bytes(compress(encode(numbers(*shape))))
    found = idx.read_idx(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, numbers(*shape))


GOOD = encode(numbers(7, 3))
BAD = {
    "empty": (b"", "found nothing"),
    "text": (b"<html>not found</html>", "begin with 00 00 08 .* found 3c 68 74 6d"),
    "of integers": (b"\0\0\x0c\1" + GOOD[4:], "found 00 00 0c 01"),
    "of rank 0": (b"\0\0\x08\0", "rank of 1 to 4"),
    "cut in the header": (GOOD[:9], "truncated: it ends within its header"),
    "cut in the data": (GOOD[:-1], r"truncated: \[7, 3\] are 21 bytes, found 20"),
    "longer": (GOOD + b"\0", "something follows its 21 bytes"),
    "cut when compressed": (gzip.compress(GOOD)[:-9], "damaged or truncated"),
    "damaged when compressed": (gzip.compress(GOOD)[:-8] + bytes(8), "damaged or truncated"),
    "huge": (b"\0\0\x08\3" + struct.pack(">3I", 2**31, 2**31, 2**31), "refused: it declares"),
}


@pytest.mark.parametrize("content", BAD)
def test_what_is_wrong_is_told(tmp_path, content):
    path = tmp_path / "array"
    path.write_bytes(BAD[content][0])
    with pytest.raises(DataError, match=BAD[content][1]):
        idx.read_idx(path)


def test_no_file(tmp_path):
    with pytest.raises(DataError, match=r"no file .*nothing"):
        idx.read_idx(tmp_path / "nothing")
