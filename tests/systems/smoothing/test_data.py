"""Data sets by the original's names, and the scales of pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.data.images import write_folder
from tests.data.test_celeba import write_faces
from tests.data.test_cifar import write_cifar
from tests.data.test_mnist import write_mnist
from tests.seeds import SEED
from tfgen.data.errors import DataError, UnknownDatasetError
from tfgen.systems.smoothing import data

# Data sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "write", "counts"),
    [
        ("MNIST", lambda folder: write_mnist(folder / "MNIST" / "raw"), (12, 4)),
        ("mnist", lambda folder: write_mnist(folder / "mnist", ".gz"), (12, 4)),
        ("FashionMNIST", lambda folder: write_mnist(folder / "FashionMNIST" / "raw"), (12, 4)),
        ("fashion_mnist", lambda folder: write_mnist(folder / "fashion_mnist"), (12, 4)),
        ("CIFAR10", lambda folder: write_cifar(folder / "cifar10"), (20, 4)),
        ("celeba", lambda folder: write_faces(folder / "celeba", [f"{i}.jpg" for i in range(10)]), (7, 1)),
    ],
)
def test_the_original_s_data_sets(tmp_path, name, write, counts):
    write(tmp_path)
    splits = data.open_splits(name, str(tmp_path))
    assert (len(splits.train), len(splits.test)) == counts
    assert splits.valid is splits.test
    assert splits.spec == data.known_spec(name)
    assert splits.train.read(np.array([0]))["image"].shape == (1, *splits.spec.shape)


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_bundled_data_sets(name):
    assert data.open_splits(name, "nowhere").spec == data.known_spec(name)


def test_paths_are_taken_as_they_are(tmp_path):
    write_folder(tmp_path / "My_Images", [f"{number}.png" for number in range(20)], height=8, width=8)
    np.save(tmp_path / "MNIST.npy", np.zeros((30, 8, 4, 1), np.uint8))
    for path, shape in (("My_Images", (8, 8, 3)), ("MNIST.npy", (8, 4, 1))):
        assert data.known_spec(str(tmp_path / path)) is None
        assert data.open_splits(str(tmp_path / path), "nowhere").spec.shape == shape


def test_names_that_only_begin_like_one(tmp_path):
    """The original takes any name that contains CIFAR10 for it in training, and refuses it when it samples."""
    assert data.known_spec("CIFAR10_x") is None
    with pytest.raises(UnknownDatasetError, match="no data set named 'CIFAR10_x'"):
        data.open_splits("CIFAR10_x", str(tmp_path))


def test_faces_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="CelebA is the images of --data_dir"):
        data.open_splits("celeba", str(tmp_path / "nowhere"))


# Scales ------------------------------------------------------------------------------------------------------


def test_levels_become_the_interval_and_come_back():
    levels = np.arange(256, dtype=np.uint8)
    scaled = data.scaled(levels)
    assert scaled.dtype == tf.float32
    np.testing.assert_allclose(scaled, np.linspace(-1, 1, 256), atol=1e-7)
    np.testing.assert_allclose(data.unscaled(scaled), np.linspace(0, 1, 256), atol=1e-7)
    np.testing.assert_array_equal(data.to_uint8(scaled), levels)


def test_images_get_the_nearest_level():
    np.testing.assert_array_equal(data.to_uint8(tf.constant([-9.0, -1.001, 1.001, 9.0])), [0, 0, 255, 255])
    np.testing.assert_array_equal(data.to_uint8(tf.constant([0.49, 0.51]) / 127.5 - 1), [0, 1])


def test_only_levels_are_scaled():
    with pytest.raises(TypeError, match="expected uint8 images, found float32"):
        data.scaled(tf.zeros([2, 2]))


def test_logits_by_their_definition():
    for value in (-0.9, 0.0, 0.7):
        p = 1e-6 + (1 - 2e-6) * (0.5 * value + 0.5)
        assert float(data.to_logits(tf.constant(value))) == pytest.approx(math.log(p / (1 - p)), abs=1e-5)
    ends = data.to_logits(tf.constant([-1.0, 1.0], tf.float64))
    np.testing.assert_allclose(ends, [math.log(1e-6 / (1 - 1e-6)), -math.log(1e-6 / (1 - 1e-6))])


def test_logits_come_back():
    values = tf.constant(np.random.RandomState(SEED).uniform(-1, 1, (5, 4)))
    np.testing.assert_allclose(data.from_logits(data.to_logits(values)), values, atol=1e-9)


def test_volume_is_the_determinant_of_the_derivative():
    logits = tf.constant(np.random.RandomState(SEED).randn(6))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        images = data.from_logits(logits)
    derivative = tape.gradient(images, logits)
    assert float(data.log_volume(logits)) == pytest.approx(float(np.log(derivative).sum()), rel=1e-9)
