"""Energies of a run's own images, and how they are told from others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.ebm.tasks import small
from tfgen.data import svhn
from tfgen.metrics.auroc import auroc
from tfgen.settings import SettingsError
from tfgen.systems.ebm.tasks import classes, energies


@pytest.fixture(scope="module")
def conditional():
    return small.system()


def own_energies(system, images, labels=None) -> np.ndarray:
    return system.energy(system.normalized(), system.scaled(images), labels).numpy()[:, 0]


def test_energies_with_their_labels(conditional, tmp_path):
    job = small.job(tmp_path, batch_size=5)
    results = energies.energyeval(conditional, small.options("energyeval"), job)
    for name, source in (("test", job.splits.test), ("train", job.splits.train)):
        batch = source.read(np.arange(len(source)))
        expected = own_energies(conditional, batch["image"], np.eye(4, dtype=np.float32)[batch["label"]])
        np.testing.assert_allclose(np.load(job.folder / f"{name}_ebm.npy"), expected, rtol=1e-4, atol=1e-6)
        assert results[f"energy_{name}"] == pytest.approx(expected.mean(), rel=1e-4)
        assert results[f"energy_{name}_sd"] == pytest.approx(expected.std(), rel=1e-3)
        assert results[f"images_{name}"] == len(source)


def test_as_many_images_as_were_asked_for(conditional, tmp_path):
    job = dataclasses.replace(small.job(tmp_path), source=small.source(3), images=3)
    results = energies.energyeval(conditional, small.options("energyeval"), job)
    assert (results["images_test"], results["images_train"]) == (3, 3)


def test_the_lowest_energy_of_all_classes_is_the_score(conditional, tmp_path):
    """In random order, and without the images after the last whole batch."""
    job = small.job(tmp_path, batch_size=5)
    results = energies.mixenergy(conditional, small.options("mixenergy"), job)
    images = job.source.read(np.arange(12))["image"]
    table = np.stack([own_energies(conditional, images, np.eye(4, dtype=np.float32)[[k] * 12]) for k in range(4)])
    assert len(np.unique(table.argmin(axis=0))) > 1
    found = np.load(job.folder / "pos.npy")
    assert len(found) == results["images_in"] == results["images_out"] == 10
    distance = np.abs(found[:, None] + table.min(axis=0)[None, :])
    assert distance.min(axis=1).max() < 1e-5
    assert len(np.unique(distance.argmin(axis=1))) == 10
    assert not np.array_equal(distance.argmin(axis=1), np.arange(10))
    assert results["auroc"] == auroc(found, np.load(job.folder / "neg.npy"))
    assert results["energy_in"] == pytest.approx(-found.mean(), rel=1e-5)


@pytest.mark.parametrize("advance", [False, True])
def test_the_power_iteration_goes_on_where_asked(advance, tmp_path):
    system = small.system(cclass=False)
    before = [variable.numpy() for variable in system.network.non_trainable_variables]
    energies.mixenergy(system, small.options("mixenergy", advance_vectors=advance), small.job(tmp_path))
    after = [variable.numpy() for variable in system.network.non_trainable_variables]
    changed = any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert changed == advance


@pytest.mark.parametrize("kind", ["randommix", "uniformmix", "constantmix"])
def test_noise(kind, tmp_path):
    system = small.system(cclass=False)
    results = [
        energies.mixenergy(system, small.options("mixenergy", seed=1, **{kind: True}), small.job(tmp_path, batch))
        for batch in (4, 6)
    ]
    assert 0.0 <= results[0]["auroc"] <= 1.0
    # The noise of an image does not depend on the size of the batches.
    assert results[0]["energy_out"] == pytest.approx(results[1]["energy_out"], rel=1e-4)


def test_another_data_set(monkeypatch, tmp_path):
    """Cut to size, and no image twice."""
    other = small.source(7, seed=5, spec=small.ImageSpec(16, 12, 3))
    asked = []
    monkeypatch.setattr(energies, "open_other", lambda name, options, data_dir: asked.append((name, data_dir)) or other)
    system = small.system(cclass=False)
    results = energies.mixenergy(system, small.options("mixenergy", mix="bedrooms"), small.job(tmp_path, 3))
    assert asked == [("bedrooms", str(tmp_path))]
    assert (results["images_in"], results["images_out"]) == (12, 6)


def test_svhn_in_place_of_the_runs_own(monkeypatch, tmp_path):
    numbers = small.source(6, seed=7)
    monkeypatch.setattr(classes, "open_other", lambda name, *_: {"svhn": numbers}[name])
    system, job = small.system(), small.job(tmp_path)
    results = energies.energyeval(system, small.options("energyeval", svhn=True), job)
    assert results["images_test"] == 6
    assert not (job.folder / "train_ebm.npy").exists()
    results = energies.mixenergy(system, small.options("mixenergy", svhn=True), job)
    assert results["images_in"] == 4
    with pytest.raises(SettingsError, match="--svhn and --svhnmix compare SVHN with itself"):
        energies.mixenergy(system, small.options("mixenergy", svhn=True, svhnmix=True), job)
    monkeypatch.setattr(classes, "open_other", lambda *_: small.source(4, spec=small.ImageSpec(9, 8, 1)))
    with pytest.raises(SettingsError, match=r"--svhn: its images are 9x8x1, 4 classes, expected 8x8x1, 4 classes"):
        energies.energyeval(system, small.options("energyeval", svhn=True), job)


def test_scores_of_an_unconditional_network():
    images = tf.constant([[1.0], [2.0]])
    found = energies.scores(lambda x, labels: x if labels is None else 1 / 0, images, classes=0)
    np.testing.assert_array_equal(found, [-1.0, -2.0])


def test_other_data_sets(monkeypatch, tmp_path):
    """Of SVHN the test images, unless they are to be those of the original; of the others those of `data`."""
    monkeypatch.setattr(svhn, "open_svhn", lambda folder, split: (folder, split))
    folder = str(tmp_path)
    assert classes.open_other("svhn", small.options("mixenergy"), folder) == (tmp_path, "test")
    original = small.options("mixenergy", original_scaling=True)
    assert classes.open_other("svhn", original, folder) == (tmp_path, "train")
    assert len(classes.open_other("digits", original, folder)) == 150
