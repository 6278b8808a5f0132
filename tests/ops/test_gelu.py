"""GELU through TensorFlow: the compiled operation, the plain form, and when which of them runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.ops import library
from tfgen.ops.gelu import gelu, gelu_reference

RANDOM = np.random.default_rng(SEED)
needs_kernels = pytest.mark.skipif(library.load() is None, reason="the kernels are not built")
FORMS = pytest.mark.parametrize("form", [pytest.param(gelu, marks=needs_kernels), gelu_reference])
ERFC = np.vectorize(math.erfc, otypes=[np.float64])


def exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x Phi(x), its first and its second derivative, in float64."""
    x = x.astype(np.float64)
    distribution, density = 0.5 * ERFC(-x / math.sqrt(2)), np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return x * distribution, distribution + x * density, density * (2 - x * x)


def naive(x: tf.Tensor) -> tf.Tensor:
    return x * (0.5 + 0.5 * tf.math.erf(x * tf.cast(1 / math.sqrt(2), x.dtype)))


def value_and_gradient(form, x: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        y = form(tensor)
    return y.numpy(), tape.gradient(y, tensor, output_gradients=tf.constant(upstream)).numpy()


def operations(function) -> set[str]:
    traced = tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec([4], tf.float32))
    return {node.op for node in traced.graph.as_graph_def().node}


# Numbers -------------------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 5, 7), (16,), (17, 31), (100_003,)], ids=str)
@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_against_float64(form, shape, spread):
    """An error at most twice that of the definition in TensorFlow's float32 operations, three times for gradients."""
    print(f"TFGEN_TEST_SEED={SEED}")
    x, upstream = (RANDOM.standard_normal(shape).astype(np.float32) * np.float32(scale) for scale in (spread, 1))
    truth, slope, _ = exact(x)
    found, baseline = value_and_gradient(form, x, upstream), value_and_gradient(naive, x, upstream)
    sizes = truth, (1 + np.abs(x) * np.exp(-0.5 * x * x)) * upstream
    for ours, theirs, expected, factor, size in zip(
        found, baseline, (truth, slope * upstream), (2, 3), sizes, strict=True
    ):
        error, allowed = (np.abs(values - expected).max() for values in (ours, theirs))
        assert ours.shape == shape
        assert error <= factor * allowed + 4 * 2.0**-23 * np.abs(size).max()


