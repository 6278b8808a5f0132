"""Factorised self-attention over one-dimensional sequences, in plain TensorFlow.

A `Pattern` says which (query, key) pairs a layer keeps; `attention` computes the layer. Patterns follow

* Child, Gray, Radford, Sutskever, "Generating Long Sequences with Sparse Transformers" (2019), section 4.2: the
  strided attention is split over two kinds of layer, a window of the last s positions (mode `b`) and every s-th
  position (mode `bT`), which alternate over the layers of a network rather than over the heads of a layer;
* Jun et al., "Distribution Augmentation for Generative Modeling" (2020), which fixes the modes below.

Write q and k for the positions of query and key, T = `n_ctx`, s = `window`, m = T / s:

| mode     | pairs kept                                    |
|----------|-----------------------------------------------|
| `a`      | k <= q                                        |
| `a_all`  | all; not causal                               |
| `b`      | 0 <= q - k < s                                |
| `bT`,`c` | k <= q and (q - k) mod s = 0                  |
| `b0`     | k <= q and floor(k / m) = floor(q / m)        |
| `b_all`  | floor(k / s) = floor(q / s); not causal       |
| `bT_all` | (q - k) mod s = 0; not causal                 |
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import tensorflow as tf

MODES = ("a", "a_all", "b", "bT", "c", "b0", "b_all", "bT_all")
CAUSAL_MODES = ("a", "b", "bT", "c", "b0")
BLOCK_SIZES = (8, 16, 32, 64)
_STRIDED_MODES = ("bT", "c", "bT_all")
# Stands for "excluded" before the softmax. Finite, so that a row never turns into NaN, and far enough below any
# score for exp(excluded - row maximum) to be exactly 0.
_EXCLUDED = -3.4e38


class PatternError(ValueError):
    """An attention pattern that cannot be built with these sizes, or tensors that do not fit a pattern."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which pairs of positions one attention layer keeps.

    Positions are counted in two orders. *Token order* is the order of the sequence that the network models.
    *Kernel order* is the order in which the kept pairs are gathered into few dense blocks; it differs for the
    strided modes only (see `token_order`).

    Attributes:
      mode: one of `MODES`.
      n_ctx: T, length of the sequence.
      window: s, the flag `local_attn_ctx`; unused by `a` and `a_all`.
      blocksize: side of the square blocks of the block-sparse form; used by `layout` only.

    Raises:
      PatternError: at construction, if the mode does not exist or does not fit the sizes.
    """

    mode: str
    n_ctx: int
    window: int = 64
    blocksize: int = 32

    def __post_init__(self) -> None:
        self.validate()

    @property
    def causal(self) -> bool:
        return self.mode in CAUSAL_MODES

    @property
    def chunk(self) -> int:
        """m = T / s, rounded up: tokens of one residue class (strided modes), or of one chunk (`b0`)."""
        return -(-self.n_ctx // self.window)

    def validate(self, block_form: bool = False) -> None:
        """Checks the mode against the sizes; with `block_form` also what the block-sparse form needs.

        Raises:
          PatternError: says which sizes do not fit, and what would.
        """
        mode, n_ctx, window, block = self.mode, self.n_ctx, self.window, self.blocksize
        if mode not in MODES:
            raise PatternError(f"unknown attention mode {mode!r}; known modes are {', '.join(MODES)}")
        if n_ctx < 1 or window < 1:
            raise PatternError(f"context length and local_attn_ctx must be positive, found {n_ctx} and {window}")
        reshaped = mode == "b0" or (block_form and mode in ("bT", "c"))
        if reshaped and n_ctx % window:
            raise PatternError(
                f"attention mode {mode!r} needs a context length that is a multiple of local_attn_ctx, found {n_ctx} "
                f"and {window}; choose a local_attn_ctx that divides {n_ctx}"
            )
        if mode in ("b_all", "bT_all") and (n_ctx, window, block) != (1024, 32, 32):
            raise PatternError(
                f"attention mode {mode!r} exists for context length 1024, local_attn_ctx 32 and blocksize 32 only, "
                f"found {n_ctx}, {window} and {block}"
            )
        if not block_form:
            return
        if block not in BLOCK_SIZES:
            raise PatternError(f"blocksize must be one of {BLOCK_SIZES}, found {block}")
        if n_ctx % block:
            raise PatternError(
                f"attention in blocks needs a context length that is a multiple of the blocksize, found {n_ctx} and "
                f"{block}"
            )
        if mode == "b" and window % block:
            raise PatternError(
                f"attention mode 'b' in blocks needs a local_attn_ctx that is a multiple of the blocksize, found "
                f"{window} and {block}"
            )
        if mode in ("bT", "c", "b0") and self.chunk % block:
            raise PatternError(
                f"attention mode {mode!r} in blocks needs context length / local_attn_ctx to be a multiple of the "
                f"blocksize, found {n_ctx} / {window} = {self.chunk} and {block}"
            )

    def keeps(self, query: Any, key: Any) -> Any:
        """The definition: whether the pair is kept, for positions in token order.

        Args:
          query, key: integer arrays or tensors that broadcast against each other.

        Returns:
          Booleans of the broadcast shape; an array for arrays, a tensor for tensors.
        """
        past = key <= query
        if self.mode == "a":
            return past
        if self.mode == "a_all":
            return past | (key > query)
        if self.mode == "b":
            return past & (query - key < self.window)
        if self.mode in ("bT", "c"):
            return past & (query % self.window == key % self.window)
        if self.mode == "b0":
            return past & (query // self.chunk == key // self.chunk)
        if self.mode == "b_all":
            return query // self.window == key // self.window
        return query % self.window == key % self.window  # bT_all

    def token_order(self) -> np.ndarray:
        """int64 [T], the token at each slot of the kernel order: slot r * m + j of a strided mode holds j * s + r."""
        return _token_order(self)

    def token_mask(self) -> np.ndarray:
        """bool [T, T], kept pairs by (query, key) in token order. Read-only."""
        return _token_mask(self)

    def mask(self) -> np.ndarray:
        """bool [T, T], kept pairs by (query, key) in kernel order. Read-only."""
        return _mask(self)

    def layout(self) -> np.ndarray:
        """bool [T / blocksize, T / blocksize], blocks of the kernel order that hold a kept pair. Read-only.

        Raises:
          PatternError: if the sizes do not fit the block-sparse form.
        """
        return _layout(self)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@functools.lru_cache(maxsize=64)
def _token_order(pattern: Pattern) -> np.ndarray:
    tokens = np.arange(pattern.n_ctx)
    if pattern.mode in _STRIDED_MODES:
        tokens = np.argsort(tokens % pattern.window, kind="stable")  # class by class, in order within each
    return _read_only(tokens)


@functools.lru_cache(maxsize=16)
def _token_mask(pattern: Pattern) -> np.ndarray:
    positions = np.arange(pattern.n_ctx)
    return _read_only(pattern.keeps(positions[:, None], positions[None, :]))


@functools.lru_cache(maxsize=16)
def _mask(pattern: Pattern) -> np.ndarray:
    tokens = pattern.token_order()
    return _read_only(pattern.keeps(tokens[:, None], tokens[None, :]))


@functools.lru_cache(maxsize=64)
def _layout(pattern: Pattern) -> np.ndarray:
    pattern.validate(block_form=True)
    blocks = np.arange(pattern.n_ctx // pattern.blocksize)
    query, key = blocks[:, None], blocks[None, :]
    if pattern.mode == "a_all":
        kept = (query >= 0) & (key >= 0)
    elif pattern.mode == "a":
        kept = key <= query
    elif pattern.mode == "b":
        kept = (key <= query) & (query - key <= pattern.window // pattern.blocksize)
    elif pattern.mode in ("b_all", "bT_all"):
        kept = key == query
    else:  # bT, c, b0: chunks of m positions, one after another
        per_chunk = pattern.chunk // pattern.blocksize
        kept = (key <= query) & (query // per_chunk == key // per_chunk)
    return _read_only(kept)


def attention(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, pattern: Pattern, num_heads: int) -> tf.Tensor:
    """Multi-head attention restricted to the pairs of `pattern`, everything in token order.

    Child et al. (2019), equations 2 and 3: softmax(q k^T / sqrt(Dk)) v over the kept keys. Scores, softmax and the
    weighted sum are computed in float32 whatever the dtype of the arguments. Head j owns columns j * D .. (j + 1) * D
    - 1 of each argument. Cost per sequence and head, where s divides T: T * m for `bT`, `c` and `b0`, 2 * T * s for
    `b`; T * T otherwise.

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
    _check_shapes(query, key, value, pattern, num_heads)
    head_size = query.shape[-1] // num_heads
    q = _split_heads(tf.cast(query, tf.float32) / math.sqrt(head_size), num_heads)  # [B, T, H, Dk]
    k = _split_heads(tf.cast(key, tf.float32), num_heads)  # [B, T, H, Dk]
    v = _split_heads(tf.cast(value, tf.float32), num_heads)  # [B, T, H, Dv]
    divides = pattern.n_ctx % pattern.window == 0
    if pattern.mode in _STRIDED_MODES and divides:
        attended = _strided(q, k, v, pattern)
    elif pattern.mode in ("b0", "b_all"):
        attended = _chunked(q, k, v, pattern)
    elif pattern.mode == "b" and divides:
        attended = _banded(q, k, v, pattern)
    else:
        attended = _dense(q, k, v, pattern)
    return tf.cast(tf.reshape(attended, tf.shape(value)), value.dtype)  # [B, T, H * Dv]


def _check_shapes(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, pattern: Pattern, num_heads: int) -> None:
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
