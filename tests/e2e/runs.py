"""Small real runs for the end-to-end tests: processes as a user starts them, and quicker ones."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import tensorflow as tf

PROJECT = pathlib.Path(__file__).resolve().parents[2]

# The demo's data and conditioning with a network that takes a few milliseconds a step.
TINY = (
    "--hps=demo",
    "--n_embd=16",
    "--n_layer=2",
    "--n_head=2",
    "--n_batch=8",
    "--lr=0.002",
    "--warmup_iters=5",
    "--resid_pdrop=0.1",
    "--samples_to_generate=4",
    "--sample_batch=4",
)

TINY_VDVAE = (
    "--system=vdvae",
    "--hps=digits",
    "--width=8",
    "--zdim=2",
    "--num_mixtures=2",
    "--bottleneck_multiple=0.5",
    "--enc_blocks=8x1,8d2,4x1,4d4,1x1",
    "--dec_blocks=1x1,4m1,8m4",
    "--n_batch=8",
    "--lr=0.001",
    "--warmup_iters=5",
    "--sample_batch=4",
    "--nobaseline",
)

TINY_DIFFUSION = (
    "--system=diffusion",
    "--dataset=digits",
    "--image_size=8",
    "--num_channels=32",
    "--num_res_blocks=1",
    "--channel_mult=1,2",
    "--attention_resolutions=",
    "--num_heads=2",
    "--dropout=0.1",
    "--learn_sigma",
    "--diffusion_steps=20",
    "--noise_schedule=cosine",
    "--batch_size=8",
    "--lr=0.001",
    "--ema_rate=0.9",
)

TINY_SMOOTHING = (
    "--system=smoothing",
    "--dataset=digits",
    "--nr_resnet=1",
    "--nr_filters=6",
    "--nr_logistic_mix=2",
    "--batch_size=8",
    "--lr=0.002",
    "--ema=True",
    "--ema_rate=0.9",
    "--sample_batch=4",
)

TINY_EBM = (
    "--system=ebm",
    "--dataset=digits",
    "--cclass",
    "--num_filters=4",
    "--batch_size=8",
    "--num_steps=2",
    "--step_lr=100",
    "--zero_kl",
    "--replay_batch",
    "--replay_capacity=64",
    "--test_interval=1000",
)


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child: the checkout first on its path, quiet, and never a launcher's rank by accident."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HOROVOD_", "OMPI_", "PMI_"))}
    env["PYTHONPATH"] = str(PROJECT)
    env["TF_CPP_MIN_LOG_LEVEL"] = "2"
    return env | extra


def command(verb: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"tfgen.{verb}", *map(str, arguments)]


def run(verb: str, *arguments: object, expect: int = 0, timeout: float = 300, **env: str) -> str:
    """Runs `python -m tfgen.<verb>` to its end and returns what it printed; fails on another exit code."""
    done = subprocess.run(
        command(verb, *arguments),
        env=environment(**env),
        cwd=PROJECT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == expect, f"exit code {done.returncode}, expected {expect}\n{done.stdout[-6000:]}"
    return done.stdout


# Processes that are forked from one that has imported TensorFlow, which takes as long as a small run. Nothing else has
# happened in it: they behave as `python -m tfgen.<verb>` does, exit codes and signals included.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.e2e.preloaded"])


def start(verb: str, *arguments: object, log: pathlib.Path) -> multiprocessing.process.BaseProcess:
    """Starts a command in a forked process; what it prints is appended to `log`."""
    with mock.patch.dict(os.environ, environment(), clear=True):
        multiprocessing.forkserver.ensure_running()
    process = _FORKS.Process(target=_command, args=(verb, [str(argument) for argument in arguments], str(log)))
    process.start()
    return process


def _command(verb: str, arguments: list[str], log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.chdir(PROJECT)
    sys.exit(importlib.import_module(f"tfgen.{verb}").main(arguments))


def run_forked(verb: str, *arguments: object, log: pathlib.Path, timeout: float = 300) -> str:
    """Runs a command in a forked process to its end and returns what is in `log`; fails unless its exit code is 0."""
    process = start(verb, *arguments, log=log)
    process.join(timeout)
    code = process.exitcode
    if code is None:
        process.kill()
    output = log.read_text()
    assert code == 0, f"exit code {code}, expected 0\n{output[-6000:]}"
    return output


def wait_until(reached: Callable[[], bool], running: Callable[[], bool], seconds: float = 240) -> None:
    """Waits for something that a process does; fails if the process ends before it, or takes too long."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert running(), "the run ended too early"
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.001)


def kill_after(step: int, folder: pathlib.Path, *arguments: object, log: pathlib.Path) -> None:
    """Trains in `folder` until the checkpoint of `step` is there, and kills the process."""
    process = start("train", *arguments, f"--run={folder}", log=log)
    wait_until(lambda: bool(saved_steps(folder)) and saved_steps(folder)[-1] >= step, process.is_alive)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"


def run_without_tfgen(program: str, folder: pathlib.Path) -> dict[str, str]:
    """Runs a program in `folder` that cannot import tfgen: its lines, by their first words."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=folder,
        env=environment() | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def records(folder: pathlib.Path, series: str) -> list[dict]:
    """What a run logged under `series` ("train", "valid" ...), oldest first."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["series"] == series]


def saved_steps(folder: pathlib.Path) -> list[int]:
    """Steps of the checkpoints that are there now, damaged or not."""
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


def saved_state(folder: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every variable of a run's checkpoint (the newest), by its name in the file."""
    step = saved_steps(folder)[-1] if step is None else step
    reader = tf.train.load_checkpoint(str(folder / "checkpoints" / f"step-{step:09d}" / "state"))
    names = [name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    return {name: reader.get_tensor(name) for name in names}


def replay_buffer(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The replay buffer of a checkpoint of an energy-based model: images, length, cursor."""
    return {name.split("/")[2]: value for name, value in state.items() if name.startswith("rank_state/buffer/")}


def assert_same_state(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Fails unless both hold the same variables with the same bits."""
    assert one.keys() == other.keys()
    assert len(one) > 20
    different = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    assert not different, f"{len(different)} of {len(one)} variables differ: {different[:5]}"
