"""Improved diffusion through the commands: samples, bounds, export, published files, bad input."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import torch_files
from tests.data.images import encode, pixels
from tests.e2e import runs
from tests.parity.harness import default_folder

STEPS = 40
OF_CLASSES = ("--class_cond", "--num_classes=10", "--label_dropout=0.1")
FLAGS = (
    *runs.TINY_DIFFUSION,
    *OF_CLASSES,
    "--ema_rate=0.9,0.5",
    f"--steps={STEPS}",
    "--save_every=20",
    "--eval_every=20",
    "--eval_images=30",
    "--sample_every=0",
    "--log_every=10",
)
QUIET = ("--eval_every=0", "--eval_images=8", "--sample_images=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("diffusion") / "run"
    output = runs.run_forked("train", *FLAGS, f"--run={folder}", log=folder.with_name("log"))
    return folder, output


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the run that a test may add to."""
    return shutil.copytree(trained[0], tmp_path / "run")


def write_folder(folder, names, size=9):
    """Pictures of 9 x 13 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(encode(pixels(number, size, 13)))
    return folder


def test_training_reports_losses_by_quarter_and_the_bound(trained):
    folder, output = trained
    assert "digits train (1,497 images)" in output
    logged = runs.records(folder, "train")
    quarters = {f"{name}_q{number}" for name in ("loss", "mse", "vb") for number in range(4)}
    assert {"loss", "mse", "vb", "grad_norm", "learning_rate"} | quarters <= logged[-1].keys()
    assert logged[-1]["loss"] == pytest.approx(logged[-1]["mse"] + logged[-1]["vb"], rel=1e-4)
    assert logged[-1]["mse"] < 0.9 * logged[0]["mse"]
    # The first record is of one step of 8 images: a quarter that has none of them is left out, as the others say.
    means = [logged[0][f"loss_q{number}"] for number in range(4) if f"loss_q{number}" in logged[0]]
    assert min(means) <= logged[0]["loss"] <= max(means)
    (last,) = (record for record in runs.records(folder, "valid") if record["step"] == STEPS)
    assert last["examples"] == 30
    assert last["bits_per_dim_bound"] > last["prior_bits_per_dim"] > 0
    assert not [name for name in last if name.endswith("terms")]
    assert {path.name for path in (folder / "samples").iterdir()} == {
        f"step-{STEPS:09d}-{name}.png" for name in ("raw", "ema")
    }


# Samples -----------------------------------------------------------------------------------------------------


def test_samples_of_every_kind(trained, tmp_path, call):
    folder = trained[0]
    kinds = {
        "ddim": ["--sampler=ddim", "--steps=5", "--gif"],
        "guided": ["--sampler=dpm_solver_pp_2m", "--steps=5", "--class_label=3", "--guidance_scale=2"],
        "reconstructions": ["--sampler=ddim", "--reconstruct"],
    }
    images = {}
    for name, options in kinds.items():
        out = tmp_path / name
        call("sample", f"--run={folder}", "--count=3", f"--out={out}", *options)
        with np.load(out / "samples_3x8x8x3.npz") as saved:
            images[name], labels = saved["arr_0"], saved["arr_1"]
        assert (images[name].shape, images[name].dtype) == ((3, 8, 8, 3), np.uint8)
        assert labels.shape == (3,)
        assert (set(labels) == {3}) == (name == "guided")
        assert (out / "denoising.gif").exists() == (name == "ddim")
        with np.load(out / "samples.npz") as saved:
            np.testing.assert_array_equal(saved["images"], images[name])
            assert ("originals" in saved) == (name == "reconstructions")
        for index, image in enumerate(images[name]):
            np.testing.assert_array_equal(Image.open(out / f"{index:06d}.png"), image)
        assert (out / "grid.png").exists()
    assert Image.open(tmp_path / "ddim" / "denoising.gif").n_frames > 2
    assert len({array.tobytes() for array in images.values()}) == 3
    call("sample", f"--run={folder}", "--count=1", f"--out={tmp_path / 'one'}", *kinds["ddim"])
    one = np.load(tmp_path / "one" / "samples.npz")["images"].astype(int)
    assert np.abs(one[0] - images["ddim"][0]).max() <= 1


def test_classes_from_a_folder_and_larger_images_from_samples(tmp_path, call):
    """A base model of 4 pixels and an upsampler to 8, both of two classes, each from the same files."""
    names = [f"{'cat' if number % 3 else 'dog'}_{number:02}.png" for number in range(12)]
    data = write_folder(tmp_path / "data", names)
    flags = (*runs.TINY_DIFFUSION, "--dataset=", f"--data_dir={data}", "--class_cond", "--channel_mult=1")
    flags = (*flags, "--steps=2", *QUIET)
    base, upsampler = tmp_path / "base", tmp_path / "upsampler"
    output = call("train", *flags, "--image_size=4", f"--run={base}")
    assert "4x4x3, 2 classes" in output
    call("sample", f"--run={base}", "--count=3", "--use_ddim", "--steps=3", f"--out={tmp_path / 'small'}")
    small = tmp_path / "small" / "samples_3x4x4x3.npz"
    labels = np.load(small)["arr_1"]
    assert set(labels) <= {0, 1}
    call("train", *flags, "--super_resolution", "--large_size=8", "--small_size=4", f"--run={upsampler}")
    sample = ("sample", f"--run={upsampler}", "--sampler=ddim", "--steps=3")
    call(*sample, "--count=4", f"--base_samples={small}", f"--out={tmp_path / 'large'}")
    with np.load(tmp_path / "large" / "samples_4x8x8x3.npz") as saved:
        assert saved["arr_0"].shape == (4, 8, 8, 3)
        np.testing.assert_array_equal(saved["arr_1"], labels[[0, 1, 2, 0]])
    # Without base samples, from the images themselves; there are twelve.
    call(*sample, "--count=12", f"--out={tmp_path / 'again'}")
    assert np.load(tmp_path / "again" / "samples.npz")["originals"].shape == (12, 8, 8, 3)
    classes = [int(name.startswith("dog")) for name in sorted(names)]
    np.testing.assert_array_equal(np.load(tmp_path / "again" / "samples_12x8x8x3.npz")["arr_1"], classes)
    # Data with other classes, whose numbers would mean others.
    others = write_folder(tmp_path / "others", ["cat_1.png", "dog_1.png", "eel_1.png", "eel_2.png"])
    for command in ((*sample, "--count=2"), ("evaluate", f"--run={upsampler}", "--images=2")):
        output = call(*command, f"--data_dir={others}", expect=2)
        assert "learned 2 classes, and these data have 3 classes" in output
    assert "has 12: lower --count" in call(*sample, "--count=13", expect=2)
    assert "not a picture" in call(*sample, f"--base_samples={tmp_path / 'small' / 'grid.png'}", expect=2)


# Bounds and export -------------------------------------------------------------------------------------------


def test_evaluation_writes_the_terms_of_the_bound(copy, call):
    output = call("evaluate", f"--run={copy}", "--split=test", "--images=12", "--batch_size=5")
    folder = copy / "evaluation" / f"test-step-{STEPS:09d}-ema"
    result = json.loads(folder.with_suffix(".json").read_text())
    assert result["examples"] == 12
    assert "bits_per_dim_bound" in output
    terms = {name: np.load(folder / f"{name}_terms.npz")["arr_0"] for name in ("vb", "mse", "xstart_mse")}
    assert {(array.shape, array.dtype.name) for array in terms.values()} == {((20,), "float32")}
    assert result["bits_per_dim_bound"] == pytest.approx(terms["vb"].sum() + result["prior_bits_per_dim"], rel=1e-4)
    call("evaluate", f"--run={copy}", "--split=test", "--images=12", "--terms=10")
    estimate = json.loads(folder.with_suffix(".json").read_text())["bits_per_dim_bound"]
    assert estimate == pytest.approx(result["bits_per_dim_bound"], rel=0.3)
    assert "--terms=21: the process has 20 steps" in call("evaluate", f"--run={copy}", "--terms=21", expect=2)


def test_export_runs_in_plain_tensorflow(copy, tmp_path, call):
    out = tmp_path / "export"
    call("export", f"--run={copy}", f"--out={out}")
    call("evaluate", f"--run={copy}", "--split=valid", "--images=60", "--batch_size=60")
    expected = json.loads((copy / "evaluation" / f"valid-step-{STEPS:09d}-ema.json").read_text())
    from tfgen.data import builtin

    batch = builtin.digits().valid.read(np.arange(60))
    np.savez(tmp_path / "batch.npz", images=np.repeat(batch["image"], 3, axis=-1), labels=batch["label"])
    program = f"""
        import sys
        import numpy as np, tensorflow as tf
        model = tf.saved_model.load({str(out)!r})
        names = sorted(model.signatures)
        batch = np.load({str(tmp_path / "batch.npz")!r})
        number = lambda value: tf.constant(value, tf.int32)
        bound = model.signatures["bits_per_dim"](
            images=tf.constant(batch["images"]), labels=number(batch["labels"]), terms=number(20), seed=number(1))
        print("bound", float(tf.reduce_mean(bound["bits_per_dim_bound"])), len(bound["bits_per_dim_bound"]))
        def draw(count, label):
            drawn = model.signatures["sample"](
                count=number(count), steps=number(4), seed=number(7), class_label=number(label))
            return drawn["images"].numpy(), drawn["labels"].numpy()
        three, five = draw(3, -1)[0], draw(5, -1)[0]
        near = np.abs(five[:3].astype(int) - three).max() <= 1
        print("drawn", five.shape, five.dtype, near, five.min() != five.max())
        print("labels", draw(2, 4)[1])
        print("alone", names, not [name for name in sys.modules if name.startswith("tfgen")])
    """
    facts = runs.run_without_tfgen(program, tmp_path)
    bound, count = facts["bound"].split()
    assert float(bound) == pytest.approx(expected["bits_per_dim_bound"], rel=0.02)  # other noise
    assert int(count) == 60
    assert facts["drawn"] == "(5, 8, 8, 3) uint8 True True"
    assert facts["labels"] == "[4 4]"
    assert facts["alone"] == "['bits_per_dim', 'sample'] True"


# The averages ------------------------------------------------------------------------------------------------


def test_each_average_can_be_chosen(copy, call):
    few, evaluations = (f"--run={copy}", "--split=test", "--images=8", "--terms=2"), copy / "evaluation"
    for choice in ((), ("--ema_rate=0.9",), ("--ema_rate=0.5",), ("--weights=raw",)):
        call("evaluate", *few, *choice)
    names = {path.stem.removeprefix(f"test-step-{STEPS:09d}-") for path in evaluations.glob("test-*.json")}
    assert names == {"ema", "ema_0.5", "raw"}  # the first by its rate is the default
    found = {name: json.loads((evaluations / f"test-step-{STEPS:09d}-{name}.json").read_text()) for name in names}
    assert {name: record["weights"] for name, record in found.items()} == {name: name for name in names}
    assert len({record["bits_per_dim_bound"] for record in found.values()}) == 3
    assert "ema_0.5 weights" in call("export", f"--run={copy}", "--ema_rate=0.5")
    output = call("sample", f"--run={copy}", "--count=1", "--use_ddim", "--steps=2", "--ema_rate=0.5")
    assert f"step-{STEPS:09d}-ema_0.5-seed0" in output
    assert "has those of 0.9, 0.5: choose one" in call("evaluate", *few, "--ema_rate=0.7", expect=2)
    assert "drop one" in call("evaluate", *few, "--ema_rate=0.5", "--weights=raw", expect=2)


# Published files ---------------------------------------------------------------------------------------------


@pytest.fixture
def published(trained, tmp_path):
    """The trained network in files of the original's layout: path of the weights."""
    from tfgen.settings import read_run
    from tfgen.systems.diffusion.published import to_original, variables
    from tfgen.systems.diffusion.system import ImprovedDiffusion
    from tfgen.training.run_folder import RunFolder
    from tfgen.training.state import TrainState

    checkpoint = RunFolder(trained[0]).checkpoints().newest()
    system = ImprovedDiffusion(read_run(trained[0]).config, checkpoint.spec)
    state = TrainState(system, system.recipe(1497, 1))
    state.restore(checkpoint)
    named = variables(system.network)
    names = [item.name for item in named]

    def arrays(values):
        pairs = zip(values, named, strict=True)
        return [np.ascontiguousarray(to_original(value.numpy(), item.layout)) for value, item in pairs]

    def write(name, values):
        (tmp_path / name).write_bytes(torch_files.state_dict(dict(zip(names, arrays(values), strict=True))))

    write(f"model{STEPS:06d}.pt", system.network.trainable_variables)
    for average in state.averages:
        write(f"ema_{average.decay}_{STEPS:06d}.pt", average.averages)
    storages, moments = {}, {}
    optimizer = state.optimizer
    for index, pair in enumerate(zip(arrays(optimizer.first_moments), arrays(optimizer.second_moments), strict=True)):
        moments[index] = {"step": int(optimizer.updates)}
        for key, array in zip(("exp_avg", "exp_avg_sq"), pair, strict=True):
            storages[f"{index}{key}"] = array
            moments[index][key] = torch_files.tensor(f"{index}{key}", array)
    groups = [{"lr": 0.001, "params": list(range(len(names)))}]
    file = torch_files.zip_archive({"state": moments, "param_groups": groups}, storages)
    (tmp_path / f"opt{STEPS:06d}.pt").write_bytes(file)
    return tmp_path / f"model{STEPS:06d}.pt"


