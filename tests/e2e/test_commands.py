"""The commands on a small trained run: sample, evaluate, export, resume, and what they say to bad input."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.e2e import runs

STEPS = 30
FLAGS = (*runs.TINY, f"--steps={STEPS}", "--save_every=10", "--eval_every=20", "--sample_every=0", "--log_every=10")
# To go on with a run without drawing its grids again.
NO_GRIDS = "--sample_images=0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    output = runs.run("train", *FLAGS, f"--run={folder}")
    return folder, output


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the run that a test may damage."""
    return shutil.copytree(trained[0], tmp_path / "run")


def test_training_says_what_it_does(trained):
    folder, output = trained
    assert output.startswith(f"run folder: {folder}")
    for fragment in ("--n_embd=16", "parameters", "digits train (1,497 images)", "starting at step 0", "next:"):
        assert fragment in output
    assert "valid bits_per_dim" in output
    assert "per-pixel histogram bits_per_dim" in output
    assert f"tensorboard --logdir {folder}" in output
    assert runs.saved_steps(folder) == [10, 20, 30]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [record for record in records if record["series"] == "train"]
    assert [record["step"] for record in logged] == [1, 2, 4, 8, 10, 16, 20, 30]
    names = "loss bits_per_dim grad_norm param_norm update_norm learning_rate loss_scale images_per_second data_wait_ms"
    assert all(set(names.split()) <= record.keys() for record in logged)
    assert [record["step"] for record in records if record["series"] == "valid"] == [20, 30]
    names = [f"step-{step:09d}-{weights}.png" for step in (0, STEPS) for weights in ("ema", "raw")]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == names


def test_flags_file_reproduces_the_run(trained, tmp_path, call):
    again = tmp_path / "again"
    call("train", f"--flagfile={trained[0] / 'flags.txt'}", NO_GRIDS, f"--run={again}")
    runs.assert_same_state(runs.saved_state(again), runs.saved_state(trained[0]))
    flags, first = ((folder / "flags.txt").read_text().splitlines() for folder in (again, trained[0]))
    assert [flag for flag in flags if flag != NO_GRIDS] == first
    assert not list((again / "samples").glob("*"))


def test_a_finished_run_changes_nothing(copy, call):
    before = runs.saved_state(copy)
    output = call("train", f"--run={copy}")
    assert f"done: {STEPS} of {STEPS} steps" in output
    runs.assert_same_state(runs.saved_state(copy), before)


def test_more_steps_continue_it(copy, call):
    output = call("train", f"--run={copy}", f"--steps={STEPS + 5}", NO_GRIDS)
    assert f"resuming after step {STEPS}" in output
    assert runs.saved_steps(copy)[-1] == STEPS + 5
    steps = [json.loads(line)["step"] for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == STEPS + 5


def test_dry_run_writes_nothing(tmp_path, call):
    output = call("train", *FLAGS, f"--run={tmp_path / 'run'}", "--dry_run", "--print_params")
    assert "--n_embd=16" in output
    assert "nothing was written" in output
    assert "gen_logits/logits_proj" in output
    assert not (tmp_path / "run").exists()


def test_samples_do_not_depend_on_their_batch(trained, tmp_path, call):
    folder = trained[0]
    output = call("sample", f"--run={folder}", "--count=5", f"--out={tmp_path / 'a'}")
    assert "5 images from the ema weights of step 30" in output
    call("sample", f"--run={folder}", "--count=3", "--sample_batch=1", f"--out={tmp_path / 'b'}")
    one, other = (np.load(tmp_path / name / "samples.npz")["images"] for name in "ab")
    assert one.shape == (5, 8, 8, 1)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one[:3], other)
    for index, image in enumerate(one):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / f"{index:06d}.png")), image[..., 0])
    assert (tmp_path / "a" / "grid.png").exists()


def test_sample_options(trained, tmp_path, call):
    folder = trained[0]
    drawn = {}
    for name, options in {
        "seed": ["--seed=1"],
        "default": [],
        "raw": ["--weights=raw"],
        "greedy": ["--temperature=0"],
        "greedy other seed": ["--temperature=0", "--seed=5"],
        "turned": ["--temperature=0", "--tokens=sos_rot=1,sos_tr=1"],
    }.items():
        call("sample", f"--run={folder}", "--count=2", f"--out={tmp_path / name}", *options)
        drawn[name] = np.load(tmp_path / name / "samples.npz")["images"]
    assert (drawn["seed"] != drawn["default"]).any()
    assert (drawn["raw"] != drawn["default"]).any()
    np.testing.assert_array_equal(drawn["greedy"], drawn["greedy other seed"])
    output = call("sample", f"--run={folder}", "--tokens=sos_rot=4", expect=2)
    assert "conditioning tokens are sos_rot=0..3, sos_tr=0..1" in output


