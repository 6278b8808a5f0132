"""Convolutions through TensorFlow: the compiled operations, the plain forms, and when which of them runs."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.ops import convolution as module
from tfgen.ops import library
from tfgen.ops.convolution import (
    causal_convolution,
    causal_convolution_reference,
    convolution_3x3,
    convolution_3x3_reference,
    enlarged,
    enlarged_convolution_3x3,
    prepared_kernel,
)

ROOT = Path(__file__).parents[2]
RANDOM = np.random.default_rng(SEED)
needs_kernels = pytest.mark.skipif(library.load() is None, reason="the kernels are not built")
FORMS = pytest.mark.parametrize("form", [pytest.param("compiled", marks=needs_kernels), "plain"])
TAPS = pytest.mark.parametrize("taps", [(3, 3), (2, 3), (2, 2)], ids=str)  # rows and columns of the kernel
SHAPES = ((1, 1, 1, 1, 1), (2, 3, 5, 7, 9), (3, 8, 8, 16, 48), (1, 17, 16, 40, 33), (8, 4, 4, 70, 20))
LAYER = (2, 8, 8, 24, 32)  # one that is compiled


@pytest.fixture
def every_shape(monkeypatch):
    """The compiled operation runs for shapes where it would not be the faster one, too."""
    monkeypatch.setattr(module, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(module, "LEAST_SIDE", 1)


def drawn(shape: tuple[int, ...], taps: tuple[int, int] = (3, 3)) -> list[tf.Tensor]:
    """x, kernel, bias and upstream."""
    batch, height, width, inputs, outputs = shape
    sizes = ((batch, height, width, inputs), (*taps, inputs, outputs), (outputs,), (batch, height, width, outputs))
    return [tf.constant(RANDOM.standard_normal(size), tf.float32) for size in sizes]


def function(form: str, taps: tuple[int, int]):
    if taps == (3, 3):
        return convolution_3x3 if form == "compiled" else convolution_3x3_reference
    return causal_convolution if form == "compiled" else causal_convolution_reference


def value_and_gradients(form, x, kernel, bias, upstream) -> list[np.ndarray]:
    with tf.GradientTape() as tape:
        tape.watch([x, kernel, bias])
        y = form(x, kernel, bias)
    return [y.numpy(), *(g.numpy() for g in tape.gradient(y, [x, kernel, bias], output_gradients=upstream))]


def naive(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Channel by channel, tap by tap, each sum rounded to the dtype."""
    _, height, width, inputs = x.shape
    rows, columns = kernel.shape[:2]
    padded = tf.pad(x, [[0, 0], [1, rows - 2], [1, columns - 2], [0, 0]])
    total = tf.zeros([*x.shape[:3], kernel.shape[3]], x.dtype)
    for i, j, channel in np.ndindex(rows, columns, inputs):
        total += padded[:, i : i + height, j : j + width, channel, tf.newaxis] * kernel[i, j, channel]
    return total + bias


@functools.cache
def case(shape: tuple[int, ...], taps: tuple[int, int]) -> tuple[list, list, list]:
    """Arguments, then results and gradients of `naive` in float32 and float64, for both forms."""
    arrays = drawn(shape, taps)
    double = (tf.cast(array, tf.float64) for array in arrays)
    return arrays, value_and_gradients(naive, *arrays), value_and_gradients(naive, *double)


def operations(function, *shapes: list[int | None], dtype: tf.DType = tf.float32) -> set[str]:
    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    return {node.op for node in graph.as_graph_def().node}


def layer(
    taps: tuple[int, int],
    batch: int | None = 2,
    height: int | None = 8,
    width: int | None = 8,
    inputs: int = 24,
    outputs: int = 32,
):
    return [batch, height, width, inputs], [*taps, inputs, outputs], [outputs]


# Numbers -------------------------------------------------------------------------------------------------


