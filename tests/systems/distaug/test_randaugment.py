"""RandAugment: each operation against the arithmetic of its definition, and the policy around them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from tfgen.data.source import ImageSpec
from tfgen.settings import SettingsError
from tfgen.systems.distaug import randaugment
from tfgen.systems.distaug.randaugment import OPERATIONS, RandAugment, RandAugmentDraws, level_argument

HEIGHT, WIDTH = 9, 12  # not square, so that rows and columns cannot be confused
FILL = 128


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    pictures = np.random.RandomState(0).randint(40, 220, size=[3, HEIGHT, WIDTH, 3])
    pictures[1] = 77  # flat: no contrast to stretch
    return pictures.astype(np.uint8)


@pytest.fixture(scope="module")
def policy() -> RandAugment:
    return RandAugment(2, 7, ImageSpec(HEIGHT, WIDTH, 3))


def nearest(images: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """Pixel (x, y) of the result is the input pixel nearest to `matrix` [2, 3] times (x, y, 1)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    source = np.einsum("ij,jhw->ihw", matrix, np.stack([x, y, np.ones_like(x)]).astype(np.float64))
    columns, rows = np.trunc(source + np.copysign(0.5, source)).astype(int)
    inside = (columns >= 0) & (columns < WIDTH) & (rows >= 0) & (rows < HEIGHT)
    picked = images[:, rows.clip(0, HEIGHT - 1), columns.clip(0, WIDTH - 1)]
    return np.where(inside[None, :, :, None], picked, FILL)


def of_batch(images: np.ndarray, value: float) -> tf.Tensor:
    return tf.fill([len(images)], tf.constant(value, tf.float32))


def test_level_arguments():
    table = {
        "Rotate": 9.0,
        "Posterize": 1,
        "Solarize": 76,
        "SolarizeAdd": 33,
        "Color": 0.64,
        "ShearX": 0.09,
        "TranslateY": 15.0,
        "Cutout": 6,
        "Invert": None,
    }
    for operation, expected in table.items():
        assert level_argument(operation, 3) == (None if expected is None else pytest.approx(expected))
    assert level_argument("Cutout", 10, randaugment.Constants(cutout=100)) == 100


def test_invert_and_solarize(images):
    np.testing.assert_array_equal(randaugment.invert(images), 255 - images)
    np.testing.assert_array_equal(randaugment.solarize(images, 100), np.where(images < 100, images, 255 - images))
    added = np.where(images < 128, np.minimum(images.astype(int) + 200, 255), images)
    np.testing.assert_array_equal(randaugment.solarize_add(images, 200), added)


def test_solarize_at_level_10_inverts_everything(images):
    np.testing.assert_array_equal(randaugment.solarize(images, level_argument("Solarize", 10)), 255 - images)


def test_posterize(images):
    np.testing.assert_array_equal(randaugment.posterize(images, 3), images & 0b11100000)
    np.testing.assert_array_equal(randaugment.posterize(images, 8), images)
    np.testing.assert_array_equal(randaugment.posterize(images, 0), randaugment.posterize(images, 1))


def test_blend_truncates_and_clips():
    low, high = np.full([1, 2, 2, 3], 10, np.uint8), np.full([1, 2, 2, 3], 201, np.uint8)
    values = [int(randaugment.blend(low, high, factor)[0, 0, 0, 0]) for factor in (0.0, 0.5, 1.0, 1.9, -0.5)]
    assert values == [10, 105, 201, 255, 0]


@pytest.mark.parametrize(("side", "grey"), [(8, 0), (32, 4), (64, 16), (300, 255)])
def test_contrast_blends_with_the_pixel_count(side, grey):
    image = np.full([1, side, side, 3], 90, np.uint8)
    assert np.unique(randaugment.contrast(tf.constant(image), 0.0)) == [grey]


