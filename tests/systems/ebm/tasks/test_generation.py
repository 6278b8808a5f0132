"""Images of small runs by the sampling protocol, their scores, checkpoints that take turns, and films."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.metrics.test_inception import frozen
from tests.systems.ebm.tasks import runs
from tfgen.metrics.inception import InceptionError
from tfgen.randomness import Key
from tfgen.settings import SettingsError
from tfgen.systems.ebm import preprocess
from tfgen.systems.ebm.networks import EnergyNetwork
from tfgen.systems.ebm.tasks import calls, generation, load
from tfgen.systems.ebm.tasks.generation import Generator, KeyDraws
from tfgen.systems.ebm.tasks.options import EvaluateOptions
from tfgen.systems.ebm.tasks.protocol import Schedule
from tfgen.training.ema import Ema
from tfgen.training.run_folder import RunFolder

KEY = Key.create(0, "test")


def options(**flags) -> EvaluateOptions:
    return EvaluateOptions(**{"num_steps": 1, "im_number": 60, "repeat_scale": 2.0, "nomix": 1} | flags)


def test_draws():
    run = runs.system()
    draws = KeyDraws(run, KEY, 2000)
    rows = draws.rows(tf.constant(3, tf.int64)).numpy()
    assert set(rows) == {0, 1, 2}
    renewal = draws.renewal()
    assert renewal.images.shape == (2000, *run.spec.shape)
    assert renewal.labels.shape == (2000, runs.CLASSES)
    for uniforms in (renewal.keep_image, renewal.keep_label):
        assert abs(float(tf.reduce_mean(uniforms)) - 0.5) < 0.03
    assert abs(np.corrcoef(renewal.keep_image, renewal.keep_label)[0, 1]) < 0.1


def test_networks_take_turns():
    """Chains that stand still but for the sign of the energy's slope, which tells the networks apart."""
    run = runs.system(cclass=False)
    up = EnergyNetwork(run.network.shape, seed=0)
    for name, variable in up.by_name.items():
        variable.assign(-run.network.by_name[name] if name.startswith("fc5/") else run.network.by_name[name])
    chain = calls.chain_of(EvaluateOptions(num_steps=1, step_lr=1e4, noise_scale=0.0))
    alone, turns = (
        Generator(run, networks, chain, Schedule(4, 2, 2, 0)).group(KEY)
        for networks in ([run.network], [run.network, up])
    )
    assert alone.labels is None
    # Two calls of two images fill the group. The slopes are opposite, and so large that they decide between 0 and 1.
    np.testing.assert_array_equal(turns.images[:2], alone.images[:2])
    assert float(tf.reduce_mean(tf.cast(turns.images[2:] == 1.0 - alone.images[2:], tf.float32))) > 0.9


