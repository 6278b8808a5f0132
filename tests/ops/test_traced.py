"""Functions that are traced once for each shape: how often, with which results, in which graphs."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfgen.ops import library
from tfgen.ops.gelu import gelu
from tfgen.ops.traced import spelled_out, traced_once


class Counted:
    """A decorated function of a tensor, weights and a Python value, and the arguments of each of its traces."""

    def __init__(self):
        self.traces: list[tuple] = []
        self.shared = traced_once(self.plain)

    def plain(self, x, weights, power):
        self.traces.append((tuple(x.shape), len(weights), power))
        for weight in weights:
            x = tf.tanh(x @ weight) ** power
        return x, tf.reduce_sum(x)


def arguments(rows=3, width=4, layers=2, seed=0):
    random = np.random.RandomState(seed)
    x = tf.constant(random.normal(size=[rows, width]), tf.float32)
    return x, [tf.constant(random.normal(size=[width, width]), tf.float32) for _ in range(layers)]


@pytest.fixture
def counted():
    return Counted()


def test_it_keeps_name_and_description():
    @traced_once
    def square(x):
        """x^2."""
        return x * x

    assert (square.__name__, square.__doc__) == ("square", "x^2.")
    assert square.__wrapped__(3) == 9
    assert float(square(tf.constant(3.0))) == 9


def test_spelled_out_there_are_no_functions(counted):
    x, weights = arguments()

    @tf.function(autograph=False)
    def calls(x, weights):
        return counted.shared(x, weights, 1)

    with spelled_out():
        inside = calls.get_concrete_function(x, weights)
        np.testing.assert_array_equal(inside(x, *weights)[0], calls(x, weights)[0])
    operations = [{node.op for node in function.graph.as_graph_def().node} for function in (
        inside, tf.function(counted.shared, autograph=False).get_concrete_function(x, weights, 1)
    )]  # fmt: skip
    assert "Tanh" in operations[0]
    assert "PartitionedCall" not in operations[0]
    assert "Tanh" not in operations[1]


def test_one_trace_for_each_shape_and_value(counted):
    for seed in range(3):
        counted.shared(*arguments(seed=seed), 1)
    assert counted.traces == [((3, 4), 2, 1)]
    counted.shared(*arguments(rows=5), 1)
    counted.shared(*arguments(layers=3), 1)
    counted.shared(*arguments(), 2)
    assert counted.traces[1:] == [((5, 4), 2, 1), ((3, 4), 3, 1), ((3, 4), 2, 2)]
    counted.shared(*arguments(), 1)
    assert len(counted.traces) == 4


def test_dtypes_are_told_apart():
    seen = []

    @traced_once
    def double(x):
        seen.append(x.dtype)
        return x + x

    for dtype in (tf.float32, tf.float64, tf.float32, tf.int32):
        assert double(tf.constant([1, 2], dtype)).dtype == dtype
    assert seen == [tf.float32, tf.float64, tf.int32]


def test_many_shapes_raise_no_warning_of_retracing(counted, caplog):
    for rows in range(1, 12):
        counted.shared(*arguments(rows=rows), 1)
    assert len(counted.traces) == 11
    assert "retracing" not in caplog.text


def test_values_are_those_of_the_plain_function(counted):
    for power in (1, 2):
        for mine, plain in zip(counted.shared(*arguments(), power), counted.plain(*arguments(), power), strict=True):
            np.testing.assert_allclose(mine, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_those_of_the_plain_function(counted, compiled):
    x, weights = arguments()

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch([x, *weights])
            once, total = function(x, weights, 2)
            twice, _ = function(once, weights, 2)
            objective = total + tf.reduce_sum(tf.sin(twice))
        return tape.gradient(objective, [x, *weights])

    shared = tf.function(gradients, autograph=False) if compiled else gradients
    for mine, plain in zip(shared(counted.shared), gradients(counted.plain), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-5, atol=1e-6)


def test_graphs_share_a_trace_and_a_call_is_one_operation(counted):
    x, weights = arguments()

    def deep(x, blocks):
        for _ in range(blocks):
            x, _ = counted.shared(x, weights, 1)
        return x

    for blocks in (2, 5):
        traced = tf.function(lambda x, blocks=blocks: deep(x, blocks), autograph=False)
        graph = traced.get_concrete_function(x).graph.as_graph_def()
        calls = [node for node in graph.node if node.op in ("PartitionedCall", "StatefulPartitionedCall")]
        assert len(calls) == blocks
        assert not [node for node in graph.node if node.op in ("Tanh", "MatMul")]
        assert len(graph.library.function) == 1
        np.testing.assert_allclose(traced(x), deep(x, blocks), rtol=1e-6)
    assert len(counted.traces) == 1


def test_a_batch_of_unknown_size_has_a_trace_of_its_own(counted):
    _, weights = arguments()
    traced = tf.function(
        lambda x: counted.shared(x, weights, 1)[0], input_signature=[tf.TensorSpec([None, 4])], autograph=False
    )
    for rows in (1, 3, 7):
        x, _ = arguments(rows=rows)
        np.testing.assert_allclose(traced(x), counted.plain(x, weights, 1)[0], rtol=1e-6)
    assert counted.traces.count(((None, 4), 2, 1)) == 1


@pytest.mark.skipif(library.load() is None, reason="the kernels are not built")
def test_plain_tensorflow_has_traces_of_its_own():
    shared = traced_once(lambda x: gelu(x))

    def kernels() -> set[str]:
        traced = tf.function(lambda x: shared(x), autograph=False)
        graph = traced.get_concrete_function(tf.TensorSpec([2], tf.float32)).graph.as_graph_def()
        return {node.op for function in graph.library.function for node in function.node_def}

    assert "TfgenGelu" in kernels()
    with library.plain_tensorflow():
        assert "TfgenGelu" not in kernels()
    assert "TfgenGelu" in kernels()


def test_values_that_compare_equal_but_differ_in_type_are_told_apart():
    @traced_once
    def typed(x, value):
        return x, type(value).__name__ == "bool"

    x = tf.zeros([1])
    assert bool(typed(x, True)[1])
    assert not bool(typed(x, 1)[1])
