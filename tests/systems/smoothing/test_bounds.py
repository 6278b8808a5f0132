"""Bounds, on Gaussian images, of which all terms are known: there each draw alone gives ln p(x)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.seeds import SEED
from tfgen.likelihood.bits import bits_per_dim
from tfgen.systems.smoothing import bounds

NOISE, DIMS, IMAGES = 0.3, 6, 2000


def log_normal(x: np.ndarray, mean: np.ndarray | float, variance: float) -> np.ndarray:
    """Of whole images [B, D]: [B]."""
    return -0.5 * np.sum((x - mean) ** 2 / variance + math.log(2 * math.pi * variance), axis=-1)


def terms(random: np.random.RandomState, x: np.ndarray, shift: float = 0.0):
    """ln p(x | s), ln p(s) and ln q(s | x) of one draw of s, where x is standard normal; `shift` spoils stage 2."""
    s = x + NOISE * random.randn(*x.shape)
    total = 1 + NOISE**2
    return log_normal(x, s / total + shift, NOISE**2 / total), log_normal(s, 0, total), log_normal(s, x, NOISE**2)


def test_perfect_stages_give_the_likelihood_with_each_draw():
    random = np.random.RandomState(SEED)
    x = random.randn(IMAGES, DIMS)
    draws = [terms(random, x) for _ in range(3)]
    weights = [given + prior - q for given, prior, q in draws]
    np.testing.assert_allclose(bounds.importance_weighted(weights), -log_normal(x, 0, 1), rtol=1e-9)


def test_the_mean_of_ln_q_is_minus_the_entropy():
    random = np.random.RandomState(SEED)
    x = random.randn(IMAGES, DIMS)
    _, _, q = terms(random, x)
    spread = math.sqrt(DIMS / 2 / IMAGES)  # standard deviation of the mean of -chi^2 / 2
    assert -q.mean() == pytest.approx(bounds.gaussian_entropy(NOISE, DIMS), abs=5 * spread)


def test_more_draws_come_closer_and_stay_above():
    random = np.random.RandomState(SEED)
    x = random.randn(IMAGES, DIMS)
    exact = -log_normal(x, 0, 1).mean()
    draws = [terms(random, x, shift=0.3) for _ in range(16)]
    weights = [given + prior - q for given, prior, q in draws]
    one, four, sixteen = (bounds.importance_weighted(weights[:count]).mean() for count in (1, 4, 16))
    assert exact < sixteen < four < one
    np.testing.assert_allclose(bounds.importance_weighted(weights[:1]), -weights[0])


def test_weights_of_any_size():
    """Of images the log-weights are thousands; one draw may have none at all."""
    found = bounds.importance_weighted([np.array([-1e4, 9e3]), np.array([-1e4, -math.inf])])
    np.testing.assert_allclose(found, [1e4, -9e3 + math.log(2)])
    with pytest.raises(ValueError, match="at least one draw, found none"):
        bounds.importance_weighted([])


def test_the_unit_of_a_level():
    """A uniform density on [-1, 1] is one on 255 units of a level."""
    density = bits_per_dim(math.log(2))
    assert bounds.in_levels(density) == pytest.approx(math.log2(255))
