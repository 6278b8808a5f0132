"""Self-attention restricted to a pattern, in plain TensorFlow.

It is what the compiled operation is tested against, what exports and XLA run, and what runs where there is no compiled
operation.
"""

from __future__ import annotations

import math

import tensorflow as tf

from tfgen.ops.block_lists import BlockLists
from tfgen.ops.patterns import STRIDED_MODES, Pattern, PatternError

# Stands for "excluded" before the softmax. Finite, so that a row never turns into NaN, and far enough below any
# score for exp(excluded - row maximum) to be exactly 0.
_EXCLUDED = -3.4e38


def reference_attention(
    query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, pattern: Pattern, num_heads: int
) -> tf.Tensor:
    """Multi-head attention restricted to the pairs of `pattern`, everything in token order.

    Child et al. (2019), equations 2 and 3: softmax(q k^T / sqrt(Dk)) v over the kept keys. Scores, softmax and the
    weighted sum are computed in float32, or in float64 where the arguments are. Head j owns columns j * D ..
    (j + 1) * D - 1 of each argument. Cost per sequence and head, where s divides T: T * m for `bT`, `c` and
    `b0`, 2 * T * s for `b`; T * T otherwise.

    Args:
      query, key: [B, T, H * Dk], floating point.
      value: [B, T, H * Dv], the dtype of `query`.
      pattern: kept pairs; `pattern.n_ctx` must be T.
      num_heads: H.

    Returns:
      [B, T, H * Dv], the dtype of `value`.

    Raises:
      PatternError: if the shapes do not fit the pattern or the number of heads.
    """
    check_shapes(query, key, value, pattern, num_heads)
    head_size = query.shape[-1] // num_heads
    compute = tf.float64 if query.dtype == tf.float64 else tf.float32
    q = _split_heads(tf.cast(query, compute) / math.sqrt(head_size), num_heads)  # [B, T, H, Dk]
    k = _split_heads(tf.cast(key, compute), num_heads)  # [B, T, H, Dk]
    v = _split_heads(tf.cast(value, compute), num_heads)  # [B, T, H, Dv]
    divides = pattern.n_ctx % pattern.window == 0
    if pattern.mode in STRIDED_MODES and divides:
        attended = _strided(q, k, v, pattern)
    elif pattern.mode in ("b0", "b_all"):
        attended = _chunked(q, k, v, pattern)
    elif pattern.mode == "b" and divides:
        attended = _banded(q, k, v, pattern)
    else:
        attended = _dense(q, k, v, pattern)
    return tf.cast(tf.reshape(attended, tf.shape(value)), value.dtype)  # [B, T, H * Dv]


