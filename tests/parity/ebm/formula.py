"""The formula that gives the values of recorded variables which are not stored, and the recorded pictures.

Every element is a hash of its index, the name of its array and a seed, so that a name and a shape stand for an array.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

_GOLDEN, _SEED_FACTOR = 0x9E3779B1, 0x85EBCA77
_WORD = np.uint64(0xFFFFFFFF)


def _mixed(words: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3 for 32 bits; words are uint64 below 2^32."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = ((words ^ (words >> np.uint64(shift))) * np.uint64(factor)) & _WORD
    return words ^ (words >> np.uint64(16))


def _symmetric(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """float64 in (-1, 1)."""
    start = np.uint64((zlib.crc32(name.encode()) + seed * _SEED_FACTOR) & 0xFFFFFFFF)
    index = np.arange(int(np.prod(shape)), dtype=np.uint64)
    words = _mixed((index * np.uint64(_GOLDEN) + start) & _WORD)
    return (2.0 * ((words.astype(np.float64) + 0.5) / 2.0**32) - 1.0).reshape(shape)


def hashed(name: str, shape: Sequence[int], seed: int, scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """float32, offset +- scale."""
    return (offset + scale * _symmetric(name, shape, seed)).astype(np.float32)


def picture(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """float32 in [0, 1], midpoints of 256 levels."""
    # The recordings round the numbers to float32 before they count the levels.
    share = 0.5 * (hashed(name, shape, seed).astype(np.float64) + 1.0)
    return ((np.floor(256.0 * share) + 0.5) / 256.0).astype(np.float32)


def variable(name: str, shape: Sequence[int], seed: int, zero_scale: float = 0.02) -> np.ndarray:
    """float32 value of the variable with the original's name, "context_0/res_1_res_c1/cweight".

    Args:
      zero_scale: of the weights that begin as zero, `c2_scale` of a recording.
    """
    leaf = name.rpartition("/")[2]
    if leaf == "cweight":
        return hashed(name, shape, seed, zero_scale if "_res_c2/" in name else 1.0)
    if leaf == "wweight":
        return hashed(name, shape, seed, 1.0 if "fc_dense" in name else 0.3)
    if leaf == "g":
        return hashed(name, shape, seed, 0.2, 1.0)
    if leaf == "gamma":
        return hashed(name, shape, seed, 0.1, 0.5)
    is_weight_or_vector = re.fullmatch(r"atten_[qkv]weight|.*_u", leaf)
    return hashed(name, shape, seed, 1.0 if is_weight_or_vector else 0.1)
