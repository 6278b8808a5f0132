"""Langevin steps and their gradients against the formulas in NumPy, compiled and in plain TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.kernels import langevin as oracle
from tests.kernels.langevin import Result, Step
from tests.kernels.langevin_cases import MASKS, OPTIONS, Inputs, check
from tests.seeds import SEED
from tfgen.ops import library
from tfgen.ops.langevin import initial_noise, langevin_step
from tfgen.ops.philox import philox_normal

RANDOM = np.random.default_rng(SEED)
needs_kernels = pytest.mark.skipif(library.load() is None, reason="the kernels are not built")
SHAPES = ((1, 2), (3, 5), (4, 7, 3), (2, 4101))


@pytest.fixture(params=[pytest.param("compiled", marks=needs_kernels), "plain"], name="form", autouse=True)
def form_that_runs(request):
    """Runs a test once with each form."""
    print(f"TFGEN_TEST_SEED={SEED}")
    with library.plain_tensorflow() if request.param == "plain" else contextlib.nullcontext():
        yield request.param


def arguments(options: Step, inputs: Inputs) -> dict:
    """Keyword arguments of `langevin_step`."""
    values = dataclasses.asdict(options)
    return values | {"mask": inputs.mask, "anchor": inputs.anchor}


def run(options: Step, inputs: Inputs) -> Result:
    x, g = tf.constant(inputs.x), tf.constant(inputs.g)
    with tf.GradientTape() as tape:
        tape.watch([x, g])
        results = langevin_step(x, g, **arguments(options, inputs))
    kept = [value for value in results if value is not None]
    upstreams = [tf.constant(u) for u in inputs.upstreams[: len(kept)]]
    dx, dg = tape.gradient(kept, [x, g], output_gradients=upstreams)
    return Result(results[0].numpy(), None if results[1] is None else results[1].numpy(), dx.numpy(), dg.numpy())


def normals(options: Step, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    steps = options.step, (options.step + 1) % 2**32
    return tuple(philox_normal(shape, options.seed, k, options.stream, options.first_element).numpy() for k in steps)


@pytest.mark.parametrize("name", OPTIONS)
def test_step_and_gradient(name, form):
    for index, shape in enumerate(SHAPES):
        inputs = Inputs.random(RANDOM, OPTIONS[name], shape, MASKS[(index + len(name)) % len(MASKS)])
        check(run(OPTIONS[name], inputs), OPTIONS[name], inputs, normals(OPTIONS[name], shape), form == "compiled")


@pytest.mark.parametrize("mask_shape", [(3,), (1, 1, 3), (7, 1), (4, 1, 1), (4, 7, 3), ()], ids=str)
def test_masks_broadcast(mask_shape, form):
    inputs = Inputs.random(RANDOM, OPTIONS["value"], (4, 7, 3), None)
    mask = RANDOM.random(mask_shape).astype(np.float32)
    found = run(OPTIONS["value"], dataclasses.replace(inputs, mask=mask))
    whole = dataclasses.replace(inputs, mask=np.broadcast_to(mask, (4, 7, 3)).copy())
    check(found, OPTIONS["value"], whole, normals(OPTIONS["value"], (4, 7, 3)), form == "compiled")


@pytest.mark.parametrize("clip_mode", ["tensor_norm", "sample_norm"])
def test_gradients_through_norms_are_those_of_finite_differences(clip_mode):
    """Also where the ball limits the displacement: everything that is clipped is, by far."""
    options = dataclasses.replace(OPTIONS["ball_sample_norm"], clip_mode=clip_mode, clip=0.5, eta=1.0, sigma=0.1)
    inputs = Inputs.random(RANDOM, options, (2, 5), "whole")
    x, g = tf.constant(inputs.x), tf.constant(50 * inputs.g)

    @tf.function(autograph=False)
    def step(x, g):
        return langevin_step(x, g, **arguments(options, inputs))[0]

    analytic, numeric = tf.test.compute_gradient(step, [x, g], delta=2.0**-8)
    for ours, expected in zip(analytic, numeric, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_a_zero_gradient_has_a_gradient():
    """The norm of zeros has no derivative; below the limit nothing depends on it."""
    for name in ("tensor_norm", "sample_norm", "norms_within_bounds"):
        inputs = Inputs.random(RANDOM, OPTIONS[name], (3, 5), None)
        anchor = None if inputs.anchor is None else inputs.x
        zero = dataclasses.replace(inputs, g=np.zeros_like(inputs.g), anchor=anchor)
        found = run(OPTIONS[name], zero)
        assert np.isfinite(found.dx).all()
        assert np.isfinite(found.dg).all()


def test_a_chain_inside_a_graph():
    """Back through a loop: the gradient is a function of the point, and its derivative is in the result's."""
    x, curvature = tf.constant(RANDOM.random([3, 4, 2]).astype(np.float32)), tf.Variable(2.0)
    options = {"eta": 0.1, "sigma": 0.05, "seed": 9, "clip_mode": "value", "clip": 3.0}

    def energy_gradient(y):
        return curvature * tf.sin(3.0 * y)

    drawn = [oracle.normal(24, 9, step).astype(np.float32).reshape(3, 4, 2) for step in range(5)]

    @tf.function
    def looped():
        y, result = initial_noise(x, sigma=0.05, seed=9, step=0), x
        for step in tf.range(4):
            result, y = langevin_step(y, energy_gradient(y), step=step, emit_next=True, **options)
        return result

    @tf.function
    def unrolled():
        y = x + 0.05 * drawn[0]
        for step in range(4):
            y = tf.clip_by_value(y - 0.1 * tf.clip_by_value(energy_gradient(y), -3.0, 3.0), 0.0, 1.0)
            result = y
            y = y + 0.05 * drawn[step + 1]
        return result

    values = []
    for function in (looped, unrolled):
        with tf.GradientTape() as tape:
            tape.watch(x)
            result = function()
            total = tf.reduce_sum(result**2)
        values.append([result, *tape.gradient(total, [x, curvature])])
    for ours, expected in zip(*values, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_shards_of_a_batch_are_the_batch():
    options = {"eta": 1.0, "sigma": 0.1, "seed": 4, "step": 2, "gradient_first": True, "emit_next": True}
    x, g = (RANDOM.random([5, 3, 3]).astype(np.float32) for _ in range(2))
    whole = langevin_step(x, g, **options)
    for first, last in ((0, 2), (2, 5)):
        part = langevin_step(x[first:last], g[first:last], first_element=9 * first, **options)
        for ours, expected in zip(part, whole, strict=True):
            np.testing.assert_array_equal(ours, expected[first:last])


def test_unknown_batch_size_and_numbers_as_tensors():
    options = {"seed": 3, "clip_mode": "sample_norm", "projection": "ball", "emit_next": True}
    x, g, anchor = (RANDOM.random([3, 4, 2]).astype(np.float32) for _ in range(3))
    mask = np.array([[0.0], [1.0], [1.0], [0.5]], np.float32)
    image, number = tf.TensorSpec([None, 4, 2]), tf.TensorSpec([])

    @tf.function(input_signature=[image, image, image, number, number, tf.TensorSpec([], tf.int32)])
    def step(x, g, anchor, eta, clip, k):
        return langevin_step(
            x, g, anchor=anchor, eta=eta, sigma=0.1, clip=clip, radius=eta / 4, mask=mask, step=k, **options
        )

    found = step(x, g, anchor, 0.5, 0.25, 6)
    expected = langevin_step(
        x, g, anchor=anchor, eta=0.5, sigma=0.1, clip=0.25, radius=0.125, mask=mask, step=6, **options
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == x.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)


def test_initial_noise_passes_its_gradient():
    x = tf.constant(RANDOM.random([2, 3, 3]).astype(np.float32))
    mask = np.array([1.0, 0.0, 1.0], np.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = initial_noise(x, sigma=0.3, seed=8, step=5, mask=mask, first_element=2)
    np.testing.assert_allclose(y, x + 0.3 * mask * philox_normal(x.shape, 8, 5, first_element=2), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(tape.gradient(y, x, output_gradients=2 * x), 2 * x)
    np.testing.assert_array_equal(y[:, :, 1], x[:, :, 1])


def test_not_a_number_comes_through():
    for name, option in OPTIONS.items():
        inputs = Inputs.random(RANDOM, option, (2, 5), None)
        inputs.x[0, 1] = inputs.g[0, 3] = np.nan
        found = run(option, inputs).x_next
        assert np.isnan(found[0, [1, 3]]).all(), name
        if option.clip_mode != "tensor_norm":
            assert np.isfinite(found[1]).all(), name


X = tf.zeros([2, 3])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": tf.zeros([2, 3], tf.float64)}, "x must be float32, found float64: cast it"),
        ({"gradient": tf.zeros([3, 2])}, r"gradient must have the shape of x, \(2, 3\), found \(3, 2\)"),
        ({"x": tf.constant(1.0)}, "x must have a known number of axes, the first of samples"),
        ({"mask": tf.zeros([2, 2])}, r"mask must broadcast to the shape of x, \(2, 3\), found \(2, 2\)"),
        ({"mask": tf.zeros([4, 2, 3])}, "mask must broadcast"),
        ({"mask": tf.zeros([2, 3], tf.bool)}, "mask must be float32, found bool"),
        ({"clip_mode": "li"}, "clip_mode must be one of none, value, tensor_norm, sample_norm, found 'li'"),
        ({"projection": "sphere"}, "projection must be one of range, box, ball, found 'sphere'"),
        ({"clip_mode": "value"}, "clip must be more than 0, found 0"),
        ({"projection": "box", "anchor": X}, "radius must be more than 0, found 0"),
        ({"projection": "ball", "radius": 1.0}, "anchor belongs to the projections box and ball"),
        ({"anchor": X}, "anchor belongs to the projections box and ball, and only there; found 'range'"),
        ({"projection": "box", "anchor": tf.zeros([3]), "radius": 1.0}, "anchor must have the shape of x"),
        ({"lower": 1.0, "upper": 0.5}, "lower must not exceed upper, found 1.0 and 0.5"),
        ({"step": -1}, "step must be in"),
    ],
    ids=str,
)
def test_bad_arguments(changes, words):
    good = {"x": X, "gradient": X, "eta": 1.0, "sigma": 0.1, "seed": 0, "step": 0}
    with pytest.raises(ValueError, match=words):
        langevin_step(**(good | changes))


def test_bad_numbers_in_a_graph():
    good = {"x": X, "gradient": X, "eta": 1.0, "sigma": 0.1, "seed": 0, "step": 0}
    for changes, words in (
        ({"clip_mode": "value", "clip": tf.constant(0.0)}, "clip must be more than 0"),
        ({"projection": "box", "anchor": X, "radius": tf.constant(-1.0)}, "radius must be more than 0"),
        ({"lower": tf.constant(2.0)}, "lower must not exceed upper"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            tf.function(lambda changes=changes: langevin_step(**(good | changes))[0])()