def test_published_files_go_on_training(trained, published, tmp_path, call):
    """The step, weights, averages and moments are all there: trained on, both runs stay equal."""
    folder = tmp_path / "resumed"
    flags = (*FLAGS, f"--resume_checkpoint={published}", f"--run={folder}", f"--steps={STEPS + 2}", *QUIET)
    assert f"resuming after step {STEPS}" in call("train", *flags)
    longer = shutil.copytree(trained[0], tmp_path / "longer")
    call("train", f"--run={longer}", f"--steps={STEPS + 2}", *QUIET)
    one, other = runs.saved_state(folder), runs.saved_state(longer)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_bad_published_file_changes_nothing(copy, published, tmp_path, call):
    def files():
        return {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}

    before, target = files(), tmp_path / "target"
    convert = ("convert", "checkpoint", published, *FLAGS)
    assert "has checkpoints already" in call(*convert, f"--run={copy}", expect=1)
    output = call(*convert, "--num_res_blocks=2", f"--run={target}", expect=1)
    assert "compare --image_size, --num_channels, --num_res_blocks" in output
    output = call(*convert, "--num_channels=64", f"--run={target}", expect=1)
    assert "is of another network" in output
    # Half of the averages: not even the weights, which are whole, are taken.
    average = published.with_name(f"ema_0.9_{STEPS:06d}.pt")
    average.write_bytes(average.read_bytes()[:50_000])
    assert average.name in call(*convert, f"--run={target}", expect=1)
    assert not (target / "checkpoints").exists()
    assert files() == before
    published.rename(published.with_name("elsewhere.pt"))
    assert published.name in call(*convert, f"--run={target}", expect=1)


