"""Random numbers by element: the same words everywhere, whatever they are drawn with."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from tests.kernels import langevin as oracle
from tfgen.ops import library
from tfgen.ops.philox import Stream, philox_normal, philox_uniform, philox_words

needs_kernels = pytest.mark.skipif(library.load() is None, reason="the kernels are not built")
SOURCES = (
    {"seed": 0},
    {"seed": 2**64 - 1, "step": 2**32 - 1, "stream": 2**32 - 1, "first_element": 2**62 + 3},
    {"seed": 0x1234567890ABCDEF, "step": 7, "stream": int(Stream.HMC_MOMENTUM), "first_element": 1001},
    {"seed": 5, "step": 1, "first_element": 2**34 - 6},
)


@pytest.fixture(params=[pytest.param("compiled", marks=needs_kernels), "plain"], name="form", autouse=True)
def form_that_runs(request):
    """Runs a test once with each form."""
    with library.plain_tensorflow() if request.param == "plain" else contextlib.nullcontext():
        yield request.param


def test_known_answer():
    words = philox_words([4], seed=0).numpy()
    assert words.dtype == np.uint32
    assert [f"{word:08x}" for word in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("source", SOURCES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 7), (2, 3, 4, 5), (0, 4)], ids=str)
def test_against_numpy(shape, source):
    count = int(np.prod(shape))
    np.testing.assert_array_equal(philox_words(shape, **source), oracle.words(count, **source).reshape(shape))
    np.testing.assert_array_equal(philox_uniform(shape, **source), oracle.uniform(count, **source).reshape(shape))
    normal = oracle.normal(count, **source).reshape(shape)
    np.testing.assert_allclose(philox_normal(shape, **source), normal, rtol=0, atol=1e-6)


def test_parts_are_the_whole():
    """In any shape, with any limits, and from a seed with or without a sign."""
    whole = philox_normal([6, 50], seed=-2, step=3).numpy().ravel()
    for first, count in ((0, 7), (7, 1), (8, 192), (200, 100)):
        part = philox_normal([count], seed=2**64 - 2, step=3, first_element=first)
        np.testing.assert_array_equal(part, whole[first : first + count])


def test_sources_differ():
    sources = [{"seed": 1}, {"seed": 2}, {"seed": 1, "step": 1}, {"seed": 1, "stream": 1}, {"seed": 1 << 32}]
    drawn = {tuple(philox_words([4], **source).numpy()) for source in sources}
    assert len(drawn) == len(sources)


def test_tensors_in_a_loop():
    """Steps, shapes and seeds that are known only when the graph runs."""

    @tf.function
    def total(seed, sizes, first):
        result = tf.zeros(sizes)
        for step in tf.range(3, 6):
            result += philox_uniform(tf.shape(result), seed, step, first_element=first)
        return result

    found = total(tf.constant(2**63 + 5, tf.uint64), tf.constant([2, 3]), tf.constant(9))
    expected = sum(oracle.uniform(6, 2**63 + 5, step, first_element=9) for step in range(3, 6))
    np.testing.assert_allclose(found, expected.reshape(2, 3), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": -1}, r"step must be in 0 \.\. 4294967295, found -1"),
        ({"step": 2**32}, "step must be in"),
        ({"first_element": -4}, "first_element must be in"),
        ({"stream": 2**32}, "stream must be in"),
        ({"seed": 2**64}, "seed must be a number of 64 bits"),
    ],
    ids=str,
)
def test_numbers_out_of_range(changes, words):
    with pytest.raises(ValueError, match=words):
        philox_normal([2], **({"seed": 0} | changes))


@pytest.mark.parametrize("form", [pytest.param("compiled", marks=needs_kernels)], indirect=True)
def test_numbers_out_of_range_in_a_graph(form):
    step = tf.Variable(-1, dtype=tf.int64)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"step must be in 0 \.\. 4294967295, found -1"):
        philox_normal([2], seed=0, step=step.read_value())
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"shape must be a vector|must be rank 1"):
        library.loaded().operations.tfgen_philox_words(np.int64(3), np.int64(0), np.int64(0), np.int64(0), stream=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="seed must be a scalar"):
        library.loaded().operations.tfgen_philox_words([3], [1, 2], np.int64(0), np.int64(0), stream=0)
