"""Group normalisation against its definition in float64, with and without what is fused to it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.ops.group_norm import EPSILON, group_norm

RANDOM = np.random.default_rng(SEED)
OPTIONS = pytest.mark.parametrize(("silu", "modulated"), [(False, False), (True, False), (False, True), (True, True)])


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def definition(x, scale, shift, groups, silu, modulation):
    """As the docstring of `group_norm` has it, step by step, in the dtype of its inputs."""
    batch, height, width, channels = x.shape
    grouped = tf.reshape(x, [batch, height, width, groups, channels // groups])
    centred = grouped - tf.reduce_mean(grouped, [1, 2, 4], keepdims=True)
    deviation = tf.sqrt(tf.reduce_mean(centred**2, [1, 2, 4], keepdims=True) + tf.cast(EPSILON, x.dtype))
    n = tf.reshape(centred / deviation, x.shape) * scale + shift
    if modulation:
        n = n * (1 + modulation[0][:, None, None]) + modulation[1][:, None, None]
    return n * tf.sigmoid(n) if silu else n


def values_and_gradients(function, dtype, inputs, upstream, groups, silu, modulated):
    tensors = [tf.constant(value, dtype) for value in inputs]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        modulation = tuple(tensors[3:]) if modulated else None
        if function is group_norm:
            y = group_norm(*tensors[:3], groups, silu=silu, modulation=modulation)
        else:
            y = function(*tensors[:3], groups, silu, modulation)
    used = tensors if modulated else tensors[:3]
    return [value.numpy() for value in (y, *tape.gradient(y, used, output_gradients=tf.constant(upstream, dtype)))]


@OPTIONS
@pytest.mark.parametrize(
    ("shape", "groups"), [((1, 1, 1, 8), 2), ((3, 5, 2, 12), 4), ((2, 4, 4, 32), 32), ((1, 3, 7, 6), 1)], ids=str
)
def test_against_float64(shape, groups, silu, modulated):
    """Errors at most three times those of the definition in float32."""
    print(f"TFGEN_TEST_SEED={SEED}")
    channels = shape[-1]
    rows = (shape[0], channels)
    inputs = [normal(*shape) + 2, normal(channels), normal(channels), normal(*rows), normal(*rows)]
    case = inputs, normal(*shape), groups, silu, modulated
    truth = values_and_gradients(definition, tf.float64, *case)
    naive = values_and_gradients(definition, tf.float32, *case)
    for ours, theirs, exact in zip(values_and_gradients(group_norm, tf.float32, *case), naive, truth, strict=True):
        size = np.abs(exact).max()
        assert ours.shape == exact.shape
        assert np.abs(ours - exact).max() <= 3 * np.abs(theirs - exact).max() + 3e-6 * size + 1e-9


@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float16, 2e-3), (tf.bfloat16, 2e-2)])
def test_half_precision_keeps_float32_statistics(dtype, tolerance):
    """Sums of squares that float16 could not hold."""
    x = tf.cast(100 * normal(2, 16, 16, 8) + 50, dtype)
    scale, shift = tf.constant(normal(8)), tf.constant(normal(8))
    found = group_norm(x, scale, shift, 2, silu=True)
    assert found.dtype == dtype
    exact = definition(tf.cast(x, tf.float64), *(tf.cast(v, tf.float64) for v in (scale, shift)), 2, True, None)
    np.testing.assert_allclose(tf.cast(found, tf.float64), exact, rtol=tolerance, atol=tolerance)


def test_constant_groups_give_the_shift():
    shift = tf.constant(normal(4))
    found = group_norm(tf.fill([2, 3, 3, 4], 0.7), tf.ones([4]), shift, 2)
    np.testing.assert_allclose(found, np.broadcast_to(shift, [2, 3, 3, 4]), atol=1e-4)


def test_small_variance_beside_a_large_mean():
    """The difference of the mean square and the squared mean would be pure rounding here."""
    x = (1000 + 0.01 * normal(1, 16, 16, 4)).astype(np.float32)
    found = group_norm(tf.constant(x), tf.ones([4]), tf.zeros([4]), 1)
    exact = definition(tf.constant(x, tf.float64), 1.0, 0.0, 1, False, None)
    np.testing.assert_allclose(found, exact, atol=0.02)


def test_unknown_batch_size():
    x, scale, shift, modulation = normal(3, 4, 4, 8), normal(8), normal(8), (normal(3, 8), normal(3, 8))

    def gradients(x, first, second):
        y = tf.reduce_sum(group_norm(x, scale, shift, 4, silu=True, modulation=(first, second)) ** 2)
        return tf.gradients(y, [x, first, second])

    features, row = tf.TensorSpec([None, 4, 4, 8]), tf.TensorSpec([None, 8])
    unknown = tf.function(gradients, input_signature=[features, row, row])
    for found, expected in zip(unknown(x, *modulation), tf.function(gradients)(x, *modulation), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_second_derivative():
    x, scale, shift, direction = normal(1, 2, 3, 4), normal(4), normal(4), normal(1, 2, 3, 4)

    def slope(function, dtype):
        tensor = tf.constant(x, dtype)
        with tf.GradientTape() as outer:
            outer.watch(tensor)
            with tf.GradientTape() as inner:
                inner.watch(tensor)
                y = function(tensor, tf.constant(scale, dtype), tf.constant(shift, dtype))
                total = tf.reduce_sum(y * tf.constant(direction, dtype))
            total = tf.reduce_sum(inner.gradient(total, tensor) ** 2)
        return outer.gradient(total, tensor)

    exact = slope(lambda *a: definition(*a, 2, True, None), tf.float64)
    found = slope(lambda *a: group_norm(*a, 2, silu=True), tf.float32)
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-4 * np.abs(exact).max())


def test_channels_that_form_no_groups():
    with pytest.raises(ValueError, match="6 channels do not form 4 equal groups"):
        group_norm(tf.zeros([1, 2, 2, 6]), tf.ones([6]), tf.zeros([6]), 4)
