"""The CPU kernels of block-sparse attention, through their C interface, against float64.

The error of a kernel is compared with that of a naive computation in the same dtype: at most twice as large, three
times for gradients, plus a floor of a few roundings of the terms that a result sums, without which an exact result of
the naive version would ask for an exact one. `tests/seeds.py` says how to run them on fresh inputs.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.kernels import build
from tests.kernels.attention import BlockLists, Result, block_lists, kernel_order, magnitudes, naive
from tests.kernels.isas import ISAS, check_in_own_process
from tests.seeds import SEED

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

DTYPES = {"float32": build.FLOAT32, "bfloat16": build.BFLOAT16, "float16": build.FLOAT16}


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes as in blocksparse.h; `density` is the share of blocks, `partial` the share of those that get a mask."""

    batch: int = 1
    heads: int = 2
    blocks: int = 4
    blocksize: int = 32
    key_size: int = 32
    value_size: int = 32
    stride: int = 1
    per_head: bool = False
    density: float = 0.6
    partial: float = 0.5
    group: int = 0  # blocks of a group, unless 0: those of different groups are not kept
    dtype: str = "float32"
    magnitude: float = 1.0  # of the scores

    @property
    def length(self) -> int:
        return self.blocks * self.blocksize

    @property
    def scale(self) -> float:
        return self.magnitude / self.key_size**0.5


CASES = {
    "plain": Case(),
    "one_block": Case(blocks=1, density=1.0, partial=0.0),
    "one_masked_block": Case(blocks=1, density=1.0, partial=1.0, blocksize=8, key_size=8, value_size=8),
    "one_head_width_1": Case(heads=1, key_size=1, value_size=1, blocksize=16),
    "batch_and_odd_widths": Case(batch=2, heads=3, key_size=40, value_size=59),
    "wide_values": Case(key_size=59, value_size=111, blocksize=16),
    "wide_keys": Case(key_size=111, value_size=40, blocksize=64, blocks=3),
    "blocks_of_8": Case(blocksize=8, blocks=12, key_size=40, value_size=40),
    "blocks_of_16": Case(blocksize=16, blocks=7),
    "blocks_of_64": Case(blocksize=64, blocks=3, heads=3, per_head=True),
    "blocks_of_128": Case(blocksize=128, blocks=3, key_size=64, value_size=128, partial=0.9),
    "per_head": Case(heads=4, per_head=True, blocks=6, batch=2),
    "strided": Case(stride=12, blocks=6, blocksize=16),
    "strided_across_blocks": Case(stride=32, blocks=4, blocksize=16, batch=2, key_size=17),
    "sparse_with_empty_rows": Case(density=0.15, blocks=8, blocksize=16, per_head=True),
    "nothing_kept": Case(density=0.0),
    "dense": Case(density=1.0, partial=0.0, blocks=5),
    "large_logits": Case(magnitude=3e3, blocks=5),  # up to 1.5e4: the naive version in float16 must not overflow
    "small_logits": Case(magnitude=1e-4, blocks=5),
    "groups_of_1": Case(group=1, density=1.0, stride=8, blocks=8, batch=2, heads=3, key_size=40, value_size=59),
    "groups_of_2": Case(group=2, density=1.0, blocks=6, blocksize=64, key_size=17, value_size=33),
    "groups_of_3": Case(group=3, blocks=12, stride=4, blocksize=16, heads=3, per_head=True, batch=2),
    "groups_of_4": Case(group=4, blocks=16, stride=4, blocksize=8, key_size=111, value_size=7, density=0.8),
}


