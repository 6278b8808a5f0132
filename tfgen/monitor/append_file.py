"""Appending to the files that only watch a run, so that a full disk never ends the training."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pathlib
from collections.abc import Iterator

_log = logging.getLogger(__name__)


class DiskFaults:
    """Turns `OSError` into a warning, once per kind of error (full disk, read-only file system ...).

    For files that watch a run: curves, logs, sample pictures. What a run cannot do without (checkpoints)
    must not be written under it.

    Args:
      what: for the message, what is lost ("TensorBoard curves").
    """

    def __init__(self, what: str):
        self._what = what
        self._reported: set[int | None] = set()

    @contextlib.contextmanager
    def tolerated(self, path: str | os.PathLike) -> Iterator[None]:
        """Runs the body; an `OSError` in it ends the body, not the run."""
        try:
            yield
        except OSError as error:
            if error.errno not in self._reported:
                self._reported.add(error.errno)
                _log.warning(
                    "Cannot write %s to %s: %s. Training goes on, and %s will have gaps; "
                    "make room or restore access and they continue by themselves.",
                    self._what,
                    path,
                    error.strerror or error,
                    self._what,
                )


class AppendFile:
    """A file to which whole records are appended: a record is there in full or not at all.

    Each record reaches the operating system before `append` returns, so that what was recorded before a
    checkpoint survives a `kill -9` after it. The file is opened at the first record.

    Args:
      path: created with its folder when missing.
      faults: takes the `OSError`s.
    """

    def __init__(self, path: str | os.PathLike, faults: DiskFaults):
        self.path = pathlib.Path(path)
        self._faults = faults
        self._file: io.FileIO | None = None

    def append(self, record: bytes) -> bool:
        """Appends `record`; False where the disk refused it."""
        with self._faults.tolerated(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (kept open between records)
            end = self._file.seek(0, os.SEEK_END)
            try:
                self._write_all(self._file, record)
            except OSError:
                # Half a record would make readers stop here for good, TensorBoard's among them.
                self._file.truncate(end)
                raise
            return True
        return False

    def close(self) -> None:
        if self._file is not None:
            with self._faults.tolerated(self.path):
                self._file.close()
            self._file = None

    @staticmethod
    def _write_all(file: io.FileIO, record: bytes) -> None:
        rest = memoryview(record)
        while rest:  # on a nearly full disk the first write is short and only the second fails
            rest = rest[file.write(rest) :]