def test_colour_and_brightness(images):
    grey = (255.5 * (images / 255.0 @ [0.2989, 0.5870, 0.1140])).astype(np.uint8)[..., None]
    np.testing.assert_array_equal(randaugment.color(images, 0.0), np.repeat(grey, 3, axis=-1))
    np.testing.assert_array_equal(randaugment.brightness(images, 0.5), images // 2)


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (2, 5)])
def test_sharpness_smooths_the_interior_only(shape):
    image = np.random.RandomState(1).randint(256, size=[1, *shape, 3]).astype(np.uint8)
    smooth = randaugment.sharpness(tf.constant(image), 0.0).numpy()
    expected = image.copy()
    for row in range(1, shape[0] - 1):
        for column in range(1, shape[1] - 1):
            window = image[0, row - 1 : row + 2, column - 1 : column + 2].astype(np.int64)
            expected[0, row, column] = (window.sum(axis=(0, 1)) + 4 * window[1, 1]) // 13
    # A float convolution may come out just below a whole number.
    assert np.abs(smooth.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(smooth[:, 0], image[:, 0])
    np.testing.assert_array_equal(smooth[:, :, -1], image[:, :, -1])


def test_auto_contrast_stretches_each_channel(images):
    result = randaugment.auto_contrast(images).numpy()
    for i in (0, 2):
        assert (result[i].min(axis=(0, 1)) == 0).all()
        assert (result[i].max(axis=(0, 1)) >= 254).all()
    np.testing.assert_array_equal(result[1], images[1])


def test_equalize_follows_the_histogram():
    # At least 255 pixels beside the brightest, or there is nothing to spread over 255 levels: the last two images.
    pictures = np.random.RandomState(2).randint(100, 140, size=[4, 32, 32, 3]).astype(np.uint8)
    pictures[2] = 77
    pictures[3, 7:] = 200
    result = randaugment.equalize(pictures).numpy()
    for i, channel in itertools.product(range(4), range(3)):
        values = pictures[i, :, :, channel]
        counts = np.bincount(values.ravel(), minlength=256)
        step = (counts.sum() - counts[values.max()]) // 255
        below = np.concatenate([[0], np.cumsum(counts)[:-1]])
        table = np.arange(256) if step == 0 else np.clip((below + step // 2) // step, 0, 255)
        np.testing.assert_array_equal(result[i, :, :, channel], table[values])
    assert result[0].min() == 0
    assert result[0].max() > 240
    np.testing.assert_array_equal(result[2:], pictures[2:])


def test_shears_and_translations(images):
    for slope in (0.23, -0.23):
        sheared = randaugment.shear_x(images, of_batch(images, slope), FILL)
        np.testing.assert_array_equal(sheared, nearest(images, [[1, slope, 0], [0, 1, 0]]))
        sheared = randaugment.shear_y(images, of_batch(images, slope), FILL)
        np.testing.assert_array_equal(sheared, nearest(images, [[1, 0, 0], [slope, 1, 0]]))
    for pixels in (3, -2, 50):
        moved = randaugment.translate_x(images, of_batch(images, pixels), FILL)
        np.testing.assert_array_equal(moved, nearest(images, [[1, 0, pixels], [0, 1, 0]]))
        moved = randaugment.translate_y(images, of_batch(images, pixels), FILL)
        np.testing.assert_array_equal(moved, nearest(images, [[1, 0, 0], [0, 1, pixels]]))


def test_rotation_is_about_the_centre(images):
    x, y = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    for degrees in (17.0, -29.0):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        expected = nearest(images, [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])
        np.testing.assert_array_equal(randaugment.rotate(images, of_batch(images, degrees), FILL), expected)


def test_cutout_fills_a_clipped_square(images):
    centres = np.array([[4, 6], [0, 0], [8, 11]], np.int32)
    result = randaugment.cutout(tf.constant(images), 2, tf.constant(centres), FILL).numpy()
    expected = images.copy()
    expected[0, 2:6, 4:8] = FILL
    expected[1, 0:2, 0:2] = FILL
    expected[2, 6:9, 9:12] = FILL
    np.testing.assert_array_equal(result, expected)


# The policy ---------------------------------------------------------------------------------------------


def test_draws_cover_all_choices(policy):
    draws = policy.draw(np.random.RandomState(3), 8000)
    assert [array.shape for array in draws] == [(8000, 2), (8000, 2), (8000, 2, 2)]
    share = np.bincount(draws.operation.ravel(), minlength=16) / draws.operation.size
    np.testing.assert_allclose(share, np.full(16, 1 / 16), atol=0.01)
    assert set(np.unique(draws.sign)) == {-1.0, 1.0}
    assert draws.sign.mean() == pytest.approx(0.0, abs=0.03)
    assert set(np.unique(draws.centre[..., 0])) == set(range(HEIGHT))
    assert set(np.unique(draws.centre[..., 1])) == set(range(WIDTH))


def test_draws_are_a_function_of_the_generator(policy):
    first, second = (policy.draw(np.random.RandomState(4), 6) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_batch_equals_its_images_one_by_one(policy):
    count = 40
    batch = np.random.RandomState(5).randint(256, size=[count, HEIGHT, WIDTH, 3]).astype(np.uint8)
    draws = policy.draw(np.random.RandomState(6), count)
    assert len(np.unique(draws.operation)) == len(OPERATIONS)
    together = policy.apply(batch, draws)
    for i in range(count):
        one = draws.rows(lambda array, i=i: array[i : i + 1])
        np.testing.assert_array_equal(policy.apply(batch[i : i + 1], one)[0], together[i])


def test_operations_follow_each_other_in_the_order_drawn(policy, images):
    names = ["TranslateX", "Invert"]
    draws = RandAugmentDraws(
        operation=np.tile(np.array([OPERATIONS.index(name) for name in names], np.int32), [3, 1]),
        sign=np.full([3, 2], -1.0, np.float32),
        centre=np.zeros([3, 2, 2], np.int32),
    )
    pixels = -level_argument("TranslateX", policy.m)
    moved = randaugment.translate_x(images, of_batch(images, pixels), FILL)
    np.testing.assert_array_equal(policy.apply(images, draws), 255 - moved.numpy())


def test_only_wanted_images_change(policy, images):
    original = images.copy()
    draws = RandAugmentDraws(
        operation=np.full([3, 2], OPERATIONS.index("Brightness"), np.int32),
        sign=np.ones([3, 2], np.float32),
        centre=np.zeros([3, 2, 2], np.int32),
    )
    result = policy.apply(images, draws, where=np.array([False, True, False]))
    np.testing.assert_array_equal(images, original)
    np.testing.assert_array_equal(result[[0, 2]], images[[0, 2]])
    assert (result[1] > images[1]).all()
    np.testing.assert_array_equal(policy.apply(images, draws, where=np.zeros(3, bool)), images)


def test_the_upper_half_of_the_draw_is_positive(policy):
    class Half(np.random.RandomState):
        def uniform(self, size=None):
            return np.broadcast_to([np.nextafter(0.5, 0), 0.5], size)

    np.testing.assert_array_equal(policy.draw(Half(0), 3).sign, [[-1.0, 1.0]] * 3)


def test_grey_images_are_refused():
    with pytest.raises(SettingsError, match="1 channel"):
        RandAugment(1, 2, ImageSpec(8, 8, 1))


def test_unknown_operations_and_levels_are_refused():
    with pytest.raises(ValueError, match="Rotate"):
        level_argument("Spin", 3)
    with pytest.raises(ValueError, match="0 to 10"):
        level_argument("Rotate", 11)
