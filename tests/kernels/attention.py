"""Block-sparse attention in NumPy: block lists from dense masks, a float64 oracle, a naive version in any dtype."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class BlockLists:
    """The arrays of `TfgenBlocksparseLists`."""

    layouts: int
    offsets: np.ndarray  # int32 [layouts, n + 1]
    columns: np.ndarray  # int32 [entries]
    masks: np.ndarray  # int32 [entries]
    mask_bits: np.ndarray  # uint32 [masks, blocksize, words]


def block_lists(keep: np.ndarray, blocksize: int) -> BlockLists:
    """Row lists of the blocks of `keep`, bool [layouts, T, T] in kernel order, that hold a kept pair.

    Entries lie layout after layout, row after row; `offsets` count over all of them. Equal partial blocks share a
    mask. The lists by column are those of `keep` transposed.
    """
    layouts, length, _ = keep.shape
    n = length // blocksize
    blocks = keep.reshape(layouts, n, blocksize, n, blocksize).swapaxes(2, 3)  # [layouts, n, n, blocksize, blocksize]
    offsets, columns, masks = np.zeros((layouts, n + 1), np.int32), [], []
    bits: dict[bytes, int] = {}
    for layout, row in np.ndindex(layouts, n):
        offsets[layout, row] = len(columns)
        for column in np.flatnonzero(blocks[layout, row].any((1, 2))):
            block = blocks[layout, row, column]
            columns.append(column)
            masks.append(-1 if block.all() else bits.setdefault(_packed(block).tobytes(), len(bits)))
        offsets[layout, row + 1] = len(columns)
    words = -(-blocksize // 32)
    mask_bits = np.frombuffer(b"".join(bits), np.uint32).reshape(len(bits), blocksize, words).copy()
    return BlockLists(layouts, offsets, np.array(columns, np.int32), np.array(masks, np.int32), mask_bits)


def _packed(block: np.ndarray) -> np.ndarray:
    """bool [blocksize, columns] -> uint32 [blocksize, words], lowest bit first."""
    padding = -block.shape[1] % 32
    padded = np.pad(block, ((0, 0), (0, padding)))
    return np.ascontiguousarray(np.packbits(padded, axis=1, bitorder="little")).view("<u4")


def kernel_order(length: int, stride: int) -> np.ndarray:
    """int64 [T], the token at each slot."""
    slots, per_class = np.arange(length), length // stride
    return slots % per_class * stride + slots // per_class


@dataclasses.dataclass(frozen=True)
class Result:
    out: np.ndarray  # [B, T, H * Dv]
    lse: np.ndarray  # [B, H, T]
    dq: np.ndarray  # [B, T, H * Dk]
    dk: np.ndarray
    dv: np.ndarray  # [B, T, H * Dv]


def naive(q, k, v, dout, keep: np.ndarray, heads: int, scale: float, dtype: np.dtype) -> Result:
    """Attention and its gradients with every intermediate held in `dtype`; the oracle where that is float64.

    Args:
      q, k: [B, T, H * Dk]. v, dout: [B, T, H * Dv]. Token order.
      keep: bool [layouts, T, T] in token order.
    """

    def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # 16-bit products are summed in float32, as processors with 16-bit units do.
        wide = np.float64 if dtype == np.float64 else np.float32
        return (a.astype(wide) @ b.astype(wide)).astype(dtype)

    def split(x: np.ndarray) -> np.ndarray:
        return x.astype(dtype).reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)  # [B, H, T, D]

    def join(x: np.ndarray) -> np.ndarray:
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def transposed(x: np.ndarray) -> np.ndarray:
        return x.swapaxes(-1, -2)

    q, k, v, dout = split(q), split(k), split(v), split(dout)
    factor = np.asarray(scale, dtype)
    scores = np.where(keep, matmul(q, transposed(k)) * factor, np.asarray(-np.inf, dtype))  # [B, H, T, T]
    largest = scores.max(-1, keepdims=True)
    some = np.isfinite(largest)  # queries that keep a key
    largest = np.where(some, largest, np.asarray(0, dtype))
    exponentials = np.exp(scores - largest)
    total = exponentials.sum(-1, keepdims=True)
    weights = exponentials / np.where(some, total, np.asarray(1, dtype))
    out = matmul(weights, v)
    dweights = matmul(dout, transposed(v))
    delta = (dweights * weights).sum(-1, keepdims=True)
    dscores = weights * (dweights - delta) * factor
    with np.errstate(divide="ignore"):
        lse = np.where(some, np.log(total) + largest, np.asarray(-np.inf, dtype))[..., 0]
    dq, dk = matmul(dscores, k), matmul(transposed(dscores), q)
    return Result(join(out), lse, join(dq), join(dk), join(matmul(transposed(weights), dout)))


def magnitudes(q, k, v, dout, keep: np.ndarray, heads: int, scale: float) -> dict[str, float]:
    """For each field of `Result` the largest sum of the magnitudes of its terms; under "scores" the largest score.

    Rounding errors are relative to these, not to the results, where terms cancel: the gradients of a saturated softmax
    are differences of equal numbers. Arguments as in `naive`.
    """

    def split(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64).reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)  # [B, H, T, D]

    q, k, v, dout = (split(x) for x in (q, k, v, dout))
    scores = np.where(keep, q @ k.swapaxes(-1, -2) * scale, -np.inf)
    largest = scores.max(-1, keepdims=True)
    exponentials = np.exp(scores - np.where(np.isfinite(largest), largest, 0.0))
    weights = exponentials / np.maximum(exponentials.sum(-1, keepdims=True), 1e-300)
    q, k, v, dout = (np.abs(x) for x in (q, k, v, dout))
    dweights = dout @ v.swapaxes(-1, -2)
    dscores = weights * (dweights + (weights * dweights).sum(-1, keepdims=True)) * scale
    score = np.abs(scores[np.isfinite(scores)]).max(initial=0.0)
    terms = {
        "out": weights @ v,
        "dq": dscores @ k,
        "dk": dscores.swapaxes(-1, -2) @ q,
        "dv": weights.swapaxes(-1, -2) @ dout,
    }
    return {name: float(x.max()) for name, x in terms.items()} | {"lse": float(score), "scores": float(score)}
