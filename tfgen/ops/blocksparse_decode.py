"""Factorised self-attention, one position at a time: the form that sampling computes with cached keys and values.

`decode_attention` runs a compiled operation for the CPU where there is one (kernels/blocksparse/decode.h) and plain
TensorFlow (`reference_decode_attention`) elsewhere: on GPUs, for other dtypes, and where plain TensorFlow is asked for
(see `tfgen.ops.blocksparse`), as exports and functions compiled by XLA need. Which of the two runs is logged once.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import tensorflow as tf

from tfgen.ops import library

Store = tuple[tf.Tensor, tf.Tensor]  # keys and values
_DTYPES = (tf.float32, tf.bfloat16, tf.float16)
_UNSEEN = -3.4e38  # added to the score of a slot that the query does not see: its weight is exactly 0


def decode_attention(
    query: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    visible: int | tf.Tensor,
    num_heads: int,
    earlier: Store | None = None,
) -> tf.Tensor:
    """Multi-head attention of one query a sequence over a table of cached keys and values.

    Child et al. (2019), equations 2 and 3, for a single position i: softmax(q k^T / sqrt(Dk)) v over its kept keys,
    which are the first `visible` slots of the table, in any order, and all of `earlier`. Summed in float32 whatever the
    dtype of the arguments (float64: in float64). Head j owns columns j * D .. (j + 1) * D - 1. Not differentiable.

    Args:
      query: [B, H * Dk], floating point.
      keys: [S, B, H * Dk], the dtype of `query`. Slots that are not visible hold finite numbers, of no effect.
      values: [S, B, H * Dv], likewise.
      visible: int32 [], 0 .. S.
      num_heads: H.
      earlier: further keys [B, H, P, Dk] and values [B, H, P, Dv], all visible; P may be 0.

    Returns:
      [B, H * Dv], the dtype of `values`; zero where no slot is visible.

    Raises:
      ValueError: shapes that do not fit together, or a known `visible` out of range.
      tf.errors.InvalidArgumentError: the same of what is known at run time only, from the compiled operation.
    """
    _check(query, keys, values, visible, num_heads, earlier)
    compiled = library.load()
    if compiled is None:
        return reference_decode_attention(query, keys, values, visible, num_heads, earlier)
    stores = list(earlier or ())
    obstacle = _obstacle({tensor.dtype for tensor in (query, keys, values, *stores)})
    if obstacle:
        library.log_once(logging.INFO, f"attention of sampling in plain TensorFlow: {obstacle}")
        return reference_decode_attention(query, keys, values, visible, num_heads, earlier)
    library.log_once(logging.INFO, "attention of sampling: compiled operation for the CPU")
    return compiled.operations.tfgen_blocksparse_decode(query, keys, values, visible, stores, num_heads=num_heads)


def reference_decode_attention(
    query: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    visible: int | tf.Tensor,
    num_heads: int,
    earlier: Store | None = None,
) -> tf.Tensor:
    """`decode_attention` in plain TensorFlow: what the compiled operation is tested against, and what exports run."""
    _check(query, keys, values, visible, num_heads, earlier)
    compute = tf.float64 if query.dtype == tf.float64 else tf.float32
    query = tf.cast(query, compute) * (1.0 / math.sqrt(query.shape[1] // num_heads))
    # Tables are short: a product and a sum are faster here than a batched matrix product, whose set-up costs more.
    scores = tf.reduce_sum(_split_heads(query * tf.cast(keys, compute), num_heads), axis=-1)  # [S, B, H]
    slots = tf.range(tf.shape(keys)[0] if keys.shape[0] is None else keys.shape[0])
    scores += tf.where(slots < visible, tf.zeros([], compute), tf.constant(_UNSEEN, compute))[:, None, None]
    # Not below half of _UNSEEN: where no slot is seen every weight is then 0, rather than the same for all.
    highest = tf.maximum(tf.reduce_max(scores, axis=0), _UNSEEN / 2)  # [B, H]
    if earlier is not None:
        earlier_keys, earlier_values = (tf.cast(store, compute) for store in earlier)  # [B, H, P, D]
        one_query = tf.reshape(query, [-1, num_heads, 1, query.shape[1] // num_heads])
        earlier_scores = tf.matmul(one_query, earlier_keys, transpose_b=True)  # [B, H, 1, P]
        highest = tf.maximum(highest, tf.reduce_max(earlier_scores, axis=[2, 3]))
    weights = tf.exp(scores - highest)  # [S, B, H]
    total = tf.reduce_sum(weights, axis=0)
    attended = tf.reduce_sum(weights[..., None] * _split_heads(tf.cast(values, compute), num_heads), axis=0)
    if earlier is not None:
        earlier_weights = tf.exp(earlier_scores - highest[..., None, None])
        total += tf.reduce_sum(earlier_weights, axis=[2, 3])
        attended += tf.matmul(earlier_weights, earlier_values)[:, :, 0]
    attended = tf.math.divide_no_nan(attended, total[..., None])  # [B, H, Dv]
    return tf.cast(tf.reshape(attended, [-1, values.shape[2]]), values.dtype)


def _obstacle(dtypes: set[tf.DType]) -> str:
    """Why the compiled operation cannot compute this; empty if it can."""
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        found = ", ".join(sorted(dtype.name for dtype in dtypes))
        return f"the compiled operation takes float32, bfloat16 or float16, the same for all arguments, found {found}"
    if library.gpu_visible():
        return "the compiled operation is for the CPU, and there is a GPU"
    return ""


def _check(
    query: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, visible: Any, num_heads: int, earlier: Store | None
) -> None:
    """What is known of the shapes, for both forms alike."""
    if num_heads < 1:
        raise ValueError(f"num_heads must be 1 or more, found {num_heads}")
    if query.shape.rank != 2 or query.shape[1] is None or query.shape[1] % num_heads:
        raise ValueError(f"query must have shape [B, {num_heads} heads * Dk], found {query.shape}")
    batch, width = query.shape
    if keys.shape.rank != 3 or not keys.shape.is_compatible_with([None, batch, width]):
        raise ValueError(f"keys must have shape [S, {batch}, {width}] for a query of {query.shape}, found {keys.shape}")
    if values.shape.rank != 3 or values.shape[2] is None or values.shape[2] % num_heads:
        raise ValueError(f"values must have shape [S, B, {num_heads} heads * Dv], found {values.shape}")
    if not values.shape.is_compatible_with([keys.shape[0], batch, None]):
        raise ValueError(f"values must have slots and batch of the keys, {keys.shape}, found {values.shape}")
    slots, known = keys.shape[0], tf.get_static_value(visible)
    if known is not None and not 0 <= known <= (math.inf if slots is None else slots):
        raise ValueError(f"visible must be in 0 .. {slots}, the number of slots, found {known}")
    if earlier is None:
        return
    if len(earlier) != 2:
        raise ValueError(f"earlier must be a pair of keys and values, found {len(earlier)}")
    for name, store, features in zip(("keys", "values"), earlier, (width, values.shape[2]), strict=True):
        if store.shape.rank != 4 or not store.shape.is_compatible_with([batch, num_heads, None, features // num_heads]):
            expected = f"[{batch}, {num_heads}, P, {features // num_heads}]"
            raise ValueError(f"earlier {name} must have shape {expected}, found {store.shape}")
    if not earlier[0].shape[2:3].is_compatible_with(earlier[1].shape[2:3]):
        found = f"found {earlier[0].shape} and {earlier[1].shape}"
        raise ValueError(f"earlier keys and values must have as many slots as each other, {found}")


def _split_heads(x: tf.Tensor, num_heads: int) -> tf.Tensor:
    """[S, B, H * D] -> [S, B, H, D]."""
    return tf.reshape(x, [tf.shape(x)[0] if x.shape[0] is None else x.shape[0], -1, num_heads, x.shape[2] // num_heads])


@tf.RegisterGradient("TfgenBlocksparseDecode")
def _no_gradient(op: Any, *_: tf.Tensor) -> None:
    raise NotImplementedError(
        "the compiled attention of sampling has no gradient; train with tfgen.ops.blocksparse.attention, or set "
        f"{library.PURE_VARIABLE}=1"
    )
