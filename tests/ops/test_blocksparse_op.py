"""The compiled attention through TensorFlow; skipped as a whole where it is not built."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.ops.attention_oracle import assert_as_good_as_naive, output_and_gradients, token_masks
from tests.seeds import SEED
from tfgen.ops import library
from tfgen.ops.block_lists import BlockLists, from_layout
from tfgen.ops.blocksparse import (
    Pattern,
    attention,
    block_sparse_attention,
    plain_tensorflow,
    reference_attention,
)

LIBRARY = library.load()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the kernels are not built")
DTYPES = [tf.float32, tf.bfloat16, tf.float16]
RANDOM = np.random.default_rng(SEED)
PATTERNS = [
    Pattern("a", 96, 64, 8), Pattern("a_all", 64, 64, 16), Pattern("b", 96, 32, 16), Pattern("b", 96, 32, 32),
    Pattern("bT", 96, 6, 8), Pattern("bT", 96, 3, 32), Pattern("c", 96, 6, 16), Pattern("b0", 96, 6, 8),
    Pattern("b_all", 1024, 32, 32), Pattern("bT_all", 1024, 32, 32), Pattern("a", 256, 64, 128),
    Pattern("b", 192, 64, 64),
]  # fmt: skip


def fresh(shape: tuple[int, int, int], value_features: int, scale: float = 1.0) -> list[np.ndarray]:
    """q, k, v and a weighting of the output, different at every call."""
    value = (*shape[:2], value_features)
    return [RANDOM.normal(size=size) * scale for size in (shape, shape, value)] + [RANDOM.normal(size=value)]


def random_lists(blocks: int, blocksize: int, layouts: int, density: float) -> BlockLists:
    layout = RANDOM.random([layouts, blocks, blocks]) < density
    tiles = RANDOM.random([layout.sum(), blocksize, blocksize]) < RANDOM.choice([0.0, 0.5, 1.0], [layout.sum(), 1, 1])
    return from_layout(layout, blocksize, tiles)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"{p.mode}-{p.n_ctx}-{p.window}-{p.blocksize}")
def test_every_mode(pattern, dtype):
    arrays = fresh((2, pattern.n_ctx, 2 * 16), 2 * 24)
    assert_as_good_as_naive(
        lambda q, k, v: attention(q, k, v, pattern, 2), arrays, dtype, pattern.token_mask()[None], heads=2
    )


# batch, heads, width of keys, width of values, blocks, blocksize, stride, layout for each head
ODD = [
    (1, 1, 1, 1, 1, 8, 1, False), (1, 1, 7, 5, 3, 8, 1, False), (3, 2, 40, 59, 5, 16, 1, True),
    (1, 3, 33, 111, 2, 64, 1, True), (2, 1, 64, 128, 4, 32, 1, False), (1, 2, 12, 20, 6, 8, 3, True),
    (1, 4, 8, 8, 2, 128, 4, True), (2, 2, 24, 3, 9, 16, 9, False), (1, 1, 256, 16, 3, 32, 1, False),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("case", ODD, ids=str)
def test_random_layouts_of_odd_shapes(case, dtype):
    batch, heads, key_size, value_size, blocks, blocksize, stride, per_head = case
    lists = random_lists(blocks, blocksize, heads if per_head else 1, density=0.5)
    arrays = fresh((batch, blocks * blocksize, heads * key_size), heads * value_size)
    assert_as_good_as_naive(
        lambda q, k, v: block_sparse_attention(q, k, v, lists, heads, stride),
        arrays, dtype, token_masks(lists, stride), heads,
    )  # fmt: skip


@pytest.mark.parametrize("case", ODD, ids=str)
def test_random_layouts_in_plain_tensorflow(case):
    """Against the operation, which is tested against float64; float64 arguments, and XLA."""
    batch, heads, key_size, value_size, blocks, blocksize, stride, per_head = case
    lists = random_lists(blocks, blocksize, heads if per_head else 1, density=0.5)
    arrays = fresh((batch, blocks * blocksize, heads * key_size), heads * value_size)
    expected = output_and_gradients(lambda *x: block_sparse_attention(*x, lists, heads, stride), arrays, tf.float32)

    def reference(*x: tf.Tensor) -> tf.Tensor:
        with plain_tensorflow():
            return block_sparse_attention(*x, lists, heads, stride)

    for dtype, form in (
        (tf.float32, reference),
        (tf.float64, reference),
        (tf.float32, tf.function(reference, jit_compile=True)),
    ):
        for found, other in zip(output_and_gradients(form, arrays, dtype), expected, strict=True):
            np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "heads", "layouts", "stride", "message"),
    [
        ((1, 32, 8), 3, 1, 1, "must divide into 3 heads"),
        ((1, 24, 8), 2, 1, 1, r"query must have shape \[B, 32, features\]"),
        ((1, 32, 8), 2, 3, 1, "3 layouts"),
        ((1, 32, 8), 2, 1, 5, "stride 5"),
    ],
)
def test_what_plain_tensorflow_refuses(shape, heads, layouts, stride, message):
    lists = from_layout(np.ones([layouts, 4, 4], bool), 8)
    with plain_tensorflow(), pytest.raises(ValueError, match=message):
        block_sparse_attention(*[tf.zeros(shape)] * 3, lists, heads, stride)


def test_heads_and_gpus_that_the_kernels_do_not_take(monkeypatch, caplog):
    pattern, built = Pattern("a_all", 16), dataclasses.replace(LIBRARY, cuda=True)
    monkeypatch.setattr(library, "load", lambda: built)
    monkeypatch.setattr(library, "gpu_visible", lambda: True)
    details = {"compute_capability": (8, 0)}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a device"])
    cases = (((8, 0), 257, "heads of up to 256 features, found 257"), ((7, 5), 32, "8.0 or more, found 7.5"))
    for capability, width, message in cases:
        details["compute_capability"] = capability
        tensors = [tf.constant(x, tf.float32) for x in fresh((1, 16, width), width)[:3]]
        library.log_once.cache_clear()
        caplog.clear()
        np.testing.assert_array_equal(attention(*tensors, pattern, 1), reference_attention(*tensors, pattern, 1))
        assert message in caplog.text


def test_extreme_logits():
    """Scores of some thousands, whose exponentials overflow everywhere but relative to the row's maximum."""
    pattern = Pattern("b", 96, 32, 8)
    arrays = fresh((1, 96, 2 * 16), 2 * 8, scale=30)
    largest = np.abs(np.einsum("bqhd,bkhd->bhqk", *(x.reshape(1, 96, 2, 16) for x in arrays[:2]))).max() / 4
    assert largest > 1000
    assert_as_good_as_naive(
        lambda q, k, v: attention(q, k, v, pattern, 2), arrays, tf.float32, pattern.token_mask()[None], 2, largest
    )


