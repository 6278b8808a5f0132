"""The operations where TensorFlow sees a GPU: the binding around the launchers, which the other tests here go without.

TFGEN_TEST_DEVICE=CPU:0 runs them on the CPU, to test the tests.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.seeds import SEED

tf = pytest.importorskip("tensorflow")

from tests.ops.attention_oracle import assert_as_good_as_naive, token_masks  # noqa: E402
from tfgen.ops import library  # noqa: E402
from tfgen.ops.block_lists import BlockLists, from_layout  # noqa: E402
from tfgen.ops.blocksparse import block_sparse_attention  # noqa: E402

DEVICE = os.environ.get("TFGEN_TEST_DEVICE", "GPU:0")


def missing() -> str:
    """Why nothing can be tested; empty if it can."""
    built = library.load()
    if built is None:
        return "the kernels are not built"
    if DEVICE.startswith("CPU"):
        return ""
    if not built.cuda:
        return "the kernels are built without CUDA"
    return "" if tf.config.list_logical_devices("GPU") else "TensorFlow sees no GPU"


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "none")
RANDOM = np.random.default_rng(SEED)
DTYPES = [tf.float32, tf.bfloat16, tf.float16]

# batch, heads, width of keys, width of values, blocks, blocksize, stride, layout for each head
CASES = [
    (1, 1, 7, 5, 3, 8, 1, False), (3, 2, 40, 59, 5, 16, 1, True), (2, 1, 64, 128, 4, 32, 1, False),
    (1, 2, 12, 20, 6, 8, 3, True), (1, 16, 32, 32, 6, 32, 1, False), (1, 1, 256, 16, 3, 32, 1, False),
]  # fmt: skip


def random_lists(blocks: int, blocksize: int, layouts: int) -> BlockLists:
    layout = RANDOM.random([layouts, blocks, blocks]) < 0.6
    tiles = RANDOM.random([layout.sum(), blocksize, blocksize]) < RANDOM.choice([0.0, 0.5, 1.0], [layout.sum(), 1, 1])
    return from_layout(layout, blocksize, tiles)


def fresh(batch: int, length: int, features: int, value_features: int) -> list[np.ndarray]:
    """q, k, v and a weighting of the output."""
    widths = (features, features, value_features, value_features)
    return [RANDOM.normal(size=(batch, length, width)) for width in widths]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_and_its_gradients(case, dtype):
    batch, heads, key_size, value_size, blocks, blocksize, stride, per_head = case
    lists = random_lists(blocks, blocksize, heads if per_head else 1)
    arrays = fresh(batch, blocks * blocksize, heads * key_size, heads * value_size)
    with tf.device(DEVICE):
        assert_as_good_as_naive(
            lambda q, k, v: block_sparse_attention(q, k, v, lists, heads, stride),
            arrays, dtype, token_masks(lists, stride), heads,
        )  # fmt: skip


def test_lists_that_change_between_calls():
    """TensorFlow keeps one kernel for eager calls of the same attributes, and that kernel a copy of the lists."""
    both = [random_lists(4, 16, 1) for _ in range(2)]
    tensors = [tf.constant(x, tf.float32) for x in fresh(1, 64, 8, 8)[:3]]
    with tf.device(DEVICE):
        first = [block_sparse_attention(*tensors, lists, 2).numpy() for lists in both]
        for _ in range(3):
            for lists, expected in zip(both, first, strict=True):
                np.testing.assert_array_equal(block_sparse_attention(*tensors, lists, 2), expected)
    for found, lists in zip(first, both, strict=True):
        with library.plain_tensorflow():
            np.testing.assert_allclose(found, block_sparse_attention(*tensors, lists, 2), atol=1e-2)
    assert not np.array_equal(first[0], first[1])


def test_heads_that_are_too_wide():
    if DEVICE.startswith("CPU"):
        pytest.skip("the CPU takes heads of any width")
    lists = from_layout(np.ones([2, 2], bool), 8)
    with tf.device(DEVICE), pytest.raises(tf.errors.InvalidArgumentError, match="up to 256 features, found 257"):
        block_sparse_attention(*[tf.zeros([1, 16, 257])] * 3, lists, 1)
