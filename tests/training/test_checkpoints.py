"""Checkpoints are whole or not there, and damage is noticed."""

import logging

import numpy as np
import pytest
import tensorflow as tf

from tfgen.data.source import ImageSpec
from tfgen.training import checkpoints as checkpoints_module
from tfgen.training.checkpoints import CheckpointError, Checkpoints

SPEC = ImageSpec(8, 8, 1, 10)


class State(tf.Module):
    def __init__(self, value=0.0):
        super().__init__()
        self.weights = tf.Variable(np.full(1000, value, np.float32))


def read(checkpoint):
    state = State()
    tf.train.Checkpoint(state).read(checkpoint.prefix).assert_consumed()
    return float(state.weights[17])


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=3)
    for step in (10, 20, 30):
        checkpoints.save(step, State(step), SPEC, f"--step={step}\n")
    return checkpoints


def test_newest_holds_what_was_saved(saved):
    newest = saved.newest()
    assert (newest.step, newest.spec, newest.flags) == (30, SPEC, "--step=30\n")
    assert read(newest) == 30.0
    assert read(saved.at(10)) == 10.0


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "bit flipped": lambda folder: flip_a_bit(next(folder.glob("state.data*"))),
    "bit flipped in the index": lambda folder: flip_a_bit(folder / "state.index"),
    "cut short": lambda folder: next(folder.glob("state.data*")).write_bytes(b"short"),
    "file missing": lambda folder: next(folder.glob("state.data*")).unlink(),
    "manifest empty": lambda folder: (folder / "manifest.json").write_text(""),
    "manifest garbage": lambda folder: (folder / "manifest.json").write_text('{"step": 30, "files": []}'),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_falls_back_to_the_previous_good_one_and_says_so(saved, damage, caplog):
    damage(saved.path(30))
    with caplog.at_level(logging.WARNING):
        assert saved.newest().step == 20
    assert "damaged checkpoint passed over" in caplog.text
    assert "going back to the checkpoint of step 20" in caplog.text


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_refuses_when_none_is_good(saved, damage):
    for step in (10, 20, 30):
        damage(saved.path(step))
    with pytest.raises(CheckpointError, match="--restart_from_scratch"):
        saved.newest()
    assert saved.steps() == [10, 20, 30]


def test_a_damaged_one_is_set_aside_when_its_step_comes_again(saved):
    flip_a_bit(saved.path(30) / "state.index")
    saved.save(30, State(31), SPEC, "")
    assert read(saved.newest()) == 31.0
    assert (saved.folder / "damaged-step-000000030").is_dir()


def test_a_good_one_is_not_written_again(saved):
    saved.save(30, State(99), SPEC, "")
    assert read(saved.newest()) == 30.0


def test_keeps_the_last_ones_and_multiples(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=2, keep_every=20)
    for step in range(10, 80, 10):
        checkpoints.save(step, State(), SPEC, "")
    assert checkpoints.steps() == [20, 40, 60, 70]
    assert not list(checkpoints.folder.glob(".partial-*"))


def test_what_a_killed_save_left_is_ignored_and_removed(saved):
    partial = saved.folder / ".partial-000000040"
    partial.mkdir()
    (partial / "state.index").write_bytes(b"half")
    assert saved.newest().step == 30
    saved.remove_partial()
    assert not partial.exists()


def test_a_failed_save_leaves_the_earlier_ones(saved, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints_module, "_checksum", full_disk)
    with pytest.raises(CheckpointError, match=r"step 40 .*No space left.*MB are free.*intact"):
        saved.save(40, State(), SPEC, "")
    monkeypatch.undo()
    assert saved.steps() == [10, 20, 30]
    assert saved.newest().step == 30
    assert not list(saved.folder.glob(".partial-*"))


def test_nothing_saved_yet(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.newest() is None
    assert checkpoints.set_aside() is None
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        checkpoints.at(5)


def test_set_aside_loses_nothing(saved):
    aside = saved.set_aside()
    assert saved.newest() is None
    assert Checkpoints(aside).newest().step == 30