def test_queries_without_keys_and_keys_without_queries():
    layout = np.zeros([4, 4], bool)
    layout[1, :2] = True
    lists = from_layout(layout, 8)
    arrays = fresh((2, 32, 8), 8)
    out, dq, dk, dv = output_and_gradients(lambda *x: block_sparse_attention(*x, lists, 2), arrays, tf.float32)
    for array, used in ((out, slice(8, 16)), (dq, slice(8, 16)), (dk, slice(0, 16)), (dv, slice(0, 16))):
        assert np.flatnonzero(array.any(axis=(0, 2))).tolist() == list(range(32))[used]


@pytest.mark.parametrize("mode", ["a", "b", "bT", "b0"])
def test_the_reference_has_the_gradient_of_finite_differences(mode):
    pattern = Pattern(mode, 48, 6 if mode in ("bT", "b0") else 16, 8)
    *arrays, weights = (tf.constant(x) for x in fresh((1, 48, 4), 6))
    function = tf.function(lambda *x: tf.reduce_sum(weights * reference_attention(*x, pattern, 2)))
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        value = function(*arrays)
    # Along random directions: entry by entry takes a thousand calls and finds no other errors.
    for index, gradient in enumerate(tape.gradient(value, arrays)):
        for _ in range(4):
            direction = RANDOM.normal(size=gradient.shape)
            ahead, behind = (
                function(*(x + sign * 1e-6 * direction if i == index else x for i, x in enumerate(arrays)))
                for sign in (1, -1)
            )
            np.testing.assert_allclose(np.sum(gradient * direction), (ahead - behind) / 2e-6, atol=1e-7)


@pytest.mark.parametrize("mode", ["b", "bT"])  # the backward pass in two steps and in one
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_the_same_bits_every_time(mode, dtype):
    pattern = Pattern(mode, 384, 96 if mode == "b" else 12, 32)
    arrays = fresh((3, 384, 4 * 16), 4 * 16)
    runs = [output_and_gradients(lambda *x: attention(*x, pattern, 4), arrays, dtype) for _ in range(3)]
    for again in runs[1:]:
        for one, two in zip(runs[0], again, strict=True):
            np.testing.assert_array_equal(one, two)


