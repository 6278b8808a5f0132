"""SIGTERM and Ctrl-C: finish the step, save on all ranks, leave with a code that says so."""

from __future__ import annotations

import os
import signal
import types

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, the same command goes on


class Interrupts:
    """Turns the first SIGTERM or SIGINT into a request; the second one ends the process at once.

    Use as a context manager in the main thread.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if self.requested:
            os._exit(128 + number)
        self.requested = True
