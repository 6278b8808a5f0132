"""Spectral normalisation against the singular values of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfgen.systems.ebm import spectral


def weight_and_vector(scale: float = 1.0) -> tuple[tf.Tensor, tf.Tensor]:
    generator = np.random.RandomState(0)
    weight = scale * generator.normal(size=[3, 3, 2, 5])
    return tf.constant(weight, tf.float32), tf.constant(generator.normal(size=[1, 5]), tf.float32)


def norm_of(weight) -> float:
    return float(np.linalg.svd(np.reshape(weight, [-1, weight.shape[-1]]).astype(np.float64), compute_uv=False)[0])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_many_iterations_give_the_target_norm(scale):
    value, u = spectral.normalized(*weight_and_vector(scale), iterations=100, target=0.5)
    assert norm_of(value.numpy()) == pytest.approx(0.5, rel=1e-5)
    assert np.linalg.norm(u) == pytest.approx(1.0, rel=1e-6)


def test_one_iteration_at_a_time_comes_to_the_same():
    weight, u = weight_and_vector()
    for _ in range(100):
        value, u = spectral.normalized(weight, u)
    assert norm_of(value.numpy()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_weights_that_begin_as_zero_are_limited_only(scale):
    weight, u = weight_and_vector(scale)
    value, _ = spectral.normalized(weight, u, iterations=100, zero=True)
    assert norm_of(value.numpy()) == pytest.approx(min(norm_of(weight.numpy()), 1.0), rel=1e-5)


def test_the_vector_of_tiny_weights_vanishes_and_the_weights_stay():
    weight, u = weight_and_vector(1e-10)
    value, u = spectral.normalized(weight, u, zero=True)
    np.testing.assert_allclose(value, weight, rtol=1e-5)
    assert 0 < np.linalg.norm(u) < 1e-6


def test_gradient_takes_the_vectors_for_constants():
    """That of W / (v W u), as finite differences with fixed vectors have it."""
    weight, u = weight_and_vector()
    weights = np.random.RandomState(1).normal(size=weight.shape).astype(np.float32)
    with tf.GradientTape() as tape:
        tape.watch(weight)
        value, new = spectral.normalized(weight, u)
        product = tf.reduce_sum(value * weights)
    gradient = tape.gradient(product, weight).numpy()
    matrix = weight.numpy().reshape(-1, 5).astype(np.float64)
    v, new = spectral.power_iteration(tf.constant(matrix, tf.float32), u, 1)
    v, new = np.asarray(v, np.float64), np.asarray(new, np.float64)

    def at(step: float, index: tuple[int, int]) -> float:
        moved = matrix.copy()
        moved[index] += step
        return float((moved / (v @ moved @ new.T) * weights.reshape(-1, 5)).sum())

    for index in ((0, 0), (7, 3), (17, 4)):
        expected = (at(1e-5, index) - at(-1e-5, index)) / 2e-5
        assert gradient.reshape(-1, 5)[index] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_no_iteration_is_refused():
    with pytest.raises(ValueError, match="0 power iterations, expected 1 or more"):
        spectral.normalized(*weight_and_vector(), iterations=0)
