"""VDVAE through the commands: samples of every kind, bounds, export, published files, bad input."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import torch_files
from tests.e2e import runs

LAYERS = 3
STEPS = 40
FLAGS = (
    *runs.TINY_VDVAE,
    f"--steps={STEPS}",
    "--save_every=10",
    "--eval_every=20",
    "--sample_every=0",
    "--log_every=10",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("vdvae") / "run"
    output = runs.run_forked("train", *FLAGS, f"--run={folder}", log=folder.with_name("log"))
    return folder, output


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the run that a test may add to."""
    return shutil.copytree(trained[0], tmp_path / "run")


def test_training_reports_the_bound_and_draws_the_grid(trained):
    folder, output = trained
    assert "digits train (1,497 images)" in output
    logged = runs.records(folder, "train")
    assert {"elbo", "elbo_filtered", "bits_per_dim_bound", "distortion", "rate", "grad_norm"} <= logged[-1].keys()
    assert logged[-1]["elbo"] == pytest.approx(logged[-1]["distortion"] + logged[-1]["rate"], abs=1e-5)
    assert logged[-1]["elbo"] < logged[0]["elbo"]
    assert runs.records(folder, "valid")[-1]["step"] == STEPS
    # Spec of the grid: originals, partial reconstructions, samples; no border.
    picture = Image.open(folder / "samples" / f"step-{STEPS:09d}-pictures.png")
    assert picture.size == (8 * 8, (1 + 6 + 3) * 8)


def test_samples_of_every_kind(trained, tmp_path, call):
    folder = trained[0]
    kinds = {
        "samples": ["--temperature=0.8"],
        "layers": ["--temperature=1,0.9,0"],
        "reconstructions": ["--kind=reconstructions"],
        "partial": ["--kind=partial", "--latents=2"],
        "interpolation": ["--kind=interpolation", "--steps=5", "--count=10"],
    }
    for name, options in kinds.items():
        call("sample", f"--run={folder}", "--count=3", f"--out={tmp_path / name}", *options)
        with np.load(tmp_path / name / "samples.npz") as saved:
            images = saved["images"]
            assert images.shape[1:] == (8, 8, 3)
            assert images.dtype == np.uint8
            # 3 reconstructions of 3 images; two rows of an interpolation stand between four.
            assert ("originals" in saved) == (name not in ("samples", "layers"))
            if name == "interpolation":
                assert len(images) == 10
                assert len(saved["originals"]) == 4
        assert (tmp_path / name / "grid.png").exists()
    # The grid of the training, of as many images of the split as were asked for.
    call("sample", f"--run={folder}", "--kind=pictures", "--count=5", "--split=test", f"--out={tmp_path / 'pictures'}")
    grid = np.asarray(Image.open(tmp_path / "pictures" / "grid.png"))
    assert grid.shape == ((1 + 6 + 3) * 8, 5 * 8, 3)
    with np.load(tmp_path / "pictures" / "samples.npz") as saved:
        np.testing.assert_array_equal(grid[:8], np.concatenate(list(saved["originals"]), axis=1))
    call("sample", f"--run={folder}", "--count=2", "--sample_batch=1", f"--out={tmp_path / 'one'}", *kinds["layers"])
    one, three = (np.load(tmp_path / name / "samples.npz")["images"] for name in ("one", "layers"))
    np.testing.assert_array_equal(one, three[:2])


def test_bounds_do_not_depend_on_the_batch(copy, call):
    results = []
    path = copy / "evaluation" / f"test-step-{STEPS:09d}-ema.json"
    for batch_size in (7, 64):
        arguments = ("--split=test", "--images=40", "--importance_samples=8", "--exact_buckets")
        output = call("evaluate", f"--run={copy}", *arguments, f"--batch_size={batch_size}")
        results.append(json.loads(path.read_text()))
    assert "bits_per_dim_bound" in output
    for name in ("elbo", "elbo_filtered", "exact_elbo", "rate", "iw_elbo"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-5)
    assert results[0]["examples"] == 40
    assert results[0]["iw_elbo"] < results[0]["elbo"]


