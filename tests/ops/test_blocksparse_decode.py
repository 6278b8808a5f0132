"""Attention of one query a sequence over cached keys: the compiled operation and its form in plain TensorFlow."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.ops import library
from tfgen.ops.blocksparse_decode import decode_attention, reference_decode_attention

LIBRARY = library.load()
compiled_only = pytest.mark.skipif(LIBRARY is None, reason="the kernels are not built")
FORMS = [pytest.param(decode_attention, marks=compiled_only, id="compiled"), reference_decode_attention]
DTYPES = [tf.float32, tf.bfloat16, tf.float16]
ROUNDING = {tf.float32: 2.0**-23, tf.float16: 2.0**-11, tf.bfloat16: 2.0**-8}
RANDOM = np.random.default_rng(SEED)


def fresh(
    batch: int, heads: int, slots: int, key_size: int, value_size: int, earlier: int = 0, scale: float = 1.0
) -> list[np.ndarray]:
    """query, keys, values, earlier keys, earlier values; different at every call."""
    shapes = [[batch, heads * key_size], [slots, batch, heads * key_size], [slots, batch, heads * value_size]]
    shapes += [[batch, heads, earlier, size] for size in (key_size, value_size)]
    return [RANDOM.normal(size=shape) * scale for shape in shapes]


def call(form, arrays: list[np.ndarray], visible: int, heads: int, dtype: tf.DType) -> tf.Tensor:
    query, keys, values, *earlier = (tf.cast(tf.constant(x), dtype) for x in arrays)
    return form(query, keys, values, visible, heads, tuple(earlier) if earlier[0].shape[2] else None)


def naive(arrays: list[np.ndarray], visible: int, heads: int, dtype: tf.DType) -> np.ndarray:
    """Everything in one dtype, stored after each step. float64 [B, H * Dv]."""
    query, keys, values, earlier_keys, earlier_values = (tf.cast(tf.constant(x), dtype) for x in arrays)

    def joined(table: tf.Tensor, earlier: tf.Tensor) -> tf.Tensor:  # [B, H, seen, D]
        by_head = tf.stack(tf.split(table[:visible], heads, axis=2), axis=1)  # [seen, H, B, D]
        return tf.concat([tf.transpose(by_head, [2, 1, 0, 3]), earlier], axis=2)

    one_query = tf.stack(tf.split(query, heads, axis=1), axis=1)[:, :, None]  # [B, H, 1, Dk]
    scores = tf.matmul(one_query, joined(keys, earlier_keys), transpose_b=True)
    scores *= tf.cast(1 / np.sqrt(one_query.shape[-1]), dtype)
    out = tf.matmul(tf.nn.softmax(scores), joined(values, earlier_values))  # [B, H, 1, Dv]
    return tf.cast(tf.reshape(out, [query.shape[0], -1]), tf.float64).numpy()


def assert_as_good_as_naive(form, arrays: list[np.ndarray], visible: int, heads: int, dtype: tf.DType) -> None:
    """The error against float64 may be twice that of the naive form in the same dtype, plus a floor.

    The floor is one rounding of the terms that a result sums, and a few in float32, in which both forms compute:
    without it a naive result that happens to be exact would ask for an exact one.
    """
    rounded = [tf.cast(tf.cast(tf.constant(x), dtype), tf.float64).numpy() for x in arrays]
    exact = naive(rounded, visible, heads, tf.float64)
    query, keys, values, earlier_keys, earlier_values = rounded
    terms = naive([query, keys, np.abs(values), earlier_keys, np.abs(earlier_values)], visible, heads, tf.float64).max()
    found = call(form, rounded, visible, heads, dtype)
    assert found.dtype == dtype
    error = np.abs(tf.cast(found, tf.float64).numpy() - exact).max()
    theirs = np.abs(naive(rounded, visible, heads, dtype) - exact).max()
    floor = (ROUNDING[dtype] + 4 * ROUNDING[tf.float32]) * terms
    assert error <= 2 * theirs + floor, f"error {error:.3g}, naive {theirs:.3g}"


# batch, heads, slots, width of keys, width of values, earlier slots; visible slots
CASES = [
    ((4, 2, 96, 64, 128), 96), ((4, 2, 32, 64, 128), 17), ((1, 1, 1, 1, 1), 1), ((1, 1, 5, 7, 3), 1),
    ((3, 5, 9, 12, 40), 8), ((2, 3, 100, 33, 111), 77), ((1, 4, 400, 24, 8), 400), ((1, 16, 33, 8, 8), 31),
    ((4, 2, 96, 64, 128, 700), 5), ((1, 1, 3, 5, 9, 1), 3), ((2, 3, 7, 17, 29, 50), 0), ((1, 2, 16, 256, 300, 15), 16),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(("sizes", "visible"), CASES, ids=str)
def test_numbers(form, dtype, sizes, visible):
    assert_as_good_as_naive(form, fresh(*sizes), visible, sizes[1], dtype)


@pytest.mark.parametrize("form", FORMS)
def test_extreme_logits(form):
    """Scores of some thousands, whose exponentials overflow everywhere but relative to the largest."""
    arrays = fresh(2, 3, 40, 16, 24, earlier=30, scale=30)
    assert np.abs(np.einsum("bd,sbd->sb", arrays[0], arrays[1])).max() / 4 > 1000
    assert_as_good_as_naive(form, arrays, 33, 3, tf.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_scores_far_from_zero_on_one_side(form, sign):
    arrays = [np.abs(x) for x in fresh(2, 2, 20, 8, 8, scale=40)]
    arrays[0] *= sign
    assert_as_good_as_naive(form, arrays, 20, 2, tf.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_no_visible_slot_gives_zeros(form, dtype):
    out = call(form, fresh(2, 3, 5, 4, 6), 0, 3, dtype)
    np.testing.assert_array_equal(tf.cast(out, tf.float32), np.zeros([2, 18]))
    query, keys, values, *_ = (tf.cast(tf.constant(x), dtype) for x in fresh(2, 3, 5, 4, 6))
    empty = tuple(tf.zeros([2, 3, 0, size], dtype) for size in (4, 6))
    np.testing.assert_array_equal(tf.cast(form(query, keys, values, 0, 3, empty), tf.float32), np.zeros([2, 18]))


@pytest.mark.parametrize("form", FORMS)
def test_slots_beyond_are_of_no_effect(form):
    arrays = fresh(2, 2, 9, 4, 6)
    before = call(form, arrays, 4, 2, tf.float32).numpy()
    for table in arrays[1:3]:
        table[4:] = 1e6
    np.testing.assert_array_equal(call(form, arrays, 4, 2, tf.float32), before)
    arrays[1][3] += 1.0
    assert (call(form, arrays, 4, 2, tf.float32).numpy() != before).any()


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_slots_and_where_they_lie_do_not_matter(form):
    query, keys, values, *_ = fresh(2, 2, 12, 4, 6)
    whole = call(form, [query, keys, values, *fresh(2, 2, 1, 4, 6)[3:]], 12, 2, tf.float32)
    turned = [np.roll(table, 5, axis=0) for table in (keys, values)]
    stores = [table[5:].reshape(7, 2, 2, -1).transpose(1, 2, 0, 3) for table in turned]
    np.testing.assert_allclose(call(form, [query, *turned, *stores], 5, 2, tf.float32), whole, atol=1e-5)


@compiled_only
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_a_sequence_does_not_depend_on_its_batch(dtype):
    query, keys, values, *earlier = fresh(5, 3, 11, 8, 12, earlier=20)
    whole = call(decode_attention, [query, keys, values, *earlier], 7, 3, dtype)
    alone = [query[3:4], keys[:, 3:4], values[:, 3:4], *(store[3:4] for store in earlier)]
    np.testing.assert_array_equal(whole[3:4], call(decode_attention, alone, 7, 3, dtype))


THREADS = """
import sys
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
from tfgen.ops.blocksparse_decode import decode_attention
random = np.random.RandomState(0)
shapes = [[8, 96], [300, 8, 96], [300, 8, 120], [8, 4, 900, 24], [8, 4, 900, 30]]
q, k, v, ek, ev = (tf.constant(random.normal(size=shape), tf.float32) for shape in shapes)
np.save(f"{sys.argv[1]}.npy", decode_attention(q, k, v, 250, 4, (ek, ev)))
"""


@compiled_only
def test_the_same_bits_at_any_number_of_threads(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    for threads in ("1", "2", "7"):
        subprocess.run([sys.executable, "-c", THREADS, threads], env=environment, cwd=tmp_path, check=True)
    one, *others = (np.load(tmp_path / f"{threads}.npy") for threads in ("1", "2", "7"))
    assert np.isfinite(one).all()
    assert one.any()
    for other in others:
        np.testing.assert_array_equal(one, other)


@compiled_only
def test_graphs_with_any_batch_and_any_number_of_earlier_slots():
    specs = [tf.TensorSpec(shape) for shape in ([None, 8], [6, None, 8], [6, None, 12])]
    specs += [tf.TensorSpec([], tf.int32), tf.TensorSpec([None, 2, None, 4]), tf.TensorSpec([None, 2, None, 6])]

    @tf.function(input_signature=specs)
    def traced(query, keys, values, visible, *earlier):
        return decode_attention(query, keys, values, visible, 2, earlier)

    concrete = traced.get_concrete_function()
    assert concrete.output_shapes.as_list() == [None, 12]
    assert "TfgenBlocksparseDecode" in {node.op for node in concrete.graph.as_graph_def().node}
    for batch, earlier in ((1, 0), (3, 10)):
        arrays = [tf.constant(x, tf.float32) for x in fresh(batch, 2, 6, 4, 6, earlier)]
        out = traced(*arrays[:3], 5, *arrays[3:])
        np.testing.assert_array_equal(out, decode_attention(*arrays[:3], 5, 2, tuple(arrays[3:])))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"visible must be in 0 \.\. 6, .*, found 7"):
        traced(*arrays[:3], 7, *arrays[3:])


def test_plain_tensorflow_is_plain_and_runs_under_xla():
    arrays = [tf.constant(x, tf.float32) for x in fresh(2, 2, 6, 4, 6, 5)]
    with library.plain_tensorflow():
        xla = tf.function(lambda seen: decode_attention(*arrays[:3], seen, 2, tuple(arrays[3:])), jit_compile=True)
        graph = xla.get_concrete_function(tf.TensorSpec([], tf.int32)).graph.as_graph_def()
        assert not [node.op for node in graph.node if node.op.startswith("Tfgen")]
        for visible in (0, 4):
            expected = reference_decode_attention(*arrays[:3], visible, 2, tuple(arrays[3:]))
            np.testing.assert_allclose(xla(tf.constant(visible)), expected, atol=1e-6)


@compiled_only
def test_xla_says_which_flag_to_change():
    arrays = [tf.constant(x, tf.float32) for x in fresh(2, 2, 6, 4, 6)[:3]]
    xla = tf.function(lambda: decode_attention(*arrays, 3, 2), jit_compile=True)
    with pytest.raises(tf.errors.UnimplementedError, match=r"(?s)TFGEN_PURE_TF=1.*or set jit_compile=False"):
        xla()


@compiled_only
def test_there_is_no_gradient_and_no_silence_about_it():
    query, keys, values = (tf.constant(x, tf.float32) for x in fresh(2, 2, 6, 4, 6)[:3])
    with tf.GradientTape() as tape:
        tape.watch(query)
        out = decode_attention(query, keys, values, 3, 2)
    with pytest.raises(NotImplementedError, match="attention of sampling has no gradient"):
        tape.gradient(out, query)


@compiled_only
@pytest.mark.parametrize("dtype", [tf.float64])
def test_what_the_operation_cannot_do_runs_in_plain_tensorflow_and_says_so_once(dtype, caplog):
    library.log_once.cache_clear()
    arrays = fresh(2, 2, 6, 4, 6)
    with caplog.at_level("INFO"):
        for _ in range(2):
            out = call(decode_attention, arrays, 5, 2, dtype)
    np.testing.assert_allclose(out, naive(arrays, 5, 2, tf.float64), rtol=1e-12)
    (record,) = caplog.records
    assert record.getMessage().startswith("attention of sampling in plain TensorFlow: the compiled operation takes")


@compiled_only
def test_a_gpu_computes_in_plain_tensorflow_and_says_so(monkeypatch, caplog):
    arrays = fresh(2, 2, 6, 4, 6)
    expected = call(reference_decode_attention, arrays, 5, 2, tf.float32)
    monkeypatch.setattr(library, "gpu_visible", lambda: True)
    library.log_once.cache_clear()
    with caplog.at_level("INFO"):
        np.testing.assert_array_equal(call(decode_attention, arrays, 5, 2, tf.float32), expected)
    assert [r.getMessage() for r in caplog.records if "there is a GPU" in r.getMessage()]


@compiled_only
def test_the_path_that_runs_is_logged_once(caplog):
    library.log_once.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            call(decode_attention, fresh(2, 2, 6, 4, 6), 5, 2, tf.float32)
    assert [r.getMessage() for r in caplog.records] == ["attention of sampling: compiled operation for the CPU"]