@FORMS
def test_extreme_values(form):
    x = np.array([0, -0.0, 1e4, -1e4, 3e38, -3e38, 1e-38, 20, -20], np.float32)
    found, slope = value_and_gradient(form, x, np.full_like(x, 3))
    np.testing.assert_allclose(found, exact(x)[0], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(slope, 3 * exact(x)[1], rtol=1e-6, atol=1e-30)


@FORMS
def test_what_is_not_finite(form):
    """Infinity stays; -infinity times a probability of 0 is NaN, as in TensorFlow and PyTorch."""
    x = np.array([np.inf, np.nan, -np.inf, 1], np.float32)
    found, slope = value_and_gradient(form, x, np.ones_like(x))
    np.testing.assert_array_equal(found[:3], [np.inf, np.nan, np.nan])
    np.testing.assert_array_equal(found[:3], tf.nn.gelu(x)[:3])
    assert np.isnan(slope[1])
    np.testing.assert_allclose((found[3], slope[3]), [item[0] for item in exact(x[3:])[:2]], rtol=1e-6)


@FORMS
@pytest.mark.parametrize("shape", [(0,), (0, 8), (2, 0, 3), ()], ids=str)
def test_arrays_of_few_or_no_elements(form, shape):
    x = np.full(shape, 0.5, np.float32)
    found, slope = value_and_gradient(form, x, np.ones_like(x))
    assert found.shape == slope.shape == shape
    np.testing.assert_allclose(found, np.full(shape, exact(np.array(0.5))[0]), rtol=1e-6)


@FORMS
def test_gradients_are_those_of_finite_differences(form):
    x = np.linspace(-4, 4, 41).astype(np.float32)
    (analytic,), (numeric,) = tf.test.compute_gradient(form, [tf.constant(x)], delta=2.0**-7)
    np.testing.assert_allclose(analytic, numeric, atol=2e-3)
    np.testing.assert_allclose(np.diagonal(analytic), exact(x)[1], rtol=1e-5, atol=1e-6)


@FORMS
def test_second_derivatives(form):
    x, upstream = (tf.constant(RANDOM.standard_normal(50), tf.float32) for _ in range(2))
    with tf.GradientTape() as outer:
        outer.watch([x, upstream])
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = form(x)
        slope = inner.gradient(y, x, output_gradients=upstream)
        total = tf.reduce_sum(slope * tf.constant(3.0))
    second, of_upstream = outer.gradient(total, [x, upstream])
    np.testing.assert_allclose(second, 3 * upstream * exact(x.numpy())[2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_upstream, 3 * exact(x.numpy())[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [tf.float64, tf.bfloat16, tf.float16], ids=lambda dtype: dtype.name)
def test_other_types_run_in_plain_tensorflow(dtype):
    x = tf.cast(tf.constant(RANDOM.standard_normal(999) * 3), dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = gelu(x)
    gradient = tape.gradient(y, x)
    assert y.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(y, gelu_reference(x))
    epsilon = {tf.float64: 1e-15, tf.bfloat16: 2.0**-7, tf.float16: 2.0**-10}[dtype]
    truth = exact(tf.cast(x, tf.float64).numpy())
    for found, expected in zip((y, gradient), truth, strict=False):
        np.testing.assert_allclose(tf.cast(found, tf.float64), expected, atol=8 * epsilon, rtol=4 * epsilon)


# The operation -------------------------------------------------------------------------------------------


@needs_kernels
def test_which_form_runs(monkeypatch):
    assert "TfgenGelu" in operations(gelu)
    assert not any(name.startswith("Tfgen") for name in operations(lambda x: gelu(tf.cast(x, tf.float64))))
    with library.plain_tensorflow():
        assert "Erf" in operations(gelu)
        assert "TfgenGelu" not in operations(gelu)
    monkeypatch.setattr(library, "gpu_visible", lambda: True)
    assert "TfgenGelu" not in operations(gelu)
    monkeypatch.undo()
    monkeypatch.setenv("TFGEN_PURE_TF", "1")
    assert "TfgenGelu" not in operations(gelu)


@needs_kernels
def test_the_same_bits_however_threads_share_the_array():
    """Against parts that are too small to be shared, cut where no thread would."""
    x, upstream = (RANDOM.standard_normal(500_001).astype(np.float32) for _ in range(2))
    whole = value_and_gradient(gelu, x, upstream)
    again = value_and_gradient(gelu, x, upstream)
    cuts = np.sort(RANDOM.choice(np.arange(1, x.size), 200, replace=False))
    parts = [value_and_gradient(gelu, *pair) for pair in zip(np.split(x, cuts), np.split(upstream, cuts), strict=True)]
    for index in range(2):
        np.testing.assert_array_equal(whole[index], again[index])
        np.testing.assert_array_equal(whole[index], np.concatenate([part[index] for part in parts]))


@needs_kernels
def test_an_argument_that_is_used_again_is_left_alone():
    """The operation may write over arguments that nobody else reads."""
    x = tf.constant(RANDOM.standard_normal(1000), tf.float32)

    @tf.function(autograph=False)
    def both(x):
        doubled = 2.0 * x
        return gelu(doubled), doubled, gelu(gelu(2.0 * x))

    value, doubled, twice = both(x)
    np.testing.assert_array_equal(doubled, 2.0 * x)
    np.testing.assert_array_equal(value, gelu(2.0 * x))
    np.testing.assert_array_equal(twice, gelu(gelu(2.0 * x)))
    kept = x.numpy()
    gelu(x)
    np.testing.assert_array_equal(x, kept)


@needs_kernels
def test_shapes_that_a_graph_does_not_know():
    traced = tf.function(gelu, input_signature=[tf.TensorSpec([None, 3])], autograph=False)
    assert traced.get_concrete_function().output_shapes.as_list() == [None, 3]
    for rows in (0, 1, 5):
        x = tf.constant(RANDOM.standard_normal([rows, 3]), tf.float32)
        np.testing.assert_array_equal(traced(x), gelu(x))


@needs_kernels
def test_gradients_of_other_shapes_are_refused():
    gradient = library.loaded().operations.tfgen_gelu_grad
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"TfgenGeluGrad: dy has shape \[3\], expected .* \[2\]"):
        gradient(tf.zeros([2]), tf.zeros([3]))


@needs_kernels
def test_a_graph_keeps_its_form_when_its_gradient_is_built_elsewhere(monkeypatch):
    x = tf.constant([0.5, -1.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = gelu(x)
    monkeypatch.setenv("TFGEN_PURE_TF", "1")
    np.testing.assert_allclose(tape.gradient(y, x), exact(x.numpy())[1], rtol=1e-6)
