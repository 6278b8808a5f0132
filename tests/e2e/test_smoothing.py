"""Distribution smoothing through the commands: both stages, likelihoods, export, files, bad input."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

from tests.e2e import runs
from tests.parity.harness import default_folder

STEPS = 30
FLAGS = (*runs.TINY_SMOOTHING, f"--steps={STEPS}", "--save_every=10", "--eval_every=15", "--eval_images=20")
FLAGS = (*FLAGS, "--sample_every=0", "--log_every=10")
STAGE2 = "--runner=ReversePixelCNNPPTrainRunner"
PLAIN = "--runner=PixelCNNPPTrainRunner"


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    """A finished run of stage 1; tests must not change it."""
    folder = tmp_path_factory.mktemp("smoothing") / "stage1"
    runs.run_forked("train", *FLAGS, f"--run={folder}", log=folder.with_name("log1"))
    return folder


@pytest.fixture(scope="module")
def stage2(stage1):
    """A finished run of stage 2 that begins from `stage1`; tests must not change it."""
    folder = stage1.parent / "stage2"
    arguments = (*FLAGS, STAGE2, f"--stage1_run={stage1}", f"--run={folder}")
    runs.run_forked("train", *arguments, log=folder.with_name("log2"))
    return folder


@pytest.fixture
def copy(stage2, tmp_path):
    """A copy of the run of stage 2 that a test may add to."""
    return shutil.copytree(stage2, tmp_path / "run")


def test_both_stages_learn_and_draw_grids(stage1, stage2):
    for folder, metric in ((stage1, "bits_per_dim_smoothed"), (stage2, "bits_per_dim_given_smoothed")):
        logged = runs.records(folder, "train")
        assert logged[-1][metric] < logged[0][metric]
        assert runs.records(folder, "test")[-1]["step"] == STEPS
        assert (folder / "samples" / f"step-{STEPS:09d}-ema.png").exists()


# Samples ---------------------------------------------------------------------------------------------------


def drawn(folder) -> dict[str, np.ndarray]:
    with np.load(folder / "samples.npz") as images, np.load(folder / "tensors.npz") as tensors:
        return {"images": images["images"], **tensors}


def test_stage_2_draws_stage_1_first(stage1, stage2, tmp_path, call):
    out = tmp_path / "both"
    output = call("sample", f"--run={stage2}", "--count=4", f"--out={out}", "--gif")
    assert "4 images" in output
    both = drawn(out)
    assert both["images"].shape == (4, 8, 8, 1)
    assert both["images"].dtype == np.uint8
    assert both["smoothed"].shape == both["samples"].shape == (4, 8, 8, 1)
    expected = np.clip((both["samples"] + 1) * 127.5, 0, 255)
    np.testing.assert_allclose(both["images"], expected, atol=1.0)
    assert (out / "grid.png").exists()
    assert (out / "denoising.gif").exists()

    # Sample i depends on the seed and i: one alone, in batches of one, is the same up to rounding.
    call("sample", f"--run={stage2}", "--count=2", "--sample_batch=1", f"--out={tmp_path / 'two'}")
    two = drawn(tmp_path / "two")
    np.testing.assert_allclose(two["smoothed"], both["smoothed"][:2], atol=1e-3)

    # The hand-over as a file: the same images of stage 1, the same of stage 2.
    again = tmp_path / "again"
    arguments = (f"--noisy_samples_path={out / 'tensors.npz'}", f"--out={again}")
    call("sample", f"--run={stage2}", "--count=4", *arguments)
    np.testing.assert_array_equal(drawn(again)["smoothed"], both["smoothed"])
    np.testing.assert_array_equal(drawn(again)["images"], both["images"])


def test_a_run_of_stage_2_whose_stage_1_is_gone(copy, tmp_path, call):
    flags = copy / "flags.txt"
    flags.write_text(flags.read_text().replace("stage1_run=", "stage1_run=gone"))
    call("sample", f"--run={copy}", "--count=2", "--from_images", f"--out={tmp_path / 'out'}")
    assert drawn(tmp_path / "out")["samples"].shape == (2, 8, 8, 1)
    assert "is not a run" in call("evaluate", f"--run={copy}", "--images=4", expect=2)
    call("evaluate", f"--run={copy}", "--images=4", "--stage1_run=none")
    call("export", f"--run={copy}", "--stage1_run=none", f"--out={tmp_path / 'export'}")
    assert f"done: {STEPS} of {STEPS} steps" in call("train", f"--run={copy}")


def test_denoising_in_one_step(stage1, tmp_path, call):
    common = (f"--run={stage1}", "--count=3", "--from_images")
    results = {}
    for kind in ("gradient", "full_gradient"):
        call("sample", *common, f"--denoise={kind}", f"--out={tmp_path / kind}")
        results[kind] = drawn(tmp_path / kind)
    np.testing.assert_array_equal(results["gradient"]["smoothed"], results["full_gradient"]["smoothed"])
    assert np.abs(results["gradient"]["samples"] - results["full_gradient"]["samples"]).max() > 1e-4
    output = call("sample", *common, f"--out={tmp_path / 'none'}", expect=2)
    assert "--denoise=gradient" in output
    call("sample", f"--run={stage1}", "--count=3", "--sampler=gumbel", f"--out={tmp_path / 'gumbel'}")
    assert set(drawn(tmp_path / "gumbel")) == {"images", "smoothed"}


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "[N, 8, 8, 1]"),
        (np.zeros((4, 8, 8, 1), np.uint8), "floating-point"),
        (np.full((4, 8, 8, 1), 128.0, np.float32), "values from 128"),
        (np.full((4, 8, 8, 1), np.nan, np.float32), "NaN"),
        (np.zeros((1, 8, 8, 1), np.float32) - 0.5, "has 1 images and 2 are asked for"),
    ],
    ids=["shape", "dtype", "range", "NaN", "count"],
)
def test_handed_over_files_that_do_not_fit(stage2, array, message, tmp_path, call):
    np.save(tmp_path / "smoothed.npy", array)
    arguments = (f"--noisy_samples_path={tmp_path / 'smoothed.npy'}", f"--out={tmp_path / 'out'}")
    output = call("sample", f"--run={stage2}", "--count=2", *arguments, expect=2)
    assert message in output
    assert not (tmp_path / "out").exists()


# Likelihoods, export -----------------------------------------------------------------------------------------


def test_likelihoods_have_their_names_and_the_bound_of_both_stages(copy, stage1, call):
    path = copy / "evaluation" / f"test-step-{STEPS:09d}-ema.json"
    results = []
    for batch_size in (7, 32):
        options = ["--split=test", "--images=32", "--importance_samples=4", f"--batch_size={batch_size}"]
        options += ["--original_average"] if batch_size == 7 else []
        call("evaluate", f"--run={copy}", *options)
        results.append(json.loads(path.read_text()))
    one, other = results
    for name in one.keys() & other.keys():
        if isinstance(one[name], float):
            assert one[name] == pytest.approx(other[name], rel=1e-5), name
    bound, weighted = one["bits_per_dim_two_stage_bound"], one["bits_per_dim_two_stage_iw_bound"]
    assert one["bits_per_dim_two_stage_bound_8bit"] == pytest.approx(bound + math.log2(127.5))
    assert weighted < bound + 0.05
    # Whole batches only, and one batch less in the denominator: 4 of 7 images, divided by 3.
    assert one["original_average"] == pytest.approx(one["bits_per_dim_given_smoothed"] * 4 / 3, rel=0.1)


def test_a_plain_model_has_exact_bits_per_dimension(tmp_path, call):
    folder = tmp_path / "plain"
    call("train", *FLAGS, PLAIN, "--steps=4", "--sample_images=0", f"--run={folder}")
    call("evaluate", f"--run={folder}", "--split=test", "--images=16")
    result = json.loads((folder / "evaluation" / "test-step-000000004-ema.json").read_text())
    assert 0 < result["bits_per_dim"] < 12
    assert result["bits_per_dim"] == pytest.approx(result["nats"] / 64 / math.log(2), rel=1e-6)
    call("sample", f"--run={folder}", "--count=2", f"--out={tmp_path / 'out'}")
    levels = (drawn(tmp_path / "out")["samples"] + 1) * 127.5
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    np.testing.assert_allclose(drawn(tmp_path / "out")["images"], levels, atol=1e-3)


def test_export_runs_in_plain_tensorflow(copy, tmp_path, call):
    out = tmp_path / "export"
    call("export", f"--run={copy}", f"--out={out}")
    program = f"""
        import sys
        import numpy as np, tensorflow as tf
        model = tf.saved_model.load({str(out)!r})
        sample = lambda count: model.signatures["sample"](count=tf.constant(count), seed=tf.constant(7))
        three, two = sample(3), sample(2)
        near = lambda a, b: float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())
        print("drawn", three["images"].shape, three["images"].dtype.name, near(three["smoothed"][:2], two["smoothed"]))
        given = model.signatures["reverse"](smoothed=three["smoothed"], seed=tf.constant(7))
        print("reverse", near(given["images"], three["images"]))
        nats = model.signatures["log_prob"](smoothed=three["smoothed"], images=given["samples"])["log_prob"]
        print("log_prob", nats.shape, bool(np.isfinite(nats).all()))
        print("alone", sorted(model.signatures), not [name for name in sys.modules if name.startswith("tfgen")])
    """
    facts = runs.run_without_tfgen(program, tmp_path)
    shape, rest = facts["drawn"].rsplit(" ", 1)
    assert shape == "(3, 8, 8, 1) uint8"
    assert float(rest) < 1e-3
    assert float(facts["reverse"]) <= 1
    assert facts["log_prob"] == "(3,) True"
    assert facts["alone"] == "['log_prob', 'reverse', 'sample'] True"


# Published files and bad input ------------------------------------------------------------------------------


def test_published_checkpoints_become_runs(tmp_path, call):
    folder = default_folder("smoothing") / "ckpt"
    network = ("--system=smoothing", "--dataset=MNIST", "--nr_resnet=1", "--nr_filters=4", "--nr_logistic_mix=3")
    for name in ("stage1_gray_ema_checkpoint.pth", "stage1_gray_ema_checkpoint_legacy.pth"):
        if not (folder / name).is_file():
            continue
        run = tmp_path / name
        output = call("convert", "checkpoint", folder / name, *network, "--ema=True", f"--run={run}")
        assert "checkpoint of step 4" in output
        assert runs.saved_steps(run) == [4]
    run = tmp_path / "stage1_gray_ema_checkpoint.pth"
    call("sample", f"--run={run}", "--count=1", f"--out={tmp_path / 'out'}")
    assert drawn(tmp_path / "out")["smoothed"].shape == (1, 28, 28, 1)
    output = call("convert", "checkpoint", folder / "stage1_gray_ema_checkpoint.pth", *network[:-1],
                  "--nr_logistic_mix=4", f"--run={tmp_path / 'other'}", expect=1)  # fmt: skip
    assert "nin_out.lin_a.bias [9], expected [12]" in output
    assert not (tmp_path / "other" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noise=0"], "--noise=0"),
        ([STAGE2, "--clean_noise=0"], "--clean_noise=0"),
        (["--runner=PixelCNNPPSamplerRunner"], "python -m tfgen.sample"),
        (["--config=pixelcnnpp_smoothed_train_mnist.yml"], "--hps=pixelcnnpp_smoothed_train_mnist"),
        (["--input_channels=3"], "--input_channels=3, but images of digits are 8x8x1"),
        (["--stage1_run=somewhere"], "belongs to stage 2"),
        ([STAGE2, "--stage1_run=nowhere"], "nowhere is not a run"),
        (["--nr_logistic_mix=0"], "--nr_logistic_mix=0"),
    ],
)
def test_bad_settings(arguments, message, tmp_path, call):
    with pytest.raises(AssertionError) as failure:  # exit code 1 or 2, not 0
        call("train", *runs.TINY_SMOOTHING, *arguments, "--steps=1", f"--run={tmp_path / 'run'}")
    assert message in str(failure.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noise=0.5"], "set --noise=0.3"),
        (["--dataset=photos"], "models images of 8x8x1 (digits), expected 32x32x3"),
    ],
)
def test_a_stage_1_that_does_not_fit(stage1, arguments, message, tmp_path, call):
    run = tmp_path / "run"
    flags = (*runs.TINY_SMOOTHING, STAGE2, f"--stage1_run={stage1}", *arguments, "--steps=1", f"--run={run}")
    with pytest.raises(AssertionError) as failure:
        call("train", *flags)
    assert message in str(failure.value)
    assert not run.exists()


@pytest.mark.parametrize(
    ("shape", "message", "code"),
    [((40, 8, 8, 2), "channels", 1), ((40, 6, 8, 3), "multiples of 4", 2)],
    ids=["two channels", "sides"],
)
def test_images_of_another_kind(shape, message, code, tmp_path, call):
    np.save(tmp_path / "images.npy", np.zeros(shape, np.uint8))
    arguments = (f"--dataset={tmp_path / 'images.npy'}", "--steps=1", f"--run={tmp_path / 'run'}")
    output = call("train", *runs.TINY_SMOOTHING, *arguments, expect=code)
    assert message in output
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_images_that_are_not_square(tmp_path, call):
    """Stage 2 lays images above each other; where the lower one begins is a matter of the height."""
    np.save(tmp_path / "images.npy", np.random.RandomState(0).randint(0, 256, (80, 4, 8, 1)).astype(np.uint8))
    arguments = (f"--dataset={tmp_path / 'images.npy'}", "--steps=2", "--sample_images=0", "--eval_images=8")
    call("train", *runs.TINY_SMOOTHING, STAGE2, *arguments, f"--run={tmp_path / 'run'}")
    call("sample", f"--run={tmp_path / 'run'}", "--count=2", "--from_images", f"--out={tmp_path / 'out'}")
    assert drawn(tmp_path / "out")["samples"].shape == (2, 4, 8, 1)