BITS = """
import hashlib, sys
import numpy as np, tensorflow as tf
from tfgen.ops.blocksparse import Pattern, attention

tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
random = np.random.RandomState(0)
arrays = [random.normal(size=(2, 384, width)) for width in (64, 64, 96)]
for dtype in (tf.float32, tf.bfloat16):
    q, k, v = (tf.cast(x, dtype) for x in arrays)
    for pattern in (Pattern("b", 384, 96, 32), Pattern("bT", 384, 12, 32), Pattern("bT", 384, 4, 16)):
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            out = attention(q, k, v, pattern, 4)
        bits = [tf.cast(x, tf.float32).numpy().tobytes() for x in (out, *tape.gradient(out, [q, k, v]))]
        print(dtype.name, pattern.mode, hashlib.sha256(b"".join(bits)).hexdigest())
"""


def test_the_same_bits_on_any_number_of_threads():
    def bits(threads: int) -> str:
        command = [sys.executable, "-c", BITS, str(threads)]
        return subprocess.run(
            command, cwd=pathlib.Path(__file__).parents[2], capture_output=True, text=True, check=True
        ).stdout

    alone = bits(1)
    assert len(set(alone.splitlines())) == 6
    for threads in (2, 5):
        assert bits(threads) == alone


def test_a_sample_does_not_depend_on_its_batch():
    pattern = Pattern("bT", 96, 6, 8)
    q, k, v = (tf.constant(x, tf.float32) for x in fresh((5, 96, 8), 12)[:3])
    whole = attention(q, k, v, pattern, 2)
    np.testing.assert_array_equal(whole[3:4], attention(q[3:4], k[3:4], v[3:4], pattern, 2))


def test_graphs_with_any_batch():
    pattern = Pattern("b", 96, 32, 16)
    spec = [tf.TensorSpec([None, 96, width]) for width in (8, 8, 12)]
    traced = tf.function(lambda *x: attention(*x, pattern, 2), input_signature=spec)
    assert traced.get_concrete_function().output_shapes.as_list() == [None, 96, 12]
    assert "TfgenBlocksparseAttention" in operations(traced)
    for batch in (1, 3):
        tensors = [tf.constant(x, tf.float32) for x in fresh((batch, 96, 8), 12)[:3]]
        np.testing.assert_array_equal(traced(*tensors), attention(*tensors, pattern, 2))
        np.testing.assert_allclose(traced(*tensors), reference_attention(*tensors, pattern, 2), atol=1e-5)


def test_graphs_that_know_no_shapes():
    lists = from_layout(np.eye(3, dtype=bool), 8)
    traced = tf.function(
        lambda *x: block_sparse_attention(*x, lists, 2), input_signature=[tf.TensorSpec(None, tf.float32)] * 3
    )
    tensors = [tf.constant(x, tf.float32) for x in fresh((2, 24, 4), 6)[:3]]
    np.testing.assert_array_equal(traced(*tensors), block_sparse_attention(*tensors, lists, 2))
    with pytest.raises(tf.errors.InvalidArgumentError, match="q must have rank 3"):
        traced(tensors[0][0], *tensors[1:])


def operations(traced: tf.types.experimental.GenericFunction) -> set[str]:
    graph = traced.get_concrete_function().graph.as_graph_def()
    return {node.op for node in graph.node} | {node.op for f in graph.library.function for node in f.node_def}


def test_plain_tensorflow_is_plain():
    pattern = Pattern("b", 96, 32, 16)
    with plain_tensorflow():
        traced = tf.function(lambda *x: attention(*x, pattern, 2), input_signature=[tf.TensorSpec([1, 96, 8])] * 3)
        assert not [name for name in operations(traced) if name.startswith("Tfgen")]
        lists = pattern.block_lists()
        traced = tf.function(
            lambda *x: block_sparse_attention(*x, lists, 2), input_signature=[tf.TensorSpec([None, 96, 8])] * 3
        )
        assert not [name for name in operations(traced) if name.startswith("Tfgen")]
    assert library.load() is LIBRARY