def test_evaluation_does_not_depend_on_its_batch(trained, copy, call):
    results = []
    for batch_size in (7, 64):
        output = call("evaluate", f"--run={copy}", "--split=test", f"--batch_size={batch_size}", "--baseline")
        results.append(json.loads((copy / "evaluation" / "test-step-000000030-ema.json").read_text()))
    assert "digits test, 150 images, ema weights of step 30" in output
    assert results[0]["examples"] == 150
    assert results[0]["bits_per_dim"] == pytest.approx(results[1]["bits_per_dim"], abs=1e-5)
    assert results[0]["bits_per_dim"] == pytest.approx(results[0]["nats_per_dim"] / np.log(2), rel=1e-6)
    assert 2 < results[0]["histogram_bits_per_dim"] < 3


def test_evaluation_by_augmentation(copy, call):
    arguments = (f"--run={copy}", "--aug_eval", "--images=20")
    output = call("evaluate", *arguments)
    assert output.count("bits_per_dim[") == 8  # 4 rotations, transposed or not
    (folder,) = (copy / "evaluation").glob("valid-step*/")
    names = {path.name for path in folder.glob("*_losses.npz")}
    assert names == {f"{rotation}_{transposition}_losses.npz" for rotation in range(4) for transposition in range(2)}
    with np.load(folder / "1_0_losses.npz") as saved, np.load(folder / "1_0_imgs.npz") as images:
        assert saved["losses"].shape == (20, 64)
        assert saved["bpd"] == pytest.approx(saved["losses"].mean() / np.log(2), rel=1e-5)
        turned = images["imgs"]
    with np.load(folder / "0_0_imgs.npz") as images:
        np.testing.assert_array_equal(turned, np.rot90(images["imgs"], -1, axes=(1, 2)))
    changed = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert call("evaluate", *arguments) == output
    assert changed == {path: path.stat().st_mtime_ns for path in folder.iterdir()}, "existing results are kept"


def test_export_runs_in_plain_tensorflow(trained, copy, tmp_path, call):
    out = tmp_path / "export"
    call("export", f"--run={copy}", f"--out={out}")
    call("evaluate", f"--run={copy}")
    expected = json.loads((copy / "evaluation" / "valid-step-000000030-ema.json").read_text())
    from tfgen.data import builtin

    np.save(tmp_path / "images.npy", builtin.digits().valid.read(np.arange(150))["image"])
    program = f"""
        import sys
        import numpy as np, tensorflow as tf
        model = tf.saved_model.load({str(out)!r})
        images = np.load({str(tmp_path / "images.npy")!r})
        log_prob = model.signatures["log_prob"](images=tf.constant(images))["log_prob"]
        print("bits", float(-tf.reduce_mean(log_prob)) / 64 / np.log(2))
        draw = lambda count: model.signatures["sample"](
            count=tf.constant(count), seed=tf.constant(7), temperature=tf.constant(1.0))["images"].numpy()
        three, five = draw(3), draw(5)
        print("drawn", five.shape, five.dtype, (five[:3] == three).all(), five.min() != five.max())
        print("alone", not [name for name in sys.modules if name.startswith("tfgen")])
    """
    facts = runs.run_without_tfgen(program, tmp_path)
    assert float(facts["bits"]) == pytest.approx(expected["bits_per_dim"], abs=1e-5)
    assert facts["drawn"] == "(5, 8, 8, 1) uint8 True True"
    assert facts["alone"] == "True"
    card = (out / "README.md").read_text()
    assert "log_prob(images: uint8" in card
    assert (out / "flags.txt").exists()
    assert "exists already" in call("export", f"--run={copy}", f"--out={out}", expect=1)


def test_a_published_checkpoint_becomes_a_run(trained, tmp_path, call):
    from tfgen.restore import restore
    from tfgen.settings import read_run
    from tfgen.systems.distaug import published
    from tfgen.systems.distaug.system import DistAug
    from tfgen.training.state import TrainState

    settings = read_run(trained[0])
    system = DistAug(settings.config, restore(settings, str(trained[0])).system.spec)
    state = TrainState(system, system.recipe(1497, 1))
    from tfgen.training.run_folder import RunFolder

    state.restore(RunFolder(trained[0]).checkpoints().newest())
    file = tmp_path / "published.npz"
    published.write(file, system.network, state.averages[0].averages, state.optimizer, step=STEPS)

    folder = tmp_path / "converted"
    flags = [*runs.TINY, "--save_every=10", "--sample_every=0", "--eval_every=20", "--log_every=10"]
    call("convert", "checkpoint", file, *flags, f"--run={folder}")
    # The step, weights, averages and moments are all there: trained on, both runs stay equal.
    longer = shutil.copytree(trained[0], tmp_path / "longer")
    for run in (folder, longer):
        call("train", f"--run={run}", f"--steps={STEPS + 5}", NO_GRIDS)
    runs.assert_same_state(runs.saved_state(folder), runs.saved_state(longer))
    assert "has checkpoints already" in call("convert", "checkpoint", file, *flags, f"--run={folder}", expect=1)


