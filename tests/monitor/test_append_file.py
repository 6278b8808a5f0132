from __future__ import annotations

import errno

import pytest

from tfgen.monitor.append_file import AppendFile, DiskFaults


def test_records_are_on_disk_at_once_and_follow_what_was_there(tmp_path):
    path = tmp_path / "new" / "log"
    first = AppendFile(path, DiskFaults("records"))
    assert first.append(b"one ")
    assert path.read_bytes() == b"one "
    first.close()
    AppendFile(path, DiskFaults("records")).append(b"two")
    assert path.read_bytes() == b"one two"


def test_a_record_that_does_not_fit_leaves_no_trace_and_is_reported_once(tmp_path, no_file_larger_than, caplog):
    path = tmp_path / "log"
    file = AppendFile(path, DiskFaults("records"))
    assert file.append(b"fits")
    with no_file_larger_than(10):
        assert not file.append(b"x" * 100)  # six of the bytes do fit
        assert not file.append(b"x" * 100)
    assert path.read_bytes() == b"fits"
    assert len(caplog.messages) == 1
    assert str(path) in caplog.messages[0]
    assert "File too large" in caplog.messages[0]
    assert file.append(b", again")
    assert path.read_bytes() == b"fits, again"


def test_a_folder_that_cannot_be_made_is_tolerated(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert not AppendFile(tmp_path / "file" / "log", DiskFaults("records")).append(b"x")
    assert "records" in caplog.messages[0]


def test_each_kind_of_error_is_reported(caplog):
    faults = DiskFaults("pictures")
    for number in (errno.ENOSPC, errno.ENOSPC, errno.EROFS):
        with faults.tolerated("grid.png"):
            raise OSError(number, f"error {number}")
    assert [f"error {number}" in message for number, message in zip((28, 30), caplog.messages, strict=True)] == [
        True
    ] * 2


def test_other_errors_pass():
    with pytest.raises(KeyError), DiskFaults("pictures").tolerated("grid.png"):
        raise KeyError("not the disk")
