"""How far a run is: one updating bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import collections
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from tqdm import tqdm

_log = logging.getLogger(__name__)

_WINDOW_SECONDS = 60.0
_WINDOW_UPDATES = 1000
_REDRAW_SECONDS = 0.1


class Progress:
    """Shows percent, step, speed, remaining time and the last values given.

    Use it as a context manager, so that an exception finds the terminal's cursor on a line of its own.

        with Progress(total=1000, first=0, description="train") as progress:
            for step in range(1000):
                ...
                progress.update(step + 1, {"loss": loss})

    Args:
      total: steps at the end, or None where there is no end.
      first: steps already done before this process (a resumed run); they don't count for the speed.
      description: leads every line.
      stream: where to write; standard error by default.
      every_seconds: interval between plain lines; a terminal's bar is redrawn ten times a second at most.
      unit: plural noun of what is counted.
      enabled: False writes nothing (ranks other than 0).
      clock: seconds, for tests.
    """

    def __init__(
        self,
        total: int | None,
        first: int = 0,
        description: str = "",
        stream: TextIO | None = None,
        *,
        every_seconds: float = 10.0,
        unit: str = "steps",
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._step, self._description, self._unit = total, first, description, unit
        self._stream = sys.stderr if stream is None else stream
        self._enabled, self._clock = enabled, clock
        self._values: Mapping[str, float] = {}
        self._speed = _Speed()
        self._started = clock()
        self._bar = self._make_bar() if enabled and self._stream.isatty() else None
        self._interval = every_seconds if self._bar is None else _REDRAW_SECONDS
        self._next_show = self._started  # the first update shows, as a sign of life
        self._unshown = False

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Notes that `step` steps are done. `values` stay on show until the next ones come."""
        if not self._enabled:
            return
        now = self._clock()
        self._step, self._unshown = step, True
        self._values = self._values if values is None else values
        self._speed.note(now, step)
        if now >= self._next_show:
            self._next_show = now + self._interval
            self._show(now)

    def note(self, text: str) -> None:
        """Prints a line that stays, above the bar where there is one."""
        if not self._enabled:
            return
        with_bar = self._bar is not None
        self._write(lambda: tqdm.write(text, file=self._stream) if with_bar else self._print(text))

    def close(self) -> None:
        """Shows the last state and leaves the cursor at the start of a line."""
        if not self._enabled:
            return
        if self._unshown:
            self._show(self._clock())
        if self._bar is not None:
            self._write(self._bar.close)
        self._enabled = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _make_bar(self) -> _Bar:
        # tqdm cuts a line to the terminal's width only where its format has a bar: without a total it is blank.
        known = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        unknown = "{desc}: {n_fmt}{postfix}{bar}"
        return _Bar(
            total=self._total,
            initial=self._step,
            desc=self._description,
            file=self._stream,
            dynamic_ncols=True,
            bar_format=unknown if self._total is None else known,
        )

    def _show(self, now: float) -> None:
        self._unshown = False
        if self._bar is not None:
            self._bar.n = self._step
            self._bar.set_postfix_str(self._details(now), refresh=False)
            self._write(self._bar.refresh)
        else:
            done = f"{self._step}"
            if self._total:
                done += f"/{self._total} ({self._step / self._total:.0%})"
            lead = f"{self._description}: " if self._description else ""
            line = ", ".join(part for part in (done, self._details(now)) if part)
            self._write(lambda: self._print(lead + line))

    def _details(self, now: float) -> str:
        parts = []
        per_second = self._speed.per_second
        if self._total is not None and self._step >= self._total:
            parts.append(f"took {_duration(now - self._started)}")
        elif per_second:
            parts.append(f"{per_second:.3g} {self._unit}/s")
            if self._total is not None:
                parts.append(f"ETA {_duration((self._total - self._step) / per_second)}")
        parts += [f"{name} {value:.4g}" for name, value in self._values.items()]
        return ", ".join(parts)

    def _print(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:  # the terminal or pipe is gone; what runs behind it should not end for that
            self._enabled = False
            if self._bar is not None:
                self._bar.disable = True  # it would try again when it is deleted
            _log.warning("Progress is no longer shown: %s", error)


class _Bar(tqdm):
    monitor_interval = 0  # tqdm's redrawing thread is of no use here


class _Speed:
    """Steps per second over a moving window: the last minute, the last thousand updates at most."""

    def __init__(self) -> None:
        self._points: collections.deque[tuple[float, int]] = collections.deque(maxlen=_WINDOW_UPDATES)

    def note(self, now: float, step: int) -> None:
        self._points.append((now, step))
        # Two points stay however slow the steps are.
        while len(self._points) > 2 and now - self._points[1][0] >= _WINDOW_SECONDS:
            self._points.popleft()

    @property
    def per_second(self) -> float | None:
        """None before the second update: the first holds the compilation."""
        if len(self._points) < 2:
            return None
        (first_time, first_step), (last_time, last_step) = self._points[0], self._points[-1]
        return (last_step - first_step) / (last_time - first_time) if last_time > first_time else None


def _duration(seconds: float) -> str:
    days, rest = divmod(round(max(seconds, 0.0)), 24 * 3600)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}d {clock}" if days else clock