# Bad input -------------------------------------------------------------------------------------------------


def test_other_settings_are_refused_with_the_difference(copy, call):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}
    output = call("train", *FLAGS, "--lr=0.1", "--n_head=4", f"--run={copy}", expect=1)
    assert "--lr: the run has 0.002, now 0.1" in output
    assert "--n_head: the run has 2, now 4" in output
    assert f"python -m tfgen.train --run={copy}" in output
    after = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def test_a_corrupt_newest_checkpoint_falls_back(copy, trained, tmp_path):
    flip_a_bit(next((copy / "checkpoints" / "step-000000030").glob("state.data*")))
    output = runs.run_forked("train", f"--run={copy}", NO_GRIDS, log=tmp_path / "log")
    assert "damaged checkpoint passed over" in output
    assert "resuming after step 20" in output
    runs.assert_same_state(runs.saved_state(copy), runs.saved_state(trained[0]))


def test_no_good_checkpoint_refuses_to_begin_again(copy, tmp_path, call):
    for folder in (copy / "checkpoints").iterdir():
        flip_a_bit(folder / "state.index")
    output = call("train", f"--run={copy}", expect=1)
    assert "none of the 3 checkpoints" in output
    assert "--restart_from_scratch" in output
    assert runs.saved_steps(copy) == [10, 20, 30]
    output = runs.run_forked("train", f"--run={copy}", "--restart_from_scratch", NO_GRIDS, log=tmp_path / "log")
    assert "starting at step 0" in output
    assert (copy / "checkpoints.old" / "step-000000030").is_dir()


@pytest.mark.parametrize("verb", ["sample", "evaluate", "export"])
def test_a_run_that_is_none(verb, tmp_path, call):
    assert "is not a run" in call(verb, f"--run={tmp_path / 'nothing'}", expect=2)
    assert "name a run" in call(verb, expect=2)


def test_two_trainers_in_one_folder(copy, call):
    from tfgen.settings import read_run
    from tfgen.training.run_folder import RunFolder

    other = RunFolder(copy)
    other.claim(read_run(copy))
    output = call("train", f"--run={copy}", expect=1)
    assert "another process is training" in output
    other.release()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hps=demo", "--n_ctx=128"], "expected --n_ctx=64"),
        (["--hps=demo", "--blocksparse_op", "--blocksize=16", "--n_ctx=72"], "no multiple of --blocksize=16"),
        (["--hps=demo", "--n_layer=3"], "--n_layer=3 is no multiple of the 2 modes"),
        (["--hps=dmeo"], "Did you mean demo"),
        (["--hps=demo", "--n_haed=2"], "Did you mean --n_head"),
        (["--hps=c10_150m_pgd1"], "linf_pgd_epsilon"),
        (["--hps=demo", "--dataset=digts"], "digits"),
        (["--hps=demo", "--grad_accumulation=3"], "--grad_accumulation"),
    ],
)
def test_bad_settings(arguments, message, tmp_path, call):
    with pytest.raises(AssertionError) as failure:  # exit code 1 or 2, not 0
        call("train", *arguments, "--steps=1", f"--run={tmp_path / 'run'}")
    assert message in str(failure.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_object_arrays_are_refused(tmp_path, call):
    np.savez(tmp_path / "images.npz", images=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    data = tmp_path / "images.npz"
    output = call("train", "--hps=demo", f"--dataset={data}", f"--run={tmp_path / 'run'}", expect=1)
    assert "images.npz" in output
    assert "object" in output


def test_steps_without_a_usable_update_end_the_run(tmp_path, call, monkeypatch):
    from tfgen.systems.base import Loss
    from tfgen.systems.distaug.system import DistAug

    healthy = DistAug.loss

    def sick(self, batch, key, training):
        loss = healthy(self, batch, key, training)
        return Loss(loss.objective * float("nan"), loss.metrics)

    monkeypatch.setattr(DistAug, "loss", sick)
    output = call("train", *FLAGS, "--max_skipped_steps=4", f"--run={tmp_path / 'run'}", expect=1)
    assert "stopped at step 4: the last 4 steps in a row gave no usable update; loss nan" in output
    assert "lower --lr" in output
    assert os.listdir(tmp_path / "run")


def test_the_original_programs_one_shot_flags(copy, call):
    output = call("train", f"--run={copy}", "--eval_test", "--allow_changed_settings")
    assert "test (150 images)" in output
    assert runs.saved_steps(copy) == [10, 20, 30]
    output = call("train", f"--run={copy}", "--noeval_test", "--sample_and_exit", "--allow_changed_settings")
    assert "samples:" in output
