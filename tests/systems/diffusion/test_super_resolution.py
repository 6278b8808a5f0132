"""Larger versions of small images: from images that are reduced, and from the samples of another model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.systems.diffusion import small
from tfgen import evaluation
from tfgen.data.arrays import ArraySource
from tfgen.distribute import Ranks
from tfgen.monitor import grids
from tfgen.settings import SettingsError
from tfgen.systems.diffusion.resizing import area, from_uint8, to_uint8
from tfgen.systems.diffusion.sampling import SampleOptions, read_base_samples

FEW = SampleOptions(sampler="ddim", steps=3, sample_batch=2)
BASE = np.random.RandomState(1).randint(0, 256, [3, 4, 4, 3]).astype(np.uint8)


@pytest.fixture(scope="module")
def system():
    return small.system(**small.SUPER_RESOLUTION)


@pytest.fixture(scope="module")
def labelled():
    return small.system(small.LABELLED, **small.SUPER_RESOLUTION, **small.OF_CLASSES)


def from_file(path, **arrays) -> SampleOptions:
    np.savez(path, **arrays)
    return dataclasses.replace(FEW, base_samples=str(path))


def given(system, monkeypatch) -> list[np.ndarray]:
    """The small images and labels that the network is given from now on."""
    network, seen = system._sampler._compiled, []

    def watched(x, timesteps, labels, low_res, prepared):
        seen.append((labels, low_res.numpy()))
        return network(x, timesteps, labels, low_res, prepared)

    monkeypatch.setattr(system._sampler, "_compiled", watched)
    return seen


def test_from_images_of_the_data(system, monkeypatch):
    np.testing.assert_array_equal(system.images_wanted(5, 3, FEW), [5, 6, 7])
    seen = given(system, monkeypatch)
    originals = small.images(3)
    samples = system.sample(3, small.KEY, FEW, images=originals)
    assert samples.shape == (3, 8, 8, 3)
    expected = area(from_uint8(originals), 4, 4).numpy()
    np.testing.assert_array_equal(seen[0][1], expected[:2])
    np.testing.assert_array_equal(seen[-1][1], expected[[2, 2]])  # a batch that is filled up
    # Another small image, other details from the same noise.
    assert (samples != system.sample(3, small.KEY, FEW, images=originals[::-1])).any()
    enlarged = to_uint8(expected).numpy().repeat(2, axis=1).repeat(2, axis=2)
    pairs = grids.display_grid(np.concatenate([enlarged, samples], axis=2))
    np.testing.assert_array_equal(system.sample_grid(samples, originals, FEW), pairs)


def test_images_that_are_missing(system):
    with pytest.raises(SettingsError, match="3 images are made from as many small ones, found 2"):
        system.sample(3, small.KEY, FEW, images=small.images(2))


@pytest.mark.parametrize("name", ["arr_0", "images"])
def test_from_base_samples(system, tmp_path, monkeypatch, name):
    options = from_file(tmp_path / "base.npz", **{name: BASE})
    assert len(system.images_wanted(0, 5, options)) == 0
    seen = given(system, monkeypatch)
    samples = system.sample(5, small.KEY, options)
    shown = np.concatenate([low_res for _, low_res in seen[::3]])[:5]
    np.testing.assert_array_equal(shown, from_uint8(BASE[[0, 1, 2, 0, 1]]))
    assert (samples[0] != samples[3]).any()  # other noise
    # Sample i is made from image i, whatever the first sample is.
    np.testing.assert_array_equal(system.sample(2, small.KEY.skip(2), options), samples[2:4])


def test_labels_of_base_samples(labelled, tmp_path, monkeypatch):
    options = from_file(tmp_path / "base.npz", arr_0=BASE, arr_1=np.array([2, 0, 1]))
    seen = given(labelled, monkeypatch)
    samples = labelled.sample(4, small.KEY, options)
    np.testing.assert_array_equal(np.concatenate([labels for labels, _ in seen[::3]]), [2, 0, 1, 2])
    (arrays,) = labelled.sample_files(samples, small.KEY, options).values()
    np.testing.assert_array_equal(arrays["arr_1"], [2, 0, 1, 2])


def test_labels_of_images_of_the_data(labelled, monkeypatch):
    seen, given_labels, originals = given(labelled, monkeypatch), np.array([2, 0, 1], np.int32), small.images(3)
    samples = labelled.sample(3, small.KEY, FEW, images=originals, labels=given_labels)
    np.testing.assert_array_equal(np.concatenate([labels for labels, _ in seen[::3]])[:3], [2, 0, 1])
    (arrays,) = labelled.sample_files(samples, small.KEY, FEW, given_labels).values()
    np.testing.assert_array_equal(arrays["arr_1"], [2, 0, 1])
    # Whoever names a class gets it.
    seen.clear()
    chosen = dataclasses.replace(FEW, class_label=1)
    labelled.sample(3, small.KEY, chosen, images=originals, labels=given_labels)
    assert {label for labels, _ in seen for label in labels.numpy()} == {1}
    (arrays,) = labelled.sample_files(samples, small.KEY, chosen, given_labels).values()
    np.testing.assert_array_equal(arrays["arr_1"], [1, 1, 1])


def test_labels_reach_the_samples_of_a_data_set(labelled, monkeypatch):
    source = ArraySource(small.images(3), "pictures", labels=np.array([2, 0, 1]))
    seen = given(labelled, monkeypatch)
    evaluation.sample(labelled, 3, small.KEY, Ranks(), FEW, source=source)
    np.testing.assert_array_equal(np.concatenate([labels for labels, _ in seen[::3]])[:3], [2, 0, 1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "have no labels, .*--class_label"),
        (np.array([0, 3]), "the label 3: the model has classes 0 to 2"),
        (np.array([0]), "2 samples have the labels of as many images, found 1"),
    ],
)
def test_labels_of_images_that_do_not_fit(labelled, labels, message):
    with pytest.raises(SettingsError, match=message):
        labelled.sample(2, small.KEY, FEW, images=small.images(2), labels=labels)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": BASE}, "has no labels .*--class_label"),
        ({"arr_0": BASE, "labels": np.array([0, 1, 3])}, "has the label 3: the model has classes 0 to 2"),
        ({"arr_0": BASE, "labels": np.array([0, -1, 2])}, "has the label -1"),
        ({"arr_0": BASE, "arr_1": np.array([0, 1])}, r"expected 3 labels, integers, found int64 \[2\]"),
        ({"arr_0": BASE, "arr_1": np.zeros(3)}, "found float64"),
        ({"arr_0": BASE[:, :2]}, r"expected uint8 \[N, 4, 4, 3\].*found uint8 \[3, 2, 4, 3\]"),
        ({"arr_0": BASE.astype(np.float32)}, "found float32"),
        ({"arr_0": BASE[:0]}, r"found uint8 \[0, 4, 4, 3\]"),
        ({"pictures": BASE}, "found no arr_0 or images"),
    ],
)
def test_base_samples_that_do_not_fit(labelled, tmp_path, arrays, message):
    options = from_file(tmp_path / "base.npz", **arrays)
    with pytest.raises(SettingsError, match=message):
        labelled.sample(2, small.KEY, options)


def test_a_class_for_all_base_samples(labelled, tmp_path):
    options = dataclasses.replace(from_file(tmp_path / "base.npz", arr_0=BASE), class_label=1)
    assert labelled.sample(2, small.KEY, options).shape == (2, 8, 8, 3)


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n and so on", b"PK\x03\x04 cut short"])
def test_base_samples_that_are_no_arrays(tmp_path, content):
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"cannot be read as an \.npz file .*not a picture"):
        read_base_samples(str(path), 4)


def test_a_single_array_is_no_file_of_arrays(tmp_path):
    np.save(tmp_path / "base.npy", BASE)
    with pytest.raises(SettingsError, match=r"cannot be read as an \.npz file"):
        read_base_samples(str(tmp_path / "base.npy"), 4)


def test_base_samples_are_not_reconstructed(system, tmp_path):
    options = dataclasses.replace(from_file(tmp_path / "base.npz", arr_0=BASE), reconstruct=True)
    with pytest.raises(SettingsError, match="--reconstruct takes images of --split"):
        system.sample(2, small.KEY, options, images=small.images(2))
