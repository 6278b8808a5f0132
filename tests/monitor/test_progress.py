from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import struct
import termios

import pytest

from tfgen.monitor.progress import Progress, _duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(progress: Progress, clock: Clock, steps: range, seconds: float = 1.0, **values: float) -> None:
    for step in steps:
        clock.now += seconds
        progress.update(step + 1, values)


def test_plain_lines_come_at_intervals_and_end_with_the_last_step():
    clock, stream = Clock(), io.StringIO()
    with Progress(100, 0, "train", stream, every_seconds=10, clock=clock) as progress:
        run(progress, clock, range(100), 0.5, **{"loss": 1.23456, "bits/dim": 3.5})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train: 1/100 (1%), loss 1.235, bits/dim 3.5"  # no speed yet: it would be the compilation's
    assert lines[1] == "train: 21/100 (21%), 2 steps/s, ETA 0:00:40, loss 1.235, bits/dim 3.5"
    assert [re.search(r"\d+/100", line).group() for line in lines[2:]] == ["41/100", "61/100", "81/100", "100/100"]
    assert lines[-1] == "train: 100/100 (100%), took 0:00:50, loss 1.235, bits/dim 3.5"


def test_speed_forgets_the_past():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1000, 0, "", stream, every_seconds=0, clock=clock)
    run(progress, clock, range(10), 100.0)
    run(progress, clock, range(10, 200), 0.5)
    assert stream.getvalue().splitlines()[-1] == "200/1000 (20%), 2 steps/s, ETA 0:06:40"


def test_slow_steps_have_a_speed():
    clock, stream = Clock(), io.StringIO()
    run(Progress(10, 0, "", stream, every_seconds=0, clock=clock), clock, range(3), 250.0)
    assert stream.getvalue().splitlines()[-1] == "3/10 (30%), 0.004 steps/s, ETA 0:29:10"


def test_resumed_steps_do_not_count_for_the_speed():
    clock, stream = Clock(), io.StringIO()
    run(Progress(1000, 900, "", stream, every_seconds=0, clock=clock), clock, range(900, 950))
    assert stream.getvalue().splitlines()[-1] == "950/1000 (95%), 1 steps/s, ETA 0:00:50"


def test_without_a_total():
    for stream in (io.StringIO(), Terminal()):
        clock = Clock()
        with Progress(None, 5, "sample", stream, every_seconds=0, unit="images", clock=clock) as progress:
            run(progress, clock, range(5, 8))
        assert "sample: 8, 1 images/s" in stream.getvalue()
        assert "ETA" not in stream.getvalue()


def test_updates_at_one_instant():
    stream = io.StringIO()
    progress = Progress(10, 0, "", stream, every_seconds=0, clock=Clock())
    progress.update(1)
    progress.update(2)
    assert stream.getvalue().splitlines() == ["1/10 (10%)", "2/10 (20%)"]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_other_ranks_are_silent(stream):
    with Progress(10, 0, "train", stream, enabled=False) as progress:
        progress.update(1, {"loss": 1.0})
        progress.note("text")
    assert stream.getvalue() == ""


def test_one_bar_on_a_terminal():
    clock, stream = Clock(), Terminal()
    with Progress(100, 0, "train", stream, clock=clock) as progress:
        run(progress, clock, range(40), loss=0.5)
        progress.note("a checkpoint was saved")
        run(progress, clock, range(40, 100), loss=0.25)
    text = stream.getvalue()
    assert "train:  40%|" in text
    assert "| 40/100, 1 steps/s, ETA 0:01:00, loss 0.5" in text
    assert "| 100/100, took 0:01:40, loss 0.25" in text
    assert text.count("\n") == 2  # after the note and at the very end
    assert "\ra checkpoint was saved\n" in re.sub(" +\r", "\r", text)


def test_the_bar_is_redrawn_ten_times_a_second_at_most():
    clock, stream = Clock(), Terminal()
    with Progress(10_000, 0, "train", stream, clock=clock) as progress:
        run(progress, clock, range(10_000), 0.001)
    assert 50 < stream.getvalue().count("\r") < 250  # ten seconds


def test_an_exception_leaves_the_cursor_on_a_new_line():
    stream = Terminal()
    progress = Progress(10, 0, "train", stream)
    progress.update(1)
    assert not stream.getvalue().endswith("\n")
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\n")
    before = stream.getvalue()
    progress.close()
    progress.update(2)
    assert stream.getvalue() == before


@pytest.mark.parametrize("total", [100, None])
@pytest.mark.parametrize("columns", [20, 40, 120])
def test_the_bar_is_no_wider_than_the_terminal(total, columns):
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clock = Clock()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        with Progress(total, 0, "train", stream, clock=clock) as progress:
            run(progress, clock, range(100), loss=0.123456, accuracy=0.123456, another=1.0)
        stream.flush()
        shown = os.read(reader, 1_000_000).decode("utf-8", "ignore")
    os.close(reader)
    assert max(len(line) for line in re.split("[\r\n]", shown)) <= columns
    assert "train" in shown


def test_a_lost_terminal_ends_the_display_alone(caplog):
    class Lost(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    with Progress(10, 0, "train", Lost(), every_seconds=0) as progress:
        progress.update(1)
        progress.update(2)
    assert len(caplog.messages) == 1


def test_durations():
    assert [_duration(seconds) for seconds in (-1, 0.4, 61, 3600, 200_000)] == [
        "0:00:00",
        "0:00:00",
        "0:01:01",
        "1:00:00",
        "2d 7:33:20",
    ]
