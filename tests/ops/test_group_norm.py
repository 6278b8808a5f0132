"""Group normalisation against its definition in float64, with and without what is fused to it.

Everything holds for the compiled operation and for the form in plain TensorFlow.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.ops import library
from tfgen.ops.group_norm import EPSILON, group_norm

RANDOM = np.random.default_rng(SEED)
OPTIONS = pytest.mark.parametrize(("silu", "modulated"), [(False, False), (True, False), (False, True), (True, True)])
needs_kernels = pytest.mark.skipif(library.load() is None, reason="the kernels are not built")


@pytest.fixture(params=[pytest.param("compiled", marks=needs_kernels), "plain"], name="form", autouse=True)
def form_that_runs(request):
    """Runs a test once with each form."""
    with library.plain_tensorflow() if request.param == "plain" else contextlib.nullcontext():
        yield request.param


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


def test_gradients_are_those_of_finite_differences(form):
    x, scale, shift = (tf.constant(normal(*shape)) for shape in ((2, 2, 3, 6), (6,), (6,)))
    modulation = tf.constant(normal(2, 6)), tf.constant(normal(2, 6))

    def function(x, scale, shift, *modulation):
        return group_norm(x, scale, shift, 3, silu=True, modulation=modulation)

    analytic, numeric = tf.test.compute_gradient(function, [x, scale, shift, *modulation], delta=2.0**-7)
    for ours, expected in zip(analytic, numeric, strict=True):
        np.testing.assert_allclose(ours, expected, atol=5e-3, rtol=5e-3)


def test_second_derivatives_by_all_arguments(form):
    """Of the first gradients, weighted at random, by every argument and by what they are the gradient of."""
    inputs = [normal(2, 2, 3, 8), normal(8), normal(8), normal(2, 8), normal(2, 8)]
    upstream, weights = normal(2, 2, 3, 8), [normal(*value.shape) for value in inputs]

    def second(function, dtype):
        tensors, last = [tf.constant(value, dtype) for value in inputs], tf.constant(upstream, dtype)
        with tf.GradientTape() as outer:
            outer.watch([*tensors, last])
            with tf.GradientTape() as inner:
                inner.watch(tensors)
                y = function(*tensors[:3], 4, True, tuple(tensors[3:]))
            first = inner.gradient(y, tensors, output_gradients=last)
            total = tf.add_n([tf.reduce_sum(a * tf.constant(w, dtype)) for a, w in zip(first, weights, strict=True)])
        return outer.gradient(total, [*tensors, last])

    exact = second(definition, tf.float64)
    for ours, expected in zip(second(group_norm, tf.float32), exact, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_no_samples(form):
    x, scale = tf.zeros([0, 2, 2, 4]), tf.ones([4])
    with tf.GradientTape() as tape:
        tape.watch([x, scale])
        y = group_norm(x, scale, tf.zeros([4]), 2)
    gradients = tape.gradient(y, [x, scale])
    assert y.shape == gradients[0].shape == (0, 2, 2, 4)
    np.testing.assert_array_equal(gradients[1], [0, 0, 0, 0])


def test_channels_that_form_no_groups():
    with pytest.raises(ValueError, match="6 channels do not form 4 equal groups"):
        group_norm(tf.zeros([1, 2, 2, 6]), tf.ones([6]), tf.zeros([6]), 4)


# The operation -------------------------------------------------------------------------------------------


def operations(dtype=tf.float32) -> set[str]:
    def gradient(x):
        return tf.gradients(group_norm(x, tf.ones([4]), tf.zeros([4]), 2), x)

    traced = tf.function(gradient, autograph=False).get_concrete_function(tf.TensorSpec([1, 2, 2, 4], dtype))
    return {node.op for node in traced.graph.as_graph_def().node}


COMPILED = {"TfgenGroupNorm", "TfgenGroupNormGrad"}
compiled_only = pytest.mark.parametrize("form", [pytest.param("compiled", marks=needs_kernels)], indirect=True)


@compiled_only
def test_which_form_runs(form, monkeypatch):
    for dtype in (tf.float32, tf.bfloat16, tf.float16):
        assert operations(dtype) >= COMPILED
    with library.plain_tensorflow():
        assert not operations() & COMPILED
    monkeypatch.setattr(library, "gpu_visible", lambda: True)
    assert not operations() & COMPILED
    monkeypatch.undo()
    monkeypatch.setenv("TFGEN_PURE_TF", "1")
    assert not operations() & COMPILED


@compiled_only
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float16], ids=lambda dtype: dtype.name)
def test_both_forms_agree(form, dtype):
    """Gradients too, in half precision; a row of gains for each sample."""
    inputs = [normal(3, 5, 4, 24) + 1, normal(24), normal(24), normal(3, 24), normal(3, 24)]

    def results():
        x, *rest = (tf.cast(value, dtype if index == 0 else tf.float32) for index, value in enumerate(inputs))
        with tf.GradientTape() as tape:
            tape.watch([x, *rest])
            y = group_norm(x, *rest[:2], 8, silu=True, modulation=tuple(rest[2:]))
        return [tf.cast(value, tf.float32).numpy() for value in (y, *tape.gradient(y, [x, *rest]))]

    found = results()
    with library.plain_tensorflow():
        expected = results()
    tolerance = {tf.float32: 1e-5, tf.bfloat16: 2.0**-7, tf.float16: 2.0**-10}[dtype]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * max(1, np.abs(theirs).max() / 8))


@compiled_only
def test_an_argument_that_is_used_again_is_left_alone(form):
    """The operation may write over arguments that nobody else reads."""
    x, scale, shift = (tf.constant(value) for value in (normal(2, 3, 3, 8), normal(8), normal(8)))

    @tf.function(autograph=False)
    def both(x):
        doubled = 2.0 * x
        return group_norm(doubled, scale, shift, 2), doubled, group_norm(2.0 * x, scale, shift, 2)

    value, doubled, again = both(x)
    np.testing.assert_array_equal(doubled, 2.0 * x)
    np.testing.assert_array_equal(value, group_norm(2.0 * x, scale, shift, 2))
    np.testing.assert_array_equal(again, value)


@compiled_only
def test_bad_arguments_are_refused(form):
    library_operations = library.loaded().operations
    x, row, moments = tf.zeros([2, 3, 3, 8]), tf.zeros([1, 8]), tf.zeros([2, 4])

    def forward(x=x, gain=row, offset=row, groups=4, epsilon=1e-5):
        library_operations.tfgen_group_norm(x, gain, offset, groups=groups, epsilon=epsilon, silu=True)

    def backward(dy=x, mean=moments, inverse=moments):
        library_operations.tfgen_group_norm_grad(x, row, row, dy, mean, inverse, groups=4, silu=True)

    for call, words in (
        (lambda: forward(x=tf.zeros([2, 3, 8])), r"x has shape \[2,3,8\], expected \[batch, height, width, channels\]"),
        (lambda: forward(groups=3), "8 channels do not form 3 equal groups"),
        (lambda: forward(gain=tf.zeros([3, 8])), r"gain has shape \[3,8\], expected \[1 or 2, 8\]"),
        (lambda: forward(offset=tf.zeros([8])), r"offset has shape \[8\], expected \[1 or 2, 8\]"),
        (lambda: forward(epsilon=0.0), "epsilon is 0, expected more than 0"),
        (lambda: backward(dy=tf.zeros([2, 3, 2, 8])), r"dy has shape \[2,3,2,8\], expected \[2,3,3,8\]"),
        (lambda: backward(mean=tf.zeros([2, 8])), r"mean has shape \[2,8\], expected \[2,4\]"),
        (lambda: backward(inverse=tf.zeros([1, 4])), r"inverse has shape \[1,4\], expected \[2,4\]"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"TfgenGroupNorm.*{words}"):
            call()


@compiled_only
def test_a_graph_keeps_its_form_when_its_gradient_is_built_elsewhere(form, monkeypatch):
    x = tf.constant(normal(1, 2, 2, 4))

    def slope(monkeypatched):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = group_norm(x, tf.ones([4]), tf.zeros([4]), 2, silu=True)
        if monkeypatched:
            monkeypatch.setenv("TFGEN_PURE_TF", "1")
        return tape.gradient(y, x)

    expected = slope(False)
    np.testing.assert_array_equal(slope(True), expected)
