"""Other images: noise, interpolations, and data sets brought to the size and range of a run."""

from __future__ import annotations

import numpy as np
import pytest

from tests.seeds import SEED
from tests.systems.ebm.tasks import small
from tfgen.data.source import ImageSpec
from tfgen.randomness import Key
from tfgen.systems.ebm.tasks import other_images

KEY = Key.create(SEED, "other images")
COLOUR = ImageSpec(4, 4, 3)


def test_interpolations():
    found = other_images.interpolated(np.array([[0.0], [1.0], [0.25]], np.float32))
    np.testing.assert_array_equal(found, [[0.5], [0.625], [0.125]])


def test_noise():
    random, uniform, constant = (other_images.noise(kind, KEY, 400, COLOUR) for kind in other_images.NOISES)
    assert np.mean(random) == pytest.approx(0.5, abs=0.02)
    assert np.std(random) == pytest.approx(0.5, abs=0.02)
    assert random.min() < 0 < 1 < random.max()
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    np.testing.assert_array_equal(constant, np.broadcast_to(constant[:, :1, :1], constant.shape))
    assert np.std(constant[:, 0, 0], axis=0) == pytest.approx([12**-0.5] * 3, abs=0.03)
    for kind, whole in (("random", random), ("uniform", uniform), ("constant", constant)):
        np.testing.assert_array_equal(other_images.noise(kind, KEY.skip(3), 2, COLOUR), whole[3:5])
    with pytest.raises(ValueError, match="noise of kind 'pink', expected one of random, uniform, constant"):
        other_images.noise("pink", KEY, 1, COLOUR)


def test_images_of_the_right_size_stay_as_they_are():
    images = np.random.RandomState(0).uniform(size=[2, 4, 4, 3]).astype(np.float32)
    np.testing.assert_array_equal(other_images.fitted(images, COLOUR), images)


def test_the_middle_of_larger_images_is_resized_by_area():
    images = np.random.RandomState(0).uniform(size=[2, 12, 8, 3]).astype(np.float32)
    expected = images[:, 2:10].reshape(2, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(other_images.fitted(images, COLOUR), expected, rtol=1e-5)


def test_smaller_images_grow():
    images = np.array([[0.0, 1.0], [0.5, 0.25]], np.float32)[None, :, :, None]
    expected = images.repeat(2, axis=1).repeat(2, axis=2).repeat(3, axis=3)
    np.testing.assert_allclose(other_images.fitted(images, COLOUR), expected)


def test_colours_become_grey():
    images = np.random.RandomState(0).uniform(size=[2, 4, 4, 3]).astype(np.float32)
    found = other_images.fitted(images, ImageSpec(4, 4, 1))
    np.testing.assert_allclose(found, images.mean(axis=3, keepdims=True), rtol=1e-6)


def test_scaling_of_the_original():
    """What is centred has noise and no factor 255 / 256; the run's own have neither noise nor 255."""
    images = np.full([3, 4, 4, 3], 255, np.uint8)
    original = other_images.scaled(images, COLOUR, "levels", "centred", KEY)
    assert np.abs(original - 1).max() <= 1 / 512
    assert np.std(original) == pytest.approx(1 / 256 / 12**0.5, rel=0.3)
    np.testing.assert_array_equal(
        other_images.scaled(images, COLOUR, "levels", "centred", KEY.skip(1))[:2], original[1:]
    )
    np.testing.assert_array_equal(other_images.scaled(images, COLOUR, "levels", "levels", KEY), 255 / 256)


@pytest.mark.parametrize(
    ("own", "theirs", "expected"),
    [
        ("levels", "centred", 51 / 256),
        ("levels", "levels", 51 / 256),
        ("centred", "levels", 51 / 255),
        ("binary", "levels", 51 / 255),
    ],
)
def test_scaling_as_the_run_has_it(own, theirs, expected):
    images = np.full([1, 4, 4, 3], 51, np.uint8)
    np.testing.assert_allclose(other_images.scaled(images, COLOUR, own, theirs, None), expected, rtol=1e-6)


def test_batches_are_numbered():
    source = small.source(7)
    order = np.array([6, 0, 1, 2, 3])
    found = list(other_images.batches(source, 2, order, lambda images, first: (images, first)))
    assert [first for _, first in found] == [0, 2]
    np.testing.assert_array_equal(found[0][0], source.read(order[:2])["image"])
