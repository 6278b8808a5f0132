from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.likelihood.test_logistic_mixture import draw_parameters, value_and_gradient
from tests.seeds import SEED
from tfgen.likelihood.continuous_mixture import log_density, logistic_log_density
from tfgen.likelihood.logistic_mixture import Buckets, log_prob


def test_the_logistic_density_by_its_definition():
    distance, scale = 0.3, 0.2
    power = math.exp(-distance / scale)
    expected = math.log(power / (scale * (1 + power) ** 2))
    found = logistic_log_density(tf.constant(distance, tf.float64), tf.constant(math.log(scale), tf.float64))
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_limit_of_narrow_buckets(channels):
    """ln(mass / width) of buckets 2e-6 wide. They are nowhere open, as targets of noisy images may be outside [-1, 1].

    So the order of the parameters and of the colours are those of the discretised likelihood.
    """
    narrow = Buckets(1e-6, open_below=-math.inf, open_above=math.inf, exact=True)
    parameters = tf.constant(draw_parameters((200,), 4, channels, spread=0.5))
    target = tf.constant(np.random.RandomState(SEED).uniform(-1.5, 1.5, (200, channels)))
    expected, expected_gradient = value_and_gradient(lambda *both: log_prob(*both, narrow), parameters, target)
    value, gradient = value_and_gradient(log_density, parameters, target)
    np.testing.assert_allclose(value, expected - channels * math.log(2e-6), atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4)


def test_it_integrates_to_one():
    grid = np.linspace(-15, 15, 20_001)
    parameters = tf.constant(np.repeat(draw_parameters((1,), 3, 1, spread=0.3), len(grid), axis=0))
    density = np.exp(log_density(parameters, tf.constant(grid[:, np.newaxis])))
    assert np.trapz(density, grid) == pytest.approx(1, abs=1e-4)


def test_derivative_by_the_target_goes_through_the_means_of_later_colours():
    """Finite differences in float64."""
    parameters = tf.constant(draw_parameters((50,), 3))
    target = tf.constant(np.random.RandomState(SEED).uniform(-1, 1, (50, 3)))
    _, gradient = value_and_gradient(lambda x: log_density(parameters, x), target)
    for colour, step in enumerate(np.eye(3) * 1e-6):
        slope = (log_density(parameters, target + step) - log_density(parameters, target - step)) / 2e-6
        np.testing.assert_allclose(gradient[:, colour], slope, rtol=1e-4, atol=1e-5)


def test_the_floor_of_the_log_scale_learns_and_what_is_below_does_not():
    for log_scale, learns in ((-7.0, True), (-7.001, False)):
        _, gradient = value_and_gradient(log_density, tf.constant([[0.0, 0.2, log_scale]]), tf.constant([[0.3]]))
        assert (gradient[0, 2] != 0) == learns


def test_extremes_stay_finite():
    """The value at 2 from the mean of the narrowest component is 7 - 2 e^7."""
    target = tf.constant([[-30.0], [-1.0], [0.0], [1.0], [30.0]])
    for mean in (-1e3, -1.0, 1e3):
        for log_scale in (-1e4, -7.0, 0.0, 60.0):
            parameters = tf.constant([[60.0, -60.0, mean, mean, log_scale, log_scale]]) * tf.ones([5, 1])
            value, gradient = value_and_gradient(log_density, parameters, target)
            assert np.isfinite(value).all()
            assert np.isfinite(gradient).all()
    value = log_density(tf.constant([[0.0, -1.0, -9.0]]), tf.constant([[1.0]]))
    np.testing.assert_allclose(value, [7 - 2 * math.exp(7)], rtol=1e-6)


def test_what_is_no_number_stays_none():
    parameters = tf.constant(draw_parameters((2,), 3).astype(np.float32))
    target = tf.constant([[0.1, math.nan, 0.2], [0.1, 0.2, 0.3]])
    np.testing.assert_array_equal(np.isnan(log_density(parameters, target)), [True, False])


def test_what_does_not_fit():
    with pytest.raises(ValueError, match=r"3 colour\(s\), found \[2, 21\]"):
        log_density(tf.zeros([2, 21]), tf.zeros([2, 3]))
