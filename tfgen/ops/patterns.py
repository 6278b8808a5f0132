"""Patterns of factorised self-attention: which (query, key) pairs of a one-dimensional sequence a layer keeps.

They follow

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
from typing import Any

import numpy as np

from tfgen.ops.block_lists import BLOCK_SIZES, BlockLists, from_differences

MODES = ("a", "a_all", "b", "bT", "c", "b0", "b_all", "bT_all")
CAUSAL_MODES = ("a", "b", "bT", "c", "b0")
STRIDED_MODES = ("bT", "c", "bT_all")


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

    def block_form(self) -> Pattern | None:
        """This pattern with a blocksize that fits its sizes: its own, or else the largest that does, or else None."""
        return _block_form(self)

    def block_lists(self) -> BlockLists:
        """`layout` and `mask` as the lists that kernels take, in kernel order; built once for each pattern.

        Raises:
          PatternError: if the sizes do not fit the block-sparse form.
        """
        return _block_lists(self)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@functools.lru_cache(maxsize=64)
def _token_order(pattern: Pattern) -> np.ndarray:
    tokens = np.arange(pattern.n_ctx)
    if pattern.mode in STRIDED_MODES:
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


@functools.lru_cache(maxsize=64)
def _block_form(pattern: Pattern) -> Pattern | None:
    for blocksize in (pattern.blocksize, *reversed(BLOCK_SIZES)):
        try:
            candidate = dataclasses.replace(pattern, blocksize=blocksize)
            candidate.validate(block_form=True)
        except PatternError:
            continue
        return candidate
    return None


@functools.lru_cache(maxsize=64)
def _block_lists(pattern: Pattern) -> BlockLists:
    tokens, size = pattern.token_order(), pattern.blocksize

    def mask_of(row: int, column: int) -> np.ndarray:
        query, key = tokens[row * size : (row + 1) * size], tokens[column * size : (column + 1) * size]
        return pattern.keeps(query[:, None], key[None, :])

    # In kernel order every mode keeps a pair of a listed block by its distance alone: strided modes list blocks of one
    # residue class only, within which the distance in slots is that in tokens divided by the stride; chunks likewise.
    return from_differences(pattern.layout(), size, mask_of)
