"""Factorised self-attention over one-dimensional sequences.

A `Pattern` says which (query, key) pairs a layer keeps; `attention` computes the layer, by a compiled operation where
there is one (kernels/blocksparse) and in plain TensorFlow (`reference_attention`) elsewhere. The operation visits the
blocks that hold a kept pair, and never stores the attention weights: memory grows with T, not with the number of kept
pairs.

Which of the two runs is logged once. The environment variable TFGEN_PURE_TF=1 and, in the code, `plain_tensorflow()`
choose plain TensorFlow. Functions compiled by XLA (`jit_compile=True`) need one of them: tracing cannot know of XLA,
and XLA reports, when it comes to the operation, what to set.
"""

from __future__ import annotations

import logging
from typing import Any

import tensorflow as tf

from tfgen.ops import library
from tfgen.ops.block_lists import BlockLists
from tfgen.ops.blocksparse_reference import check_shapes, reference_attention, reference_block_sparse_attention
from tfgen.ops.library import plain_tensorflow
from tfgen.ops.patterns import CAUSAL_MODES, MODES, STRIDED_MODES, Pattern, PatternError

__all__ = [
    "CAUSAL_MODES",
    "MODES",
    "Pattern",
    "PatternError",
    "attention",
    "block_sparse_attention",
    "plain_tensorflow",
    "reference_attention",
    "reference_block_sparse_attention",
]

_DTYPES = (tf.float32, tf.bfloat16, tf.float16)
_MAX_GPU_FEATURES = 256  # of a head: TFGEN_BLOCKSPARSE_MAX_CUDA_SIZE in kernels/blocksparse/blocksparse.h
_LEAST_CAPABILITY = (8, 0)  # what the kernels are built for, and later ones


def attention(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, pattern: Pattern, num_heads: int) -> tf.Tensor:
    """Multi-head attention restricted to the pairs of `pattern`, everything in token order.

    Child et al. (2019), equations 2 and 3: softmax(q k^T / sqrt(Dk)) v over the kept keys, summed in float32 whatever
    the dtype of the arguments (float64: in float64). Head j owns columns j * D .. (j + 1) * D - 1 of each argument.

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
    compiled = library.load()
    if compiled is None:
        return reference_attention(query, key, value, pattern, num_heads)
    blocks = pattern.block_form()
    obstacle = _obstacle(compiled, {query.dtype, key.dtype, value.dtype}, pattern, blocks)
    obstacle = obstacle or _gpu_obstacle(compiled, max(query.shape[2], value.shape[2]) // num_heads)
    if obstacle or blocks is None:
        library.log_once(logging.WARNING, f"attention in plain TensorFlow: {obstacle}")
        return reference_attention(query, key, value, pattern, num_heads)
    stride = pattern.window if pattern.mode in STRIDED_MODES else 1
    return block_sparse_attention(query, key, value, blocks.block_lists(), num_heads, stride)


def _obstacle(compiled: library.Library, dtypes: set[tf.DType], pattern: Pattern, blocks: Pattern | None) -> str:
    """Why the compiled operation cannot compute this layer; empty if it can."""
    if blocks is None:
        return (
            f"no blocksize fits mode {pattern.mode!r} with context length {pattern.n_ctx} and local_attn_ctx "
            f"{pattern.window}"
        )
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        found = ", ".join(sorted(dtype.name for dtype in dtypes))
        return f"the compiled operation takes float32, bfloat16 or float16, the same for all arguments, found {found}"
    return ""


def _gpu_obstacle(compiled: library.Library, features: int) -> str:
    """Why the compiled operation cannot run where there is a GPU; empty if it can, or if there is none."""
    if not library.gpu_visible():
        return ""
    if not compiled.cuda:
        return "the kernels were built without CUDA (no nvcc was found then), and there is a GPU"
    if features > _MAX_GPU_FEATURES:
        return f"the kernels for GPUs take heads of up to {_MAX_GPU_FEATURES} features, found {features}"
    for device in tf.config.list_physical_devices("GPU"):
        capability = tf.config.experimental.get_device_details(device).get("compute_capability")
        if capability and capability < _LEAST_CAPABILITY:
            expected, found = (".".join(map(str, pair)) for pair in (_LEAST_CAPABILITY, capability))
            return f"the kernels for GPUs need compute capability {expected} or more, found {found}"
    return ""


def block_sparse_attention(
    query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, lists: BlockLists, num_heads: int, stride: int = 1
) -> tf.Tensor:
    """The compiled operation, for any layout. Differentiable, once; the same bits every time.

    Without it, and within `plain_tensorflow()`, `reference_block_sparse_attention` computes the same with all pairs.

    Args:
      query, key: [B, T, H * Dk], float32, bfloat16 or float16.
      value: [B, T, H * Dv], the dtype of `query`.
      lists: kept blocks, with one layout or one for each head; T is `lists.blocks * lists.blocksize`.
      num_heads: H.
      stride: the lists speak of slots; slot i is token (i % m) * stride + i // m, m = T / stride. 1: slots are tokens.

    Returns:
      [B, T, H * Dv], the dtype of `value`; zero where a query keeps no key.

    Raises:
      tf.errors.InvalidArgumentError: arguments that do not fit together (ValueError while a graph is built).
    """
    compiled = library.load()
    if compiled is None:
        return reference_block_sparse_attention(query, key, value, lists, num_heads, stride)
    out, _ = compiled.operations.tfgen_blocksparse_attention(
        query, key, value, *lists.tensors(), num_heads=num_heads, blocksize=lists.blocksize, stride=stride
    )
    return out


@tf.RegisterGradient("TfgenBlocksparseAttention")
def _attention_gradient(op: Any, dout: tf.Tensor, _: tf.Tensor) -> list[tf.Tensor | None]:
    """The log-sum-exp, the second output, is for this function alone and has no gradient of its own."""
    operations = library.loaded().operations
    attributes = {name: op.get_attr(name) for name in ("num_heads", "blocksize", "stride")}
    query, key, value, *lists = op.inputs
    out, lse = op.outputs
    gradients = operations.tfgen_blocksparse_attention_grad(query, key, value, out, lse, dout, *lists, **attributes)
    return [*gradients, *[None] * len(lists)]


@tf.RegisterGradient("TfgenBlocksparseAttentionGrad")
def _no_second_gradient(op: Any, *_: tf.Tensor) -> None:
    raise NotImplementedError(
        f"the compiled block-sparse attention has no second derivative; set {library.PURE_VARIABLE}=1 or build the "
        "function within tfgen.ops.blocksparse.plain_tensorflow()"
    )
