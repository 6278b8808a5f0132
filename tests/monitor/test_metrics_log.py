from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from tfgen.monitor.metrics_log import MetricsLog


def records(path) -> list[dict]:
    def refuse(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def without_times(path) -> list[dict]:
    return [{name: value for name, value in record.items() if name != "time"} for record in records(path)]


def train(path, first: int, last: int) -> None:
    log = MetricsLog(path, first)
    for step in range(first, last):
        log.write(step, "train", {"loss": 1 / (step + 1)})
        if step % 4 == 0:
            log.write(step, "valid", {"bits_per_dim": step * 0.5})
    log.close()


def test_records_have_step_time_series_and_values(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(3, "train", {"loss": np.float32(0.1), "images": np.int64(7), "rate": tf.constant(0.5), "note": "warm-up"})
    (record,) = records(path)  # already on disk
    assert list(record) == ["step", "time", "series", "loss", "images", "rate", "note"]
    assert record.pop("time") > 1.6e9
    assert record == {
        "step": 3, "series": "train", "loss": float(np.float32(0.1)), "images": 7, "rate": 0.5, "note": "warm-up"
    }  # fmt: skip


def test_numbers_that_json_has_not(tmp_path):
    MetricsLog(tmp_path / "m").write(0, "train", {"a": math.nan, "b": np.float32("inf"), "c": -math.inf, "d": None})
    (record,) = records(tmp_path / "m")
    assert [record[name] for name in "abcd"] == ["NaN", "Infinity", "-Infinity", None]
    assert math.isnan(float(record["a"]))


@pytest.mark.parametrize(("values", "message"), [
    ({"step": 1}, "'step'"),
    ({"loss": np.zeros(2)}, r"shape \[2\]"),
    ({"loss": [1.0]}, "found list"),
])  # fmt: skip
def test_what_is_no_metric(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        MetricsLog(tmp_path / "m").write(0, "train", values)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("killed_at", [5, 9, 10])
def test_a_resumed_run_has_the_file_of_an_uninterrupted_one(tmp_path, killed_at):
    train(tmp_path / "straight", 0, 20)
    train(tmp_path / "resumed", 0, killed_at)
    with (tmp_path / "resumed").open("a") as file:
        file.write('{"step": 2, "ti')  # the kill came while a line was on its way
    train(tmp_path / "resumed", 5, 20)
    assert without_times(tmp_path / "resumed") == without_times(tmp_path / "straight")
    assert {path.name for path in tmp_path.iterdir()} == {"straight", "resumed"}


def test_resuming_drops_records_even_when_none_follow(tmp_path):
    train(tmp_path / "m", 0, 10)
    MetricsLog(tmp_path / "m", 4)
    assert max(record["step"] for record in records(tmp_path / "m")) == 3


def test_lines_that_are_no_records_are_dropped_and_named(tmp_path, caplog):
    (tmp_path / "m").write_text('{"step": 1, "loss": 2}\nrubbish\n[1]\n{"step": 2}\n')
    MetricsLog(tmp_path / "m", 9)
    assert records(tmp_path / "m") == [{"step": 1, "loss": 2}, {"step": 2}]
    assert "rubbish" in caplog.text


def test_a_full_disk_costs_records_not_the_run(tmp_path, no_file_larger_than, caplog):
    path = tmp_path / "m"
    log = MetricsLog(path)
    log.write(0, "train", {"loss": 1.0})
    with no_file_larger_than(path.stat().st_size + 10):
        log.write(1, "train", {"loss": 1.0})
        log.write(2, "train", {"loss": 1.0})
    log.write(3, "train", {"loss": 1.0})
    assert [record["step"] for record in records(path)] == [0, 3]
    assert len(caplog.messages) == 1


def test_a_disk_that_is_full_at_the_resume(tmp_path, no_file_larger_than, caplog):
    path = tmp_path / "m"
    train(path, 0, 10)
    with no_file_larger_than(10):
        log = MetricsLog(path, 5)
        log.write(5, "train", {"loss": 1 / 6})
    train(tmp_path / "expected", 0, 5)
    log.write(6, "train", {"loss": 1 / 7})
    MetricsLog(tmp_path / "expected", 6).write(6, "train", {"loss": 1 / 7})
    assert without_times(path) == without_times(tmp_path / "expected")
    assert len(caplog.messages) == 1


def test_other_ranks_touch_nothing(tmp_path):
    train(tmp_path / "m", 0, 10)
    before = (tmp_path / "m").read_bytes()
    log = MetricsLog(tmp_path / "m", 2, enabled=False)
    log.write(2, "train", {"loss": 1.0})
    log.close()
    assert (tmp_path / "m").read_bytes() == before
