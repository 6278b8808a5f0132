"""Small real runs for the end-to-end tests: processes as a user starts them."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

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


def assert_same_state(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Fails unless both hold the same variables with the same bits."""
    assert one.keys() == other.keys()
    assert len(one) > 20
    different = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    assert not different, f"{len(different)} of {len(one)} variables differ: {different[:5]}"
