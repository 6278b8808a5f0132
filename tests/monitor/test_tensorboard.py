from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata

from tfgen.monitor import tensorboard
from tfgen.monitor.tensorboard import RunSummaries

EVERYTHING = {"tensors": 0}


def points(folder, tag: str, reader=EventAccumulator) -> list[tuple[int, float]]:
    """As TensorBoard's Python loader has them; tests/monitor/test_tensorboard_page.py asks the data server."""
    loaded = reader(str(folder), size_guidance=EVERYTHING).Reload()
    return [(event.step, tf.make_ndarray(event.tensor_proto).item()) for event in loaded.Tensors(tag)]


def warnings(caplog) -> list[str]:
    """Ours; TensorBoard logs what it purges."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("tfgen")]


def train(folder, first: int, last: int, scale: float) -> None:
    """A process that is killed before step `last`: nothing is closed."""
    summaries = RunSummaries(folder, first)
    summaries.settings({"width": 8})
    for step in range(first, last):
        summaries.scalars({"train/loss": scale * step}, step)
        if step % 3 == 0:
            summaries.scalars({"valid/bits_per_dim": scale * step}, step)


def test_scalars_are_on_disk_at_once(tmp_path):
    summaries = RunSummaries(tmp_path)
    summaries.scalars({"train/loss": tf.constant(0.5), "train/grad_norm": np.float32(2)}, 7)
    summaries.scalars({"train/loss": float("nan")}, 8)
    assert points(tmp_path, "train/grad_norm") == [(7, 2.0)]
    assert [step for step, _ in points(tmp_path, "train/loss")] == [7, 8]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_every_pixel(tmp_path, channels):
    grid = np.random.RandomState(0).randint(0, 256, (12, 15, channels)).astype(np.uint8)
    RunSummaries(tmp_path).image("samples/ema", grid, 3)
    loaded = EventAccumulator(str(tmp_path)).Reload()
    assert loaded.summary_metadata["samples/ema"].plugin_data.plugin_name == "images"
    (event,) = loaded.Tensors("samples/ema")
    width, height, png = tf.make_ndarray(event.tensor_proto)
    assert (event.step, width, height) == (3, b"15", b"12")
    np.testing.assert_array_equal(tf.io.decode_png(png), grid)


def test_settings_are_hyperparameters_and_text(tmp_path):
    folder = tmp_path / "demo"
    values = {"flag": True, "count": 3, "rate": np.float32(0.5), "name": "a|b", "none": None, "inf": float("inf")}
    RunSummaries(folder).settings(values | {"shape": (1, 2)})
    loaded = EventAccumulator(str(folder)).Reload()
    content = loaded.PluginTagToContent("hparams")[hparams_metadata.SESSION_START_INFO_TAG]
    info = hparams_metadata.parse_session_start_info_plugin_data(content)
    assert info.group_name == "demo"
    found = {name: getattr(value, value.WhichOneof("kind")) for name, value in info.hparams.items()}
    assert found == {
        "flag": True, "count": 3, "rate": 0.5, "name": "a|b", "none": "None", "inf": "inf", "shape": "(1, 2)"
    }  # fmt: skip
    (event,) = loaded.Tensors("settings")
    text = tf.make_ndarray(event.tensor_proto).item().decode()
    assert text.splitlines()[:3] == ["| setting | value |", "| --- | --- |", "| flag | `True` |"]
    assert r"| name | `a\|b` |" in text


# The second reader, for scripts, knows nothing of sessions: it reads what is in the files.
@pytest.mark.parametrize("reader", [EventAccumulator, event_accumulator.EventAccumulator])
@pytest.mark.parametrize("resumed_at", [0, 4, 6])
def test_a_resume_replaces_what_the_killed_process_wrote(tmp_path, reader, resumed_at):
    train(tmp_path, 0, 8, scale=1.0)
    train(tmp_path, resumed_at, 7, scale=10.0)  # not as far as the first time
    expected = [(step, step * (10.0 if step >= resumed_at else 1.0)) for step in range(7)]
    assert points(tmp_path, "train/loss", reader) == expected
    assert points(tmp_path, "valid/bits_per_dim", reader) == expected[::3]


def test_steps_may_go_back_within_a_file(tmp_path):
    for _ in range(2):  # the second process resumes after step 0, which the first one evaluated before it trained
        summaries = RunSummaries(tmp_path, 1)
        summaries.settings({"width": 8})
        if not any(tag.startswith("valid") for tag in EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"]):
            summaries.scalars({"valid/bits_per_dim": 8.0}, 0)
        summaries.scalars({"train/loss": 1.0}, 1)
    assert points(tmp_path, "valid/bits_per_dim") == [(0, 8.0)]
    assert points(tmp_path, "train/loss") == [(1, 1.0)]
    assert [step for step, _ in points(tmp_path, "settings")] == [1]


def test_twelve_restarts_within_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard.time, "time", lambda: 1e9)
    for restart in range(12):
        train(tmp_path, restart, restart + 3, scale=restart + 1.0)
    assert points(tmp_path, "train/loss") == [(step, step * min(step + 1.0, 12.0)) for step in range(14)]


def test_an_open_page_forgets_too(tmp_path):
    train(tmp_path, 0, 8, scale=1.0)
    page = EventAccumulator(str(tmp_path), size_guidance=EVERYTHING).Reload()
    train(tmp_path, 4, 6, scale=10.0)
    assert [event.step for event in page.Reload().Tensors("train/loss")] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("damage", [b"half a record", b"\x01" + bytes(11) + b"\xff" + bytes(4)])
def test_what_is_not_a_record_is_cut_off(tmp_path, damage):
    train(tmp_path, 0, 5, scale=1.0)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole + damage)
    RunSummaries(tmp_path, 5)
    assert file.read_bytes() == whole


def test_a_record_cut_by_a_kill_does_not_hide_the_next_process(tmp_path):
    train(tmp_path, 0, 5, scale=1.0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    train(tmp_path, 3, 6, scale=10.0)
    assert points(tmp_path, "train/loss") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]


def test_a_full_disk_costs_records_not_the_run(tmp_path, no_file_larger_than, caplog):
    summaries = RunSummaries(tmp_path)
    summaries.scalars({"train/loss": 0.0}, 0)
    (file,) = tmp_path.iterdir()
    with no_file_larger_than(file.stat().st_size + 20):
        for step in range(1, 4):
            summaries.scalars({"train/loss": float(step)}, step)
    summaries.scalars({"train/loss": 4.0}, 4)
    assert points(tmp_path, "train/loss") == [(0, 0.0), (4, 4.0)]
    assert len(warnings(caplog)) == 1


def test_a_disk_that_is_full_at_the_start(tmp_path, no_file_larger_than, caplog):
    train(tmp_path, 0, 8, scale=1.0)
    with no_file_larger_than(10):
        summaries = RunSummaries(tmp_path, 4)
        summaries.scalars({"train/loss": 40.0}, 4)
    summaries.scalars({"train/loss": 50.0}, 5)
    assert points(tmp_path, "train/loss") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (5, 50.0)]
    assert len(warnings(caplog)) == 1


def test_other_ranks_import_and_write_nothing(tmp_path):
    script = f"""
import sys
from tfgen.monitor.tensorboard import RunSummaries
summaries = RunSummaries({str(tmp_path / "run")!r}, enabled=False)
summaries.settings({{"width": 8}})
summaries.scalars({{"train/loss": 1.0}}, 0)
summaries.image("samples/raw", None, 0)
summaries.text("note", "text", 0)
summaries.close()
assert "tensorboard" not in sys.modules and "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert not (tmp_path / "run").exists()