def random_keep(case: Case, rng: np.random.Generator) -> np.ndarray:
    """bool [layouts, T, T] in kernel order."""
    layouts = case.heads if case.per_head else 1
    grid = (layouts, case.blocks, 1, case.blocks, 1)
    inside = (layouts, case.blocks, case.blocksize, case.blocks, case.blocksize)
    kept = rng.random(grid) < case.density
    if case.group:
        groups = np.arange(case.blocks) // case.group
        kept &= (groups[:, None] == groups)[:, None, :, None]
        kept[:, : case.group, :, : case.group] = True  # with one group whole, no smaller groups fit
    whole = rng.random(grid) >= case.partial
    # Rows of a mask, too, are sparse or dense, so that some queries keep nothing in a block that others need.
    elements = rng.random(inside) < rng.choice([0.0, 0.3, 1.0], inside[:4])[..., None]
    return (kept & (whole | elements)).reshape(layouts, case.length, case.length)


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def random_inputs(case: Case, rng: np.random.Generator) -> list[np.ndarray]:
    """q, k, v, dout."""
    widths = [case.heads * size for size in (case.key_size, case.key_size, case.value_size, case.value_size)]
    return [
        rng.standard_normal((case.batch, case.length, width)).astype(np.float32).astype(numpy_dtype(case.dtype))
        for width in widths
    ]


def pointer(array: np.ndarray) -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data


def c_lists(lists: BlockLists) -> build.Lists:
    arrays = (lists.offsets, lists.columns, lists.masks, lists.mask_bits)
    return build.Lists(lists.layouts, len(lists.columns), *(pointer(x) for x in arrays))


def run(
    kernels: ctypes.CDLL,
    case: Case,
    inputs: list[np.ndarray],
    keep: np.ndarray,
    cuts: tuple[float, ...] = (),
    by_group: bool = False,
    pairs: bool = False,
) -> Result:
    """Forward and backward by the kernels.

    Args:
      keep: in kernel order.
      cuts: where to split the units, as threads would.
      by_group: the backward pass of layouts that fall into groups, in one pass; otherwise in two.
      pairs: the forward pass of bfloat16 without the instructions for it, by the same code.
    """
    q, k, v, dout = inputs
    shape = build.Shape(
        case.batch, case.heads, case.length, case.key_size, case.value_size,
        case.blocksize, case.stride, DTYPES[case.dtype], case.scale,
    )  # fmt: skip
    rows, columns = block_lists(keep, case.blocksize), block_lists(keep.swapaxes(1, 2), case.blocksize)
    # Results start as NaN: what a kernel leaves out shows.
    out, dq, dk, dv = (np.full_like(x, np.nan) for x in (v, q, k, v))
    lse, delta = (np.full((case.batch, case.heads, case.length), np.nan, np.float32) for _ in range(2))
    forward = build.Forward(shape, c_lists(rows), *(pointer(x) for x in (q, k, v, out, lse)))
    backward = build.Backward(
        shape, c_lists(rows), c_lists(columns), *(pointer(x) for x in (q, k, v, out, dout, lse, delta, dq, dk, dv))
    )
    units = kernels.tfgen_blocksparse_units(shape)
    assert units == case.batch * case.heads * case.blocks
    passes = [
        (kernels.tfgen_test_forward_pairs if pairs else kernels.tfgen_blocksparse_forward_cpu, forward, units),
        (kernels.tfgen_blocksparse_backward_query_cpu, backward, units),
        (kernels.tfgen_blocksparse_backward_key_cpu, backward, units),
    ]
    if by_group:
        group = kernels.tfgen_blocksparse_group_blocks(shape, backward.rows)
        assert group > 0, "the layout does not fall into groups"
        passes[1:] = [(kernels.tfgen_blocksparse_backward_group_cpu, backward, units // group)]
    for function, args, count in passes:
        limits = [0, *(round(cut * count) for cut in cuts), count]
        for first, last in reversed(list(itertools.pairwise(limits))):
            function(args, first, last)
    return Result(out, lse, dq, dk, dv)


def in_token_order(keep: np.ndarray, stride: int) -> np.ndarray:
    slots = np.argsort(kernel_order(keep.shape[1], stride))
    return keep[:, slots][:, :, slots]


def check_error(
    name: str, found: np.ndarray, baseline: np.ndarray, truth: np.ndarray, factor: float, floor: float
) -> None:
    """Compares the largest errors of an array; -inf, of lse, must be where it is in `truth`."""
    empty = np.isneginf(truth)
    np.testing.assert_array_equal(np.isneginf(found.astype(np.float64)), empty, err_msg=name)
    found, baseline, truth = (np.where(empty, 0.0, x.astype(np.float64)) for x in (found, baseline, truth))
    assert np.isfinite(found).all(), name
    error, allowed = np.abs(found - truth).max(), factor * np.abs(baseline - truth).max() + floor
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e} of which floor {floor:.3e}"


def epsilon(dtype: np.dtype) -> float:
    return float(ml_dtypes.finfo(dtype).eps)


def check(case: Case, inputs: list[np.ndarray], keep: np.ndarray, found: Result) -> None:
    tokens = in_token_order(keep, case.stride)
    dtype, single = numpy_dtype(case.dtype), np.dtype(np.float32)
    truth = naive(*inputs, tokens, case.heads, case.scale, np.dtype(np.float64))
    baseline = naive(*inputs, tokens, case.heads, case.scale, dtype)
    sizes = magnitudes(*inputs, tokens, case.heads, case.scale)
    for field in dataclasses.fields(Result):
        factor = 3.0 if field.name.startswith("d") else 2.0
        # Weights are exp(score - lse): a rounding of a score, which is a float32, is a relative error of the weight.
        roundings = 4 * epsilon(dtype) + epsilon(single) * sizes["scores"]
        floor = 4 * epsilon(single) * (1 + sizes["lse"]) if field.name == "lse" else roundings * sizes[field.name]
        check_error(field.name, *(getattr(x, field.name) for x in (found, baseline, truth)), factor, floor)
    kept = np.broadcast_to(tokens.any(-1), (case.heads, case.length)).T  # [T, H]
    for values in (found.out, found.dq):
        by_head = values.reshape(case.batch, case.length, case.heads, -1)
        assert not by_head[:, ~kept].astype(np.float32).any(), "queries that keep no key get exact zeros"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_against_float64(kernels, rng, name, dtype):
    case = dataclasses.replace(CASES[name], dtype=dtype)
    inputs, keep = random_inputs(case, rng), random_keep(case, rng)
    check(case, inputs, keep, run(kernels, case, inputs, keep))


GROUPED = [name for name, case in CASES.items() if case.group]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GROUPED)
def test_one_backward_pass_by_groups(kernels, rng, name, dtype):
    case = dataclasses.replace(CASES[name], dtype=dtype)
    inputs, keep = random_inputs(case, rng), random_keep(case, rng)
    check(case, inputs, keep, run(kernels, case, inputs, keep, by_group=True))


