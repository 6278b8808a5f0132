"""The Fréchet distance against cases with a closed form."""

from __future__ import annotations

import numpy as np
import pytest

from tfgen.metrics.frechet import frechet_distance


def whitened(count: int, size: int, seed: int) -> np.ndarray:
    """[N, D] with mean 0 and covariance I, exactly."""
    x = np.random.RandomState(seed).normal(size=[count, size])
    x -= x.mean(axis=0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_of_a_set_to_itself_is_zero():
    x = np.random.RandomState(0).normal(size=[50, 7])
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)


def test_independent_entries():
    """|m|^2 + sum of (s1 - s2)^2."""
    scales, other, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.0]), np.array([0.5, -1.0, 2.0])
    first, second = whitened(200, 3, 1) * scales, whitened(90, 3, 2) * other + shift
    expected = np.sum(shift**2) + np.sum((scales - other) ** 2)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_covariances_that_commute_in_another_basis():
    rotation, _ = np.linalg.qr(np.random.RandomState(3).normal(size=[4, 4]))
    scales, other = np.array([1.0, 2.0, 0.5, 4.0]), np.array([2.0, 1.0, 1.5, 3.0])
    first, second = (whitened(300, 4, seed) * s @ rotation.T for seed, s in ((4, scales), (5, other)))
    assert frechet_distance(first, second) == pytest.approx(np.sum((scales - other) ** 2), rel=1e-8)


def test_it_is_symmetric_and_a_distance_in_general():
    generator = np.random.RandomState(6)
    first, second = generator.normal(size=[40, 5]) @ generator.normal(size=[5, 5]), generator.normal(size=[30, 5])
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)
    # The product of the covariances, by the definition: its eigenvalues are real though it is not symmetric.
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    cross = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real).sum()
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + sum(map(np.trace, covariances)) - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros([1, 3]), np.zeros([4, 3]), r"N of at least 2, found shape \[1, 3\]"),
        (np.zeros([4, 3]), np.zeros([4, 2]), "same length, found 3 and 2 entries"),
        (np.full([4, 3], np.nan), np.zeros([4, 3]), "not all finite"),
        (np.zeros([4, 3, 2]), np.zeros([4, 3]), r"found shape \[4, 3, 2\]"),
    ],
)
def test_bad_input(first, second, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(first, second)