@pytest.mark.parametrize(
    ("pattern", "dtype", "reason"),
    [
        (
            Pattern("b", 48, 12, 8),
            tf.float32,
            "no blocksize fits mode 'b' with context length 48 and local_attn_ctx 12",
        ),
        (Pattern("a", 48, 12, 8), tf.float64, "takes float32, bfloat16 or float16, the same .*, found float64"),
    ],
)
def test_what_the_operation_cannot_do_runs_in_plain_tensorflow_and_says_so_once(pattern, dtype, reason, caplog):
    library.log_once.cache_clear()
    tensors = [tf.cast(x, dtype) for x in fresh((1, 48, 8), 8)[:3]]
    for _ in range(2):
        np.testing.assert_array_equal(attention(*tensors, pattern, 2), reference_attention(*tensors, pattern, 2))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("attention in plain TensorFlow: ")
    assert re.search(reason, record.getMessage())


def test_xla_says_which_flag_to_change():
    pattern = Pattern("b", 96, 32, 16)
    compiled = tf.function(lambda *x: attention(*x, pattern, 2), jit_compile=True)
    tensors = [tf.constant(x, tf.float32) for x in fresh((1, 96, 8), 8)[:3]]
    with pytest.raises(tf.errors.UnimplementedError, match=r"(?s)TFGEN_PURE_TF=1.*or set jit_compile=False"):
        compiled(*tensors)
    with plain_tensorflow():
        plain = tf.function(lambda *x: attention(*x, pattern, 2), jit_compile=True)
        np.testing.assert_allclose(plain(*tensors), attention(*tensors, pattern, 2), atol=1e-5)


def test_there_is_no_second_derivative_and_no_silence_about_it():
    q, k, v = (tf.constant(x, tf.float32) for x in fresh((1, 32, 8), 8)[:3])
    with tf.GradientTape() as outer:
        outer.watch(q)
        with tf.GradientTape() as inner:
            inner.watch(q)
            out = attention(q, k, v, Pattern("a", 32, 8, 8), 1)
        gradient = inner.gradient(out, q)
    with pytest.raises(NotImplementedError, match="TFGEN_PURE_TF=1"):
        outer.gradient(gradient, q)


PROGRAM = """
import numpy as np, tensorflow as tf
from tfgen.ops import library
from tfgen.ops.blocksparse import Pattern, attention

assert library.load() is None
random = np.random.RandomState(0)
q, k, v = (tf.constant(random.normal(size=(2, 96, width)), tf.float32) for width in (8, 8, 12))
for pattern in (Pattern("b", 96, 32, 16), Pattern("bT", 96, 6, 8)):
    with tf.GradientTape() as tape:
        tape.watch(k)
        out = attention(q, k, v, pattern, 2)
    np.save(f"{pattern.mode}.npy", np.concatenate([out, tape.gradient(out, k)], axis=-1))
"""


def test_without_the_library_the_numbers_are_the_same(tmp_path):
    environment = os.environ | {"TFGEN_PURE_TF": "1", "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, check=True)
    random = np.random.RandomState(0)
    q, k, v = (tf.constant(random.normal(size=(2, 96, width)), tf.float32) for width in (8, 8, 12))
    for pattern in (Pattern("b", 96, 32, 16), Pattern("bT", 96, 6, 8)):
        with tf.GradientTape() as tape:
            tape.watch(k)
            out = attention(q, k, v, pattern, 2)
        ours = np.concatenate([out, tape.gradient(out, k)], axis=-1)
        np.testing.assert_allclose(np.load(tmp_path / f"{pattern.mode}.npy"), ours, atol=1e-5)


def test_a_network_and_its_gradients_are_the_same_both_ways(monkeypatch):
    from tfgen.systems.distaug.transformer import Transformer

    network = Transformer(
        height=8, width=8, channels=3, n_embd=32, n_head=2, n_layer=3, attention_layers=("bT", "b", "a"),
        local_attn_ctx=24, blocksize=8, mlp_multiple=2.0, qk_ratio=0.5, qk_w=4.0, logits_w=4.0, recompute=True,
    )  # fmt: skip
    tokens = tf.constant(np.random.RandomState(0).randint(256, size=[2, 192]), tf.int32)

    @tf.function(reduce_retracing=True)
    def step(_: int) -> tuple:
        with tf.GradientTape() as tape:
            logits = network(tokens, network.identity_coordinates, None)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tokens, logits))
        return logits, loss, *tape.gradient(loss, network.trainable_variables)

    compiled = step(0)
    monkeypatch.setenv("TFGEN_PURE_TF", "1")
    for one, two in zip(compiled, step(1), strict=True):
        one, two = (tf.convert_to_tensor(x).numpy() for x in (one, two))
        np.testing.assert_allclose(one, two, atol=1e-5 * max(1.0, np.abs(two).max()))