def test_groups_are_found(kernels):
    def found(layout: np.ndarray, blocksize: int) -> int:
        keep = np.repeat(np.repeat(layout, blocksize, 1), blocksize, 2)
        shape = build.Shape(1, layout.shape[0], keep.shape[1], 8, 8, blocksize, 1, build.FLOAT32, 1.0)
        lists = block_lists(keep, blocksize)
        return kernels.tfgen_blocksparse_group_blocks(shape, c_lists(lists))

    def squares(blocks: int, side: int) -> np.ndarray:
        group = np.arange(blocks) // side
        return group[:, None] == group

    for side in (1, 2, 3, 4, 6, 12):
        layout = squares(12, side)[None]
        assert found(layout, 16) == side
        assert found(np.tril(layout), 16) == side
    assert found(np.zeros([1, 5, 5], bool), 32) == 1
    assert found(squares(10, 4)[None], 8) == 10, "groups of one size, or else all blocks"
    assert found(squares(8, 8)[None], 32) == 8
    assert found(squares(8, 8)[None], 64) == 0, "512 rows are too many for a unit"
    assert found(np.stack([squares(6, 2), squares(6, 3)]), 8) == 6, "one group fits all heads"
    one_outside = squares(64, 2)
    one_outside[63, 0] = True
    assert found(one_outside[None], 8) == 0


UNGROUPED = ["batch_and_odd_widths", "strided", "blocks_of_8", "blocks_of_128", "per_head"]


