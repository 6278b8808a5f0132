"""Whatever is passed to the attention of sampling: an error that says what is wrong, never a crash."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from tfgen.ops import library
from tfgen.ops.blocksparse_decode import decode_attention, reference_decode_attention

LIBRARY = library.load()
compiled_only = pytest.mark.skipif(LIBRARY is None, reason="the kernels are not built")


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def good() -> dict:
    """Batch 3, 5 slots, 2 heads of width 2 (values 3), 4 earlier slots."""
    return {
        "q": zeros(3, 4), "keys": zeros(5, 3, 4), "values": zeros(5, 3, 6), "visible": np.int32(2),
        "earlier": [zeros(3, 2, 4, 2), zeros(3, 2, 4, 3)], "num_heads": 2,
    }  # fmt: skip


def call(**arguments) -> tf.Tensor:
    arguments = good() | arguments
    return LIBRARY.operations.tfgen_blocksparse_decode(**tf.nest.map_structure(tensor, arguments))


def tensor(x):
    return tf.constant(x) if isinstance(x, np.ndarray | np.generic) else x


@compiled_only
def test_the_good_arguments_are_good():
    assert call().shape == [3, 6]
    assert call(earlier=[]).shape == [3, 6]
    assert call(visible=np.int32(0)).shape == call(visible=np.int32(5)).shape == [3, 6]
    assert call(earlier=[zeros(3, 2, 0, 2), zeros(3, 2, 0, 3)]).shape == [3, 6]


SHAPES = [
    ({"q": zeros(4)}, r"q must have rank 2, \[batch, features\], found \[4\]"),
    ({"q": zeros(3, 1, 4)}, "q must have rank 2"),
    ({"keys": zeros(5, 4)}, r"keys must have rank 3, \[slots, batch, features\], found \[5, 4\]"),
    ({"values": zeros(5, 3, 2, 3)}, "values must have rank 3"),
    ({"q": zeros(2, 4)}, r"the batch must be 2 in keys, found \[5, 3, 4\]"),
    ({"values": zeros(5, 2, 6)}, "the batch must be 3 in values"),
    ({"values": zeros(4, 3, 6)}, "the number of slots must be 5 in values"),
    ({"keys": zeros(5, 3, 6)}, "the number of features must be 4 in keys"),
    ({"q": zeros(3, 5), "keys": zeros(5, 3, 5)}, "the features of q and keys, 5, must divide into num_heads = 2"),
    ({"values": zeros(5, 3, 5)}, "the features of values, 5, must divide into num_heads = 2"),
    ({"num_heads": 3}, "the features of q and keys, 4, must divide into num_heads = 3"),
    ({"num_heads": 0}, "minimum 1"),
    ({"q": zeros(0, 4), "keys": zeros(5, 0, 4), "values": zeros(5, 0, 6)}, r"q has a size of zero: \[0, 4\]"),
    ({"q": zeros(3, 0), "keys": zeros(5, 3, 0)}, "q has a size of zero"),
    ({"keys": zeros(0, 3, 4), "values": zeros(0, 3, 6)}, "keys has a size of zero"),
    ({"values": zeros(5, 3, 0)}, "values has a size of zero"),
    ({"visible": np.zeros([1], np.int32)}, "visible must have rank 0, a scalar"),
    ({"earlier": [zeros(3, 2, 4, 2)]}, "earlier must be empty, or keys and values, found 1 tensors"),
    ({"earlier": [zeros(3, 2, 4, 2)] * 3}, "earlier must be empty, or keys and values, found 3 tensors"),
    ({"earlier": [zeros(3, 2, 8), zeros(3, 2, 4, 3)]}, "earlier keys must have rank 4"),
    ({"earlier": [zeros(2, 2, 4, 2), zeros(3, 2, 4, 3)]}, "the batch must be 3 in earlier keys"),
    ({"earlier": [zeros(3, 1, 4, 2), zeros(3, 2, 4, 3)]}, "the number of heads must be 2 in earlier keys"),
    ({"earlier": [zeros(3, 2, 4, 3), zeros(3, 2, 4, 3)]}, "the size of a head must be 2 in earlier keys"),
    ({"earlier": [zeros(3, 2, 4, 2), zeros(3, 2, 4, 2)]}, "the size of a head must be 3 in earlier values"),
    ({"earlier": [zeros(3, 2, 4, 2), zeros(3, 2, 5, 3)]}, "the number of earlier slots must be 4 in earlier values"),
]


@compiled_only
@pytest.mark.parametrize(("changes", "message"), SHAPES)
def test_shapes(changes, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(**changes)


@compiled_only
@pytest.mark.parametrize(("changes", "message"), SHAPES)
def test_shapes_while_a_graph_is_built(changes, message):
    with pytest.raises(ValueError, match=message):
        tf.function(lambda: call(**changes)).get_concrete_function()


@compiled_only
@pytest.mark.parametrize(("changes", "message"), [c for c in SHAPES if not re.search("minimum|found . tensors", c[1])])
def test_shapes_that_no_graph_knows(changes, message):
    """The shape function is told nothing, so that the kernel has to find out."""
    arguments = good() | changes
    heads = arguments.pop("num_heads")

    def build(q, keys, values, visible, *earlier):
        operation = LIBRARY.operations.tfgen_blocksparse_decode
        return operation(q, keys, values, visible, earlier=list(earlier), num_heads=heads)

    specs = [tf.TensorSpec(None, dtype) for dtype in [tf.float32] * 3 + [tf.int32] + [tf.float32] * 2]
    tensors = [tensor(x) for x in tf.nest.flatten([arguments[name] for name in ("q", "keys", "values", "visible")])]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        tf.function(build, input_signature=specs)(*tensors, *(tensor(x) for x in arguments["earlier"]))


@compiled_only
@pytest.mark.parametrize("visible", [-1, 6, 2**31 - 1, -(2**31)])
def test_visible_out_of_range(visible):
    message = re.escape(f"visible must be in 0 .. 5, the number of slots, found {visible}")
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(visible=np.int32(visible))


@compiled_only
@pytest.mark.parametrize(
    "changes",
    [
        {"q": np.zeros([3, 4], np.float64)},
        {"keys": np.zeros([5, 3, 4], np.float16)},
        {"earlier": [np.zeros([3, 2, 4, 2], np.float16), np.zeros([3, 2, 4, 3], np.float16)]},
        {name: array.astype(np.int32) for name, array in good().items() if name in ("q", "keys", "values")},
        {"visible": np.int64(2)},
        {"visible": np.float32(2)},
    ],
)
def test_dtypes(changes):
    with pytest.raises(tf.errors.InvalidArgumentError):
        call(**changes)


@compiled_only
def test_more_elements_than_32_bits_count():
    def build(slots: int, earlier: int = 0) -> None:
        shapes = ([3, 4], [slots, 3, 4], [slots, 3, 6], [], [3, 2, earlier, 2], [3, 2, earlier, 3])
        specs = [tf.TensorSpec(shape, tf.int32 if shape == [] else tf.float32) for shape in shapes]

        def traced(q, keys, values, visible, *earlier):
            operation = LIBRARY.operations.tfgen_blocksparse_decode
            return operation(q, keys, values, visible, earlier=list(earlier), num_heads=2)

        tf.function(traced).get_concrete_function(*specs)

    most = (2**31 - 1) // (3 * 6)
    build(most, most)
    with pytest.raises(ValueError, match=r"values has more than 2147483647 elements: \d+ x 3 x 6"):
        build(most + 1)
    with pytest.raises(ValueError, match=r"earlier values has more than 2147483647 elements: 3 x \d+ x 6"):
        build(1, most + 1)


@pytest.mark.parametrize("form", [decode_attention, reference_decode_attention])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": zeros(4)}, r"query must have shape \[B, 2 heads \* Dk\], found \(4,\)"),
        ({"query": zeros(3, 5)}, "query must have shape"),
        ({"keys": zeros(5, 2, 4)}, r"keys must have shape \[S, 3, 4\] for a query of \(3, 4\), found \(5, 2, 4\)"),
        ({"keys": zeros(3, 4)}, "keys must have shape"),
        ({"values": zeros(5, 3, 5)}, r"values must have shape \[S, B, 2 heads \* Dv\]"),
        ({"values": zeros(4, 3, 6)}, "values must have slots and batch of the keys"),
        ({"visible": 6}, r"visible must be in 0 \.\. 5, the number of slots, found 6"),
        ({"visible": tf.constant(-1)}, r"visible must be in 0 \.\. 5, the number of slots, found -1"),
        ({"num_heads": 0}, "num_heads must be 1 or more"),
        ({"earlier": (zeros(3, 2, 4, 2), zeros(3, 2, 4, 2))}, r"earlier values must have shape \[3, 2, P, 3\]"),
        ({"earlier": (zeros(2, 2, 4, 2), zeros(3, 2, 4, 3))}, "earlier keys must have shape"),
        ({"earlier": (zeros(3, 2, 4, 2), zeros(3, 2, 5, 3))}, "earlier keys and values must have as many slots"),
        ({"earlier": (zeros(3, 2, 4, 2),)}, "earlier must be a pair of keys and values, found 1"),
    ],
)
def test_both_forms_say_what_does_not_fit(form, changes, message):
    arguments = good()
    arguments |= {"query": arguments.pop("q"), "earlier": tuple(arguments["earlier"])} | changes
    with pytest.raises(ValueError, match=message):
        form(**{name: tf.nest.map_structure(tensor, value) for name, value in arguments.items()})