def test_export_runs_in_plain_tensorflow(copy, tmp_path, call):
    out = tmp_path / "export"
    call("export", f"--run={copy}", f"--out={out}")
    call("evaluate", f"--run={copy}", "--split=valid")
    expected = json.loads((copy / "evaluation" / f"valid-step-{STEPS:09d}-ema.json").read_text())
    from tfgen.data import builtin

    images = np.repeat(builtin.digits().valid.read(np.arange(150))["image"], 3, axis=-1)
    np.save(tmp_path / "images.npy", images)
    program = f"""
        import sys
        import numpy as np, tensorflow as tf
        model = tf.saved_model.load({str(out)!r})
        names = sorted(model.signatures)
        images = tf.constant(np.load({str(tmp_path / "images.npy")!r}))
        seed, one = tf.constant(7), tf.constant(1.0)
        bound = model.signatures["elbo"](images=images, seed=seed)
        print("elbo", float(tf.reduce_mean(bound["elbo"])), len(bound["rate"]))
        encoded = model.signatures["encode"](images=images[:4], seed=seed)
        rates = encoded.pop("rates")
        def decode(layers, seed):
            return model.signatures["decode"](
                **encoded, layers=tf.constant(layers), seed=tf.constant(seed), temperature=one)["images"].numpy()
        draw = lambda count: model.signatures["sample"](
            count=tf.constant(count), seed=seed, temperature=one)["images"].numpy()
        three, five = draw(3), draw(5)
        near = lambda a, b: float(np.abs(a.astype(float) - b).mean())
        print("rates", rates.shape, bool(tf.reduce_all(tf.reduce_sum(rates, 1) > 0)))
        print("decoded", decode({LAYERS}, 1).shape, near(decode({LAYERS}, 1), images[:4].numpy()),
              near(decode(0, 1), images[:4].numpy()))
        print("drawn", five.shape, five.dtype, (five[:3] == three).all(), five.min() != five.max())
        print("alone", names, not [name for name in sys.modules if name.startswith("tfgen")])
    """
    facts = runs.run_without_tfgen(program, tmp_path)
    elbo, count = facts["elbo"].split()
    assert float(elbo) == pytest.approx(expected["elbo"], rel=0.02)  # other noise
    assert int(count) == 150
    assert facts["rates"] == f"(4, {LAYERS}) True"
    assert facts["drawn"] == "(5, 8, 8, 3) uint8 True True"
    assert facts["alone"] == "['decode', 'elbo', 'encode', 'sample'] True"
    shape, with_latents, without = facts["decoded"].rsplit(" ", 2)
    assert shape == "(4, 8, 8, 3)"
    assert float(with_latents) < float(without), "latents of an image bring the decoder closer to it"


# Published files and bad input ------------------------------------------------------------------------------


@pytest.fixture
def published(trained, tmp_path):
    """The trained network in files of the original's layout: path of the weights."""
    from tfgen.settings import read_run
    from tfgen.systems.vdvae.published import to_original, variables
    from tfgen.systems.vdvae.system import VeryDeepVAE
    from tfgen.training.run_folder import RunFolder
    from tfgen.training.state import TrainState

    checkpoint = RunFolder(trained[0]).checkpoints().newest()
    system = VeryDeepVAE(read_run(trained[0]).config, checkpoint.spec)
    state = TrainState(system, system.recipe(1497, 1))
    state.restore(checkpoint)
    named = variables(system.network)
    place = {variable.ref(): index for index, variable in enumerate(system.network.trainable_variables)}

    def arrays(values):
        picked = [values[place[item.variable.ref()]].numpy() for item in named]
        return [
            np.ascontiguousarray(to_original(array, item.layout)) for array, item in zip(picked, named, strict=True)
        ]

    stem = tmp_path / f"iter-{STEPS}"
    names = [item.name for item in named]
    weights = arrays(system.network.trainable_variables)
    averages = arrays(state.averages[0].averages)
    path = stem.with_name(f"{stem.name}-model.th")
    path.write_bytes(torch_files.state_dict({f"module.{n}": w for n, w in zip(names, weights, strict=True)}))
    stem.with_name(f"{stem.name}-model-ema.th").write_bytes(
        torch_files.state_dict(dict(zip(names, averages, strict=True)))
    )
    storages, moments = {}, {}
    optimizer = state.optimizer
    for index, pair in enumerate(zip(arrays(optimizer.first_moments), arrays(optimizer.second_moments), strict=True)):
        moments[index] = {}
        for key, array in zip(("exp_avg", "exp_avg_sq"), pair, strict=True):
            storages[f"{index}{key}"] = array
            moments[index][key] = torch_files.tensor(f"{index}{key}", array)
    groups = [{"lr": 0.001, "step": int(optimizer.updates), "params": list(range(len(names)))}]
    file = torch_files.zip_archive({"state": moments, "param_groups": groups}, storages)
    stem.with_name(f"{stem.name}-opt.th").write_bytes(file)
    record = {"type": "train_loss", "epoch": 0, "step": STEPS}
    stem.with_name(f"{stem.name}-log.jsonl").write_text(json.dumps(record) + "\n")
    return path


