"""`kill -9` at any moment, the same command again: the final weights are those of an uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest

from tests.e2e import runs

KILLS = int(os.environ.get("TFGEN_KILLS", "20"))
STEPS = 60 * KILLS
FLAGS = (*runs.TINY, f"--steps={STEPS}", "--save_every=5", "--eval_every=500", "--sample_every=0", "--log_every=50")


def test_kill_at_random_moments(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    runs.run("train", *FLAGS, f"--run={straight}")

    chance = random.Random(20261122)
    moments = []
    log = (tmp_path / "log").open("w")
    for number in range(KILLS):
        before = runs.saved_steps(killed)[-1:] or [0]
        process = subprocess.Popen(
            runs.command("train", *FLAGS, f"--run={killed}"),
            env=runs.environment(),
            cwd=runs.PROJECT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        # One kill in five comes during start-up; the others up to a second after the process has saved something.
        deadline = time.monotonic() + 120
        if number % 5 == 0:
            time.sleep(chance.uniform(0, 8))
        else:
            while (runs.saved_steps(killed)[-1:] or [0]) == before and process.poll() is None:
                assert time.monotonic() < deadline, "no progress"
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 1))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        during_save = any((killed / "checkpoints").glob(".partial-*"))
        moments.append((runs.saved_steps(killed)[-1:] or [0], during_save))
        assert moments[-1][0] >= before, "a kill cost a saved checkpoint"
    output = runs.run("train", *FLAGS, f"--run={killed}")

    print(f"\nkilled {KILLS} times, {sum(during for _, during in moments)} during a save: {moments}")
    assert "resuming after step" in output
    runs.assert_same_state(runs.saved_state(killed), runs.saved_state(straight))
    assert not list((killed / "checkpoints").glob(".partial-*"))


@pytest.mark.parametrize("second", [False, True], ids=["once", "twice"])
def test_sigterm_saves_and_says_so(tmp_path, second):
    folder = tmp_path / "run"
    flags = (*runs.TINY, "--steps=100000", "--save_every=100000", "--eval_every=0", f"--run={folder}")
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            runs.command("train", *flags), env=runs.environment(), cwd=runs.PROJECT, stdout=log, stderr=log
        )
        while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text().count("\n") < 5:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        if second:
            process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        log.seek(0)
        text = log.read()
    if second and code != 75:  # the second one may also come after the process has left
        assert code == 128 + signal.SIGTERM
        return
    assert code == 75, text
    (step,) = runs.saved_steps(folder)
    assert f"interrupted at step {step:,}" in text
    assert int(runs.saved_state(folder)["step/.ATTRIBUTES/VARIABLE_VALUE"]) == step
