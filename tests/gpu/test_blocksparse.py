"""The CUDA kernels against dense attention in float64, at the tolerance that a naive same-dtype version sets."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from tests.gpu import build
from tests.gpu.block_lists import band, classes, kernel_order, random_mask

_REASON = build.reason_to_skip()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=_REASON or "")
if _REASON is None:
    import torch

    from tests.gpu import launchers


@dataclasses.dataclass(frozen=True)
class Case:
    batch: int = 2
    heads: int = 2
    length: int = 128
    key_size: int = 32
    value_size: int = 32
    blocksize: int = 32
    stride: int = 1
    pattern: str = "random"  # or "band", "causal", "classes", "empty", "full"
    per_head: bool = False
    magnitude: float = 1.0  # of the queries
    misaligned: bool = False  # tensors that start between multiples of 16 bytes

    def mask(self, rng: np.random.Generator) -> np.ndarray:
        """bool [1 or H, T, T], kernel order."""
        if self.pattern == "band":
            return band(self.length, 3 * self.blocksize)
        if self.pattern == "causal":
            return band(self.length, self.length)
        if self.pattern == "classes":
            return classes(self.length, self.stride)
        if self.pattern in ("empty", "full"):
            return np.full([1, self.length, self.length], self.pattern == "full")
        return random_mask(rng, self.heads if self.per_head else 1, self.length, self.blocksize)


CASES = {
    "band": Case(pattern="band", length=192),
    "band_wide_values": Case(pattern="band", length=192, key_size=64, value_size=128),
    "classes": Case(pattern="classes", length=192, stride=3),
    "classes_across_blocks": Case(pattern="classes", length=96, stride=4, blocksize=16),  # 24 slots a class
    "random": Case(),
    "random_per_head": Case(heads=3, per_head=True),
    "random_strided_per_head": Case(stride=4, per_head=True),
    "blocks_of_8": Case(blocksize=8, length=72),
    "blocks_of_16": Case(blocksize=16, length=80, per_head=True),
    "blocks_of_64": Case(blocksize=64, length=192),
    "blocks_of_128": Case(blocksize=128, length=384),
    "one_block_of_8": Case(blocksize=8, length=8, pattern="full"),
    "one_block_of_16": Case(blocksize=16, length=16, batch=1, heads=1),
    "one_block_of_32": Case(length=32, batch=1, heads=1, pattern="full"),
    "nothing_kept": Case(length=64, pattern="empty"),
    "full": Case(length=160, pattern="full"),
    "widths_40_24": Case(key_size=40, value_size=24),
    "widths_20_36": Case(key_size=20, value_size=36),
    "widths_17_33": Case(key_size=17, value_size=33, blocksize=16, stride=2),
    "widths_1_1": Case(key_size=1, value_size=1, heads=1),
    "widths_64_64": Case(key_size=64, value_size=64),
    "widths_96_128": Case(key_size=96, value_size=128, batch=1),
    "widths_128_32": Case(key_size=128, value_size=32, batch=1),
    "widths_256_200": Case(key_size=256, value_size=200, batch=1, heads=1, length=96),
    "misaligned": Case(misaligned=True),
    "extreme_logits": Case(magnitude=300.0),
    "extreme_logits_wide": Case(magnitude=300.0, key_size=64, value_size=128, pattern="band", length=192),
    "published_c10_band": Case(batch=1, heads=4, length=3072, pattern="band"),
    "published_c10_classes": Case(batch=1, heads=4, length=3072, stride=96, pattern="classes"),
}
# Rows that are long without being told so, for which the launchers choose pipelined.cuh by themselves.
LONG_CASES = {
    "causal": Case(length=1024, pattern="causal"),
    "causal_strided": Case(length=1024, pattern="causal", stride=8, blocksize=64),
    "causal_wide": Case(length=1024, pattern="causal", key_size=64, value_size=128, blocksize=64, batch=1),
    "causal_widest": Case(length=1024, pattern="causal", key_size=128, value_size=128, blocksize=128, batch=1),
    "full_blocks_of_16": Case(length=528, pattern="full", blocksize=16, heads=1),  # the last 16 of 64 slots are alone
    "full_blocks_of_128": Case(length=1152, pattern="full", blocksize=128, heads=1),
    "half_of_blocks": Case(length=1024, heads=3, per_head=True),
    "half_of_blocks_of_16": Case(length=1024, blocksize=16, per_head=True, batch=1),
    "half_of_blocks_of_64": Case(length=1024, blocksize=64, per_head=True, key_size=64, value_size=64),
    "half_of_blocks_of_128_strided": Case(length=2048, blocksize=128, stride=16, batch=1, key_size=96, value_size=128),
}
DTYPES = ("float32", "bfloat16", "float16")
# What to tell the launchers of the number of entries: these choose between the kernels of short and of long rows.
ENTRIES = {"short": 0, "long": 2**31 - 1, "as_it_is": None}


def dense_attention(q: Any, k: Any, v: Any, keep: Any, case: Case) -> tuple[Any, Any]:
    """Attention and log-sum-exp in the dtype of the arguments, which are those of the launchers."""
    order = torch.from_numpy(kernel_order(case.length, case.stride)).to(q.device)
    q, k, v = (x.unflatten(2, [case.heads, -1]).transpose(1, 2)[:, :, order] for x in (q, k, v))  # [B, H, T, D]
    scores = q @ k.transpose(2, 3) / math.sqrt(case.key_size)
    scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
    out = (scores.softmax(-1) * keep) @ v  # `* keep`: a row without keys has equal weights
    lse = scores.logsumexp(-1).masked_fill(~keep.any(-1), -math.inf)
    inverse = order.argsort()
    return out[:, :, inverse].transpose(1, 2).flatten(2), lse[:, :, inverse]


def with_gradients(q: Any, k: Any, v: Any, dout: Any, keep: Any, case: Case, dtype: Any) -> tuple[list[Any], Any]:
    """out, dq, dk, dv in float64 of dense attention in `dtype`, and lse."""
    q, k, v = (x.to(dtype).clone().requires_grad_() for x in (q, k, v))
    out, lse = dense_attention(q, k, v, keep, case)
    out.backward(dout.to(dtype))
    return [x.detach().double() for x in (out, q.grad, k.grad, v.grad)], lse.detach().double()


def allocate(shape: tuple[int, ...], dtype: Any, case: Case) -> Any:
    """A tensor full of NaN, so that what a kernel leaves out is seen."""
    shift = int(case.misaligned)
    storage = torch.full([math.prod(shape) + shift], math.nan, dtype=dtype, device=launchers.DEVICE)
    return storage[shift:].view(shape)


def run(case: Case, dtype: Any, seed: int, rows: str = "as_it_is") -> tuple[tuple[Any, ...], list[Any], Any]:
    """q, k, v, dout; out, dq, dk, dv, lse of the launchers; the mask."""
    rng = np.random.default_rng(seed)
    mask = case.mask(rng)
    attention = launchers.Launchers(build.library(), mask, case.heads, case.blocksize, case.stride, ENTRIES[rows])
    widths = [case.heads * size for size in (case.key_size, case.key_size, case.value_size, case.value_size)]
    inputs = []
    for width, magnitude in zip(widths, (case.magnitude, 1, 1, 1), strict=True):
        tensor = allocate((case.batch, case.length, width), dtype, case)
        tensor.copy_(torch.from_numpy(magnitude * rng.standard_normal(tensor.shape)))
        inputs.append(tensor)
    q, k, v, dout = inputs
    out, dq, dk, dv = (allocate(tuple(x.shape), dtype, case) for x in (v, q, k, v))
    lse, delta = (torch.full([case.batch, case.heads, case.length], math.nan, device=q.device) for _ in range(2))
    attention.forward(q, k, v, out, lse)
    attention.backward(q, k, v, out, dout, lse, delta, dq, dk, dv)
    if q.is_cuda:
        torch.cuda.synchronize()
    return (q, k, v, dout), [out, dq, dk, dv, lse], torch.from_numpy(mask).to(q.device)


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("rows", ["short", "long"])
@pytest.mark.parametrize("name", CASES)
def test_as_exact_as_dense_attention(name, rows, dtype_name):
    if rows == "long" and dtype_name == "float32":
        pytest.skip("float32 has one kernel for rows of any length")
    check(CASES[name], getattr(torch, dtype_name), len(name), rows)


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("name", LONG_CASES)
def test_long_rows_as_exact_as_dense_attention(name, dtype_name):
    check(LONG_CASES[name], getattr(torch, dtype_name), len(name), "as_it_is")


def check(case: Case, dtype: Any, seed: int, rows: str) -> None:
    inputs, (*found, lse), keep = run(case, dtype, seed, rows)
    assert keep.any() != (case.pattern == "empty")
    truth, true_lse = with_gradients(*inputs, keep, case, torch.float64)
    naive, _ = with_gradients(*inputs, keep, case, dtype)
    empty = torch.isinf(true_lse)
    for label, factor, mine, theirs, right in zip(
        ("out", "dq", "dk", "dv"), (2, 3, 3, 3), found, naive, truth, strict=True
    ):
        error = (mine.double() - right).abs().max().item()
        bound = (theirs - right).abs().max().item()
        # Where the naive version happens to be exact (one key kept), the rounding of float32 sums is left; and the
        # gradients compute the weights again from the log-sum-exp, whose own rounding is an error of its size in them.
        largest_lse = 0.0 if label == "out" or empty.all() else true_lse[~empty].abs().max().item()
        floor = 2**-24 * max(4.0, largest_lse) * right.abs().max().item()
        assert error <= factor * bound + floor, f"{label}: error {error:.3g}, naive {bound:.3g}"
    assert (lse[empty] == -math.inf).all()
    error = (lse.double() - true_lse)[~empty].abs()
    assert (error <= 2e-6 * (10 + case.magnitude * math.sqrt(case.key_size))).all(), error.max()


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("name", ["band_wide_values", "random_strided_per_head", "blocks_of_8", *LONG_CASES])
def test_same_bits_twice(name, dtype_name):
    case = (CASES | LONG_CASES)[name]
    _, first, _ = run(case, getattr(torch, dtype_name), seed=1)
    _, second, _ = run(case, getattr(torch, dtype_name), seed=1)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "change", [{"blocksize": 24, "length": 96}, {"key_size": 257}, {"value_size": 257}, {"stride": 5}]
)
def test_unsupported_shapes_are_errors(change):
    case = dataclasses.replace(Case(pattern="full"), **change)
    with pytest.raises(RuntimeError, match=r"returned CUDA error 1$"):
        run(case, torch.float32, seed=0)
