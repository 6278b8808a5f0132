"""Going back once from a divergence, and what each rank has of its own: the loop itself, with a model of one number."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from tfgen.data.arrays import ArraySource
from tfgen.data.source import Splits
from tfgen.distribute import Ranks
from tfgen.settings import RunSettings, Settings
from tfgen.systems.base import Loss, NoOptions, System
from tfgen.systems.ebm.config import Config
from tfgen.training import restoring
from tfgen.training.checkpoints import CheckpointError, Checkpoints
from tfgen.training.loop import TrainingStoppedError, train
from tfgen.training.optimizers import Adam
from tfgen.training.recipe import Recipe
from tfgen.training.run_folder import RunFolder
from tfgen.training.schedules import Constant
from tfgen.training.state import TrainState


class Number(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.number = self.add_weight(name="number", shape=[], initializer="zeros")
        self.built = True


class Counting(System):
    """Learns one number. Its loss is NaN from `poisoned` on, as long as the run has not gone back."""

    name, config_class = "counting", Config
    sample_options_class = evaluate_options_class = NoOptions

    def __init__(self, poisoned: int, always: bool = False):
        super().__init__(Config(), SOURCE.spec)
        self.network, self.poisoned, self.always = Number(), poisoned, always
        self.rank_state = tf.Module()
        self.rank_state.seen = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.state.rollbacks = None  # set to the trainer's counter
        self.counter: tf.Variable | None = None

    def loss(self, batch, key, training):
        noise = key.fold("noise").normal([1])[0]
        self.rank_state.seen.assign_add(1)
        bad = self.rank_state.seen > self.poisoned
        if not self.always:
            bad &= tf.equal(self.counter, 0)
        value = tf.square(self.network.number - noise)
        return Loss(tf.where(bad, np.float32(np.nan), value), {"noise": noise})

    def recipe(self, train_size, ranks):
        return Recipe(0, 2, 12, Adam(), Constant(0.1), save_every=2, log_every=4, every_step=("loss", "noise"),
                      max_rollbacks=1)  # fmt: skip

    @classmethod
    def open_data(cls, config, data_dir):
        raise NotImplementedError

    image_spec = half_precision = open_data
    sample = evaluate = signatures = load_published = None


SOURCE = ArraySource(np.zeros([4, 2, 2, 1], np.uint8), "zeros")
SETTINGS = Settings("ebm", (), Config(), RunSettings(max_skipped_steps=3))


def trained(system: Counting, folder, monkeypatch) -> TrainState:
    states = []

    def make_actions(state, reporter):
        states.append(state)
        return []

    built = TrainState.__init__

    def watched(self, *arguments):
        built(self, *arguments)
        system.counter = self.rollbacks

    monkeypatch.setattr(TrainState, "__init__", watched)
    train(SETTINGS, system, Splits(SOURCE, SOURCE, SOURCE), system.recipe(4, 1), Ranks(), folder, make_actions)
    return states[-1]


def records(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_that_diverges_goes_back_once_and_on_with_other_noise(tmp_path, monkeypatch, caplog):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    state = trained(Counting(poisoned=5), run, monkeypatch)
    assert int(state.step) == 12
    assert int(state.rollbacks) == 1
    assert int(state.skipped_steps) == 0
    assert "went back to the checkpoint of step 4" in caplog.text
    steps = records(run.steps_path)
    assert [record["step"] for record in steps] == list(range(1, 13))  # each once, without those given up
    for name in ("metrics", "steps"):
        given_up = records(run.path / f"{name}-before-rollback-1.jsonl")
        assert any(record["loss"] == "NaN" for record in given_up)
    # Step 5 was taken twice; with other noise the second time.
    plain = RunFolder(tmp_path / "plain")
    plain.path.mkdir()
    trained(Counting(poisoned=100), plain, monkeypatch)
    undisturbed = records(plain.steps_path)
    assert [record["noise"] for record in steps[:4]] == [record["noise"] for record in undisturbed[:4]]
    assert all(a["noise"] != b["noise"] for a, b in zip(steps[4:], undisturbed[4:], strict=True))


def test_it_stops_the_second_time_and_keeps_a_checkpoint_from_before(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    with pytest.raises(TrainingStoppedError, match=r"stopped at step 8.*newest checkpoint is of step 4"):
        trained(Counting(poisoned=5, always=True), run, monkeypatch)
    assert run.checkpoints().newest().step == 4


class OneOfTwo(Ranks):
    """A rank of two whose partner reports what it is told to."""

    size = 2

    def __init__(self, rank: int, partner: float = 0.0):
        self.rank, self._partner = rank, partner

    def sum(self, tensor):
        return tensor + self._partner


def test_each_rank_finds_its_own_state_in_the_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    states = []
    for rank, seen in ((1, 7), (0, 3)):  # the first rank writes last
        system = Counting(poisoned=9)
        state = TrainState(system, system.recipe(4, 2))
        state.step.assign(6)
        system.rank_state.seen.assign(seen)
        restoring.save_rank(checkpoints, 6, state, OneOfTwo(rank))
        states.append(state)
    checkpoints.save(6, states[1], SOURCE.spec, "")
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "step-000000006" / "rank-0001.index").exists()

    for rank, seen in ((0, 3), (1, 7)):
        system = Counting(poisoned=9)
        state = TrainState(system, system.recipe(4, 2))
        state.step.assign(0 if rank == 0 else 6)  # what the broadcast gives the second rank
        assert restoring.begin(state, checkpoints, system, system.recipe(4, 2), OneOfTwo(rank)) == 6
        assert int(system.rank_state.seen) == seen


def test_a_rank_that_was_not_there_begins_empty_and_says_so(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    system = Counting(poisoned=9)
    state = TrainState(system, system.recipe(4, 1))
    system.rank_state.seen.assign(3)
    checkpoints.save(6, state, SOURCE.spec, "")
    other = Counting(poisoned=9)
    state = TrainState(other, other.recipe(4, 2))
    state.step.assign(6)
    restoring.begin(state, checkpoints, other, other.recipe(4, 2), OneOfTwo(1))
    assert int(other.rank_state.seen) == 0
    assert "rank 1: the checkpoint of step 6 was saved by fewer ranks" in caplog.text


def test_what_a_killed_save_of_a_rank_left_is_not_in_the_way(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / ".ranks-000000006" / "rank-0001_temp").mkdir(parents=True)
    (tmp_path / ".ranks-000000006" / "rank-0001.index").write_bytes(b"half")
    system = Counting(poisoned=9)
    state = TrainState(system, system.recipe(4, 2))
    restoring.save_rank(checkpoints, 6, state, OneOfTwo(1))
    checkpoints.save(6, state, SOURCE.spec, "")
    assert checkpoints.newest().rank_prefix(1) is not None
    (tmp_path / ".ranks-000000007").mkdir()
    checkpoints.remove_parts_of_ranks()
    assert not list(tmp_path.glob(".ranks-*"))


def test_a_rank_that_cannot_write_keeps_the_first_from_saving(tmp_path):
    system = Counting(poisoned=9)
    state = TrainState(system, system.recipe(4, 2))
    with pytest.raises(CheckpointError, match=r"1 rank\(s\) could not write their parts of the checkpoint of step 6"):
        restoring.save_rank(Checkpoints(tmp_path), 6, state, OneOfTwo(0, partner=1.0))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"rank 1 could not write.*disk that all of them share"):
        restoring.save_rank(Checkpoints(tmp_path / "file"), 6, state, OneOfTwo(1))
