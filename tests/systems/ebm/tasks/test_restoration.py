"""What the pictures of the image tasks show, with samplers that stand in for chains, and the tasks on a small run."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.systems.ebm.tasks import runs
from tfgen.data.errors import DataError
from tfgen.randomness import Key
from tfgen.settings import SettingsError
from tfgen.systems.ebm import preprocess
from tfgen.systems.ebm.tasks import calls, classes, load, restoration
from tfgen.systems.ebm.tasks.calls import Caller
from tfgen.systems.ebm.tasks.options import EvaluateOptions

OPTIONS = EvaluateOptions(num_steps=1, step_lr=1.0)


def flat(levels: list[float], side: int = 2) -> np.ndarray:
    """Grey images of one level each."""
    return np.tile(np.reshape(levels, [-1, 1, 1, 1]), [1, side, side, 1])


def brighter(images: np.ndarray, labels: np.ndarray | None, number: int) -> np.ndarray:
    """A call that adds a level and, with labels, ten levels times the class."""
    del number
    classes = 0 if labels is None else labels.argmax(axis=1)[:, None, None, None]
    return images + (1 + 10 * classes) / 255


def levels(picture: np.ndarray, side: int = 2) -> np.ndarray:
    """The level of each tile."""
    return picture[::side, ::side, 0]


def test_crossclass_begins_at_the_predecessor():
    picture = restoration.crossed(flat([0.0, 0.2, 0.4]), np.eye(3), brighter, rows=2)
    found = levels(picture)
    assert found.shape == (2, 12)
    np.testing.assert_array_equal(found[:, :4], [[102, 102, 103, 104], [0, 0, 11, 22]])
    np.testing.assert_array_equal(found[:, 10:], [[111, 0], [99, 51]])


def test_cycleclass_shows_every_call():
    picture = restoration.cycled(flat([0.0, 0.0]), flat([0.6, 1.0]), np.eye(2), brighter)
    found = levels(picture)
    np.testing.assert_array_equal(found[:, :-1], np.outer([1, 11], np.arange(21)))
    np.testing.assert_array_equal(found[:, -1], [153, 255])


def test_democlass_has_two_classes_in_a_row():
    found = levels(restoration.class_samples(flat([0.0] * 15), np.eye(3), brighter))
    assert found.shape == (2, 10)
    np.testing.assert_array_equal(found[0], [1] * 5 + [11] * 5)
    np.testing.assert_array_equal(found[1], [21] * 5 + [255] * 5)  # white where there is no class


def test_dots():
    images = flat([0.5], side=4).astype(np.float32)
    uniforms = np.full([1, 4, 4], 0.5)
    uniforms[0, 0] = [0.04, 0.06, 0.11, 0.999]
    found = restoration.dotted(images, uniforms)[0, ..., 0]
    np.testing.assert_allclose(found[0], [0.1, 0.9, 0.5, 0.5], rtol=1e-6)
    assert (found[1:] == 0.5).all()
    assert found.dtype == np.float32
    picture = levels(restoration.undotted(images, None, uniforms, brighter), side=4)
    np.testing.assert_array_equal(picture, [[26, 30, 128]])


def test_a_box_is_the_lower_half():
    images = np.random.RandomState(0).uniform(size=[2, 5, 4, 3])
    shape = restoration.boxed_shape(images.shape)
    assert shape == (2, 3, 4, 3)
    begin = restoration.boxed(images, np.full(shape, 0.25))
    mask = restoration.box_mask((5, 4, 3))
    np.testing.assert_array_equal(begin, np.where(mask, 0.25, images))
    errors = restoration.box_errors(images, None, np.full(shape, 0.25), lambda x, labels, number: x)
    np.testing.assert_allclose(errors, np.square(begin - images).reshape(2, -1).mean(axis=1))


@pytest.mark.parametrize("chunk", [3, 7, 50])
def test_nearest_images_in_chunks(chunk):
    generator = np.random.RandomState(0)
    samples, images = generator.uniform(size=[4, 3, 3, 1]), generator.uniform(size=[20, 3, 3, 1])
    images[11] = images[5]  # equally near to every sample: the earlier one first
    samples[2] = images[11]
    distances = np.square(samples[:, None] - images[None]).sum(axis=(2, 3, 4))
    expected = np.argsort(distances, axis=1, kind="stable")[:, :5]
    chunks = [images[first : first + chunk] for first in range(0, 20, chunk)]
    found = restoration.nearest(samples, chunks)
    np.testing.assert_array_equal(found, expected)
    assert list(found[2, :2]) == [5, 11]


def test_nearest_picture():
    images = flat([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    picture = restoration.neighbours(flat([0.7]), None, [images], lambda rows: images[rows], lambda x, *_: x)
    np.testing.assert_array_equal(levels(picture)[0, 1:], [153, 204, 102, 255, 51])


SIZES = {
    "crossclass": (12, 20),
    "cycleclass": (22, 100),
    "democlass": (10, 2),
    "anticorrupt": (3, 20),
    "nearestneighbor": (6, runs.CLASSES),
}


@pytest.fixture(scope="module")
def run():
    return runs.system()


@pytest.fixture(scope="module")
def caller(run):
    """One for all tasks, which saves compiling it for each."""
    return Caller(run, calls.chain_of(OPTIONS), Key.create(0, "test"), 50)


@pytest.mark.parametrize("task", SIZES)
def test_tasks_write_their_pictures(task, run, caller, monkeypatch, tmp_path):
    monkeypatch.setattr(restoration, "Caller", lambda *arguments: caller)
    job = runs.job(run, tmp_path, count=100, batch_size=50)
    result = load(task)(run, OPTIONS, job)
    assert result["images"] > 0
    name = "nearest" if task == "nearestneighbor" else task
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.size == tuple(runs.SIDE * extent for extent in SIZES[task])


def test_boxes_of_both_splits(run, tmp_path):
    job = runs.job(run, tmp_path, count=8, batch_size=5)
    result = load("boxcorrupt")(run, OPTIONS, job)
    for split in ("train", "test"):
        errors = np.load(tmp_path / f"data_diff_{split}_image.npy")
        assert errors.shape == (8,)
        assert (errors > 0.0).all()
        assert result[f"{split}_mse"] == pytest.approx(errors.mean())
        assert result[f"{split}_images"] == 8
    assert result["train_mse"] != result["test_mse"]


def test_unconditional_runs(tmp_path):
    plain = runs.system(cclass=False)
    job = runs.job(plain, tmp_path, count=20)
    for task in ("crossclass", "cycleclass", "democlass"):
        with pytest.raises(SettingsError, match=f"--task={task} needs a run that was trained with --cclass"):
            load(task)(plain, OPTIONS, job)
    load("nearestneighbor")(plain, OPTIONS, job)
    with Image.open(tmp_path / "nearest.png") as picture:
        assert picture.size == (6 * runs.SIDE, 10 * runs.SIDE)


def test_too_few_images(run, tmp_path):
    with pytest.raises(DataError, match="shows 100 images, test has 24: choose another --split, or raise --images"):
        load("cycleclass")(run, OPTIONS, runs.job(run, tmp_path))
    with pytest.raises(DataError, match="the 5 nearest training images, train has 4"):
        load("nearestneighbor")(run, OPTIONS, runs.job(run, tmp_path, count=4))


def test_images_of_svhn(run, monkeypatch, tmp_path):
    """They take the place of the run's own; the calls here move nothing."""
    other = runs.source("svhn", 30, run, seed=9)
    monkeypatch.setattr(classes, "open_other", lambda name, options, data_dir: other)
    monkeypatch.setattr(restoration, "Caller", lambda *_: lambda images, labels, number, **_: images)
    job = runs.job(run, tmp_path)
    flags = EvaluateOptions(task="boxcorrupt", svhn=True)
    result = load("boxcorrupt")(run, flags, job)
    assert result["test_images"] == 24
    assert not any(name.startswith("train") for name in result)
    load("anticorrupt")(run, flags, job)
    with Image.open(tmp_path / "anticorrupt.png") as picture:
        shown = np.asarray(picture)[: runs.SIDE, 2 * runs.SIDE :]
    known = preprocess.rounded_bytes(run.scaled(other.read(np.arange(30))["image"]))[..., 0]
    assert (known == shown).all(axis=(1, 2)).sum() == 1
