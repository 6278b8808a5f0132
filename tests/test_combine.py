"""`python -m tfgen.combine`: its flags, what it refuses, and every task on small networks and images made here."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.systems.ebm.test_generalization import LATENTS
from tfgen import combine
from tfgen.combine import Options
from tfgen.data.source import ImageSpec, Source, Splits
from tfgen.flagfields import flag_fields

# Of the original's command; the data's path has a default of its own here.
ORIGINAL = {
    **{"batch_size": 256, "data_workers": 4, "logdir": "cachedir", "savedir": "cachedir", "num_filters": 64},
    **{"step_lr": 500.0, "cclass": True, "proj_cclass": False, "use_bias": True, "spec_norm": True},
    **{"use_attention": False, "plot_curve": False, "num_steps": 20, "task": "conceptcombine"},
    **{"joint_shape": False, "joint_rot": False, "cond_pos": True, "cond_rot": True, "cond_shape": True},
    **{"cond_scale": True, "exp_size": "dsprites_2018_cond_size", "exp_shape": "dsprites_2018_cond_shape"},
    **{"exp_pos": "dsprites_2018_cond_pos_cert", "exp_rot": "dsprites_cond_rot_119_00", "resume_size": 169000},
    **{"resume_shape": 477000, "resume_pos": 8000, "resume_rot": 690000, "break_steps": 300, "train": False},
    **{"swish_act": False, "downsample": False, "spec_iter": 1, "spec_norm_val": 1.0, "spec_eval": False},
    **{"proposal_debug": False, "dsprites_path": ""},
}
SIDE = 64


def run(*arguments) -> int:
    try:
        return combine.main([*map(str, arguments)])
    except SystemExit as error:
        return error.code


def test_flags_of_the_original():
    defaults = {name: flag_fields(Options)[name].default for name in ORIGINAL}
    # None until it is known whether there are runs, which have a step size of their own.
    assert defaults | {"step_lr": Options().step_size} == ORIGINAL


def test_help_needs_no_tensorflow():
    program = (
        "import sys\n"
        "from tfgen.combine import main\n"
        "code = main(['--task=gentest', '--help'])\n"
        "print(code, sorted(name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'keras')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "--exp_size  (default: dsprites_2018_cond_size)" in done.stdout
    assert "tfgen.combine --task=labeldiscover --run_size=" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task=genbaseline"], "trains a generator that was never published; the tasks here are conceptcombine"),
        (["--task=gentst"], "expected one of conceptcombine, labeldiscover, gentest. Did you mean gentest?"),
        (["--nocclass"], "networks without labels cannot be combined; leave it out"),
        (["--out=a.jpg"], "--out=a.jpg: expected a name that ends in .png"),
        (["--task=gentest", "--joint_shape", "--joint_rot"], "--joint_shape and --joint_rot: choose one"),
        (["--joint_rot"], "--joint_rot belongs to --task=gentest, found --task=conceptcombine"),
        (["--task=labeldiscover", "--shape=1"], "--shape belongs to --task=conceptcombine, found --task=labeldiscover"),
        (["--task=gentest", "--negate_pos"], "--negate_pos belongs to --task=conceptcombine"),
        (["--task=gentest", "--train", "--replay_capacity=9"], "--replay_capacity=9 is below --batch_size=256"),
        (["--nocond_scale", "--nocond_shape", "--nocond_pos", "--nocond_rot"], "no concept takes part: add one of"),
        (["--nocond_scale", "--size=0.7"], "--size: that concept does not take part; add --cond_scale"),
        (["--nocond_scale", "--negate_size"], "--negate_size: that concept does not take part; add --cond_scale"),
        (["--negate_size", "--nocond_shape", "--nocond_pos", "--nocond_rot"], "all concepts are negated (size)"),
        (["--shape=4"], "--shape=4: expected an integer of at least 1 and of at most 3"),
        (["--run_scale=x"], "unknown flag --run_scale. Did you mean --run_"),
        (["--run_size=nowhere"], "nowhere is not a run: there is no such folder"),
        ([], "no network for the concept size: cachedir/dsprites_2018_cond_size/model_169000.index does not exist. "),
        (
            ["--nocond_scale"],
            "Name a run, --run_shape=DIR, or a checkpoint of the original code, --logdir, --exp_shape",
        ),
        (["--task=labeldiscover"], "no network for the concept size"),
        (["--task=gentest", "--joint_rot"], "--nocond_rot"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert expected in capsys.readouterr().err


# Tasks -----------------------------------------------------------------------------------------------------


class Sprites(Source):
    """Rows of `LATENTS`; images are noise."""

    name = "sprites of a test"

    def __init__(self, side: int = SIDE, rows=slice(None)):
        self.spec = ImageSpec(side, side, 1)
        self.latents = LATENTS[rows]

    def __len__(self) -> int:
        return len(self.latents)

    def read(self, indices):
        side = self.spec.height
        images = [np.random.RandomState(index).randint(0, 2, [side, side, 1], np.uint8) for index in indices]
        return {"image": np.stack(images), "latents": self.latents[indices].astype(np.float32)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The flags that name a small network of each concept."""
    from tests.systems.ebm import small
    from tfgen.systems.ebm import concepts, published

    folder = tmp_path_factory.mktemp("checkpoints")
    flags = [f"--logdir={folder}", "--num_filters=2"]
    for name, concept in concepts.CONCEPTS.items():
        network = small.network("DspritesNet", 2, label_columns=concept.columns)
        published.save(network, f"{folder}/{name}/model_7")
        flags += [f"--exp_{name}={name}", f"--resume_{name}=7"]
    return flags


