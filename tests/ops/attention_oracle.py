"""Dense attention in any precision: what the block-sparse forms are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfgen.ops.block_lists import BlockLists


def token_masks(lists: BlockLists, stride: int = 1) -> np.ndarray:
    """bool [layouts, T, T] in token order; slot i of the lists is token (i % m) * stride + i // m, m = T / stride."""
    length = lists.blocks * lists.blocksize
    slots = np.arange(length)
    tokens = slots % (length // stride) * stride + slots // (length // stride)
    masks = np.zeros([lists.layouts, length, length], bool)
    masks[:, tokens[:, None], tokens[None, :]] = lists.mask()
    return masks


def dense_attention(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, masks: np.ndarray, heads: int) -> tf.Tensor:
    """Everything in the dtype of the arguments, stored after each step: the naive form. Zero where no key is kept."""
    q, k, v = (tf.stack(tf.split(x, heads, axis=-1), axis=1) for x in (q, k, v))  # [B, H, T, D]
    scores = tf.matmul(q, k, transpose_b=True) * tf.cast(1 / np.sqrt(q.shape[-1]), q.dtype)
    weights = tf.nn.softmax(tf.where(masks, scores, q.dtype.min / 2)) * tf.cast(masks, q.dtype)
    return tf.concat(tf.unstack(tf.matmul(weights, v), axis=1), axis=-1)


def output_and_gradients(form: Callable, arrays: Sequence[np.ndarray], dtype: tf.DType) -> list[np.ndarray]:
    """float64 values of form(q, k, v) and of the gradients of a fixed weighting of it, for arguments of this dtype.

    `arrays` are q, k, v and the weighting.
    """
    *tensors, weights = (tf.cast(tf.constant(x), dtype) for x in arrays)
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        out = form(*tensors)
    return [tf.cast(x, tf.float64).numpy() for x in (out, *tape.gradient(out, tensors, output_gradients=weights))]


def assert_as_good_as_naive(
    form: Callable, arrays: Sequence[np.ndarray], dtype: tf.DType, masks: np.ndarray, heads: int, log_sum: float = 1.0
) -> None:
    """The error against float64 may be twice that of the naive form in the same dtype; three times for gradients.

    `log_sum` is the largest log-sum-exp, where that is large: it is saved in float32, whose rounding is relative to it,
    and gradients compute the weights from it.
    """

    def naive(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        return dense_attention(q, k, v, masks, heads)

    rounded = [tf.cast(tf.cast(tf.constant(x), dtype), tf.float64).numpy() for x in arrays]
    truth = output_and_gradients(naive, rounded, tf.float64)
    for name, factor, exact, ours, theirs in zip(
        ("out", "dq", "dk", "dv"), (2, 3, 3, 3), truth, output_and_gradients(form, rounded, dtype),
        output_and_gradients(naive, rounded, dtype), strict=True,
    ):  # fmt: skip
        assert np.isfinite(ours).all(), name
        # The floor, one rounding of the largest value, is for cases that the naive form computes exactly.
        floor = {tf.float32: 2.0**-23, tf.float16: 2.0**-11, tf.bfloat16: 2.0**-8}[dtype] * np.abs(exact).max()
        floor *= 1 if name == "out" else log_sum
        error, bound = np.abs(ours - exact).max(), factor * np.abs(theirs - exact).max() + floor
        assert error <= bound, f"{name}: error {error:.3g}, the naive form's {np.abs(theirs - exact).max():.3g}"