def test_published_files_go_on_training(trained, published, tmp_path, call):
    """The step, weights, averages and moments are all there: trained on, both runs stay equal."""
    folder = tmp_path / "converted"
    call("convert", "checkpoint", published, *FLAGS, f"--run={folder}")
    longer = shutil.copytree(trained[0], tmp_path / "longer")
    for run in (folder, longer):
        call("train", f"--run={run}", f"--steps={STEPS + 5}", "--sample_images=0")
    one, other = runs.saved_state(folder), runs.saved_state(longer)
    # Those files know nothing of steps that were skipped.
    assert one.keys() == other.keys()
    for name in one:
        if "skipped" not in name:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_bad_published_file_changes_nothing(copy, published, call):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}
    whole = published.read_bytes()
    published.write_bytes(whole[: len(whole) // 2])
    target = copy.parent / "from_damaged"
    output = call("convert", "checkpoint", published, *FLAGS, f"--run={target}", expect=1)
    assert published.name in output
    assert not (target / "checkpoints").exists()
    published.write_bytes(whole)
    output = call("convert", "checkpoint", published, *FLAGS, "--zdim=3", f"--run={target}", expect=1)
    assert "expected" in output
    assert not (target / "checkpoints").exists()
    output = call("convert", "checkpoint", published, *FLAGS, f"--run={copy}", expect=1)
    assert "has checkpoints already" in output
    after = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dec_blocks=1x1,4m1"], "--dec_blocks=1x1,4m1 has no block at resolution 8"),
        (["--dec_blocks=1x1,2m1,8m2"], "resolution 2"),
        (["--enc_blocks=8x1,8d2,4x1"], "resolution 1"),
        (["--custom_width_str=4:4"], "custom_width_str"),
        (["--enc_blocks=8y1"], "8y1"),
        (["--skip_threshold=0"], "--skip_threshold=0"),
        (["--restore_optimizer_path=a-opt.th"], "--restore_path"),
        (["--restore_path=nowhere-model.th"], "nowhere-model.th"),
        (["--warmup_iters=-1"], "--warmup_iters"),
    ],
)
def test_bad_settings(arguments, message, tmp_path, call):
    with pytest.raises(AssertionError) as failure:  # exit code 1 or 2, not 0
        call("train", *runs.TINY_VDVAE, *arguments, "--steps=1", f"--run={tmp_path / 'run'}")
    assert message in str(failure.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((40, 8, 8, 4), "expected 1 or 3 channels, found 4"), ((40, 8, 4, 3), "square")],
    ids=["four channels", "not square"],
)
def test_images_of_another_kind(shape, message, tmp_path, call):
    np.save(tmp_path / "images.npy", np.zeros(shape, np.uint8))
    arguments = (f"--dataset={tmp_path / 'images.npy'}", "--steps=1", f"--run={tmp_path / 'run'}")
    output = call("train", *runs.TINY_VDVAE, *arguments, expect=1)
    assert message in output
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_evaluation_set_smaller_than_a_batch(tmp_path, call):
    """All of it is evaluated: nothing is dropped, and nothing fails."""
    np.save(tmp_path / "images.npy", np.random.RandomState(0).randint(0, 256, (60, 8, 8, 3)).astype(np.uint8))
    folder = tmp_path / "run"
    arguments = (f"--dataset={tmp_path / 'images.npy'}", "--steps=2", "--eval_every=2", "--sample_images=0")
    output = call("train", *runs.TINY_VDVAE, *arguments, "--warmup_iters=0", f"--run={folder}")
    assert "valid elbo" in output
    call("evaluate", f"--run={folder}", "--split=valid", "--batch_size=1000")
    result = json.loads((folder / "evaluation" / "valid-step-000000002-ema.json").read_text())
    assert 0 < result["examples"] < 60
    assert f"valid ({result['examples']})" in output
    assert np.isfinite(result["elbo"])
