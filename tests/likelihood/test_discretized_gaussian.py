from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tfgen.likelihood import discretized_gaussian

LEVELS = np.arange(256) / 127.5 - 1


def normal_cdf(x):
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in np.ravel(x)]).reshape(np.shape(x))


def test_the_distribution_function_to_the_accuracy_it_claims():
    x = np.linspace(-6, 6, 500)
    np.testing.assert_allclose(discretized_gaussian.approximate_normal_cdf(tf.constant(x)), normal_cdf(x), atol=3e-4)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (0.93, 0.2), (-1.5, 0.5), (0.1, 0.004), (3.0, 1.0)])
def test_the_levels_share_a_mass_of_one(mean, std):
    """Each has what the normal distribution has in its interval, the first and the last with their tails."""
    x = tf.constant(LEVELS)
    probabilities = tf.exp(discretized_gaussian.log_prob(x, tf.constant(mean, x.dtype), tf.math.log(x * 0 + std)))
    assert np.sum(probabilities) == pytest.approx(1, abs=1e-9)
    bounds = normal_cdf((np.append(LEVELS - 1 / 255, 1 + 1 / 255) - mean) / std)
    bounds[0], bounds[-1] = 0, 1
    np.testing.assert_allclose(probabilities, np.diff(bounds), atol=6e-4)


def test_float32_has_a_floor_and_no_gradient_there():
    mean = tf.Variable([0.0, 0.0, 0.0])
    log_std = tf.Variable([-5.0, -5.0, -5.0])
    x = tf.constant([-1.0, 0.5, 1.0])
    with tf.GradientTape() as tape:
        log_prob = discretized_gaussian.log_prob(x, mean, log_std)
    np.testing.assert_allclose(log_prob, math.log(1e-12), rtol=1e-5)
    for gradient in tape.gradient(log_prob, [mean, log_std]):
        np.testing.assert_array_equal(gradient, np.zeros(3))


def test_gradients_are_those_of_finite_differences():
    x = tf.constant(LEVELS[[0, 40, 128, 255]])
    mean, log_std = tf.constant([-0.9, -0.6, 0.1, 0.7], x.dtype), tf.constant([-1.0, -2.0, -3.0, -0.5], x.dtype)
    with tf.GradientTape() as tape:
        tape.watch([mean, log_std])
        total = tf.reduce_sum(discretized_gaussian.log_prob(x, mean, log_std))
    by_mean, by_log_std = tape.gradient(total, [mean, log_std])
    step = 1e-6
    for gradient, changed in ((by_mean, lambda h: (mean + h, log_std)), (by_log_std, lambda h: (mean, log_std + h))):
        up, down = (discretized_gaussian.log_prob(x, *changed(h)) for h in (step, -step))
        np.testing.assert_allclose(gradient, (up - down) / (2 * step), rtol=1e-5, atol=1e-6)


def test_the_float32_tail_keeps_the_last_digit_of_the_distribution_function():
    """A mass of 1e-5 is a few hundred units in the last place of a number near 1."""
    x = np.linspace(-4.3, -3.9, 200).astype(np.float32)
    exact = discretized_gaussian.approximate_normal_cdf(tf.constant(x.astype(np.float64)))
    np.testing.assert_allclose(discretized_gaussian.approximate_normal_cdf(tf.constant(x)), exact, rtol=0, atol=4.5e-8)
