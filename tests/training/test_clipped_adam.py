"""The clipped Adam against its formula in NumPy and double precision."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfgen.training.clipped_adam import ClippedAdam

SHAPES = {"matrix": [5, 4], "vector": [7], "scalar": []}
RATE = 3e-4


def arrays(seed: int, scale: float) -> list[np.ndarray]:
    random = np.random.RandomState(seed)
    return [(scale * random.normal(size=shape)).astype(np.float32) for shape in SHAPES.values()]


def variables() -> list[tf.Variable]:
    return [tf.Variable(array, name=name) for name, array in zip(SHAPES, arrays(0, 1.0), strict=True)]


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_updates_follow_the_formula(beta1):
    trained, beta2 = variables(), 0.999
    optimizer = ClippedAdam(beta1)
    optimizer.build(trained)
    expected = [variable.numpy().astype(np.float64) for variable in trained]
    means, squares = ([np.zeros_like(value) for value in expected] for _ in range(2))
    clipped = 0
    for t in range(1, 8):
        gradients = arrays(t, 0.02 * 5.0 ** (t % 3))
        tf.function(optimizer.apply)([tf.constant(gradient) for gradient in gradients], RATE)
        for i, gradient in enumerate(gradients):
            bound = 3 * np.sqrt(squares[i] / (1 - beta2**t)) + 0.1
            clipped += np.sum(np.abs(gradient) > bound)
            gradient = np.clip(gradient, -bound, bound)
            means[i] = beta1 * means[i] + (1 - beta1) * gradient
            squares[i] = beta2 * squares[i] + (1 - beta2) * gradient**2
            step_size = RATE * np.sqrt(1 - beta2**t) / (1 - beta1**t)
            expected[i] = expected[i] - step_size * means[i] / (np.sqrt(squares[i]) + 1e-8)
        for variable, value in zip(trained, expected, strict=True):
            np.testing.assert_allclose(variable, value, rtol=1e-6, atol=1e-2 * RATE)
    assert clipped > 10  # of 224 entries: the bound was put to the test


def test_the_first_update_limits_entries_to_a_tenth():
    trained = [tf.Variable([1.0, 2.0])]
    optimizer = ClippedAdam()
    optimizer.build(trained)
    optimizer.apply([tf.constant([50.0, -0.05])], RATE)
    np.testing.assert_allclose(optimizer.first_moments[0], [0.1, -0.05], rtol=1e-6)


def test_a_step_that_is_not_taken_changes_nothing():
    trained = variables()
    optimizer = ClippedAdam()
    optimizer.build(trained)
    optimizer.apply([tf.constant(gradient) for gradient in arrays(1, 0.1)], RATE)
    before = [variable.numpy() for variable in (*trained, *optimizer.variables)]
    optimizer.apply([tf.fill(shape, np.nan) for shape in SHAPES.values()], RATE, take=tf.constant(False))
    for old, variable in zip(before, (*trained, *optimizer.variables), strict=True):
        np.testing.assert_array_equal(old, variable)


def test_a_variable_without_a_gradient_stays_as_it_is():
    trained = variables()
    optimizer = ClippedAdam()
    optimizer.build(trained)
    gradients = [tf.constant(gradient) for gradient in arrays(1, 0.1)]
    before = trained[1].numpy()
    for _ in range(3):
        optimizer.apply([gradients[0], tf.zeros_like(gradients[1]), gradients[2]], RATE)
    np.testing.assert_array_equal(trained[1], before)
