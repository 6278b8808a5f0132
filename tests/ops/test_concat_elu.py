"""Concatenated ELU through TensorFlow: the compiled operation, the plain form, and when which of them runs."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.ops import library
from tfgen.ops.concat_elu import concat_elu, concat_elu_reference

RANDOM = np.random.default_rng(SEED)
needs_kernels = pytest.mark.skipif(library.load() is None, reason="the kernels are not built")
FORMS = pytest.mark.parametrize("form", [pytest.param(concat_elu, marks=needs_kernels), concat_elu_reference])


def drawn(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """x and upstream."""
    return tuple(RANDOM.standard_normal(size).astype(np.float32) for size in (shape, (*shape[:-1], 2 * shape[-1])))


def exact(x: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Result and gradient in float64."""
    both = np.concatenate([x, -x], axis=-1).astype(np.float64)
    first, second = np.split(upstream * np.exp(np.minimum(both, 0)), 2, axis=-1)
    return np.where(both > 0, both, np.expm1(np.minimum(both, 0))), first - second


def value_and_gradient(form, x: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        y = form(tensor)
    return y.numpy(), tape.gradient(y, tensor, output_gradients=tf.constant(upstream)).numpy()


def operations(function) -> set[str]:
    traced = tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec([4, 3], tf.float32))
    return {node.op for node in traced.graph.as_graph_def().node}


# Numbers -------------------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("shape", [(1,), (5, 7), (2, 3, 5, 7), (17, 31), (4, 33, 32, 40)], ids=str)
def test_against_float64(form, shape):
    print(f"TFGEN_TEST_SEED={SEED}")
    arrays = drawn(*shape)
    for found, truth in zip(value_and_gradient(form, *arrays), exact(*arrays), strict=True):
        assert found.shape == truth.shape
        # Roundings of exp(x), 1 at most, and of two terms.
        assert np.abs(found - truth).max() <= 2 * 2.0**-23 * max(1, np.abs(truth).max())


@FORMS
@pytest.mark.parametrize("shape", [(0,), (0, 8), (2, 0, 3), (3, 0)], ids=str)
def test_arrays_of_no_elements(form, shape):
    y, gradient = value_and_gradient(form, *drawn(*shape))
    assert y.shape == (*shape[:-1], 2 * shape[-1])
    assert gradient.shape == shape


@FORMS
def test_second_derivatives(form):
    x, upstream = (tf.constant(array) for array in drawn(6, 50))
    with tf.GradientTape() as outer:
        outer.watch([x, upstream])
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = form(x)
        slope = inner.gradient(y, x, output_gradients=upstream)
        total = tf.reduce_sum(slope * tf.constant(3.0))
    of_x, of_upstream = outer.gradient(total, [x, upstream])
    value, (first, second) = x.numpy(), np.split(upstream.numpy(), 2, axis=-1)
    curved = np.where(value < 0, first, second) * np.exp(-np.abs(value))
    np.testing.assert_allclose(of_x, 3 * curved, rtol=1e-5, atol=1e-6)
    slopes = np.exp(np.minimum(value, 0)), -np.exp(np.minimum(-value, 0))
    np.testing.assert_allclose(of_upstream, 3 * np.concatenate(slopes, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [tf.float64, tf.bfloat16, tf.float16], ids=lambda dtype: dtype.name)
def test_other_types_run_in_plain_tensorflow(dtype):
    x = tf.cast(tf.constant(drawn(9, 11)[0]), dtype)
    assert concat_elu(x).dtype == dtype
    np.testing.assert_array_equal(concat_elu(x), concat_elu_reference(x))


# The operation -------------------------------------------------------------------------------------------


@needs_kernels
def test_which_form_runs(monkeypatch):
    assert "TfgenConcatElu" in operations(concat_elu)
    assert "TfgenConcatElu" not in operations(lambda x: concat_elu(tf.cast(x, tf.float64)))
    with library.plain_tensorflow():
        assert "Elu" in operations(concat_elu)
        assert "TfgenConcatElu" not in operations(concat_elu)
    monkeypatch.setattr(library, "gpu_visible", lambda: True)
    assert "TfgenConcatElu" not in operations(concat_elu)


@needs_kernels
def test_the_same_bits_however_threads_share_the_pixels():
    """Against pixels one by one, which are too few to be shared."""
    x, upstream = drawn(30_000, 40)
    whole, again = (value_and_gradient(concat_elu, x, upstream) for _ in range(2))
    for index in range(2):
        np.testing.assert_array_equal(whole[index], again[index])
    for pixel in RANDOM.integers(0, len(x), 200):
        single = value_and_gradient(concat_elu, x[pixel], upstream[pixel])
        for index in range(2):
            np.testing.assert_array_equal(whole[index][pixel], single[index])


@needs_kernels
def test_shapes_that_a_graph_does_not_know():
    x = tf.constant(drawn(2, 3)[0])
    for known, expected in (([None, 3], [None, 6]), ([2, None], [2, None]), (None, None)):
        traced = tf.function(concat_elu, input_signature=[tf.TensorSpec(known)], autograph=False)
        shape = traced.get_concrete_function().output_shapes
        assert (shape.as_list() if shape.rank else None) == expected
        np.testing.assert_array_equal(traced(x), concat_elu(x))


@needs_kernels
def test_arguments_that_do_not_fit():
    run = library.loaded().operations
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"dy has shape \[2,3\], expected .* \[2,6\]"):
        run.tfgen_concat_elu_grad(tf.zeros([2, 3]), tf.zeros([2, 3]))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"x must have channels, \[..., channels\], found a scalar"
    ):
        run.tfgen_concat_elu(tf.constant(1.0))
