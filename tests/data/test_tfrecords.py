"""Records of TFRecord files by number."""

from __future__ import annotations

import concurrent.futures
import pathlib

import pytest
import tensorflow as tf

from tfgen.data.errors import DataError
from tfgen.data.tfrecords import RecordFiles


def write_records(path: pathlib.Path, contents: list[bytes]) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for content in contents:
            writer.write(content)


def contents(first: int, count: int) -> list[bytes]:
    """Of many lengths, one of them 0."""
    return [b"%d" % number * (number % 7) for number in range(first, first + count)]


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    write_records(tmp_path / "a", contents(0, 9))
    write_records(tmp_path / "b", [])
    write_records(tmp_path / "c", contents(9, 5))
    return tmp_path


def test_every_record_by_number_from_many_threads(folder):
    records = RecordFiles(folder, {"a": 9, "b": 0, "c": 5})
    assert len(records) == 14
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(records.read, range(13, -1, -1))) == contents(0, 14)[::-1]
    assert records.title(10) == f"record 1 of {folder}/c"
    assert RecordFiles(folder, {"c": 5, "a": 9}).read(5) == contents(0, 1)[0]  # the order is that of the index


def test_missing_files_and_no_records(folder):
    with pytest.raises(DataError, match="lacks x, y: place all 3 files there"):
        RecordFiles(folder, {"x": 1, "a": 9, "y": 2})
    with pytest.raises(DataError, match="has no records"):
        RecordFiles(folder, {"b": 0})


def test_another_number_of_records_than_the_index_says(folder):
    records = RecordFiles(folder, {"a": 9, "c": 4})
    assert records.read(8) == contents(8, 1)[0]
    with pytest.raises(DataError, match="c has 5 records, its index says 4"):
        records.read(9)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-3], "record 4 at byte"),
        (lambda content: content[:5], "record 0 at byte 0 of 5"),
        (lambda content: content + b"\0" * 7, r"record 5 at byte"),
        (lambda content: b"\xff" * 8 + content[8:], "record 0 at byte 0 .* has 18446744073709551615 bytes"),
    ],
)
def test_damaged_files(folder, damage, message):
    (folder / "c").write_bytes(damage((folder / "c").read_bytes()))
    records = RecordFiles(folder, {"a": 9, "c": 5})
    assert records.read(0) == b""
    with pytest.raises(DataError, match=f"c is no TFRecord file, or damaged: {message}"):
        records.read(11)
