"""The CPU kernels of group normalisation, through their C interface, against float64.

The rule is that of the attention kernels: an error at most twice that of a naive computation in the same type, three
times for the gradients.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.kernels import build
from tests.kernels.isas import ISAS, check_in_own_process
from tests.seeds import SEED

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


class Case(NamedTuple):
    batch: int
    pixels: int
    channels: int
    groups: int
    gain_rows: int
    offset_rows: int


# One pixel, one group, groups of one channel, channels below, at and above the widths of vectors, units that are part
# of a sample, images that no cache holds.
CASES = (
    Case(1, 1, 8, 2, 1, 1),
    Case(1, 1, 3, 1, 1, 1),
    Case(2, 1, 32, 32, 1, 2),
    Case(3, 7, 6, 2, 3, 3),
    Case(2, 9, 12, 4, 1, 1),
    Case(1, 16, 33, 3, 1, 1),
    Case(2, 17, 32, 32, 2, 1),
    Case(2, 35, 96, 32, 2, 2),
    Case(1, 15, 160, 32, 1, 1),
    Case(3, 49, 100, 1, 1, 3),
    Case(1, 700, 192, 32, 1, 1),
    Case(2, 1100, 72, 3, 2, 2),
)
OPTIONS = tuple(itertools.product(CASES, (False, True)))
TYPES = (build.FLOAT32, build.BFLOAT16, build.FLOAT16)
EPSILON = 1e-5
ROUNDING = {build.FLOAT32: 2.0**-23, build.BFLOAT16: 2.0**-8, build.FLOAT16: 2.0**-11}
BITS16 = {build.BFLOAT16, build.FLOAT16}


def stored(values: np.ndarray, dtype: int) -> np.ndarray:
    """Rounded to a type, as the kernels read it."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == build.FLOAT16:
        return values.astype(np.float16)
    if dtype == build.BFLOAT16:
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values


def wide(values: np.ndarray) -> np.ndarray:
    """float32 of what `stored` gives."""
    return (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values.astype(np.float32)


def shape_of(case: Case, dtype: int, silu: bool, threads: int) -> build.GroupNormShape:
    return build.GroupNormShape(*case, dtype, silu, threads, EPSILON)


def run(kernels: ctypes.CDLL, name: str, shape: build.GroupNormShape, cut: int, **arrays: np.ndarray) -> None:
    """All units, `cut` at a time."""
    scratch = np.full(kernels.tfgen_group_norm_scratch(shape), np.nan)
    struct = {"forward": build.GroupNormForward, "backward": build.GroupNormBackward}[name]
    addresses = {key: array.ctypes.data for key, array in arrays.items()}
    args = struct(shape=shape, scratch=scratch.ctypes.data, **addresses)
    units = kernels.tfgen_group_norm_units(shape)
    assert units >= shape.batch
    for first in range(0, units, cut):
        getattr(kernels, f"tfgen_group_norm_{name}_cpu")(args, first, min(first + cut, units))


def computed(kernels: ctypes.CDLL, case: Case, silu: bool, x, dy, gain, offset, threads=2, cut=100):
    """y, dx, and dgain and doffset of each sample."""
    dtype = {np.dtype(np.float32): 0, np.dtype(np.uint16): 1, np.dtype(np.float16): 2}[x.dtype]
    shape = shape_of(case, dtype, silu, threads)
    filler = np.nan if x.dtype != np.uint16 else 0x7FC0
    y, dx = np.full_like(x, filler), np.full_like(x, filler)
    mean, inverse = (np.full([case.batch, case.groups], np.nan, np.float32) for _ in range(2))
    dgain, doffset = (np.full([case.batch, case.channels], np.nan, np.float32) for _ in range(2))
    inputs = {"x": x, "gain": gain, "offset": offset, "mean": mean, "inverse": inverse}
    run(kernels, "forward", shape, cut, **inputs, y=y)
    run(kernels, "backward", shape, cut, **inputs, dy=dy, dx=dx, dgain=dgain, doffset=doffset)
    return y, dx, dgain, doffset


def definition(case: Case, silu: bool, x, dy, gain, offset):
    """The same in NumPy, in the type of its arguments: the formulas of the header, differentiated by hand.

    With the sizes of the terms that each result is the sum of.
    """
    one = x.dtype.type(1)

    def of_groups(values):  # mean over pixels and channels of a group, for each channel
        grouped = values.reshape(case.batch, case.pixels, case.groups, -1)
        means = grouped.mean(axis=(1, 3), keepdims=True)
        return np.broadcast_to(means, [*means.shape[:3], grouped.shape[3]]).reshape(case.batch, 1, case.channels)

    centred = x - of_groups(x)
    deviation = np.sqrt(of_groups(centred * centred) + x.dtype.type(EPSILON))
    n = centred / deviation
    y = n * gain[:, None] + offset[:, None]
    g = dy
    if silu:
        with np.errstate(over="ignore"):
            gate = one / (one + np.exp(-y))
        g = dy * gate * (one + y * (one - gate))
        y = y * gate
    along = gain[:, None] * g / deviation
    dx = along - of_groups(along) - n * of_groups(along * n)
    terms = [np.abs(values).max() for values in (n * gain[:, None], along, g * n, g)]
    return (y, dx, (g * n).sum(axis=1), g.sum(axis=1)), terms


def arguments(rng: np.random.Generator, case: Case, dtype: int, spread: float, shift: float):
    size = case.batch, case.pixels, case.channels
    x = stored(spread * rng.standard_normal(size) + shift, dtype)
    dy = stored(rng.standard_normal(size), dtype)
    gain = rng.standard_normal([case.gain_rows, case.channels]).astype(np.float32)
    return x, dy, gain, rng.standard_normal([case.offset_rows, case.channels]).astype(np.float32)


def check(kernels, rng, case: Case, silu: bool, dtype: int = build.FLOAT32, spread=1.0, shift=0.5) -> None:
    x, dy, gain, offset = arguments(rng, case, dtype, spread, shift)
    found = computed(kernels, case, silu, x, dy, gain, offset)
    inputs = wide(x), wide(dy), gain, offset
    truth, sizes = definition(case, silu, *(values.astype(np.float64) for values in inputs))
    naive, _ = definition(case, silu, *inputs)
    for index, (name, ours, theirs, exact, size) in enumerate(
        zip(("y", "dx", "dgain", "doffset"), found, naive, truth, sizes, strict=True)
    ):
        rounded = wide(stored(theirs, dtype)) if index < 2 else theirs
        error, baseline = (np.abs(values - exact).max() for values in (wide(ours) if index < 2 else ours, rounded))
        # The floor: a few roundings of the terms, for what the naive form computes exactly.
        floor = 4 * 2.0**-23 * size + 1e-12
        factor = 2 if index == 0 else 3
        assert error <= factor * baseline + floor, f"{name} of {case}: error {error:.3e}, naive {baseline:.3e}"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("case", "silu"), OPTIONS)