@pytest.fixture
def sprites(monkeypatch):
    from tfgen.systems.ebm import concepts

    source = Sprites()
    monkeypatch.setattr(concepts, "open_images", lambda *_: Splits(source, source, source))
    return source


@pytest.fixture
def eagerly():
    """Small networks are traced for longer than they are run; the compiled chains have tests of their own."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


FEW = ["--num_steps=2", "--step_lr=5"]


def test_conceptcombine(tmp_path, eagerly, sprites, checkpoints, capsys):
    """The names of the original; labels are those of the images in its order."""
    arguments = [*checkpoints, *FEW, f"--savedir={tmp_path}", "--nocond_shape", "--nocond_rot", "--count=3"]
    assert run(*arguments, "--batch_size=2") == 0
    out = tmp_path / "size_shape_joint" / "im_condscale_condpos.png"
    assert str(out) in capsys.readouterr().out
    picture = np.asarray(Image.open(out))
    assert picture.shape == (3 * 66, 2 * 66)
    order = np.random.RandomState(1).permutation(len(sprites))[:3]
    arrays = np.load(out.with_suffix(".npz"))
    np.testing.assert_allclose(arrays["labels_size"], LATENTS[order, 2:3], rtol=1e-6)
    np.testing.assert_allclose(arrays["labels_pos"], LATENTS[order, 4:6], rtol=1e-6)
    images = sprites.read(order)["image"][..., 0]
    np.testing.assert_array_equal(picture[67:131, 67:131], images[1] * 255)
    np.testing.assert_array_equal(picture[1:65, 1:65], np.rint(255 * arrays["images"][0, ..., 0]))


def test_conceptcombine_of_given_values(tmp_path, eagerly, monkeypatch, checkpoints):
    """No images are opened where every label is given."""
    from tfgen.systems.ebm import concepts

    monkeypatch.setattr(concepts, "open_images", lambda *_: pytest.fail("opened images"))
    given = ["--shape=2", "--x=0.25", "--y=0.75", "--nocond_scale", "--nocond_rot", "--negate_shape", "--combine=sum"]
    assert run(*checkpoints, *FEW, *given, "--count=2", f"--out={tmp_path}/a.png") == 0
    arrays = np.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(arrays["labels_shape"], [[0, 1, 0]] * 2)
    np.testing.assert_array_equal(arrays["labels_pos"], [[0.25, 0.75]] * 2)
    assert np.asarray(Image.open(tmp_path / "a.png")).shape == (2 * 66, 66)


def test_labeldiscover(eagerly, sprites, checkpoints, capsys):
    assert run("--task=labeldiscover", *checkpoints, "--num_steps=1", "--batch_size=1") == 0
    printed = capsys.readouterr().out
    assert "over 30 images: 0." in printed
    error = float(printed.split()[-1])
    assert 0.01 < error < 0.5


def test_gentest_trains_and_tests(tmp_path, eagerly, sprites, capsys):
    sprites.spec = ImageSpec(32, 32, 1)  # the networks that were saved tell their side
    sprites.latents = LATENTS[np.isin(LATENTS[:, 4:6], [0.0, 16 / 31]).all(1)]
    small = ["--task=gentest", "--num_steps=1", "--step_lr=5", "--num_filters=1", "--batch_size=4"]
    assert run(*small, "--train", "--break_steps=1", "--lr=0.01", f"--out={tmp_path}/a.png") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].startswith("mean squared error of 6 combinations that were not learned: ")
    assert np.asarray(Image.open(tmp_path / "a.png")).shape == (34, 2 * 34)
    # The networks that were saved are those that were tested.
    flags = printed[0].partition("without --train: ")[2].split()
    assert run(*small, *flags, f"--out={tmp_path}/b.png") == 0
    again = capsys.readouterr().out.splitlines()[-2]
    assert float(again.split()[-1]) == pytest.approx(float(printed[-2].split()[-1]), rel=1e-4)


@pytest.mark.parametrize(
    ("source", "arguments", "expected"),
    [
        (Sprites(side=32), [], "images of sprites of a test are 32x32x1, expected 64x64x1, which the networks read"),
        (Sprites(rows=slice(5)), ["--count=6"], "--count=6: sprites of a test has 5 images; lower --count"),
        (Sprites(rows=slice(5)), ["--task=gentest"], "0 images that differ in their position"),
    ],
)
def test_images_that_do_not_fit(monkeypatch, checkpoints, capsys, source, arguments, expected):
    from tfgen.systems.ebm import concepts

    monkeypatch.setattr(concepts, "open_images", lambda *_: Splits(source, source, source))
    assert run(*checkpoints, *arguments) in (1, 2)
    assert expected in capsys.readouterr().err


# Runs ------------------------------------------------------------------------------------------------------


def write_run(path, side: int = SIDE, **config) -> str:
    """A run with a checkpoint of step 0; returns its folder."""
    from tfgen.settings import RunSettings, Settings
    from tfgen.systems.ebm.config import Config
    from tfgen.systems.ebm.system import EnergyBasedModel
    from tfgen.training.run_folder import RunFolder
    from tfgen.training.state import TrainState

    settings = Settings("ebm", (), Config(dataset="dsprites", num_filters=2, batch_size=2, **config), RunSettings())
    spec = ImageSpec(side, side, 1)
    system = EnergyBasedModel(settings.config, spec)
    folder = RunFolder(path)
    folder.claim(settings)
    state = TrainState(system, system.recipe(train_size=10, ranks=1))
    folder.checkpoints().save(0, state, spec, settings.to_flagfile())
    folder.release()
    return str(path)


def test_runs_win_over_checkpoints(tmp_path, eagerly, checkpoints, capsys):
    shape = write_run(tmp_path / "shape_run", cclass=True, cond_shape=True)
    position = write_run(tmp_path / "pos_run", cclass=True, dpos_only=True)
    given = ["--shape=2", "--x=0.25", "--y=0.75", "--nocond_scale", "--nocond_rot", "--count=1", "--combine=or"]
    arguments = [*checkpoints, *FEW, *given, f"--run_shape={shape}", f"--run_pos={position}", f"--savedir={tmp_path}"]
    assert run(*arguments) == 0
    assert f"pos: raw weights of step 0 of {position}" in capsys.readouterr().out
    arrays = np.load(tmp_path / "size_shape_run_joint" / "im_condshape_condpos.npz")
    np.testing.assert_array_equal(arrays["labels_pos"], [[0.75, 1.25]])  # as that subset's labels are


@pytest.mark.parametrize(
    ("side", "config", "expected"),
    [
        (SIDE, {}, "is unconditional, so that it knows no shape: train one with --dataset=dsprites --cclass --cond_sh"),
        (SIDE, {"cclass": True, "cond_pos": True}, "learned --cond_pos: expected a run with --dataset=dsprites --ccla"),
        (32, {"cclass": True}, "networks of different images cannot be combined (--run_shape: 32x32x1, --run_pos: 64"),
    ],
)
def test_runs_that_do_not_fit(tmp_path, checkpoints, capsys, side, config, expected):
    shape = write_run(tmp_path / "shape", side, **config)
    assert run(*checkpoints, f"--run_shape={shape}", "--nocond_scale", "--nocond_rot") == 2
    assert expected in capsys.readouterr().err