def reference_block_sparse_attention(
    query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, lists: BlockLists, num_heads: int, stride: int = 1
) -> tf.Tensor:
    """`tfgen.ops.blocksparse.block_sparse_attention` in plain TensorFlow: all pairs, masked.

    It computes and stores T x T scores for each head, and a graph holds a mask of T x T bytes for each layout: for
    lengths of a few thousand.

    Args and returns: as there; float64 arguments are computed in float64.

    Raises:
      ValueError: arguments that do not fit together, or whose features are not known.
    """
    length, layouts = lists.blocks * lists.blocksize, lists.layouts
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.shape.rank != 3 or tensor.shape[2] is None or tensor.shape[1] not in (length, None):
            raise ValueError(f"{name} must have shape [B, {length}, features], found {tensor.shape}")
        if tensor.shape[2] % num_heads:
            raise ValueError(f"the features of {name} must divide into {num_heads} heads, found {tensor.shape}")
    if query.shape[2] != key.shape[2] or layouts not in (1, num_heads) or stride < 1 or length % stride:
        raise ValueError(
            f"expected query and key of the same features, one layout or one for each of {num_heads} heads, and a "
            f"stride that divides {length}; found {query.shape}, {key.shape}, {layouts} layouts and stride {stride}"
        )
    compute = tf.float64 if query.dtype == tf.float64 else tf.float32

    def by_head(x: tf.Tensor) -> tf.Tensor:
        """[B, T, H * D] in token order -> [B, H, T, D] in the order of slots."""
        heads = tf.reshape(tf.cast(x, compute), [-1, length // stride, stride, num_heads, x.shape[2] // num_heads])
        return tf.reshape(tf.transpose(heads, [0, 3, 2, 1, 4]), [-1, num_heads, length, x.shape[2] // num_heads])

    mask = lists.mask()  # [layouts, T, T]
    scale = math.sqrt(query.shape[2] // num_heads)
    attended = _attend(by_head(query) / scale, by_head(key), by_head(value), tf.constant(mask))  # [B, H, T, Dv]
    attended = tf.where(tf.constant(mask.any(axis=2, keepdims=True)), attended, tf.zeros([], compute))
    slots = tf.reshape(attended, [-1, num_heads, stride, length // stride, value.shape[2] // num_heads])
    return tf.cast(tf.reshape(tf.transpose(slots, [0, 3, 2, 1, 4]), tf.shape(value)), value.dtype)


def check_shapes(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, pattern: Pattern, num_heads: int) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.shape.rank != 3 or tensor.shape[1] != pattern.n_ctx:
            raise PatternError(f"{name} must have shape [B, {pattern.n_ctx}, features], found {tensor.shape}")
        if tensor.shape[2] is None or tensor.shape[2] % num_heads:
            raise PatternError(f"the features of {name} must divide into {num_heads} heads, found {tensor.shape}")
    if query.shape[2] != key.shape[2]:
        raise PatternError(f"query and key must have the same features, found {query.shape} and {key.shape}")


def _split_heads(tensor: tf.Tensor, num_heads: int) -> tf.Tensor:
    batch, length, features = tf.shape(tensor)[0], tensor.shape[1], tensor.shape[2]
    return tf.reshape(tensor, [batch, length, num_heads, features // num_heads])


def _attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, keep: tf.Tensor | None) -> tf.Tensor:
    """[..., Q, Dk], [..., K, Dk], [..., K, Dv], bool broadcasting to [..., Q, K] -> [..., Q, Dv]."""
    scores = tf.matmul(q, k, transpose_b=True)  # [..., Q, K]
    if keep is not None:
        scores = tf.where(keep, scores, _EXCLUDED)
    return tf.matmul(tf.nn.softmax(scores), v)


def _dense(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, pattern: Pattern) -> tf.Tensor:
    """All pairs, masked. [B, T, H, D] -> [B, T, H, Dv]."""
    q, k, v = (tf.transpose(x, [0, 2, 1, 3]) for x in (q, k, v))  # [B, H, T, D]
    keep = None
    if pattern.mode != "a_all":
        # From ranges rather than from `token_mask`: a graph that holds a T x T constant is too large to save.
        positions = tf.range(pattern.n_ctx)
        keep = pattern.keeps(positions[:, None], positions[None, :])
    return tf.transpose(_attend(q, k, v, keep), [0, 2, 1, 3])


def _chunk_mask(length: int, pattern: Pattern) -> tf.Tensor | None:
    positions = tf.range(length)
    return positions[None, :] <= positions[:, None] if pattern.causal else None


def _strided(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, pattern: Pattern) -> tf.Tensor:
    """Attention inside each of the s residue classes. [B, T, H, D] -> [B, T, H, Dv]."""
    m, s = pattern.chunk, pattern.window

    def gather(x: tf.Tensor) -> tf.Tensor:
        by_class = tf.reshape(x, [tf.shape(x)[0], m, s, x.shape[2], x.shape[3]])  # [B, m, s, H, D]
        return tf.transpose(by_class, [0, 2, 3, 1, 4])  # [B, s, H, m, D]

    attended = _attend(gather(q), gather(k), gather(v), _chunk_mask(m, pattern))  # [B, s, H, m, Dv]
    return tf.transpose(attended, [0, 3, 1, 2, 4])  # [B, m, s, H, Dv], which reshapes to token order


def _chunked(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, pattern: Pattern) -> tf.Tensor:
    """Attention inside chunks of consecutive tokens. [B, T, H, D] -> [B, T, H, Dv]."""
    length = pattern.chunk if pattern.mode == "b0" else pattern.window
    q, k, v = (_chunks(x, length) for x in (q, k, v))
    attended = _attend(q, k, v, _chunk_mask(length, pattern))  # [B, T / length, H, length, Dv]
    return tf.transpose(attended, [0, 1, 3, 2, 4])


def _chunks(x: tf.Tensor, length: int) -> tf.Tensor:
    """[B, T, H, D] -> [B, T / length, H, length, D]."""
    chunks = tf.reshape(x, [tf.shape(x)[0], x.shape[1] // length, length, x.shape[2], x.shape[3]])
    return tf.transpose(chunks, [0, 1, 3, 2, 4])


def _banded(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, pattern: Pattern) -> tf.Tensor:
    """A window of s: each chunk of s queries against its own and the previous chunk. [B, T, H, D] -> [B, T, H, Dv]."""
    s = pattern.window

    def with_previous(x: tf.Tensor) -> tf.Tensor:
        own = _chunks(x, s)  # [B, n, H, s, D]
        # The first chunk gets the last one, which the mask excludes. Rolling, since a slice has a slow gradient.
        previous = tf.roll(own, 1, axis=1)
        return tf.concat([previous, own], axis=3)  # [B, n, H, 2 * s, D]

    query, key = tf.range(s)[:, None] + s, tf.range(2 * s)[None, :]  # positions within the pair of chunks
    in_window = (key <= query) & (query - key < s)  # [s, 2 * s]
    # The first chunk has no previous one.
    exists = (tf.range(pattern.n_ctx // s)[:, None, None] > 0) | (key >= s)  # [n, 1, 2 * s]
    keep = (in_window & exists)[:, None]  # [n, 1, s, 2 * s]
    attended = _attend(_chunks(q, s), with_previous(k), with_previous(v), keep)  # [B, n, H, s, Dv]
    return tf.transpose(attended, [0, 1, 3, 2, 4])
