"""Energy-based models through the commands: ranks, samples, tasks, export, divergence, bad input."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.e2e import runs
from tests.e2e.test_ranks import finish, horovodrun
from tfgen import train

STEPS = 12
QUIET = ("--eval_images=8", "--log_every=5")
FLAGS = (*runs.TINY_EBM, *QUIET, f"--steps={STEPS}", "--save_every=4", "--ema_rate=0.9")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("ebm") / "run"
    assert train.main([*FLAGS, f"--run={folder}"]) == 0
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_records_every_step_and_keeps_its_buffer(trained):
    steps = [json.loads(line) for line in (trained / "steps.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert {"energy_pos", "energy_neg", "grad_norm", "sample_mean", "sample_std"} <= steps[0].keys()
    assert runs.records(trained, "test")[-1]["examples"] == 8
    found = runs.replay_buffer(runs.saved_state(trained))
    assert found["length"] == 64
    assert found["cursor"] == 8 * STEPS % 64
    assert found["images"].shape == (64, 8, 8, 1)
    assert found["images"].std() > 10


def test_each_of_two_ranks_keeps_its_own_buffer(tmp_path):
    """Two ranks go on as if they had never stopped; weights are one, buffers two."""
    flags = (*runs.TINY_EBM, *QUIET, "--steps=6", "--save_every=3", "--sample_images=0")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder in (straight, stopped):
        if folder is stopped:  # as a kill after step 3 would have left it
            shutil.copytree(straight, stopped)
            shutil.rmtree(stopped / "checkpoints" / "step-000000006")
        process = horovodrun(2, sys.executable, "-m", "tfgen.train", *flags, f"--run={folder}")
        output = finish(process, timeout=600)
        assert process.returncode == 0, output[-6000:]
    assert output.count("resuming after step 3") == 1
    runs.assert_same_state(runs.saved_state(stopped), runs.saved_state(straight))

    def second(folder):
        reader = tf.train.load_checkpoint(str(folder / "checkpoints" / "step-000000006" / "rank-0001"))
        return reader.get_tensor("buffer/images/.ATTRIBUTES/VARIABLE_VALUE")

    np.testing.assert_array_equal(second(stopped), second(straight))
    first = runs.replay_buffer(runs.saved_state(straight))["images"]
    assert (second(straight)[:48] != first[:48]).mean() > 0.5


# Commands ----------------------------------------------------------------------------------------------------


def test_samples_from_noise_and_from_the_buffer(trained, tmp_path, call):
    for name, options in {"noise": ["--num_steps=3", "--gif"], "buffer": ["--from_replay", "--label=3"]}.items():
        out = tmp_path / name
        call("sample", f"--run={trained}", "--count=3", f"--out={out}", *options)
        images = np.load(out / "samples.npz")["images"]
        assert images.shape == (3, 8, 8, 1)
        assert images.std() > 1
        assert (out / "denoising.gif").exists() == (name == "noise")
    assert "--label=12: expected a class from 0 to 9" in call("sample", f"--run={trained}", "--label=12", expect=2)


def test_export_runs_in_plain_tensorflow(copy, tmp_path, call):
    out = tmp_path / "export"
    call("export", f"--run={copy}", f"--out={out}")
    call("evaluate", f"--run={copy}", "--split=test", "--images=20")
    expected = json.loads((copy / "evaluation" / f"test-step-{STEPS:09d}-ema.json").read_text())
    from tfgen.data import builtin

    batch = builtin.digits().test.read(np.arange(20))
    np.savez(tmp_path / "batch.npz", images=batch["image"].astype(np.float32) / 256, labels=batch["label"])
    program = f"""
        import sys
        import numpy as np, tensorflow as tf
        model = tf.saved_model.load({str(out)!r})
        names = sorted(model.signatures)
        batch = np.load({str(tmp_path / "batch.npz")!r})
        number = lambda value: tf.constant(value, tf.int32)
        energy = model.signatures["energy"](images=tf.constant(batch["images"]), class_label=number(batch["labels"]))
        print("energy", float(tf.reduce_mean(energy["energy"])), len(energy["energy"]))
        draw = lambda classes: model.signatures["sample"](class_label=number(classes), steps=number(4), seed=number(7))
        five, two = draw([0, 1, 2, 3, 9]), draw([0, 1])
        print("drawn", five["pixels"].shape, np.allclose(five["images"][:2], two["images"], atol=1e-5),
              float(tf.math.reduce_std(five["images"])) > 0.01)
        print("alone", names, not [name for name in sys.modules if name.startswith("tfgen")])
    """
    facts = runs.run_without_tfgen(program, tmp_path)
    energy, count = facts["energy"].split()
    assert float(energy) == pytest.approx(expected["energy"], rel=1e-3)
    assert count == "20"
    assert facts["drawn"] == "(5, 8, 8, 1) True True"
    assert facts["alone"] == "['energy', 'sample'] True"


# What goes wrong ---------------------------------------------------------------------------------------------


def test_energies_out_of_bounds_stop_a_run_and_lose_nothing(copy, call):
    before = runs.saved_state(copy)
    further = (f"--run={copy}", "--allow_changed_settings", f"--steps={STEPS + 20}", "--max_skipped_steps=3")
    output = call("train", *further, "--energy_limit=1e-9", expect=1)
    assert f"stopped at step {STEPS + 3}: the last 3 steps in a row gave no usable update" in output
    assert runs.saved_steps(copy)[-1] == STEPS
    runs.assert_same_state(runs.saved_state(copy), before)


def test_a_buffer_of_another_shape(copy, call):
    before = runs.saved_state(copy)
    changed = (f"--run={copy}", "--allow_changed_settings", "--replay_capacity=32", f"--steps={STEPS + 1}")
    output = call("train", *changed, expect=1)
    assert "holds another model than these settings build" in output
    assert "replay_buffer/images" in output
    assert "Traceback" not in output
    runs.assert_same_state(runs.saved_state(copy), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=photos"], "--cclass: the images of photos have no labels; leave it out"),
        (["--proj_norm=-1"], "--proj_norm=-1"),
        (["--num_steps=0"], "--num_steps=0"),
        (["--resume_iter=5", "--logdir=nowhere", "--exp=x"], "nowhere/x/model_5.index does not exist"),
        (["--precision=mixed_bfloat16"], "--precision=mixed_bfloat16: leave the flag out"),
    ],
)
def test_bad_settings(arguments, message, tmp_path, call):
    expect = 1 if "--resume_iter=5" in arguments else 2
    output = call("train", *runs.TINY_EBM, *arguments, "--steps=1", f"--run={tmp_path / 'run'}", expect=expect)
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "checkpoints").exists()