def test_images_without_a_score(tmp_path, capsys):
    run = runs.system()
    job = runs.job(run, tmp_path, batch_size=25)
    result = load("geninception")(run, options(idx=4), job)
    assert "--inception_path" in capsys.readouterr().out
    assert "inception_score" not in result
    assert result["images"] == 60
    assert result["calls"] == 4
    with np.load(tmp_path / "images.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    assert images.shape == (60, *run.spec.shape)
    assert images.dtype == np.uint8
    assert labels.shape == (60, runs.CLASSES)
    with Image.open(tmp_path / "test4.png") as picture:
        panel = np.asarray(picture)
    assert panel.shape == (6 * runs.SIDE, 10 * runs.SIDE)
    np.testing.assert_array_equal(panel[: runs.SIDE, runs.SIDE : 2 * runs.SIDE], images[1, ..., 0])
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["chain"]["clip"] == 0.05
    assert settings["protocol"]["nomix"] == 1
    assert settings["run"]["dataset"] == "digits"
    assert settings["reference"] == {}


def test_scores(tmp_path):
    """A constant network: of images that do not differ in the mean colour the score is nearly 1."""
    run = runs.system(channels=3, cclass=False, network="MnistNet")
    job = runs.job(run, tmp_path, count=70, batch_size=60)
    path = frozen(tmp_path / "graph.pb")
    result = load("geninception")(run, options(inception_path=path, num_steps=1, step_lr=0.0), job)
    assert 1.0 <= result["inception_score"] < 1.2
    assert result["inception_score_std"] == 0.0
    assert result["reference_images"] == 70
    images = np.load(tmp_path / "images.npz")["images"]
    batch = job.splits.train.read(np.arange(50))["image"]
    expected = [values.reshape(len(values), -1, 3).mean(axis=1) for values in (images[:50], batch)]
    squares = np.square(expected[0].mean(axis=0) - expected[1].mean(axis=0)).sum()
    assert squares < result["frechet_distance"] < squares + 60.0
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["reference"] == {"train": 70}
    assert settings["results"]["images"] == 60


def test_what_the_original_compares_with(tmp_path):
    run = runs.system()
    splits = runs.job(run, tmp_path).splits
    found = {name: generation.reference_images(name, splits) for name in ("cifar10", "imagenet", "digits")}
    assert [(source.name, count) for source, count in found["cifar10"]] == [("train", 24), ("test", 24)]
    assert [source.name for source, _ in found["imagenet"]] == ["test"]
    assert [source.name for source, _ in found["digits"]] == ["train"]


def saved(run, folder, steps: list[int]) -> None:
    """Checkpoints whose bias of the energy is the step, and whose average is a thousand more."""
    state = tf.Module()
    state.network, average = run.network, Ema(0.9)
    average.build(run.network.trainable_variables)
    state.averages = [average]
    place = [variable is run.network.by_name["fc5/b"] for variable in run.network.trainable_variables].index(True)
    for step in steps:
        run.network.by_name["fc5/b"].assign([float(step)])
        average.averages[place].assign([1000.0 + step])
        RunFolder(folder).checkpoints(keep_last=9).save(step, state, run.spec, "")


@pytest.mark.parametrize(("weights", "more"), [("raw", 0.0), ("ema", 1000.0)])
def test_checkpoints_before_that_of_the_system(tmp_path, weights, more):
    run = runs.system(ema_rate=0.9)
    saved(run, tmp_path, [1, 2, 3, 4])
    job = runs.job(run, tmp_path, step=3, weights=weights)
    steps, networks = generation.ensemble(run, 3, job)
    assert steps == [3, 2, 1]
    assert networks[0] is run.network
    assert [float(network.by_name["fc5/b"][0]) for network in networks[1:]] == [2.0 + more, 1.0 + more]
    with pytest.raises(SettingsError, match=r"--ensemble=4: .* has 3 checkpoint\(s\) up to step 3; lower it"):
        generation.ensemble(run, 4, job)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"im_number": 1500}, "--im_number=1500: images come in groups of 1000"),
        ({"repeat_scale": 0.5}, "1 calls of 24 images do not fill a group of 60"),
        ({"inception_path": "graph.pb"}, "reads colour images"),
        ({"ensemble": 2}, r"has 1 checkpoint\(s\) up to step 0"),
    ],
)
def test_settings_that_cannot_be(tmp_path, flags, message):
    run = runs.system()
    with pytest.raises(SettingsError, match=message):
        load("geninception")(run, options(**flags), runs.job(run, tmp_path, batch_size=24))


def test_a_graph_that_is_not_there_is_told_first(tmp_path):
    run = runs.system(channels=3, network="MnistNet")
    with pytest.raises(InceptionError, match="cannot be read"):
        load("geninception")(run, options(inception_path=str(tmp_path / "none.pb")), runs.job(run, tmp_path, 24, 60))


@pytest.mark.parametrize("advance", [False, True])
def test_film(tmp_path, advance):
    run = runs.system()
    vector = next(variable for name, variable in run.network.by_name.items() if name.endswith("_u"))
    before = vector.numpy()
    job = runs.job(run, tmp_path)
    flags = EvaluateOptions(task="imagenetdemo", num_steps=12, step_lr=2.0, noise_scale=0.1, advance_vectors=advance)
    assert load("imagenetdemo")(run, flags, job)["steps"] == 12
    assert (vector.numpy() == before).all() != advance
    with Image.open(tmp_path / "sample.gif") as picture:
        assert picture.size == (4 * runs.SIDE, 4 * runs.SIDE)
        assert picture.n_frames == 12
        picture.seek(11)
        last = np.asarray(picture.convert("L"))
    if advance:
        return
    # The same chain as calls of the sampler have it.
    labels = generation.film_labels(run, 0, job.key)
    chain = calls.chain_of(flags)
    frames = np.concatenate(list(generation.film_frames(run, chain, labels, job.key)))
    begin = calls.starts(run, job.key, 16)
    noise = job.key.fold("noise")
    moves = calls.MaskedMoves(calls.energy_of(run, run.normalized(), labels), chain, noise)
    expected = preprocess.sampled_bytes(np.asarray(generation.sampler.run(begin, 12, moves)))
    assert np.abs(frames[-1].astype(int) - expected).max() <= 1
    assert np.abs(last[: runs.SIDE, : runs.SIDE].astype(int) - expected[0, ..., 0]).max() <= 1


def test_classes_of_a_film():
    run = runs.system()
    labels = generation.film_labels(run, 0, KEY).numpy().argmax(axis=1)
    assert len(labels) == 16
    assert set(labels[:3]) == {0, 1, 2}
    np.testing.assert_array_equal(labels[3:6], labels[:3])
    with pytest.raises(SettingsError, match="--task=imagenetdemo needs a run that was trained with --cclass"):
        load("imagenetdemo")(runs.system(cclass=False), EvaluateOptions(), None)
