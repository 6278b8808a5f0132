from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.likelihood import gaussian


def kl(*arguments: float) -> float:
    return float(gaussian.kl_divergence(*(tf.constant(argument, tf.float32) for argument in arguments)))


@pytest.mark.parametrize("case", [(0.3, -0.5, -0.2, 0.4), (1.0, 0.7, -1.0, -0.1), (0.0, 0.0, 2.0, 0.0)])
def test_the_divergence_is_the_integral(case):
    mean_q, log_std_q, mean_p, log_std_p = case
    x = np.linspace(mean_q - 12 * math.exp(log_std_q), mean_q + 12 * math.exp(log_std_q), 200_001)

    def log_density(mean: float, log_std: float) -> np.ndarray:
        return -0.5 * ((x - mean) / math.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)

    q, p = log_density(mean_q, log_std_q), log_density(mean_p, log_std_p)
    assert kl(*case) == pytest.approx(np.trapz(np.exp(q) * (q - p), x), rel=1e-5)


def test_a_distribution_does_not_diverge_from_itself():
    assert kl(0.7, -1.2, 0.7, -1.2) == pytest.approx(0.0, abs=1e-6)


def test_shapes_broadcast():
    shared = tf.zeros([1, 3])
    assert gaussian.kl_divergence(tf.ones([5, 3]), shared, shared, shared).shape == [5, 3]


def test_nothing_is_clamped():
    assert kl(1.0, 0.0, 0.0, -60.0) == math.inf
    assert math.isnan(kl(0.0, -60.0, 0.0, -60.0))


def test_draws_have_the_mean_and_the_spread():
    noise = np.random.RandomState(SEED).randn(20_000).astype(np.float32)
    drawn = gaussian.draw(tf.constant(3.0), tf.constant(math.log(0.5)), noise)
    np.testing.assert_allclose(drawn, 3.0 + 0.5 * noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [(0.3, -0.5, -0.2, 0.4), (1.0, 0.7, -1.0, -0.1), (0.0, 0.0, 2.0, 0.0)])
def test_log_variances_give_the_same_divergence(case):
    mean_q, log_std_q, mean_p, log_std_p = (tf.constant(value) for value in case)
    found = gaussian.kl_divergence_of_log_variances(mean_q, 2 * log_std_q, mean_p, 2 * log_std_p)
    assert float(found) == pytest.approx(kl(*case), rel=1e-5)


def test_log_variances_beyond_the_range_of_variances():
    """exp(-120) is 0 in float32; only the ratio of the variances and 1 / variance are formed."""
    found = gaussian.kl_divergence_of_log_variances(*map(tf.constant, (1.0, -120.0, 1.0, -80.0)))
    assert float(found) == pytest.approx(0.5 * (-1 + 40), rel=1e-5)