@FORMS
@TAPS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(every_shape, form, shape, taps):
    """An error at most twice that of sums in order, three times for gradients."""
    print(f"TFGEN_TEST_SEED={SEED}")
    arrays, baseline, exact = case(shape, taps)
    found = value_and_gradients(function(form, taps), *arrays)
    for name, ours, theirs, truth, factor in zip(
        ("y", "dx", "dkernel", "dbias"), found, baseline, exact, (2, 3, 3, 3), strict=True
    ):
        error, allowed = (np.abs(values - truth).max() for values in (ours, theirs))
        # For few channels the naive form is all but exact: a few roundings of sums of typical size.
        floor = 4 * 2.0**-23 * np.abs(truth).max() if min(shape[3:]) >= 8 else 64 * 2.0**-23
        assert ours.shape == truth.shape
        assert error <= factor * allowed + floor, f"{name}: error {error:.3e}, naive {allowed:.3e}"


@needs_kernels
@TAPS
def test_second_derivatives(every_shape, taps):
    x, kernel, bias, upstream = drawn((2, 5, 4, 6, 7), taps)

    def second(form) -> list[tf.Tensor]:
        with tf.GradientTape() as outer:
            outer.watch([x, kernel, upstream])
            with tf.GradientTape() as inner:
                inner.watch([x, kernel, bias])
                y = form(x, kernel, bias)
            first = inner.gradient(y, [x, kernel, bias], output_gradients=upstream)
            total = tf.add_n([tf.reduce_sum(tf.sin(gradient)) for gradient in first])
        return outer.gradient(total, [x, kernel, upstream])

    compiled, plain = function("compiled", taps), function("plain", taps)
    for ours, expected in zip(second(compiled), second(plain), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@needs_kernels
@TAPS
def test_repeated_and_alone(taps):
    """The same bits every time, and for an image whatever is beside it."""
    form = function("compiled", taps)
    x, kernel, bias, upstream = drawn((16, 16, 16, 40, 48), taps)
    first, again = (value_and_gradients(form, x, kernel, bias, upstream) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for index in (0, 7, 15):
        alone = value_and_gradients(form, x[index : index + 1], kernel, bias, upstream[index : index + 1])
        for which in (0, 1):  # y and dx
            np.testing.assert_array_equal(alone[which][0], first[which][index])


def in_two_steps(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    return convolution_3x3(enlarged(x), kernel, bias)


@FORMS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_of_enlarged_images(every_shape, form, shape):
    """Bits of the two steps."""
    batch, height, width, inputs, outputs = shape
    x, kernel, bias, _ = drawn(shape)
    upstream = drawn((batch, 2 * height, 2 * width, inputs, outputs))[3]
    with library.plain_tensorflow() if form == "plain" else contextlib.nullcontext():
        found = value_and_gradients(enlarged_convolution_3x3, x, kernel, bias, upstream)
        expected = value_and_gradients(in_two_steps, x, kernel, bias, upstream)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(enlarged(x), x.numpy().repeat(2, axis=1).repeat(2, axis=2))
    assert found[1].shape == x.shape
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-5)  # four sums in another order
    for ours, theirs in zip(found[2:], expected[2:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@needs_kernels
def test_which_form_runs_for_enlarged_images():
    compiled = "TfgenEnlargedConvolution3x3"
    assert compiled in operations(enlarged_convolution_3x3, *layer((3, 3)))
    assert compiled in operations(enlarged_convolution_3x3, *layer((3, 3), batch=None, height=2))
    for other in ({"height": 1}, {"inputs": 15}):
        assert compiled not in operations(enlarged_convolution_3x3, *layer((3, 3), **other))
    with library.plain_tensorflow():
        assert compiled not in operations(enlarged_convolution_3x3, *layer((3, 3)))


@needs_kernels
def test_arguments_that_do_not_fit_enlarged_images():
    run = library.loaded().operations.tfgen_enlarged_convolution3x3
    x, kernel, bias, _ = drawn(LAYER)
    assert run(x, kernel, bias).shape == (2, 16, 16, 32)
    assert run(x[:0], kernel, bias).shape == (0, 16, 16, 32)
    for bad, arguments in (
        (r"kernel must be \[3, 3, inputs, outputs\], found \[3, 1, 24, 32\]", (x, kernel[:, :1], bias)),
        (r"the number of input channels must be 23 in x, found \[2, 8, 8, 24\]", (x, kernel[:, :, :23], bias)),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=bad):
            run(*arguments)
    with pytest.raises(ValueError, match=r"expected a kernel of shape \[3, 3, in, out\], found \(1, 1, 24, 32\)"):
        enlarged_convolution_3x3(x, kernel[:1, :1], bias)
    traced = tf.function(
        run, input_signature=[tf.TensorSpec([None, None, 8, 24]), tf.TensorSpec(None), tf.TensorSpec([None])]
    )
    assert traced.get_concrete_function().output_shapes.as_list() == [None, None, 16, None]


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prepared_kernels(every_shape, shape):
    """The same bits, and no gradients rather than wrong ones."""
    x, kernel, bias, _ = drawn(shape)
    prepared = prepared_kernel(kernel)
    assert np.isfinite(prepared).all()
    for form in (convolution_3x3, enlarged_convolution_3x3):
        np.testing.assert_array_equal(form(x, kernel, bias, prepared), form(x, kernel, bias))
        assert np.abs(form(x, kernel, bias, 2 * prepared) - form(x, kernel, bias)).max() > 1e-3
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = form(x, kernel, bias, prepared)
        with pytest.raises(LookupError, match="Prepared"):
            tape.gradient(y, x)


@needs_kernels
def test_which_kernels_are_prepared(monkeypatch):
    x, kernel, bias, _ = drawn(LAYER)
    prepared = prepared_kernel(kernel)
    assert prepared is not None
    assert prepared_kernel(kernel[..., :15]) is None
    assert prepared_kernel(tf.cast(kernel, tf.float16)) is None
    with pytest.raises(ValueError, match=r"expected a kernel of shape \[3, 3, in, out\]"):
        prepared_kernel(kernel[:2])
    tiny = x[:, :3]  # TensorFlow's convolution reads the kernel itself
    np.testing.assert_array_equal(convolution_3x3(tiny, kernel, bias, prepared), convolution_3x3(tiny, kernel, bias))
    monkeypatch.setattr(library, "gpu_visible", lambda: True)
    assert prepared_kernel(kernel) is None
    monkeypatch.undo()
    with library.plain_tensorflow():
        assert prepared_kernel(kernel) is None
        expected = convolution_3x3(x, kernel, bias)
        np.testing.assert_array_equal(convolution_3x3(x, kernel, bias, prepared), expected)


@needs_kernels
def test_arguments_that_do_not_fit_prepared_kernels():
    run = library.loaded().operations
    x, kernel, bias, _ = drawn(LAYER)
    points = prepared_kernel(kernel)
    for form, side in ((run.tfgen_prepared_convolution3x3, 8), (run.tfgen_prepared_enlarged_convolution3x3, 16)):
        assert form(x, points, bias).shape == (2, side, side, 32)
        for bad, arguments in (
            (
                r"points must be a kernel transformed for 24 to 32 channels, \d+ numbers, found \d+",
                (x, points[1:], bias),
            ),
            (r"points must be a kernel transformed for 23 to 32 channels", (x[..., :23], points, bias)),
            (r"points must have rank 1", (x, kernel, bias)),
            (r"there are no channels in x, \[2, 8, 8, 0\], or bias", (x[..., :0], points, bias)),
        ):
            with pytest.raises(tf.errors.InvalidArgumentError, match=bad):
                form(*arguments)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"kernel must be \[3, 3, inputs, outputs\]"):
        run.tfgen_convolution3x3_transform_kernel(kernel[:2])
    specs = [tf.TensorSpec([None, None, None, 24]), tf.TensorSpec(None), tf.TensorSpec([32])]
    traced = tf.function(run.tfgen_prepared_convolution3x3, input_signature=specs, autograph=False)
    assert traced.get_concrete_function().output_shapes.as_list() == [None, None, None, 32]
    transform = tf.function(run.tfgen_convolution3x3_transform_kernel, autograph=False)
    assert transform.get_concrete_function(kernel).output_shapes == points.shape
    assert transform.get_concrete_function(tf.TensorSpec(None)).output_shapes.as_list() == [None]


@needs_kernels
def test_threads_do_not_change_a_bit(tmp_path):
    """One, two and five threads, each in a process of its own."""
    results = []
    for threads in (1, 2, 5):
        path = tmp_path / f"{threads}.npz"
        command = [sys.executable, "-m", "tests.ops.test_convolution", str(path), str(threads)]
        environment = {**os.environ, "TFGEN_TEST_SEED": str(SEED), "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(np.load(path))
    assert len(results[0].files) == 18
    for name in results[0].files:
        assert np.isfinite(results[0][name]).all()
        np.testing.assert_array_equal(results[1][name], results[0][name])
        np.testing.assert_array_equal(results[2][name], results[0][name])


@needs_kernels
@TAPS
def test_no_images(every_shape, taps):
    x, kernel, bias, upstream = drawn((0, 4, 4, 3, 5), taps)
    y, dx, dkernel, dbias = value_and_gradients(function("compiled", taps), x, kernel, bias, upstream)
    assert y.shape == (0, 4, 4, 5)
    assert dx.shape == (0, 4, 4, 3)
    np.testing.assert_array_equal(dkernel, np.zeros([*taps, 3, 5]))
    np.testing.assert_array_equal(dbias, np.zeros([5]))


# The operation -------------------------------------------------------------------------------------------


@needs_kernels
@TAPS
def test_which_form_runs(monkeypatch, taps):
    form, compiled = function("compiled", taps), {"TfgenConvolution3x3", "TfgenCausalConvolution"}
    assert operations(form, *layer(taps)) & compiled
    assert operations(form, *layer(taps, batch=None)) & compiled
    for other in (
        {"height": 3},
        {"width": 2},
        {"height": None},
        {"inputs": 15},
        {"outputs": 3},
    ):
        found = operations(form, *layer(taps, **other))
        assert "Conv2D" in found
        assert not found & compiled
    assert not operations(form, *layer(taps), dtype=tf.float64) & compiled
    assert not operations(form, *layer(taps), dtype=tf.float16) & compiled
    with library.plain_tensorflow():
        assert not operations(form, *layer(taps)) & compiled
    monkeypatch.setattr(library, "gpu_visible", lambda: True)
    assert not operations(form, *layer(taps)) & compiled
    monkeypatch.undo()
    monkeypatch.setenv("TFGEN_PURE_TF", "1")
    assert not operations(form, *layer(taps)) & compiled


@needs_kernels
def test_shapes_that_a_graph_does_not_know():
    x, kernel, bias, _ = drawn(LAYER)
    traced = tf.function(
        library.loaded().operations.tfgen_convolution3x3,
        input_signature=[tf.TensorSpec([None, None, None, 24]), tf.TensorSpec(None), tf.TensorSpec([None])],
        autograph=False,
    )
    assert traced.get_concrete_function().output_shapes.as_list() == [None, None, None, None]
    np.testing.assert_array_equal(traced(x, kernel, bias), convolution_3x3(x, kernel, bias))


@needs_kernels
def test_shapes_that_a_graph_does_not_know_of_causal_convolutions():
    operations = library.loaded().operations
    unknown, images = tf.TensorSpec(None), tf.TensorSpec([None, None, None, 24])
    x, kernel, bias, dy = drawn(LAYER, (2, 2))
    for call, specs, shape, arguments, expected in (
        (
            operations.tfgen_causal_convolution,
            [images, unknown, tf.TensorSpec([None])],
            [None, None, None, None],
            (x, kernel, bias),
            causal_convolution(x, kernel, bias),
        ),
        (
            lambda x, dy: operations.tfgen_causal_convolution_kernel_grad(x, dy, kernel_width=2),
            [images, unknown],
            [2, 2, 24, None],
            (x, dy),
            value_and_gradients(causal_convolution, x, kernel, bias, dy)[2],
        ),
    ):
        traced = tf.function(call, input_signature=specs, autograph=False)
        assert traced.get_concrete_function().output_shapes.as_list() == shape
        np.testing.assert_array_equal(traced(*arguments), expected)


@needs_kernels
def test_arguments_that_do_not_fit_causal_convolutions():
    run = library.loaded().operations
    x, kernel, bias, dy = drawn(LAYER, (2, 3))
    error = tf.errors.InvalidArgumentError
    sides = r"kernel must be \[2, 2 or 3, inputs, outputs\], found"
    for bad, arguments in (
        (rf"{sides} \[1, 3, 24, 32\]", (x, kernel[:1], bias)),
        (rf"{sides} \[2, 1, 24, 32\]", (x, kernel[:, :1], bias)),
        (rf"{sides} \[3, 3, 24, 32\]", (x, drawn(LAYER)[1], bias)),
        (r"the number of input channels must be 23 in x, found \[2, 8, 8, 24\]", (x, kernel[:, :, :23], bias)),
    ):
        with pytest.raises(error, match=bad):
            run.tfgen_causal_convolution(*arguments)
    with pytest.raises(error, match=sides):
        run.tfgen_causal_convolution_images_grad(kernel[:1], dy)
    for width in (1, 4):
        with pytest.raises(error, match=rf"kernel_width must be that of a kernel .*, found {width}"):
            run.tfgen_causal_convolution_kernel_grad(x, dy, kernel_width=width)
    with pytest.raises(ValueError, match=r"\[2, 3, in, out\], found \(2, 1, 24, 32\); use tf.pad and tf.nn.conv2d"):
        causal_convolution(x, kernel[:, :1], bias)


@needs_kernels
def test_arguments_that_do_not_fit():
    run = library.loaded().operations
    x, kernel, bias, dy = drawn(LAYER)
    error = tf.errors.InvalidArgumentError
    for bad, arguments in (
        (r"x must have rank 4, \[batch, height, width, channels\], found \[8, 8, 24\]", (x[0], kernel, bias)),
        (r"kernel must be \[3, 3, inputs, outputs\], found \[3, 1, 24, 32\]", (x, kernel[:, :1], bias)),
        (r"kernel must have rank 4", (x, kernel[0], bias)),
        (r"the number of input channels must be 23 in x, found \[2, 8, 8, 24\]", (x, kernel[:, :, :23], bias)),
        (r"the number of output channels must be 32 in bias, found \[31\]", (x, kernel, bias[:31])),
        (r"kernel has a size of zero", (x[..., :0], kernel[:, :, :0], bias)),
    ):
        with pytest.raises(error, match=bad):
            run.tfgen_convolution3x3(*arguments)
    with pytest.raises(error, match=r"the number of output channels must be 32 in dy, found \[2, 8, 8, 30\]"):
        run.tfgen_convolution3x3_images_grad(kernel, dy[..., :30])
    with pytest.raises(error, match=r"the batch and the sides of x must be 8 in dy, found \[2, 7, 8, 32\]"):
        run.tfgen_convolution3x3_kernel_grad(x, dy[:, :7])
    with pytest.raises(error, match="there are no channels"):
        run.tfgen_convolution3x3_kernel_grad(x[..., :0], dy)
    with pytest.raises(ValueError, match=r"expected a kernel of shape \[3, 3, in, out\], found \(1, 1, 24, 32\)"):
        convolution_3x3(x, kernel[:1, :1], bias)


@needs_kernels
@TAPS
def test_xla_is_told_what_to_do(taps):
    form, arrays = function("compiled", taps), drawn(LAYER, taps)[:3]
    with pytest.raises(tf.errors.UnimplementedError, match=r"(?s)TFGEN_PURE_TF=1.*or set jit_compile=False"):
        tf.function(lambda *x: form(*x), jit_compile=True)(*arrays)
    with library.plain_tensorflow():
        plain = tf.function(lambda *x: form(*x), jit_compile=True)(*arrays)
    np.testing.assert_allclose(plain, form(*arrays), rtol=1e-4, atol=1e-4)


@needs_kernels
@TAPS
def test_a_graph_keeps_its_form_when_its_gradient_is_built_elsewhere(monkeypatch, taps):
    form = function("compiled", taps)
    x, kernel, bias, upstream = drawn(LAYER, taps)
    expected = value_and_gradients(form, x, kernel, bias, upstream)[1]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = form(x, kernel, bias)
    monkeypatch.setenv("TFGEN_PURE_TF", "1")
    np.testing.assert_array_equal(tape.gradient(y, x, output_gradients=upstream), expected)


def main() -> None:
    """Writes results that were computed by N threads: `python -m tests.ops.test_convolution FILE N`."""
    tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[2]))
    results = {}
    for rows, columns in ((3, 3), (2, 3), (2, 2)):
        form = function("compiled", (rows, columns))
        for size, shape in (("large", (5, 31, 30, 96, 80)), ("small", (3, 6, 7, 64, 128))):  # shared in different ways
            arrays = value_and_gradients(form, *drawn(shape, (rows, columns)))[:3]
            for name, array in zip(("y", "dx", "dkernel"), arrays, strict=True):
                results[f"{name}_{rows}x{columns}_{size}"] = array
    np.savez(sys.argv[1], **results)


if __name__ == "__main__":
    main()