def test_the_recorded_checkpoint_of_the_original(tmp_path, call):
    path = default_folder("diffusion") / "checkpoint" / "model000003.pt"
    if not path.exists():
        pytest.skip("no recording of a checkpoint here")
    flags = (
        *runs.TINY_DIFFUSION, "--channel_mult=1", "--attention_resolutions=8", "--num_heads=1", "--dropout=0",
        "--ema_rate=0.9999", "--weight_decay=0.01",
    )  # fmt: skip
    folder = tmp_path / "run"
    call("convert", "checkpoint", path, *flags, f"--run={folder}")
    assert runs.saved_steps(folder) == [3]
    assert int(runs.saved_state(folder)["optimizer/updates/.ATTRIBUTES/VARIABLE_VALUE"]) == 4
    call("sample", f"--run={folder}", "--count=2", "--sampler=heun", "--steps=3", f"--out={tmp_path / 'samples'}")
    assert np.load(tmp_path / "samples" / "samples_2x8x8x3.npz").files == ["arr_0"]
    call("train", f"--run={folder}", "--steps=5", *QUIET)
    assert runs.saved_steps(folder)[-1] == 5


# Bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image_size=9"], "--image_size=9, --num_channels=32: "),
        (["--num_channels=40"], "multiple of 32"),
        (["--timestep_respacing=21"], "--timestep_respacing=21: expected at most 20"),
        (["--timestep_respacing=ddim13"], "no stride keeps exactly 13 of 20 steps"),
        (["--noise_schedule=linear"], "--diffusion_steps=20: expected at least 21"),
        (["--label_dropout=0.1"], "it needs --class_cond"),
        (["--class_cond", "--num_classes=9"], "has 10 classes and the network 9: set --num_classes=10"),
        (["--image_size=16"], "are 8x8, expected --image_size=16"),
    ],
)
def test_bad_settings(arguments, message, tmp_path, call):
    output = call("train", *runs.TINY_DIFFUSION, *arguments, "--steps=1", f"--run={tmp_path / 'run'}", expect=2)
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "checkpoints").exists()


