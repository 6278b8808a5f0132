"""Incremental sampling against the network on the whole image, once for each pixel."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.smoothing.small import disturbed
from tfgen.likelihood import mixture_sampling
from tfgen.systems.smoothing import incremental, naive, streams
from tfgen.systems.smoothing.folded_weights import fold
from tfgen.systems.smoothing.incremental import IncrementalSampler
from tfgen.systems.smoothing.pixelcnn import PixelCNN

FILTERS, MIXTURES = 6, 2
TOLERANCE = 2e-5


def network(channels: int = 3, blocks: int = 1) -> PixelCNN:
    built = PixelCNN(channels, FILTERS, blocks, MIXTURES, seed=3)
    disturbed(built)
    return built


def draw(parameters, row, column, uniforms):
    mixture, logistic = tf.split(uniforms[:, row, column], [MIXTURES, uniforms.shape[-1] - MIXTURES], axis=-1)
    return mixture_sampling.gumbel(parameters, mixture, logistic)


def uniforms(batch: int, height: int, width: int, channels: int = 3) -> tf.Tensor:
    drawn = np.random.RandomState(1).uniform(1e-5, 1 - 1e-5, [batch, height, width, MIXTURES + channels])
    return tf.constant(drawn, tf.float32)


def rows_above(batch: int, height: int, width: int, channels: int = 3) -> tf.Tensor:
    return tf.constant(np.random.RandomState(2).uniform(-1, 1, [batch, height, width, channels]), tf.float32)


HEIGHT, WIDTH, BATCH = 8, 12, 2


@pytest.fixture(scope="module")
def sampler():
    """One sampler, called with one size: compiling it takes seconds. Tests leave its weights as they are."""
    return IncrementalSampler(network())


@pytest.fixture(scope="module")
def drawn(sampler):
    """Numbers, and the images that the sampler draws from them."""
    numbers = uniforms(BATCH, HEIGHT, WIDTH)
    return numbers, sampler.sample(HEIGHT, WIDTH, BATCH, draw, (numbers,))


def test_the_same_images_as_of_whole_passes_of_each_image_alone(sampler, drawn):
    numbers, found = drawn
    alone = [naive.sample(sampler.network, HEIGHT, WIDTH, 1, draw, (one[tf.newaxis],)) for one in tf.unstack(numbers)]
    assert np.std(alone) > 0.1
    np.testing.assert_allclose(found, np.concatenate(alone), atol=TOLERANCE)


def test_the_same_images_of_one_colour_below_given_rows_and_of_more_blocks():
    ours = network(channels=1, blocks=2)
    numbers, above = (uniforms(1, 4, 8, channels=1),), rows_above(1, 4, 8, channels=1)
    expected = naive.sample(ours, 4, 8, 1, draw, numbers, above)
    found = IncrementalSampler(ours).sample(4, 8, 1, draw, numbers, above)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_weights_are_read_at_each_call(sampler, drawn):
    numbers, before = drawn
    bias = sampler.network.nin_out.bias
    bias.assign_add(tf.ones_like(bias))
    try:
        changed = sampler.sample(HEIGHT, WIDTH, BATCH, draw, (numbers,))
        expected = naive.sample(sampler.network, HEIGHT, WIDTH, BATCH, draw, (numbers,))
    finally:
        bias.assign_sub(tf.ones_like(bias))
    assert np.abs(changed - before).max() > 0.1
    np.testing.assert_allclose(changed, expected, atol=TOLERANCE)


def test_as_operations_of_a_graph_with_any_batch(sampler, drawn):
    specs = [tf.TensorSpec([None, HEIGHT, WIDTH, MIXTURES + 3]), tf.TensorSpec([None, 4, WIDTH, 3])]

    @tf.function(input_signature=specs, autograph=False)
    def function(numbers, above):
        return sampler.sample_in_graph(HEIGHT, WIDTH, tf.shape(numbers)[0], draw, (numbers,), above)

    numbers, above = drawn[0], rows_above(BATCH, 4, WIDTH)
    expected = sampler.sample(HEIGHT, WIDTH, BATCH, draw, (numbers,), above)
    assert np.abs(expected - drawn[1]).max() > 0.1
    np.testing.assert_allclose(function(numbers, above), expected, atol=TOLERANCE)
    np.testing.assert_allclose(function(numbers[:1], above[:1]), expected[:1], atol=TOLERANCE)


def test_progress_shows_rows_in_their_order(sampler, drawn):
    reports = []
    images = sampler.sample(
        HEIGHT,
        WIDTH,
        BATCH,
        draw,
        drawn[:1],
        progress=lambda *report: reports.append((*report[:2], report[2].copy())),
    )
    assert [report[:2] for report in reports] == [(4, HEIGHT), (8, HEIGHT)]
    np.testing.assert_array_equal(reports[0][2][:, :4], images[:, :4])
    assert not reports[0][2][:, 4:].any()
    np.testing.assert_array_equal(reports[1][2], images)


def test_every_level_is_computed_where_it_is_due(monkeypatch):
    """Four rows take the residual blocks of one pass over them, at as many positions."""
    ours = network()
    width, batch, positions = 8, 2, []
    block = streams.residual_block

    def counting(x, *arguments):
        positions.append(x.shape[0] if x.shape.rank == 3 else 1)  # a row, or a pixel
        return block(x, *arguments)

    monkeypatch.setattr(streams, "residual_block", counting)
    monkeypatch.setattr(streams, "_row_block", streams._row_block.__wrapped__)
    state = incremental.initial_state(ours, width, batch, tf.float32)
    pixel = functools.partial(incremental.run_pixel, draw)
    incremental.drawn_rows(fold(ours), pixel, (uniforms(batch, 4, width),), state, tf.constant(0))
    blocks = (2 * ours.blocks + 1, 2 * ours.blocks + 1, 2 * ours.blocks)
    at_each = [4 * width // 4**level for level in range(3)]
    assert sum(positions) == 2 * np.dot(blocks, at_each)  # of both streams


@pytest.mark.parametrize(
    ("height", "width", "above", "message"),
    [
        (6, 8, None, "multiples of 4, found 6 x 8"),
        (8, 10, None, "multiples of 4, found 8 x 10"),
        (8, 8, [1, 6, 8, 3], r"found \[1, 6, 8, 3\]"),
        (8, 8, [1, 8, 4, 3], r"found \[1, 8, 4, 3\]"),
        (8, 8, [2, 8, 8, 3], r"\[1, a multiple of 4, 8, 3\], found \[2, 8, 8, 3\]"),
    ],
)
def test_what_does_not_fit(sampler, height, width, above, message):
    given = None if above is None else tf.zeros(above)
    with pytest.raises(ValueError, match=message):
        sampler.sample(height, width, 1, draw, (uniforms(1, 8, 8),), given)
