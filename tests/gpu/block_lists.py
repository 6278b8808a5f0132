"""Block lists as kernels/blocksparse/blocksparse.h defines them, from dense masks. NumPy only."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class BlockLists:
    """The struct TfgenBlocksparseLists, on the host; n blocks a side, `words` = ceil(blocksize / 32)."""

    layouts: int
    offsets: np.ndarray  # int32 [layouts, n + 1]
    columns: np.ndarray  # int32 [entries]
    masks: np.ndarray  # int32 [entries], -1 where the whole block is kept
    mask_bits: np.ndarray  # uint32 [mask count, blocksize, words]


def block_lists(mask: np.ndarray, blocksize: int) -> BlockLists:
    """Lists of the blocks that hold a kept pair. The transposed lists are those of `mask.swapaxes(1, 2)`.

    Args:
      mask: bool [layouts, T, T], kept pairs in kernel order.
      blocksize: divides T.
    """
    layouts, length, _ = mask.shape
    side = length // blocksize
    # [layouts, row, column, blocksize, blocksize]
    blocks = mask.reshape(layouts, side, blocksize, side, blocksize).swapaxes(2, 3)
    kept = blocks.any(axis=(3, 4))
    counts = kept.sum(axis=2)  # [layouts, n]
    ends = counts.cumsum().reshape(layouts, side)
    offsets = np.concatenate([(ends - counts)[:, :1], ends], axis=1)
    elements = blocks[kept]  # [entries, blocksize, blocksize], row by row
    partial = ~elements.all(axis=(1, 2))
    # Equal masks are stored once, as patterns repeat along the sequence.
    distinct, index = np.unique(elements[partial].reshape(-1, blocksize * blocksize), axis=0, return_inverse=True)
    masks = np.full(len(elements), -1, np.int32)
    masks[partial] = index.reshape(-1)
    words = -(-blocksize // 32)
    padded = np.zeros([len(distinct), blocksize, words * 32], np.uint8)
    padded[:, :, :blocksize] = distinct.reshape(-1, blocksize, blocksize)
    bits = np.packbits(padded, axis=2, bitorder="little").view("<u4")
    return BlockLists(layouts, offsets.astype(np.int32), np.nonzero(kept)[2].astype(np.int32), masks, bits)


def dense_mask(lists: BlockLists, blocksize: int) -> np.ndarray:
    """bool [layouts, T, T]: the inverse of `block_lists`, one element at a time."""
    side = lists.offsets.shape[1] - 1
    mask = np.zeros([lists.layouts, side * blocksize, side * blocksize], bool)
    for layout in range(lists.layouts):
        for row in range(side):
            for entry in range(lists.offsets[layout, row], lists.offsets[layout, row + 1]):
                for i in range(blocksize):
                    for j in range(blocksize):
                        word = lists.mask_bits[lists.masks[entry], i, j // 32] if lists.masks[entry] >= 0 else 0
                        kept = lists.masks[entry] < 0 or (int(word) >> (j % 32)) & 1
                        mask[layout, row * blocksize + i, lists.columns[entry] * blocksize + j] = kept
    return mask


def kernel_order(length: int, stride: int) -> np.ndarray:
    """int64 [T], the token of each slot."""
    slots = np.arange(length)
    per_class = length // stride
    return slots % per_class * stride + slots // per_class


def band(length: int, window: int) -> np.ndarray:
    """bool [1, T, T]: mode `b`, the last `window` tokens."""
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    return ((distance >= 0) & (distance < window))[None]


def classes(length: int, stride: int) -> np.ndarray:
    """bool [1, T, T]: mode `bT` in kernel order, the past of each residue class."""
    tokens = kernel_order(length, stride)
    query, key = tokens[:, None], tokens[None, :]
    return ((key <= query) & ((query - key) % stride == 0))[None]


def random_mask(rng: np.random.Generator, layouts: int, length: int, blocksize: int) -> np.ndarray:
    """bool [layouts, T, T]: absent, full and partial blocks; ragged rows, an empty block row, empty rows in blocks."""
    side = length // blocksize
    kind = rng.choice(3, size=[layouts, side, side], p=[0.4, 0.25, 0.35])  # absent, full, partial
    if side > 2:
        kind[:, rng.integers(side)] = 0
        kind[:, :, rng.integers(side)] = 0
    mask = np.repeat(np.repeat(kind > 0, blocksize, axis=1), blocksize, axis=2)
    partial = np.repeat(np.repeat(kind == 2, blocksize, axis=1), blocksize, axis=2)
    mask &= ~partial | (rng.random(mask.shape) < 0.5)
    mask[:, rng.integers(side) * blocksize + rng.integers(blocksize, size=blocksize // 4)] = False
    return mask