GOOD = [f"{name}_{number:03}.png" for name in ("cat", "dog") for number in range(10)]


@pytest.mark.parametrize(
    ("names", "bad", "arguments", "message"),
    [
        (["cat_1.png", "cat_2.png"], 0, ["--class_cond"], "the file names tell one class: cat"),
        (GOOD, 1, [], "1 of the 21 files of"),
        (GOOD[:7], 0, [], "7 image(s) do not fill one batch of 8"),
        ([], 0, [], "has no images"),
    ],
    ids=["one class", "broken images", "few images", "no images"],
)
def test_bad_folders(names, bad, arguments, message, tmp_path, call):
    data = write_folder(tmp_path / "data", names)
    for number in range(bad):
        (data / f"emu_{number}.png").write_bytes(b"not an image")
    flags = (*runs.TINY_DIFFUSION, "--dataset=", f"--data_dir={data}", "--steps=1", f"--run={tmp_path / 'run'}")
    output = call("train", *flags, *arguments, expect=1)
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_classes_of_images_without_labels(tmp_path, call):
    np.save(tmp_path / "images.npy", np.random.RandomState(0).randint(0, 256, (60, 8, 8, 3)).astype(np.uint8))
    flags = (*runs.TINY_DIFFUSION, f"--dataset={tmp_path / 'images.npy'}", "--class_cond", f"--run={tmp_path / 'run'}")
    assert "have no labels; leave it out" in call("train", *flags, "--steps=1", expect=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=21"], "--steps=21: expected at most 20"),
        (["--steps=1"], "--steps=1"),
        (["--timestep_respacing=ddim13"], "--timestep_respacing=ddim13: no stride"),
        (["--eta=1"], "--eta=1 belongs to --sampler=ddim"),
        (["--sampler=euler"], "--sampler=euler"),
        (["--class_label=10"], "the model has classes 0 to 9"),
        (["--base_samples=samples.npz"], "--base_samples belongs to super-resolution models"),
        (["--num_channels=64"], "--num_channels belongs to the training"),
    ],
)
def test_samples_that_the_run_cannot_give(trained, arguments, message, tmp_path, call):
    output = call("sample", f"--run={trained[0]}", "--count=2", *arguments, f"--out={tmp_path / 'out'}", expect=2)
    assert message in output
    assert not (tmp_path / "out").exists()
