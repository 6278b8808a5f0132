"""Whatever is passed to the compiled attention: an InvalidArgument that says what is wrong, never a crash."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfgen.ops import library
from tfgen.ops.block_lists import from_layout

LIBRARY = library.load()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the kernels are not built")
LISTS = ("offsets", "columns", "masks", "mask_bits")
ATTRIBUTES = {"num_heads": 2, "blocksize": 8, "stride": 1}


def good() -> dict[str, np.ndarray]:
    """Arguments of both operations: batch 1, length 24, 2 heads of width 2 (values 3), 4 blocks."""
    layout = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], bool)
    tiles = np.stack([np.tri(8, dtype=bool), np.ones([8, 8], bool), np.tri(8, k=3, dtype=bool), np.ones([8, 8], bool)])
    lists = from_layout(layout, 8, tiles)
    arrays = {name: np.ones([1, 24, width], np.float32) for name, width in (("q", 4), ("k", 4), ("v", 6))}
    arrays |= {"out": np.ones([1, 24, 6], np.float32), "lse": np.ones([1, 2, 24], np.float32)}
    arrays |= {"dout": np.ones([1, 24, 6], np.float32)}
    arrays |= {name: getattr(lists.rows, name) for name in LISTS}
    return arrays | {f"transposed_{name}": getattr(lists.columns, name) for name in LISTS}


def call(arrays: dict[str, np.ndarray], gradient: bool = False, **attributes: int) -> None:
    operations = LIBRARY.operations
    tensors = {name: tf.constant(array) for name, array in arrays.items()}
    if gradient:
        operations.tfgen_blocksparse_attention_grad(**tensors, **(ATTRIBUTES | attributes))
    else:
        forward = {name: tensor for name, tensor in tensors.items() if name not in ("out", "lse", "dout")}
        operations.tfgen_blocksparse_attention(**forward, **(ATTRIBUTES | attributes))


def test_the_good_arguments_are_good():
    call(good())
    call(good(), gradient=True)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


SHAPES = [
    ({"q": zeros(24, 4)}, {}, r"q must have rank 3, \[batch, length, features\], found \[24, 4\]"),
    ({"v": zeros(1, 1, 24, 6)}, {}, "v must have rank 3"),
    ({"k": zeros(2, 24, 4)}, {}, "the batch must be 1 in k"),
    ({"v": zeros(1, 16, 6)}, {}, "the length must be 24 in v"),
    ({"k": zeros(1, 24, 6)}, {}, "the number of features must be 4 in k"),
    ({"q": zeros(1, 24, 5), "k": zeros(1, 24, 5)}, {}, "the features of q and k, 5, must divide into num_heads = 2"),
    ({"v": zeros(1, 24, 5), "out": zeros(1, 24, 5), "dout": zeros(1, 24, 5)}, {}, "the features of v, 5, must divide"),
    ({name: zeros(0, 24, 4) for name in "qkv"}, {}, r"q has a size of zero: \[0, 24, 4\]"),
    ({name: zeros(1, 0, 4) for name in "qkv"}, {}, "q has a size of zero"),
    ({"v": zeros(1, 24, 0)}, {}, "v has a size of zero"),
    ({name: zeros(1, 20, 4) for name in "qkv"}, {}, "the length 20 is no multiple of blocksize = 8"),
    ({}, {"stride": 5}, "the length 24 is no multiple of stride = 5"),
    ({}, {"blocksize": 12}, "blocksize must be 8, 16, 32, 64 or 128, found 12"),
    ({}, {"blocksize": 256}, "blocksize must be 8, 16, 32, 64 or 128, found 256"),
    ({}, {"blocksize": 0}, "minimum 8"),
    ({}, {"num_heads": 0}, "minimum 1"),
    ({}, {"stride": -1}, "minimum 1"),
    ({"offsets": np.zeros([4], np.int32)}, {}, "offsets must have rank 2"),
    ({"offsets": np.zeros([3, 4], np.int32)}, {}, "must have 1 layout or num_heads = 2 of them"),
    ({"offsets": np.zeros([0, 4], np.int32)}, {}, "must have 1 layout or num_heads = 2 of them"),
    ({"offsets": np.zeros([1, 5], np.int32)}, {}, "offsets must have 4 offsets a layout"),
    ({"columns": np.zeros([4, 1], np.int32)}, {}, "columns must have rank 1"),
    ({"columns": np.zeros([3], np.int32)}, {}, "the number of entries must be 3 in masks, found"),
    ({"mask_bits": np.zeros([2, 8], np.uint32)}, {}, "mask_bits must have rank 3"),
    ({"mask_bits": np.zeros([2, 8, 2], np.uint32)}, {}, r"mask_bits must have shape \[masks, 8, 1\]"),
]

VALUES = [
    ({"offsets": [[1, 1, 3, 4]]}, "must begin at 0, found 1"),
    ({"offsets": [[0, 1, 0, 4]]}, "offsets must not fall"),
    ({"offsets": [[0, 1, 3, 5]]}, "not exceed the 4 entries"),
    ({"offsets": [[0, 1, 3, 2**31 - 1]]}, "not exceed the 4 entries"),
    ({"offsets": [[0, -1, 3, 4]]}, "offsets must not fall"),
    ({"offsets": [[0, 1, 2, 3]]}, "offsets end at 3, but there are 4 entries"),
    ({"offsets": [[0, 1, 3, 4], [0, 1, 3, 4]]}, "of layout 1 must begin at 4, found 0"),
    ({"columns": [0, 0, 1, 3]}, r"columns must be in 0 \.\. 2, found 3 in row 2 of layout 0"),
    ({"columns": [-1, 0, 1, 2]}, r"columns must be in 0 \.\. 2, found -1"),
    ({"columns": [0, 1, 1, 2]}, "columns must rise within a row, found 1 before 1 in row 1"),
    ({"columns": [0, 1, 0, 2]}, "columns must rise within a row, found 1 before 0 in row 1"),
    ({"masks": [0, -1, 2, -1]}, r"masks must be in -1 \.\. 1, found 2"),
    ({"masks": [-2, -1, 1, -1]}, r"masks must be in -1 \.\. 1, found -2"),
]


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize(("changes", "attributes", "message"), SHAPES)
def test_shapes(changes, attributes, message, gradient):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(good() | changes, gradient, **attributes)


@pytest.mark.parametrize(("changes", "attributes", "message"), SHAPES)
def test_shapes_while_a_graph_is_built(changes, attributes, message):
    with pytest.raises(ValueError, match=message):
        tf.function(lambda: call(good() | changes, **attributes)).get_concrete_function()


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize(("changes", "message"), VALUES)
def test_lists(changes, message, gradient):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(good() | {name: np.array(array, np.int32) for name, array in changes.items()}, gradient)


@pytest.mark.parametrize(("changes", "message"), VALUES)
def test_transposed_lists(changes, message):
    lists = good()
    # Transposing the good lists twice gives lists that the same changes spoil in the same way.
    lists |= {f"transposed_{name}": lists[name] for name in LISTS}
    changed = {f"transposed_{name}": np.array(array, np.int32) for name, array in changes.items()}
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="transposed_.*" + message.replace("of layout 1", "layout 1")
    ):
        call(lists | changed, gradient=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transposed_masks": np.array([0, -1, -1, -1], np.int32)}, "block row 1, column 1 of layout 0"),
        ({"transposed_masks": np.array([1, -1, 1, -1], np.int32)}, "block row 0, column 0 of layout 0"),
        ({"transposed_columns": np.array([0, 2, 1, 2], np.int32)}, "block row 1, column 0 of layout 0"),
        ({"transposed_mask_bits": np.zeros([2, 8, 1], np.uint32)}, "block row 0, column 0 of layout 0"),
        (
            {
                "transposed_offsets": np.array([[0, 2, 3, 3]], np.int32),
                "transposed_columns": np.array([0, 1, 1], np.int32),
                "transposed_masks": np.array([0, -1, 1], np.int32),
            },
            "another number of layouts or entries",
        ),
    ],
)
def test_transposed_lists_of_another_layout(changes, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(good() | changes, gradient=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": zeros(1, 24, 4)}, "the number of features must be 6 in out"),
        ({"dout": zeros(2, 24, 6)}, "the batch must be 1 in dout"),
        ({"dout": zeros(24, 6)}, "dout must have rank 3"),
        ({"lse": zeros(1, 24, 2)}, "the number of heads must be 2 in lse"),
        ({"lse": zeros(1, 2, 16)}, "the length must be 24 in lse"),
    ],
)
def test_what_the_forward_pass_saved(changes, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(good() | changes, gradient=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"q": np.zeros([1, 24, 4], np.float64)},
        {"k": np.zeros([1, 24, 4], np.float16)},
        {"q": np.zeros([1, 24, 4], np.int32), "k": np.zeros([1, 24, 4], np.int32), "v": np.zeros([1, 24, 6], np.int32)},
        {"columns": np.zeros([4], np.int64)},
        {"mask_bits": np.zeros([2, 8, 1], np.int32)},
    ],
)
def test_dtypes(changes):
    with pytest.raises(tf.errors.InvalidArgumentError):
        call(good() | changes)


def test_more_elements_than_32_bits_count():
    arrays = good()
    lists = [arrays[prefix + name] for prefix in ("", "transposed_") for name in LISTS]

    def build(batch: int) -> None:
        spec = [tf.TensorSpec([batch, 24, width]) for width in (4, 4, 6)]
        traced = tf.function(lambda *x: LIBRARY.operations.tfgen_blocksparse_attention(*x, *lists, **ATTRIBUTES))
        traced.get_concrete_function(*spec)

    most = (2**31 - 1) // (24 * 6)
    build(most)
    with pytest.raises(ValueError, match=r"v has more than 2147483647 elements: \d+ x 24 x 6"):
        build(most + 1)
