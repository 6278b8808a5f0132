from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfgen.ops.blocksparse import MODES, Pattern, PatternError, attention


def allowed(mode: str, query: int, key: int, length: int, stride: int) -> bool:
    """The definitions again, one pair at a time and in other words than the library's."""
    if mode == "a_all":
        return True
    if mode == "b_all":
        return query // 32 == key // 32
    if mode == "bT_all":
        return abs(query - key) in range(0, length, stride)
    if key > query:
        return False
    return {
        "a": True,
        "b": key in range(query - stride + 1, query + 1),
        "bT": (query - key) in range(0, length, stride),
        "c": (query - key) in range(0, length, stride),
        "b0": any(start <= key <= query < start + length // stride for start in range(0, length, length // stride)),
    }[mode]


def pairs(mask: np.ndarray) -> set[tuple[int, int]]:
    return set(map(tuple, np.argwhere(mask).tolist()))


SMALL = [(mode, 48, 12, 8) for mode in ("a", "a_all", "b", "bT", "c", "b0")] + [("b", 50, 12, 8), ("c", 50, 12, 8)]
WHOLE = [("b_all", 1024, 32, 32), ("bT_all", 1024, 32, 32)]


@pytest.mark.parametrize(("mode", "length", "stride", "block"), SMALL)
def test_token_mask_is_the_set_of_allowed_pairs(mode, length, stride, block):
    expected = {(q, k) for q, k in itertools.product(range(length), repeat=2) if allowed(mode, q, k, length, stride)}
    assert pairs(Pattern(mode, length, stride, block).token_mask()) == expected


@pytest.mark.parametrize(("mode", "length", "stride", "block"), WHOLE)
def test_blocks_of_a_whole_pattern(mode, length, stride, block):
    pattern = Pattern(mode, length, stride, block)
    np.testing.assert_array_equal(pattern.mask(), np.kron(np.eye(32, dtype=bool), np.ones((32, 32), bool)))
    for query, key in [(0, 0), (5, 37), (1, 31), (31, 32), (1023, 991), (640, 0)]:
        assert pattern.token_mask()[query, key] == allowed(mode, query, key, length, stride)


@pytest.mark.parametrize(("mode", "length", "stride", "block"), SMALL + WHOLE)
def test_kernel_order_is_a_reordering_of_the_token_mask(mode, length, stride, block):
    pattern = Pattern(mode, length, stride, block)
    order = pattern.token_order()
    assert sorted(order) == list(range(length))
    mapped = {(int(order[q]), int(order[k])) for q, k in pairs(pattern.mask())}
    assert mapped == pairs(pattern.token_mask())
    if mode in ("a", "a_all", "b", "b0", "b_all"):
        np.testing.assert_array_equal(order, np.arange(length))


def test_strided_order_is_class_by_class():
    order = Pattern("bT", 24, 4).token_order()
    for r, j in itertools.product(range(4), range(6)):
        assert order[r * 6 + j] == j * 4 + r


@pytest.mark.parametrize(
    ("mode", "length", "stride", "block"),
    [
        ("a", 64, 8, 16),
        ("a_all", 64, 8, 8),
        ("b", 96, 16, 8),
        ("b", 96, 32, 16),
        ("bT", 96, 6, 8),
        ("c", 96, 6, 8),
        ("b0", 96, 6, 16),
        *WHOLE,
    ],
)
def test_layout_is_the_set_of_blocks_with_a_kept_pair(mode, length, stride, block):
    pattern = Pattern(mode, length, stride, block)
    expected = {(q // block, k // block) for q, k in pairs(pattern.mask())}
    assert pairs(pattern.layout()) == expected


# Kept pairs and share of blocks as published for images of 32x32 and 64x64.
@pytest.mark.parametrize(
    ("mode", "length", "stride", "kept", "blocks"),
    [
        ("a", 3072, 96, 4_720_128, 4656),
        ("b", 3072, 96, 290_352, 378),
        ("bT", 3072, 96, 50_688, 96),
        ("b0", 3072, 96, 50_688, 96),
        ("b", 12288, 128, 1_564_736, 1910),
        ("bT", 12288, 128, 595_968, 768),
    ],
)
def test_densities(mode, length, stride, kept, blocks):
    pattern = Pattern(mode, length, stride, 32)
    assert pattern.layout().sum() == blocks
    keys = np.arange(length, dtype=np.int32)
    assert sum(pattern.keeps(queries[:, None], keys).sum() for queries in np.split(keys, length // 512)) == kept


def test_arrays_are_shared_and_read_only():
    pattern = Pattern("b", 48, 12, 8)
    assert pattern.mask() is Pattern("b", 48, 12, 8).mask()
    with pytest.raises(ValueError, match="read-only"):
        pattern.mask()[0, 0] = False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("d", 48, 12, 8), "unknown attention mode 'd'; known modes are a, "),
        (("b0", 50, 12, 8), "found 50 and 12"),
        (("a", 0, 12, 8), "must be positive, found 0"),
        (("b_all", 48, 12, 8), "context length 1024, local_attn_ctx 32 and blocksize 32 only, found 48, 12 and 8"),
    ],
)
def test_impossible_patterns(arguments, message):
    with pytest.raises(PatternError, match=message):
        Pattern(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", 50, 12, 8), "multiple of the blocksize, found 50 and 8"),
        (("a", 48, 12, 12), "blocksize must be one of"),
        (("b", 48, 12, 8), "multiple of the blocksize, found 12 and 8"),
        (("bT", 48, 12, 8), "found 48 / 12 = 4 and 8"),
        (("bT", 56, 12, 8), "multiple of local_attn_ctx, found 56 and 12"),
    ],
)
def test_patterns_without_a_block_form(arguments, message):
    pattern = Pattern(*arguments)  # the dense form has no such conditions
    with pytest.raises(PatternError, match=message):
        pattern.layout()


def reference(query, key, value, mask, heads):
    """Dense attention in float64, head by head."""
    outputs = []
    for q, k, v in zip(*(np.split(x, heads, axis=-1) for x in (query, key, value)), strict=True):
        scores = np.einsum("bqd,bkd->bqk", q, k) / np.sqrt(q.shape[-1])
        weights = np.where(mask, np.exp(scores - scores.max()), 0)
        outputs.append(np.einsum("bqk,bkd->bqd", weights / weights.sum(-1, keepdims=True), v))
    return np.concatenate(outputs, axis=-1)


def inputs(length: int, dtype=np.float32) -> list[np.ndarray]:
    random = np.random.RandomState(length)
    return [random.normal(size=(2, length, width)).astype(dtype) for width in (6, 6, 15)]


ALL_FORMS = [*SMALL, ("b", 48, 48, 8), ("b", 48, 60, 8), ("b", 48, 1, 8), ("bT", 48, 1, 8), ("bT", 48, 48, 8)]


@pytest.mark.parametrize(("mode", "length", "stride", "block"), ALL_FORMS)
def test_attention_is_the_masked_dense_one(mode, length, stride, block):
    query, key, value = inputs(length)
    pattern = Pattern(mode, length, stride, block)
    output = attention(tf.constant(query), tf.constant(key), tf.constant(value), pattern, num_heads=3)
    expected = reference(*(x.astype(np.float64) for x in (query, key, value)), pattern.token_mask(), heads=3)
    np.testing.assert_allclose(output, expected, atol=2e-6)


@pytest.mark.parametrize("mode", ["b", "bT", "b0"])
def test_gradients_are_those_of_the_masked_dense_form(mode):
    pattern = Pattern(mode, 48, 12, 8)
    tensors = [tf.constant(x) for x in inputs(48)]

    def dense(q, k, v):
        q, k, v = (tf.stack(tf.split(x, 3, axis=-1), axis=1) for x in (q, k, v))  # [B, heads, T, D]
        scores = tf.where(pattern.token_mask(), tf.matmul(q, k, transpose_b=True) / np.sqrt(2.0), -3.4e38)
        return tf.concat(tf.unstack(tf.nn.softmax(scores) @ v, axis=1), axis=-1)

    gradients = []
    for form in (lambda q, k, v: attention(q, k, v, pattern, 3), dense):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            objective = tf.reduce_sum(tf.sin(form(*tensors)))
        gradients.append(tape.gradient(objective, tensors))
    for fast, slow in zip(*gradients, strict=True):
        np.testing.assert_allclose(fast, slow, atol=2e-6)


@pytest.mark.parametrize("mode", [mode for mode in MODES if not mode.endswith("_all")])
def test_an_excluded_key_has_no_influence_at_all(mode):
    query, key, value = inputs(48)
    pattern = Pattern(mode, 48, 12, 8)
    unseen = np.flatnonzero(~pattern.token_mask()[30])
    before = attention(tf.constant(query), tf.constant(key), tf.constant(value), pattern, 3)[:, 30]
    key[:, unseen], value[:, unseen] = 1e3, -1e30
    after = attention(tf.constant(query), tf.constant(key), tf.constant(value), pattern, 3)[:, 30]
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    tensors = [tf.cast(x * 20, dtype) for x in inputs(48)]  # scores beyond what a half holds exactly
    pattern = Pattern("b", 48, 12, 8)
    half = attention(*tensors, pattern, 3)
    assert half.dtype == dtype
    wide = attention(*(tf.cast(x, tf.float32) for x in tensors), pattern, 3)
    np.testing.assert_array_equal(half, tf.cast(wide, dtype))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (([2, 40, 6], [2, 40, 6], [2, 40, 6]), r"query must have shape \[B, 48, features\]"),
        (([2, 48, 6], [2, 48, 6], [2, 48, 7]), "value must divide into 3 heads"),
        (([2, 48, 6], [2, 48, 9], [2, 48, 6]), "query and key must have the same features"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(PatternError, match=message):
        attention(*(tf.zeros(shape) for shape in shapes), Pattern("a", 48), 3)


def test_any_batch_in_one_graph():
    pattern = Pattern("bT", 48, 12, 8)
    spec = [tf.TensorSpec([None, 48, width]) for width in (6, 6, 15)]
    traced = tf.function(lambda q, k, v: attention(q, k, v, pattern, 3), input_signature=spec)
    tensors = [tf.constant(x) for x in inputs(48)]
    np.testing.assert_allclose(traced(*(x[:1] for x in tensors)), attention(*tensors, pattern, 3)[:1], atol=1e-6)
