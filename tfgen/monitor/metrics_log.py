"""`metrics.jsonl`: every logged number of a run, one JSON object per line."""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tfgen.files import atomic_path
from tfgen.monitor.append_file import AppendFile, DiskFaults

_log = logging.getLogger(__name__)

_RESERVED = ("step", "time", "series")


class MetricsLog:
    """Appends records {"step", "time", "series", <name>: <value> ...}, in the order of the calls.

    A resumed run ends with the same file as an uninterrupted one, times apart: what an earlier process
    recorded at `first_step` or later is dropped, since this process will record it again. For that to
    hold, the records of a step are written before the checkpoint of that step.

    A full disk doesn't end the run: the record is dropped and the reason logged once
    (`tfgen.monitor.append_file`).

    Args:
      path: the file; created when missing.
      first_step: the first step that this process will record.
      enabled: False reads and writes nothing (ranks other than 0).
    """

    def __init__(self, path: str | os.PathLike, first_step: int = 0, *, enabled: bool = True):
        self._path, self._first_step = pathlib.Path(path), first_step
        self._enabled = enabled
        self._faults = DiskFaults("metrics")
        self._file = AppendFile(self._path, self._faults)
        self._trimmed = not enabled
        self._trim()

    def write(self, step: int, series: str, values: Mapping[str, Any]) -> None:
        """Appends one record.

        Args:
          step: of the run.
          series: what the values belong to ("train", "valid"); the TensorBoard tags are `<series>/<name>`.
          values: numbers, scalar arrays or tensors, texts, booleans or None. Numbers that JSON cannot
            express become the texts "NaN", "Infinity" and "-Infinity", which `float()` reads back.

        Raises:
          ValueError: a name is one of "step", "time", "series"; a value is not scalar.
        """
        if not self._enabled:
            return
        taken = [name for name in _RESERVED if name in values]
        if taken:
            raise ValueError(f"a metric cannot be called {taken[0]!r}: every record has a field of that name")
        record = {"step": int(step), "time": round(time.time(), 3), "series": series}
        record |= {name: _plain(name, value) for name, value in values.items()}
        line = json.dumps(record, allow_nan=False) + "\n"
        self._trim()
        if self._trimmed:  # otherwise the disk still refuses, and an append would mix two processes' records
            self._file.append(line.encode())

    def close(self) -> None:
        self._file.close()

    def _trim(self) -> None:
        """Drops, atomically, the records that this process will write again and lines that are no records."""
        if self._trimmed:
            return
        with self._faults.tolerated(self._path):
            if self._path.exists():
                lines = self._path.read_bytes().splitlines(keepends=True)
                kept = [line for line in lines if self._keeps(line)]
                if len(kept) < len(lines):
                    with atomic_path(self._path) as temporary:
                        temporary.write_bytes(b"".join(kept))
                    _log.info("%s: dropped %d lines from before the resume", self._path, len(lines) - len(kept))
            self._trimmed = True

    def _keeps(self, line: bytes) -> bool:
        if not line.endswith(b"\n"):
            return False  # the process was killed, or the power lost, while it wrote this line
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            _log.warning("%s: dropped a line that is no record: %.80r", self._path, line)
            return False
        return isinstance(step, int) and step < self._first_step


def _plain(name: str, value: Any) -> Any:
    """The JSON form of a scalar."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if hasattr(value, "numpy"):  # an eager tensor
        value = value.numpy()
    if hasattr(value, "item"):  # a NumPy scalar or array
        if value.size != 1:
            raise ValueError(f"metric {name!r}: expected a scalar, found an array of shape {list(value.shape)}")
        value = value.item()
    if isinstance(value, (bool, numbers.Integral)):
        return value
    if not isinstance(value, numbers.Real):
        raise ValueError(f"metric {name!r}: expected a number, a text, a boolean or None, found {type(value).__name__}")
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
