"""Hamiltonian Monte Carlo of energies whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.ops.philox import Stream, philox_normal, philox_uniform
from tfgen.systems.ebm import hmc

PRECISION = tf.constant([0.5, 1.0, 2.0])
RANDOM = np.random.default_rng(SEED)


def quadratic(x):
    return 0.5 * tf.reduce_sum(PRECISION * x**2, axis=1), PRECISION * x


def normal(*shape: int) -> tf.Tensor:
    return tf.constant(RANDOM.standard_normal(shape).astype(np.float32))


def test_one_leapfrog_by_hand():
    """Two updates of the position for one leapfrog, the momentum's halves at both ends."""
    x, v, step = 1.0, 0.5, 0.1
    end = hmc.trajectory(lambda x: (0.5 * x[:, 0] ** 2, x), tf.constant([[x]]), tf.constant([[v]]), step, 1)
    first = 0.5 * x**2 + 0.5 * v**2
    v -= 0.5 * step * x
    x += step * v
    v -= step * x
    x += step * v
    v -= 0.5 * step * x
    np.testing.assert_allclose([end.position[0, 0], end.momentum[0, 0]], [x, v], rtol=1e-6)
    np.testing.assert_allclose(end.first_energy, [first], rtol=1e-6)
    np.testing.assert_allclose(end.last_energy, [0.5 * x**2 + 0.5 * v**2], rtol=1e-6)


def test_a_trajectory_runs_back():
    x, v = normal(4, 3), normal(4, 3)
    there = hmc.trajectory(quadratic, x, v, 0.2, 7)
    back = hmc.trajectory(quadratic, there.position, -there.momentum, 0.2, 7)
    np.testing.assert_allclose(back.position, x, atol=2e-6)
    np.testing.assert_allclose(back.momentum, -v, atol=2e-6)


def test_energy_is_kept_to_second_order():
    x, v = normal(16, 3), normal(16, 3)
    errors = []
    for steps in (10, 20, 40):
        end = hmc.trajectory(quadratic, x, v, 2.0 / steps, steps - 1)
        errors.append(np.abs(end.last_energy - end.first_energy).max())
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


def test_rejected_samples_stay():
    x, momentum = normal(6, 3), 3 * normal(6, 3)
    uniform = tf.constant([0.0, 0.9999, 0.0, 0.9999, 0.0, 0.9999])
    result = hmc.transition(
        quadratic, x, step_size=1.3, leapfrogs=3, seed=0, step=0, momentum=momentum, uniform=uniform
    )
    end = hmc.trajectory(quadratic, x, momentum, 1.3, 3)
    acceptance = np.minimum(np.exp(end.first_energy - end.last_energy), 1)
    np.testing.assert_allclose(result.acceptance, acceptance, rtol=1e-6)
    np.testing.assert_array_equal(result.accepted, acceptance > uniform.numpy())
    assert 0 < np.sum(result.accepted) < 6
    expected = np.where(result.accepted[:, None], end.position, x)
    np.testing.assert_array_equal(result.position, expected)


def test_what_is_no_number_is_rejected():
    def broken(x):
        return tf.where(x[:, 0] > 0, np.nan, x[:, 0]), tf.zeros_like(x)

    x = tf.constant([[-1.0], [-1.0]])
    momentum = tf.constant([[1.0], [0.1]])
    result = hmc.transition(
        broken, x, step_size=1.0, leapfrogs=1, seed=0, step=0, momentum=momentum, uniform=tf.zeros([2])
    )
    np.testing.assert_array_equal(result.accepted, [False, True])
    np.testing.assert_array_equal(result.position[0], x[0])


def test_draws_are_those_of_the_samples():
    """Momenta and acceptance come from their streams, and a part of the batch moves like the whole."""
    x = normal(5, 2, 3)

    def energy_gradient(x):
        return 0.5 * tf.reduce_sum(x**2, axis=[1, 2])[:, tf.newaxis], x

    options = {"step_size": 0.9, "leapfrogs": 2, "seed": 7}
    moved = tf.function(
        lambda x, step, first: hmc.transition(energy_gradient, x, step=step, first_sample=first, **options)
    )
    whole = moved(x, 3, 10)
    given = hmc.transition(
        energy_gradient,
        x,
        step=0,
        momentum=philox_normal([5, 2, 3], 7, 3, Stream.HMC_MOMENTUM, 60),
        uniform=philox_uniform([5], 7, 3, Stream.HMC_ACCEPTANCE, 10),
        **options,
    )
    np.testing.assert_allclose(given.position, whole.position, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(moved(x[2:], 3, 12).position, whole.position[2:])
    assert not np.array_equal(moved(x, 4, 10).position, whole.position)


def test_samples_have_the_variances_of_the_energy():
    x = normal(4000, 3)

    @tf.function
    def chain(x):
        for step in tf.range(20):
            x = hmc.transition(quadratic, x, step_size=0.7, leapfrogs=3, seed=SEED, step=step).position
        return x

    variances = np.var(chain(x), axis=0)
    # Five standard errors of the variance of 4000 normal numbers.
    np.testing.assert_allclose(variances * PRECISION, 1, atol=5 * (2 / 4000) ** 0.5)


def test_negative_leapfrogs():
    with pytest.raises(ValueError, match="leapfrogs must be 0 or more, found -1"):
        hmc.trajectory(quadratic, normal(1, 3), normal(1, 3), 0.1, -1)
