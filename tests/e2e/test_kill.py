"""`kill -9` at any moment, the same command again: the final weights are those of an uninterrupted run, bit for bit."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e import runs

KILLS = int(os.environ.get("TFGEN_KILLS", "10"))
STEPS = 60 * KILLS
FLAGS = (*runs.TINY, f"--steps={STEPS}", "--save_every=5", "--eval_every=500", "--eval_images=8", "--sample_images=0")
FLAGS = (*FLAGS, "--log_every=50")


def test_kill_at_random_moments(tmp_path):
    straight, killed, log = tmp_path / "straight", tmp_path / "killed", tmp_path / "log"
    runs.run_forked("train", *FLAGS, f"--run={straight}", log=tmp_path / "straight_log")

    chance = random.Random(20261122)
    moments = []
    for number in range(KILLS):
        before = runs.saved_steps(killed)[-1:] or [0]
        process = runs.start("train", *FLAGS, f"--run={killed}", log=log)
        # One kill in five comes during start-up; the others up to a second after the process has saved something.
        if number % 5 == 0:
            time.sleep(chance.uniform(0, 4))
        else:
            runs.wait_until(lambda before=before: (runs.saved_steps(killed)[-1:] or [0]) > before, process.is_alive)
            time.sleep(chance.uniform(0, 1))
        assert process.is_alive(), "the run ended before it could be killed"
        process.kill()
        process.join()
        during_save = any((killed / "checkpoints").glob(".partial-*"))
        moments.append((runs.saved_steps(killed)[-1:] or [0], during_save))
        assert moments[-1][0] >= before, "a kill cost a saved checkpoint"
    output = runs.run("train", *FLAGS, f"--run={killed}")

    print(f"\nkilled {KILLS} times, {sum(during for _, during in moments)} during a save: {moments}")
    assert "resuming after step" in output
    runs.assert_same_state(runs.saved_state(killed), runs.saved_state(straight))
    assert not list((killed / "checkpoints").glob(".partial-*"))


@dataclasses.dataclass(frozen=True)
class Case:
    """A run of another system: what it remembers differs.

    Attributes:
      flags: of the run, the number of steps included.
      kills: the run is killed once after the checkpoint of each of these steps.
      check: of the folders of the uninterrupted and of the killed run, when both are done.
      check_killed: of the step and the saved state, after each kill.
    """

    flags: tuple[str, ...]
    kills: tuple[int, ...]
    check: Callable[[Path, Path], None] = lambda straight, killed: None
    check_killed: Callable[[int, dict[str, np.ndarray]], None] = lambda step, state: None


def check_skipped_steps(straight: Path, killed: Path) -> None:
    one, other = (
        [record["skipped_steps"] for record in runs.records(folder, "train")] for folder in (straight, killed)
    )
    assert 0 < one[-1] < 100, one
    assert one[-1] == other[-1]


def history(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The variables of the sampler of steps by their last name."""
    found = {name.split("/")[-3]: value for name, value in state.items() if "timestep_sampler" in name}
    assert found.keys() == {"history", "counts"}
    return found


def check_history(step: int, state: dict[str, np.ndarray]) -> None:
    counts = history(state)["counts"]
    assert (counts.min() == 10) == (step == 80), counts


def check_history_shape(straight: Path, killed: Path) -> None:
    for folder in (straight, killed):
        assert history(runs.saved_state(folder))["history"].shape == (20, 10)


def check_buffer(straight: Path, killed: Path) -> None:
    for folder in (straight, killed):
        assert runs.replay_buffer(runs.saved_state(folder))["length"] == 64


CASES = {
    # Averages, moments and skip counters; the norms of the gradients rise beyond the threshold from step 70 or so on.
    "vdvae": Case(
        (*runs.TINY_VDVAE, "--skip_threshold=0.5", "--steps=100"),
        kills=(85,),
        check=check_skipped_steps,
    ),
    # Averages, moments and the history of losses, by which steps are chosen when the second kill comes.
    "diffusion": Case(
        (*runs.TINY_DIFFUSION, "--channel_mult=1", "--schedule_sampler=loss-second-moment", "--steps=100"),
        kills=(15, 80),
        check=check_history_shape,
        check_killed=check_history,
    ),
    # Power iteration, and the replay buffer, which has gone round once.
    "ebm": Case((*runs.TINY_EBM, "--steps=60"), kills=(12,), check=check_buffer),
    # Dropout, noise, averages and moments.
    "smoothing": Case(
        (*runs.TINY_SMOOTHING, "--runner=ReversePixelCNNPPTrainRunner", "--steps=60"),
        kills=(20,),
    ),
}


@pytest.mark.parametrize("system", CASES)
def test_killed_runs_end_with_the_same_bits(system, tmp_path):
    case = CASES[system]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    flags = (*case.flags, "--save_every=5", "--eval_every=0", "--eval_images=8", "--sample_images=0", "--log_every=20")
    runs.run_forked("train", *flags, f"--run={straight}", log=tmp_path / "straight_log")
    for step in case.kills:
        runs.kill_after(step, killed, *flags, log=tmp_path / "killed_log")
        case.check_killed(step, runs.saved_state(killed))
    output = runs.run_forked("train", *flags, f"--run={killed}", log=tmp_path / "log")
    assert "resuming after step" in output
    runs.assert_same_state(runs.saved_state(killed), runs.saved_state(straight))
    case.check(straight, killed)


@pytest.mark.parametrize("second", [False, True], ids=["once", "twice"])
def test_sigterm_saves_and_says_so(tmp_path, second):
    folder, log = tmp_path / "run", tmp_path / "log"
    flags = (*runs.TINY, "--steps=100000", "--save_every=100000", "--eval_every=0", "--sample_images=0")
    process = runs.start("train", *flags, f"--run={folder}", log=log)
    metrics = folder / "metrics.jsonl"
    runs.wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 5, process.is_alive)
    os.kill(process.pid, signal.SIGTERM)
    if second:
        os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    code, text = process.exitcode, log.read_text()
    if second and code != 75:  # the second one may also come after the process has left
        assert code == 128 + signal.SIGTERM
        return
    assert code == 75, text
    (step,) = runs.saved_steps(folder)
    assert f"interrupted at step {step:,}" in text
    assert int(runs.saved_state(folder)["step/.ATTRIBUTES/VARIABLE_VALUE"]) == step
