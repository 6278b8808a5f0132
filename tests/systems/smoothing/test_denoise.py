from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.likelihood.test_logistic_mixture import draw_parameters
from tests.seeds import SEED
from tfgen.likelihood.continuous_mixture import log_density
from tfgen.systems.smoothing.denoise import denoise

NOISE = 0.4
SHAPE = (1, 2, 3, 3)


def smoothed() -> tf.Tensor:
    return tf.constant(np.random.RandomState(SEED).uniform(-1, 1, SHAPE))


def network(images: tf.Tensor) -> tf.Tensor:
    """Parameters that depend on the pixel to the left: [B, H, W, 20]."""
    weights = draw_parameters((3,), 2, spread=0.5)
    left = tf.pad(images[:, :, :-1], [[0, 0], [0, 0], [1, 0], [0, 0]])
    return tf.tensordot(left, tf.constant(weights), 1)


def numeric_score(log_density_of) -> np.ndarray:
    """Gradient of the log-density [B, H, W] of images, summed over pixels, by differences of entry after entry."""
    size = np.prod(SHAPE)
    steps = 1e-6 * np.eye(size).reshape(size, *SHAPE[1:])  # an image each
    rise = log_density_of(smoothed() + steps) - log_density_of(smoothed() - steps)
    return (np.sum(rise, axis=(1, 2)) / 2e-6).reshape(SHAPE)


@pytest.mark.parametrize("through_network", [False, True])
def test_it_steps_along_the_gradient(through_network):
    constant = tf.repeat(network(smoothed()), np.prod(SHAPE), axis=0)

    def log_density_of(images):
        return log_density(network(images) if through_network else constant, images)

    found = denoise(network, smoothed(), NOISE, through_network)
    expected = smoothed() + NOISE**2 * numeric_score(log_density_of)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_the_two_gradients_differ():
    """The pixel in the last column has no other to its right: there they are equal."""
    direct, full = (denoise(network, smoothed(), NOISE, through) for through in (False, True))
    np.testing.assert_array_equal(direct[:, :, -1], full[:, :, -1])
    assert np.abs(direct - full)[:, :, :-1].max() > 1e-3


def test_one_logistic():
    """Of scale t around 0: the score at x is -tanh(x / 2 t) / t."""
    scale = 0.2
    images = tf.constant([[[[0.05]]]])
    found = denoise(lambda x: tf.constant([[[[0.0, 0.0, np.log(scale)]]]], tf.float32), images, NOISE, False)
    assert float(found[0, 0, 0, 0]) == pytest.approx(0.05 - NOISE**2 * np.tanh(0.05 / 0.4) / scale, abs=1e-6)


def test_in_a_graph():
    compiled = tf.function(lambda images: denoise(network, images, NOISE, True))
    np.testing.assert_allclose(compiled(smoothed()), denoise(network, smoothed(), NOISE, True), rtol=1e-9)