@pytest.mark.parametrize("name", UNGROUPED + GROUPED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranges_of_units_do_not_change_a_bit(kernels, rng, name, dtype):
    case = dataclasses.replace(CASES[name], dtype=dtype)
    inputs, keep = random_inputs(case, rng), random_keep(case, rng)
    by_group = case.group > 0
    whole = run(kernels, case, inputs, keep, by_group=by_group)
    for cuts in ((0.5,), (0.2, 0.25, 0.9), tuple(i / 7 for i in range(1, 7))):
        split = run(kernels, case, inputs, keep, cuts, by_group)
        for field in dataclasses.fields(Result):
            np.testing.assert_array_equal(getattr(split, field.name), getattr(whole, field.name), field.name)


# Vectors are 16 lanes wide; blocks of 8 rows are left to AVX2's kernels wherever the instructions are.
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.blocksize >= 16])
def test_bfloat16_by_pairs(kernels, rng, name):
    case = dataclasses.replace(CASES[name], dtype="bfloat16")
    inputs, keep = random_inputs(case, rng), random_keep(case, rng)
    found = run(kernels, case, inputs, keep, pairs=True)
    check(case, inputs, keep, found)
    # The products are exact and summed in float32: the results are those of the other forms but for a few roundings.
    other = run(kernels, case, inputs, keep)
    np.testing.assert_allclose(found.lse, other.lse, rtol=1e-5, atol=1e-5 * case.magnitude)


def test_rows_longer_than_the_cache_of_copied_blocks(kernels, rng):
    # 128 * (256 + 256) floats a block: 5 blocks overflow the cache, and a later row meets what an earlier one evicted.
    case = Case(heads=1, blocks=6, blocksize=128, key_size=256, value_size=256, density=1.0, partial=0.2)
    inputs, keep = random_inputs(case, rng), random_keep(case, rng)
    check(case, inputs, keep, run(kernels, case, inputs, keep))


def test_nan_is_not_hidden(kernels, rng):
    case = Case(density=1.0, partial=0.0)
    inputs, keep = random_inputs(case, rng), random_keep(case, rng)
    inputs[0][0, 5, 3] = np.nan  # a query of head 0
    found = run(kernels, case, inputs, keep)
    out = found.out.reshape(case.length, case.heads, -1)
    assert np.isnan(out[5, 0]).all()
    assert np.isnan(found.lse[0, 0, 5])
    assert np.isfinite(np.delete(out[:, 0], 5, axis=0)).all()
    assert np.isfinite(out[:, 1]).all()
    assert np.isnan(found.dk.reshape(case.length, case.heads, -1)[:, 0]).all()


def test_16_bit_numbers_come_back(kernels):
    """Every finite float16 and bfloat16, subnormal ones included: with one key a query, out is v and dv is dout."""
    bits, keep = np.arange(65536, dtype=np.uint16), np.eye(32, dtype=bool)[None]
    for name in ("float16", "bfloat16"):
        case = Case(heads=1, blocks=1, key_size=1, value_size=2048, dtype=name)
        every = bits.view(numpy_dtype(name))
        # Not infinities: those of another row, times a weight of 0, are NaN.
        finite = np.where(np.isfinite(every.astype(np.float32)), every, np.zeros((), every.dtype))
        finite, zeros = finite.reshape(1, 32, 2048), np.zeros((1, 32, 1), every.dtype)
        found = run(kernels, case, [zeros, zeros, finite, finite], keep)
        np.testing.assert_array_equal(found.out.astype(np.float32), finite.astype(np.float32))
        np.testing.assert_array_equal(found.dv.astype(np.float32), finite.astype(np.float32))


