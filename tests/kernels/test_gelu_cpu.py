"""The CPU kernels of GELU, through their C interface, against float64.

The rule is that of the attention kernels: an error at most twice that of a naive computation in float32, three times
for the gradient.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kernels import build
from tests.kernels.isas import ISAS, check_in_own_process
from tests.seeds import SEED

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

# Below, at and above the widths of vectors.
COUNTS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 100, 1001)
EPSILON = 2.0**-23
ERF, ERFC = (np.vectorize(function, otypes=[np.float64]) for function in (math.erf, math.erfc))


def forward(kernels: ctypes.CDLL, x: np.ndarray) -> np.ndarray:
    y = np.full_like(x, np.nan)
    kernels.tfgen_gelu_forward_cpu(x.ctypes.data, y.ctypes.data, x.size)
    return y


def backward(kernels: ctypes.CDLL, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    dx = np.full_like(x, np.nan)
    kernels.tfgen_gelu_backward_cpu(x.ctypes.data, dy.ctypes.data, dx.ctypes.data, x.size)
    return dx


def exact_distribution(x: np.ndarray) -> np.ndarray:
    """Phi(x) in float64, precise in both tails."""
    return 0.5 * ERFC(-x.astype(np.float64) / math.sqrt(2))


def exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x Phi(x) and its derivative in float64."""
    distribution, x = exact_distribution(x), x.astype(np.float64)
    return x * distribution, distribution + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def naive(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in float32, stored after each step."""
    half, one, scale = np.float32(0.5), np.float32(1), np.float32(1 / math.sqrt(2))
    distribution = half * (one + ERF(x * scale).astype(np.float32))
    density = np.exp(-half * x * x) * np.float32(1 / math.sqrt(2 * math.pi))
    return x * distribution, distribution + x * density


def check(kernels: ctypes.CDLL, rng: np.random.Generator, count: int, spread: float) -> None:
    x, dy = (rng.standard_normal(count).astype(np.float32) for _ in range(2))
    x *= np.float32(spread)
    (y, slope), (naive_y, naive_slope), distribution = exact(x), naive(x), exact_distribution(x)
    # The floor: a few roundings of the terms that a result sums, for cases that the naive form computes exactly.
    terms = distribution + np.abs(slope - distribution)
    for found, truth, baseline, factor, size in (
        (forward(kernels, x), y, naive_y, 2, y),
        (backward(kernels, x, dy), slope * dy, naive_slope * dy, 3, terms * dy),
    ):
        assert np.isfinite(found).all()
        error = np.abs(found - truth).max(initial=0)
        allowed = factor * np.abs(baseline - truth).max(initial=0) + 4 * EPSILON * np.abs(size).max(initial=0)
        assert error <= allowed, f"{count} numbers of size {spread}: error {error:.3e}, allowed {allowed:.3e}"


SPREADS = (1.0, 1e-3, 5.0, 1e3)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("count", COUNTS)
def test_against_float64(kernels, rng, count, spread):
    check(kernels, rng, count, spread)


def check_tails(kernels: ctypes.CDLL) -> None:
    x = np.concatenate([-np.geomspace(1e-30, 12, 4001), np.geomspace(1e-30, 12, 4001)]).astype(np.float32)
    for found, truth in zip((forward(kernels, x), backward(kernels, x, np.ones_like(x))), exact(x), strict=True):
        # Relative to the value itself, but near the zero of the derivative, at -0.75.
        scale = np.maximum(np.abs(truth), np.where(np.abs(x + 0.75) < 0.25, 0.1, 0))
        error = (np.abs(found - truth) / scale).max()
        # exp(-x^2 / 2) has the relative error of the rounded exponent, which is 72 at the end.
        assert error < 80 * EPSILON, f"relative error {error / EPSILON:.1f} epsilon"


def test_tails_keep_their_relative_precision(kernels):
    """Where 1 + erf, the naive form, cancels to nothing."""
    check_tails(kernels)


def check_extremes(kernels: ctypes.CDLL) -> None:
    limits = np.finfo(np.float32)
    x = np.array(
        [0.0, -0.0, 1e4, -1e4, limits.max, -limits.max, limits.tiny, -limits.tiny, 13.2, -13.2, 40, -40],
        np.float32,
    )
    for position in range(20):  # in every lane
        padded = np.concatenate([np.ones(position, np.float32), x, np.ones(3, np.float32)])
        y = forward(kernels, padded)[position:-3]
        slope = backward(kernels, padded, np.full_like(padded, 2))[position:-3]
        np.testing.assert_allclose(y, exact(x)[0], rtol=1e-6, atol=1e-36)
        np.testing.assert_allclose(slope, 2 * exact(x)[1], rtol=1e-6, atol=1e-35)
        special = np.array([np.inf, np.nan, -np.inf], np.float32)
        padded[position : position + 3] = special
        y, slope = forward(kernels, padded), backward(kernels, padded, np.ones_like(padded))
        # As x Phi(x) has it in floating point: inf 1, NaN, and -inf 0, which is NaN.
        np.testing.assert_array_equal(y[position : position + 3], [np.inf, np.nan, np.nan])
        assert np.isnan(slope[position + 1])
        keep = np.delete(np.arange(padded.size), np.arange(position, position + 3))
        assert np.isfinite(y[keep]).all(), "neighbours of what is not finite"
        assert np.isfinite(slope[keep]).all()


def test_extreme_values(kernels):
    check_extremes(kernels)


def test_nothing_beyond_the_array_is_touched(kernels, rng):
    for count in COUNTS:
        memory = np.full(count + 64, 7, np.float32)
        x = rng.standard_normal(count).astype(np.float32)
        kernels.tfgen_gelu_forward_cpu(x.ctypes.data, memory.ctypes.data + 4 * 32, count)
        np.testing.assert_array_equal(memory[32 : 32 + count], forward(kernels, x))
        assert (np.delete(memory, np.arange(32, 32 + count)) == 7).all()


def test_results_may_replace_arguments(kernels, rng):
    for count in (5, 16, 77):
        x, dy = (rng.standard_normal(count).astype(np.float32) for _ in range(2))
        y, dx = forward(kernels, x), backward(kernels, x, dy)
        for place in (0, 1):
            arrays = [x.copy(), dy.copy()]
            kernels.tfgen_gelu_backward_cpu(*(a.ctypes.data for a in arrays), arrays[place].ctypes.data, count)
            np.testing.assert_array_equal(arrays[place], dx)
        kernels.tfgen_gelu_forward_cpu(x.ctypes.data, x.ctypes.data, count)
        np.testing.assert_array_equal(x, y)


def check_cuts(kernels: ctypes.CDLL, rng: np.random.Generator) -> None:
    x, dy = (3 * rng.standard_normal(1000).astype(np.float32) for _ in range(2))
    for cuts in ((500,), (1, 2, 3, 17, 999), tuple(range(7, 1000, 7))):
        limits = list(itertools.pairwise((0, *cuts, 1000)))
        parts = [np.ascontiguousarray(x[first:last]) for first, last in limits]
        np.testing.assert_array_equal(np.concatenate([forward(kernels, part) for part in parts]), forward(kernels, x))
        slopes = [backward(kernels, x[first:last].copy(), dy[first:last].copy()) for first, last in limits]
        np.testing.assert_array_equal(np.concatenate(slopes), backward(kernels, x, dy))


def test_cuts_do_not_change_a_bit(kernels, rng):
    """However many threads share an array, and wherever they cut it."""
    check_cuts(kernels, rng)


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(kernels, library_path, isa):
    check_in_own_process(kernels, library_path, "tests.kernels.test_gelu_cpu", isa)


def main() -> None:
    """Checks everything with one instruction set: `python -m tests.kernels.test_gelu_cpu LIBRARY ISA`."""
    kernels = build.load_cpu_kernels(Path(sys.argv[1]))
    assert kernels.tfgen_blocksparse_cpu_isa().decode() == sys.argv[2]
    for count, spread in itertools.product(COUNTS, SPREADS):
        print(count, spread, f"TFGEN_TEST_SEED={SEED}")
        check(kernels, np.random.default_rng(SEED), count, spread)
    check_tails(kernels)
    check_extremes(kernels)
    check_cuts(kernels, np.random.default_rng(SEED))


if __name__ == "__main__":
    main()
