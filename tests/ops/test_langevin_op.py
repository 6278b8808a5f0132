"""The compiled Langevin step through TensorFlow; skipped as a whole where it is not built."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.ops import library, philox
from tfgen.ops.langevin import initial_noise, langevin_step

pytestmark = pytest.mark.skipif(library.load() is None, reason="the kernels are not built")
RANDOM = np.random.default_rng(SEED)
X = RANDOM.random([2, 3, 4]).astype(np.float32)
NUMBERS = {"eta": 1.0, "sigma": 0.1, "seed": 3, "step": 5}
COMPILED = {"TfgenLangevinStep", "TfgenLangevinStepGrad", "TfgenLangevinNoise"}


def operations() -> set[str]:
    def slope(x):
        y = initial_noise(x, sigma=0.1, seed=0, step=0)
        return tf.gradients(langevin_step(y, 2.0 * y, **NUMBERS)[0], x)

    traced = tf.function(slope, autograph=False).get_concrete_function(tf.TensorSpec([2, 3]))
    return {node.op for node in traced.graph.as_graph_def().node}


def test_which_form_runs(monkeypatch):
    assert operations() >= COMPILED
    with library.plain_tensorflow():
        assert not operations() & COMPILED
    monkeypatch.setenv("TFGEN_PURE_TF", "1")
    assert not operations() & COMPILED


def test_kernels_for_the_cpu_beside_a_gpu(monkeypatch, caplog):
    """TensorFlow would place an operation on the CPU, and carry every tensor there and back."""
    if library.loaded().cuda:
        pytest.skip("the library has kernels for GPUs")
    monkeypatch.setattr(library, "gpu_visible", lambda: True)
    library.log_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not operations() & COMPILED
    assert "there is a GPU, and the kernels are for the CPU only" in caplog.text


def test_an_argument_that_is_used_again_is_left_alone():
    """The operation may write over a tensor that nobody else reads."""

    @tf.function(autograph=False)
    def both(x):
        doubled = 2.0 * x
        return langevin_step(doubled, x, **NUMBERS)[0], doubled, langevin_step(2.0 * x, x, **NUMBERS)[0]

    first, doubled, second = both(X)
    np.testing.assert_array_equal(doubled, 2.0 * X)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, langevin_step(2.0 * X, X, **NUMBERS)[0])


def test_a_graph_keeps_its_form_when_its_gradient_is_built_elsewhere(monkeypatch):
    def slope(plain_later):
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = langevin_step(x, tf.sin(x), clip_mode="sample_norm", clip=0.1, **NUMBERS)[0]
        if plain_later:
            monkeypatch.setenv("TFGEN_PURE_TF", "1")
        return tape.gradient(y, x)

    expected = slope(False)
    np.testing.assert_array_equal(slope(True), expected)


def test_the_same_bits_whatever_threads_share_the_work():
    x = RANDOM.random([3, 100_003]).astype(np.float32)
    options = NUMBERS | {"clip_mode": "tensor_norm", "clip": 0.1, "emit_next": True}
    whole = langevin_step(x, x, **options)
    again = langevin_step(x, x, **options)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)
    part = initial_noise(x[1:], sigma=0.1, seed=3, step=5, first_element=100_003)
    np.testing.assert_array_equal(part, initial_noise(x, sigma=0.1, seed=3, step=5)[1:])


def test_bad_arguments_are_refused():
    kernels = library.loaded().operations
    numbers = dict.fromkeys(("eta", "sigma", "lower"), 0.0) | dict.fromkeys(("upper", "clip", "radius"), 1.0)
    source = philox.Source.checked(0, 0, 0, 0)._asdict()
    modes = {"clip_mode": "none", "projection": "range", "gradient_first": False}
    good = {"x": X, "g": X, "mask": [], "anchor": [], "next": 0} | numbers | source | modes
    upstream = {"gradient_norms": [], "displacement_norms": np.zeros([0], np.float32), "upstream": [X]}

    def step(**changes):
        kernels.tfgen_langevin_step(**(good | changes))

    def gradient(**changes):
        arguments = good | upstream | changes
        arguments.pop("next")
        kernels.tfgen_langevin_step_grad(**arguments)

    for call, words in (
        (lambda: step(x=np.float32(1), g=np.float32(1)), "x must have a first axis of samples|at least rank 1"),
        (lambda: step(g=X[:1]), "g must have the shape of x|must be equal"),
        (lambda: step(mask=[X[:, :2]]), r"mask must have shape \[2,3,4\] or \[1,3,4\], found \[2,2,4\]"),
        (lambda: step(mask=[X, X]), "mask must be at most one tensor, found 2"),
        (lambda: step(eta=[1.0, 2.0]), r"eta must be a scalar, found \[2\]"),
        (lambda: step(step=2**32), r"step must be in 0 \.\. 4294967295, found 4294967296"),
        (lambda: step(first_element=-1), "first_element must be 0 or more, found -1"),
        (lambda: step(stream=2**32), r"stream must be in 0 \.\. 4294967295"),
        (lambda: step(clip_mode="value", clip=np.nan), "clip must be more than 0, found nan"),
        (lambda: step(lower=2.0), "lower must not exceed upper, found 2 and 1"),
        (lambda: step(projection="box"), "a projection to a box or ball needs an anchor"),
        (lambda: step(anchor=[X]), "a projection to a range takes no anchor"),
        (lambda: step(projection="ball", anchor=[X[:1]]), "anchor must have the shape of x"),
        (lambda: step(projection="ball", anchor=[X], radius=0.0), "radius must be more than 0, found 0"),
        (lambda: step(next=2), "next must be 0 or 1, found 2"),
        (lambda: gradient(upstream=[X[:1]]), "upstream must have the shape of x"),
        (lambda: gradient(upstream=[X, X, X]), "upstream must be one or two tensors"),
        (lambda: gradient(clip_mode="tensor_norm"), r"gradient_norms must have shape \[1\], found \[0\]"),
        (lambda: gradient(projection="ball", anchor=[X]), r"displacement_norms must have shape \[2\], found \[0\]"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            call()
