"""The network of distribution smoothing: what a pixel depends on, weight normalisation, dropout, size."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_addons as tfa

from tests.systems.smoothing.small import disturbed
from tfgen.randomness import Key
from tfgen.systems.smoothing import pixelcnn
from tfgen.systems.smoothing.config import Config, parameter_count
from tfgen.systems.smoothing.pixelcnn import Convolution, GatedResnet, Initializer, PixelCNN

HEIGHT, WIDTH = 8, 12


@pytest.fixture(scope="module")
def network():
    return disturbed(PixelCNN(channels=3, filters=6, blocks=1, mixtures=2, seed=0))


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).uniform(-1, 1, (count, HEIGHT, WIDTH, 3)).astype(np.float32)


def test_a_pixel_depends_on_all_pixels_before_it_and_on_no_other(network):
    """By the derivative: of the parameters at one place, for every place that is next to a border of a level."""
    x = tf.constant(pictures(1))
    function = tf.function(network)
    for row, column in [(0, 0), (0, 5), (1, 0), (3, 11), (4, 4), (5, 6), (7, 11)]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            score = tf.reduce_sum(function(x)[0, row, column] * np.arange(1.0, 21.0, dtype=np.float32))
        gradient = tape.gradient(score, x)
        seen = np.zeros(HEIGHT * WIDTH, bool) if gradient is None else np.abs(gradient[0].numpy()).sum(-1).ravel() > 0
        place = row * WIDTH + column
        assert not seen[place:].any(), f"({row}, {column}) sees itself or what follows"
        # The receptive field of one block a level covers an image of this size, but for its upper corners.
        near = [index for index in range(place) if abs(index % WIDTH - column) <= 2 and index // WIDTH >= row - 2]
        assert seen[near].all(), f"({row}, {column})"


def test_rows_of_a_batch_do_not_mix(network):
    whole, single = network(pictures(3)), network(pictures(3)[1:2])
    np.testing.assert_allclose(whole[1:2], single, atol=1e-5)


@pytest.mark.parametrize(("size", "right"), [((2, 3), False), ((2, 2), True)])
def test_weight_normalisation_is_that_of_tensorflow_addons(size, right):
    """Its wrapper has the axis of ours; ours has no variables of a data-dependent start."""
    layer = Convolution("layer", size, 5, 7, Initializer(0), right)
    layer.v.assign(layer.v * 1.7)
    layer.g.assign(np.linspace(0.5, 2.0, 7).astype(np.float32))
    plain = tf.keras.layers.Conv2D(7, size, padding="valid")
    wrapped = tfa.layers.WeightNormalization(plain, data_init=False)
    x = tf.constant(np.random.RandomState(0).normal(size=(2, 4, 6, 5)).astype(np.float32))
    pad = [[0, 0], [1, 0], [1, 0 if right else 1], [0, 0]]
    wrapped(tf.pad(x, pad))
    plain.bias.assign(layer.bias)
    wrapped.v.assign(layer.v)
    wrapped.g.assign(layer.g)
    np.testing.assert_allclose(layer(x), wrapped(tf.pad(x, pad)), rtol=1e-5, atol=1e-6)


def test_the_first_weights_are_the_directions():
    layer = Convolution("layer", (2, 3), 4, 6, Initializer(1), right=False)
    np.testing.assert_allclose(layer.kernel, layer.v, rtol=1e-6)
    assert np.abs(layer.v).max() <= 1 / np.sqrt(4 * 6)


def test_shifts_put_zeros_in():
    x = tf.constant(pictures(1))
    down, right = pixelcnn.shifted_down(x), pixelcnn.shifted_right(x)
    np.testing.assert_array_equal(down[:, 1:], x[:, :-1])
    np.testing.assert_array_equal(right[:, :, 1:], x[:, :, :-1])
    assert not np.any(down[:, 0]) and not np.any(right[:, :, 0])  # noqa: PT018


def test_transposed_convolutions_spread_as_the_equations_say():
    generator = np.random.RandomState(0)
    x = generator.normal(size=(1, 2, 3, 2)).astype(np.float32)
    bias = generator.normal(size=4).astype(np.float32)
    for width, function in (
        (3, pixelcnn.down_shifted_transposed),
        (2, pixelcnn.down_right_shifted_transposed),
    ):
        kernel = generator.normal(size=(2, width, 4, 2)).astype(np.float32)
        expected = np.zeros((1, 4, 6, 4)) + bias
        for i, j, p, q in np.ndindex(2, 3, 2, width):
            column = 2 * j + q - (width == 3)
            if column >= 0:
                expected[0, 2 * i + p, column] += kernel[p, q] @ x[0, i, j]
        np.testing.assert_allclose(function(x, kernel, bias), expected, atol=1e-5)


def test_dropout_takes_whole_maps_and_both_signs_on_their_own():
    network = PixelCNN(channels=1, filters=16, blocks=1, mixtures=2, seed=0)
    masks = network.dropout_masks(Key.create(0, "dropout"), 64)
    assert list(masks) == [block.path for block in network.resnets]
    values = np.concatenate([mask.numpy().reshape(64, -1) for mask in masks.values()], axis=1)
    assert set(np.unique(values)) == {0.0, 2.0}
    assert abs(values.mean() - 1) < 0.05
    first = next(iter(masks.values())).numpy().reshape(64, 2, 16)
    both = (first[:, 0] == 0) & (first[:, 1] == 0)  # the maps of +h and -h
    assert 0.2 < both.mean() < 0.3
    again = network.dropout_masks(Key.create(0, "dropout", 10), 4)
    np.testing.assert_array_equal(next(iter(again.values())), first.reshape(64, 1, 1, 32)[10:14])


def test_a_mask_is_applied_before_the_last_convolution():
    block = GatedResnet("block", 4, Initializer(0), right=False, skips=0)
    x = tf.constant(np.random.RandomState(0).normal(size=(2, 4, 4, 4)).astype(np.float32))
    nothing = block(x, mask=tf.zeros([2, 1, 1, 8]))
    values, gates = np.split(block.conv_out.bias.numpy(), 2)
    np.testing.assert_allclose(nothing, x + values / (1 + np.exp(-gates)), atol=1e-6)


def test_the_condition_reaches_every_pixel_below_it(network):
    """Stage 2: the last pixel of the noisy image above, and the first one, change the first pixel below."""
    noisy, clean = pictures(1), pictures(1, seed=1)
    inputs = np.concatenate([noisy, clean], axis=1)
    before = network(inputs, first_row=HEIGHT)
    inputs[0, HEIGHT - 1, WIDTH - 1] += 1
    after = network(inputs, first_row=HEIGHT)
    assert before.shape == (1, HEIGHT, WIDTH, 20)
    assert np.abs(after - before)[0, 0, WIDTH - 1].max() > 0
    np.testing.assert_array_equal(network(inputs)[:, HEIGHT:], after)


@pytest.mark.parametrize(("channels", "filters", "blocks", "mixtures"), [(1, 6, 1, 3), (3, 8, 2, 4)])
def test_parameter_counts(channels, filters, blocks, mixtures):
    network = PixelCNN(channels, filters, blocks, mixtures, seed=0)
    config = Config(nr_filters=filters, nr_resnet=blocks, nr_logistic_mix=mixtures)
    counted = sum(variable.shape.num_elements() for variable in network.trainable_variables)
    assert counted == parameter_count(config, channels)


def test_published_sizes():
    assert parameter_count(Config(), 3) == 53_659_080
    assert parameter_count(Config(nr_filters=40), 1) == 3_369_500
