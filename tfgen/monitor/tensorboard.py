"""What a run shows in TensorBoard: curves, sample grids and settings.

Tags are `<group>/<name>`; TensorBoard gives each group a section. Those that every system's run has:

| tag | meaning |
| --- | --- |
| train/loss | objective that is minimised, mean over the global batch |
| train/bits_per_dim | the same batch in bits per dimension, where the system has a likelihood or a bound |
| train/grad_norm | global L2 norm of the gradient, unscaled, before clipping |
| train/param_norm, train/update_norm | global L2 norm of the weights, and of their change by the update |
| train/learning_rate, train/loss_scale | as used for the update |
| train/images_per_second | over all ranks |
| train/data_wait_ms | time per update that rank 0 waited for its batch, in milliseconds |
| train/skipped_steps | updates skipped since the start of the run |
| valid/bits_per_dim, valid/nats_per_dim | on the validation split, with the weights that evaluation uses |
| samples/raw, samples/ema | grid of samples at fixed seeds, from the weights and from their average |
| settings | text: every flag of the run |
"""

from __future__ import annotations

import os
import pathlib
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfgen.monitor.append_file import AppendFile, DiskFaults

_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class RunSummaries:
    """Writes one event file per process into the run folder.

    Each record is on its way to the disk when the call returns. What an earlier, killed process recorded
    at `first_step` or later is removed from its file. A TensorBoard that is open on the folder and has read it
    already forgets it too: its Python loader because of the session start written here, its faster data
    server as soon as this process records the same curve at the same step.

    A full disk doesn't end the run: the record is dropped and the reason logged once
    (`tfgen.monitor.append_file`).

    Args:
      folder: the run folder.
      first_step: the first step that this process will record.
      enabled: False writes nothing and does not import TensorBoard (ranks other than 0).
    """

    def __init__(self, folder: str | os.PathLike, first_step: int = 0, *, enabled: bool = True):
        self._enabled, self._first_step = enabled, first_step
        self._started = False
        if not enabled:
            return
        from tfgen.monitor import events  # half a second that only rank 0 should pay

        self._events = events
        folder = pathlib.Path(folder)
        self._trial = folder.resolve().name
        faults = DiskFaults("TensorBoard records")
        for path in folder.glob("events.out.tfevents.*"):
            with faults.tolerated(path):
                self._remove_later(path)
        self._file = AppendFile(folder / _next_file_name(folder), faults)
        self._start()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point per tag. Values are numbers, scalar arrays or tensors; NaN and infinities show as such."""
        if self._enabled:
            self._append(self._events.scalars(values, step))

    def image(self, tag: str, grid: np.ndarray, step: int) -> None:
        """A picture, uint8 [H, W, C], C = 1 or 3."""
        if self._enabled:
            self._append(self._events.image(tag, grid, step))

    def text(self, tag: str, markdown: str, step: int) -> None:
        """A text for the TEXT tab."""
        if self._enabled:
            self._append(self._events.text(tag, markdown, step))

    def settings(self, settings: Mapping[str, Any]) -> None:
        """The run's settings, for the HPARAMS tab (beside the last value of every curve) and the TEXT tab."""
        if not self._enabled:
            return
        self._append(self._events.hyperparameters(self._trial, settings, self._first_step))
        rows = [f"| {name} | {_cell(value)} |" for name, value in settings.items()]
        self.text("settings", "\n".join(["| setting | value |", "| --- | --- |", *rows]), self._first_step)

    def close(self) -> None:
        if self._enabled:
            self._file.close()

    def _remove_later(self, path: pathlib.Path) -> None:
        contents = path.read_bytes()
        kept = self._events.before(contents, self._first_step)
        if len(kept) == len(contents):
            return
        # Not `atomic_path`: TensorBoard would read its temporary file, whose name has that of an event file in it.
        temporary = path.with_name(".earlier.partial")
        try:
            temporary.write_bytes(kept)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _append(self, record: bytes) -> None:
        if self._started or self._start():
            self._file.append(record)

    def _start(self) -> bool:
        self._started = self._file.append(self._events.file_start(self._first_step))
        return self._started


def _next_file_name(folder: pathlib.Path) -> str:
    """A name that sorts after those of earlier processes: TensorBoard reads the files in that order.

    Usually the time in seconds, as everywhere; two starts in one second or a clock that was set back
    would break the order.
    """
    matches = [_EVENT_FILE.match(path.name) for path in folder.glob("events.out.tfevents.*")]
    earlier = [int(match.group(1)) for match in matches if match]
    stamp = max([int(time.time()), *(number + 1 for number in earlier)])
    return f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"


def _cell(value: Any) -> str:
    text = str(value).replace("|", "\\|").replace("\n", " ")
    return f"`{text}`" if text else ""
