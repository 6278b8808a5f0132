"""Two Horovod ranks equal one process with twice the batch; a signal or a death on one rank ends all of them well."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e import runs
from tests.e2e.rank_program import VARIANTS

HOROVODRUN = Path(sys.executable).with_name("horovodrun")


def horovodrun(ranks: int, *arguments: object, **options) -> subprocess.Popen:
    assert HOROVODRUN.exists(), "Horovod is not installed in this environment: `make horovod`"
    path = f"{HOROVODRUN.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [str(HOROVODRUN), "-np", str(ranks), *map(str, arguments)],
        env=runs.environment(PATH=path),
        cwd=runs.PROJECT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> str:
    output, _ = process.communicate(timeout=timeout)
    return output


@pytest.fixture(scope="module")
def facts():
    """What tests/e2e/rank_program.py says on two ranks, by variant."""
    process = horovodrun(2, sys.executable, "-m", "tests.e2e.rank_program")
    output = finish(process, timeout=900)
    assert process.returncode == 0, output[-6000:]
    found = {name: [] for name in VARIANTS}
    for line in output.splitlines():
        match = re.search(rf"\b({'|'.join(VARIANTS)}): (.*)", line)  # after the launcher's own prefix
        if match:
            found[match[1]].append(match[2])
    return found


# The largest difference of gradients that is rounding; whether it is a share of the largest gradient where that is more
# than 1; and the least that the largest gradient must be, or there is too little to compare.
GRADIENTS = {
    "distaug": (1e-6, False, 1e-3),
    "vdvae": (1e-6, True, 1e-3),
    "diffusion": (1e-6, False, 1e-2),
    "diffusion_by_loss": (1e-6, False, 1e-2),
    "smoothing": (2e-6, True, 1e-2),
    "ebm": (1e-6, False, 1e-3),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_one_rank_at_twice_the_batch(variant, facts):
    (line,) = [line for line in facts[variant] if "largest gradient difference" in line]
    difference, largest = (float(word) for word in line.split()[-2:])
    tolerance, is_share, least = GRADIENTS[variant]
    assert largest > least, "the gradients are too small to compare"
    assert difference <= tolerance * (max(largest, 1.0) if is_share else 1.0), line


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_bit_equal_after_training(variant, facts):
    digests = [line.split()[-1] for line in facts[variant] if f"weights after {VARIANTS[variant].steps} steps" in line]
    assert len(digests) == 2
    assert len(set(digests)) == 1, facts[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_that_is_bad_on_one_rank_is_skipped_on_both(variant, facts):
    lines = [line for line in facts[variant] if "after a NaN on rank 1" in line]
    assert len(lines) == 2
    assert all("skipped 1, unchanged True" in line for line in lines), lines


def test_gradients_in_groups_and_in_float16_on_the_wire(facts):
    (line,) = [line for line in facts["distaug"] if "float16 on the wire" in line]
    assert "groups 3," in line  # one for each layer, one for the rest
    assert 0 < float(line.split()[-1]) < 2e-3, line


def test_what_a_system_remembers_is_the_same_on_both_ranks_and_on_one(facts):
    """The losses by which the sampler of steps of diffusion models chooses."""
    lines = facts["diffusion_by_loss"]
    states = [line.split()[-1] for line in lines if "system state" in line]
    assert len(states) == 2
    assert len(set(states)) == 1, lines
    # Every step has a full history on both ranks: steps were chosen by it, and are those of one rank.
    assert sum("counts:0 10 to 10, differs from one rank by 0" in line for line in lines) == 2, lines
    differences = [float(line.split()[-1]) for line in lines if "history:0" in line]
    assert len(differences) == 2
    assert max(differences) < 1e-4, lines


def test_the_users_sentence_and_resume(tmp_path):
    """`horovodrun -np 2 python -m tfgen.train --hps=...`: trains, saves once, resumes to the same bits."""
    flags = (*runs.TINY, "--steps=30", "--save_every=10", "--eval_every=0", "--eval_images=8", "--sample_images=0")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        if folder is cut:  # as a kill after step 20 would have left it
            shutil.copytree(whole, cut)
            shutil.rmtree(cut / "checkpoints" / "step-000000030")
        process = horovodrun(2, sys.executable, "-m", "tfgen.train", *flags, f"--run={folder}")
        output = finish(process)
        assert process.returncode == 0, output[-6000:]
        assert runs.saved_steps(folder) == [10, 20, 30]
    assert output.count("resuming after step 20") == 1, "printed by the first rank only"
    runs.assert_same_state(runs.saved_state(cut), runs.saved_state(whole))


def test_sigterm_on_one_rank_saves_on_all_at_one_step(tmp_path):
    folder = tmp_path / "run"
    flags = (*runs.TINY, "--steps=100000", "--save_every=100000", "--eval_every=0", "--sample_images=0")
    process = horovodrun(2, sys.executable, "-m", "tfgen.train", *flags, f"--run={folder}")
    try:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text().count("\n") < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(rank_pids(folder)[1], signal.SIGTERM)
        output = finish(process, timeout=120)
    finally:
        process.kill()
    assert len(runs.saved_steps(folder)) == 1
    assert f"interrupted at step {runs.saved_steps(folder)[0]:,}" in output


def test_a_killed_rank_ends_the_others(tmp_path):
    folder = tmp_path / "run"
    flags = (*runs.TINY, "--steps=100000", "--save_every=20", "--eval_every=0", "--sample_images=0")
    process = horovodrun(2, sys.executable, "-m", "tfgen.train", *flags, f"--run={folder}")
    try:
        deadline = time.monotonic() + 120
        while len(runs.saved_steps(folder)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(rank_pids(folder)[1], signal.SIGKILL)
        output = finish(process, timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "exit with status code" in output or "Terminating" in output, output[-3000:]
    assert not [pid for pid in rank_pids(folder).values() if alive(pid)]


def rank_pids(folder: Path) -> dict[int, int]:
    """Process of each rank that trains in `folder`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode().split("\0")
            environment = dict(
                item.split("=", 1) for item in (entry / "environ").read_bytes().decode().split("\0") if "=" in item
            )
        except (OSError, UnicodeDecodeError):
            continue
        # The launcher's shell has the same words in one argument; the program itself has the flag as an argument.
        if f"--run={folder}" in command and "tfgen.train" in command and "HOROVOD_RANK" in environment:
            found[int(environment["HOROVOD_RANK"])] = int(entry.name)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_without_horovod_the_launcher_is_answered_clearly(tmp_path, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod", None)  # importing it fails
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    monkeypatch.setenv("HOROVOD_RANK", "0")
    output = call("train", *runs.TINY, f"--run={tmp_path / 'run'}", expect=1)
    assert "launched as one of 2 ranks, but Horovod cannot be imported" in output
    assert "make horovod" in output