def test_against_float64(kernels, rng, case, silu, dtype):
    check(kernels, rng, case, silu, dtype)


@pytest.mark.parametrize(("spread", "shift"), [(1e-3, 0.0), (1.0, 100.0), (0.01, 1000.0), (1e4, -3e4)])
def test_sizes_and_means(kernels, rng, spread, shift):
    for case, silu in OPTIONS[4:]:
        check(kernels, rng, case, silu, spread=spread, shift=shift)


def check_large_image(kernels: ctypes.CDLL, rng: np.random.Generator) -> None:
    """Float32 sums of 40,000 values of one sign would be wrong in the fifth digit."""
    case = Case(1, 40_000, 16, 4, 1, 1)
    x, dy, gain, offset = arguments(rng, case, build.FLOAT32, 1.0, 30.0)
    dy = np.abs(dy) + 1
    found = computed(kernels, case, False, x, dy, gain, offset)
    truth, _ = definition(case, False, *(values.astype(np.float64) for values in (x, dy, gain, offset)))
    np.testing.assert_allclose(found[0], truth[0], atol=3e-5)
    np.testing.assert_allclose(found[3], truth[3], rtol=1e-6)
    np.testing.assert_allclose(found[2], truth[2], atol=1e-6 * truth[3].max())


def test_sums_over_a_large_image(kernels, rng):
    check_large_image(kernels, rng)


def check_extremes(kernels: ctypes.CDLL) -> None:
    """Where e^-y overflows and where it vanishes; constant groups; and what is not finite stays in its group."""
    case = Case(1, 4, 40, 5, 1, 1)
    ones, zeros = np.ones([1, 40], np.float32), np.zeros([1, 40], np.float32)
    x = np.tile(np.array([[0], [0], [0], [0.5]], np.float32), [1, 1, 40])
    dy = np.full_like(x, 2)
    for size in (0.0, 50.0, 88.0, 100.0, 1e4, -1e4, 1e30, -1e30):
        offset = np.full([1, 40], size, np.float32)
        y, dx, _, doffset = computed(kernels, case, True, x, dy, zeros, offset)
        expected = max(size, 0.0) if abs(size) >= 50 else 0.0
        np.testing.assert_allclose(y, np.full_like(y, expected), rtol=1e-6, atol=1e-18)
        np.testing.assert_allclose(doffset, 8 * (0.5 if size == 0 else float(size > 0)) * ones, rtol=1e-6, atol=1e-18)
        assert np.isfinite(dx).all()
    constant = computed(kernels, case, False, np.full_like(x, 0.7), dy, ones, ones)
    np.testing.assert_allclose(constant[0], np.ones_like(x), atol=1e-4)
    for value in (np.inf, -np.inf, np.nan):
        broken = x.copy()
        broken[0, 1, 11] = value  # in the second of five groups of 8
        y, dx, dgain, _ = computed(kernels, case, True, broken, dy, ones, zeros)
        groups = y.reshape(4, 5, 8), dx.reshape(4, 5, 8), dgain.reshape(1, 5, 8)
        for values in groups:
            assert np.isnan(values[:, 1]).any()
            assert np.isfinite(np.delete(values, 1, axis=1)).all(), "neighbours of what is not finite"