def decoded(kernels, q, keys, values, earlier: list[np.ndarray], visible: int, heads: int, scale: float) -> np.ndarray:
    slots, batch, _ = keys.shape
    out = np.full((batch, values.shape[2]), np.nan, values.dtype)
    sizes = (keys.shape[2] // heads, values.shape[2] // heads)
    dtype = DTYPES[values.dtype.name]
    pointers = (pointer(x) for x in (q, keys, values, *earlier, out))
    args = build.Decode(batch, heads, slots, *sizes, visible, earlier[0].shape[2], dtype, scale, *pointers)
    for unit in reversed(range(batch * heads)):
        kernels.tfgen_blocksparse_decode_cpu(args, unit, unit + 1)
    return out


# slots, visible ones, earlier ones, Dk and Dv
DECODE_SIZES = (
    (96, 96, 0, (32, 32)), (96, 17, 0, (40, 59)), (5, 1, 0, (3, 111)), (9, 0, 0, (8, 8)),
    (7, 3, 50, (40, 59)), (4, 0, 17, (3, 8)), (3, 1, 900, (16, 24)), (2, 2, 1, (1, 1)),
)  # fmt: skip


def check_decode(kernels, rng, dtype: np.dtype, slots: int, visible: int, earlier: int, sizes: tuple[int, int]) -> None:
    batch, heads, scale = 2, 3, 1.7
    shapes = ((batch, heads * sizes[0]), (slots, batch, heads * sizes[0]), (slots, batch, heads * sizes[1]))
    stores = [rng.standard_normal((batch, heads, earlier, size)).astype(np.float32).astype(dtype) for size in sizes]
    q, keys, values = (rng.standard_normal(shape).astype(np.float32).astype(dtype) for shape in shapes)
    keys[visible:], values[visible:] = np.nan, np.nan  # must not be used
    found = decoded(kernels, q, keys, values, stores, visible, heads, scale)
    seen = visible + earlier
    if seen == 0:
        assert not found.astype(np.float32).any()
        return
    # The oracle wants as many queries as keys: the one query, repeated, at each of the visible slots.
    joined = []
    for table, store in zip((keys, values), stores, strict=True):
        earlier_rows = store.swapaxes(1, 2).reshape(batch, earlier, table.shape[2])
        joined.append(np.concatenate([table[:visible].swapaxes(0, 1), earlier_rows], axis=1))
    k, v = joined
    repeated, keep = np.repeat(q[:, None], seen, 1), np.ones((1, seen, seen), bool)
    truth = naive(repeated, k, v, v, keep, heads, scale, np.dtype(np.float64)).out[:, 0]
    baseline = naive(repeated, k, v, v, keep, heads, scale, dtype).out[:, 0]
    size = magnitudes(repeated, k, v, v, keep, heads, scale)
    floor = (4 * epsilon(dtype) + epsilon(np.dtype(np.float32)) * size["scores"]) * size["out"]
    check_error("out", found, baseline, truth, 2.0, floor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("slots", "visible", "earlier", "sizes"), DECODE_SIZES)
def test_decode(kernels, rng, dtype, slots, visible, earlier, sizes):
    check_decode(kernels, rng, numpy_dtype(dtype), slots, visible, earlier, sizes)


def test_isa_is_named(kernels):
    assert kernels.tfgen_blocksparse_cpu_isa().decode() in ISAS


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(kernels, library_path, isa):
    check_in_own_process(kernels, library_path, "tests.kernels.test_blocksparse_cpu", isa)


def main() -> None:
    """Checks every case with one instruction set: `python -m tests.kernels.test_blocksparse_cpu LIBRARY ISA`."""
    kernels = build.load_cpu_kernels(Path(sys.argv[1]))
    assert kernels.tfgen_blocksparse_cpu_isa().decode() == sys.argv[2]
    for name, dtype in itertools.product(CASES, DTYPES):
        rng = np.random.default_rng(SEED)
        case = dataclasses.replace(CASES[name], dtype=dtype)
        print(name, dtype, f"TFGEN_TEST_SEED={SEED}")
        inputs, keep = random_inputs(case, rng), random_keep(case, rng)
        check(case, inputs, keep, run(kernels, case, inputs, keep))
        if case.group:
            check(case, inputs, keep, run(kernels, case, inputs, keep, by_group=True))
    for dtype, sizes in itertools.product(DTYPES, DECODE_SIZES):
        print("decode", dtype, sizes, f"TFGEN_TEST_SEED={SEED}")
        check_decode(kernels, np.random.default_rng(SEED), numpy_dtype(dtype), *sizes)


if __name__ == "__main__":
    main()