def test_extreme_values(kernels):
    check_extremes(kernels)


def check_cuts(kernels: ctypes.CDLL, rng: np.random.Generator) -> None:
    for case, silu in ((Case(1, 700, 512, 32, 1, 1), True), (Case(2, 9, 512, 4, 1, 2), False), (CASES[3], True)):
        inputs = arguments(rng, case, build.FLOAT32, 1.0, 0.5)
        whole = computed(kernels, case, silu, *inputs, threads=1)
        units = set()
        for threads, cut in itertools.product((1, 2, 3, 7, 64), (1, 2, 5)):
            units.add(kernels.tfgen_group_norm_units(shape_of(case, build.FLOAT32, silu, threads)))
            again = computed(kernels, case, silu, *inputs, threads=threads, cut=cut)
            for ours, expected in zip(again, whole, strict=True):
                np.testing.assert_array_equal(ours, expected)
        assert case is CASES[3] or len(units) > 1


def test_cuts_do_not_change_a_bit(kernels, rng):
    """However many threads share an array, and wherever they cut it."""
    check_cuts(kernels, rng)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_samples_do_not_depend_on_the_batch(kernels, rng, dtype, silu):
    case = Case(5, 21, 24, 3, 1, 5)
    x, dy, gain, offset = arguments(rng, case, dtype, 1.0, 0.5)
    whole = computed(kernels, case, silu, x, dy, gain, offset)
    for index in range(case.batch):
        rows = [np.ascontiguousarray(values[index : index + 1]) for values in (x, dy, offset)]
        alone = computed(kernels, case._replace(batch=1, offset_rows=1), silu, rows[0], rows[1], gain, rows[2])
        for ours, expected in zip(alone, whole, strict=True):
            np.testing.assert_array_equal(ours[0], expected[index])


def test_nothing_beyond_the_arrays_is_touched(kernels, rng):
    for case in CASES[:9]:
        x, dy, gain, offset = arguments(rng, case, build.FLOAT32, 1.0, 0.5)
        expected = computed(kernels, case, True, x, dy, gain, offset)
        memory = np.full([2, x.size + 64], 7, np.float32)
        y, dx = (row[32 : 32 + x.size] for row in memory)
        sums = np.full([4, case.batch * case.channels + 64], 7, np.float32)
        mean, inverse = (row[32 : 32 + case.batch * case.groups] for row in sums[:2])
        dgain, doffset = (row[32:-32] for row in sums[2:])
        shape = shape_of(case, build.FLOAT32, True, 2)
        inputs = {"x": x, "gain": gain, "offset": offset, "mean": mean, "inverse": inverse}
        run(kernels, "forward", shape, 3, **inputs, y=y)
        run(kernels, "backward", shape, 3, **inputs, dy=dy, dx=dx, dgain=dgain, doffset=doffset)
        for ours, theirs in zip((y, dx, dgain, doffset), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs.ravel())
        assert (memory[:, :32] == 7).all()
        assert (memory[:, 32 + x.size :] == 7).all()
        assert (sums[:, :32] == 7).all()
        assert (sums[2:, -32:] == 7).all()
        assert (sums[:2, 32 + case.batch * case.groups :] == 7).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("silu", [False, True])
def test_results_may_replace_arguments(kernels, rng, dtype, silu):
    for case in CASES[3:9]:
        x, dy, gain, offset = arguments(rng, case, dtype, 1.0, 0.5)
        y, dx, *_ = computed(kernels, case, silu, x, dy, gain, offset)
        mean, inverse = (np.empty([case.batch, case.groups], np.float32) for _ in range(2))
        dgain, doffset = (np.empty([case.batch, case.channels], np.float32) for _ in range(2))
        shape, place, upstream = shape_of(case, dtype, silu, 2), x.copy(), dy.copy()
        inputs = {"gain": gain, "offset": offset, "mean": mean, "inverse": inverse}
        run(kernels, "forward", shape, 3, **inputs, x=place, y=place)
        run(kernels, "backward", shape, 3, **inputs, x=x, dy=upstream, dx=upstream, dgain=dgain, doffset=doffset)
        np.testing.assert_array_equal(place, y)
        np.testing.assert_array_equal(upstream, dx)


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(kernels, library_path, isa):
    check_in_own_process(kernels, library_path, "tests.kernels.test_group_norm_cpu", isa)


def main() -> None:
    """Checks everything with one instruction set: `python -m tests.kernels.test_group_norm_cpu LIBRARY ISA`."""
    kernels = build.load_cpu_kernels(Path(sys.argv[1]))
    assert kernels.tfgen_blocksparse_cpu_isa().decode() == sys.argv[2]
    for (case, silu), dtype in itertools.product(OPTIONS, TYPES):
        print(case, silu, dtype, f"TFGEN_TEST_SEED={SEED}")
        check(kernels, np.random.default_rng(SEED), case, silu, dtype)
    check_large_image(kernels, np.random.default_rng(SEED))
    check_extremes(kernels)
    check_cuts(kernels, np.random.default_rng(SEED))


if __name__ == "__main__":
    main()
