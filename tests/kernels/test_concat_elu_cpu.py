"""The CPU kernels of concatenated ELU, through their C interface, against float64.

The rule is that of the attention kernels: an error at most twice that of a naive computation in float32, three times
for the gradient.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kernels import build
from tests.kernels.isas import ISAS, check_in_own_process
from tests.seeds import SEED

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

# Pixels and channels, these below, at and above the widths of vectors.
SHAPES = ((0, 4), (1, 1), (3, 3), (2, 4), (5, 5), (1, 8), (4, 15), (3, 16), (2, 17), (7, 33), (20, 40), (11, 80))
SPREADS = (1.0, 1e-3, 5.0, 1e3)
EPSILON = 2.0**-23


def forward(kernels: ctypes.CDLL, x: np.ndarray) -> np.ndarray:
    y = np.full([len(x), 2 * x.shape[1]], np.nan, np.float32)
    kernels.tfgen_concat_elu_forward_cpu(x.ctypes.data, y.ctypes.data, *x.shape)
    return y


def backward(kernels: ctypes.CDLL, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    dx = np.full_like(x, np.nan)
    kernels.tfgen_concat_elu_backward_cpu(x.ctypes.data, dy.ctypes.data, dx.ctypes.data, *x.shape)
    return dx


def naive(x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Result and gradient by the definition, in the dtype of `x`."""
    both = np.concatenate([x, -x], axis=1)
    exponential = np.exp(np.minimum(both, 0))
    first, second = np.split(dy * exponential, 2, axis=1)
    return np.where(both > 0, both, exponential - 1), first - second


def drawn(rng: np.random.Generator, shape: tuple[int, int], spread: float) -> tuple[np.ndarray, np.ndarray]:
    x = rng.standard_normal(shape).astype(np.float32) * np.float32(spread)
    return x, rng.standard_normal([shape[0], 2 * shape[1]]).astype(np.float32)


def check(kernels: ctypes.CDLL, rng: np.random.Generator, shape: tuple[int, int], spread: float) -> None:
    x, dy = drawn(rng, shape, spread)
    baseline, exact = naive(x, dy), naive(x.astype(np.float64), dy.astype(np.float64))
    found = forward(kernels, x), backward(kernels, x, dy)
    # The floor: a rounding or two of the result, or of the two terms of the gradient.
    for ours, theirs, truth, factor, size in zip(found, baseline, exact, (2, 3), (exact[0], dy), strict=True):
        assert np.isfinite(ours).all()
        error = np.abs(ours - truth).max(initial=0)
        allowed = factor * np.abs(theirs - truth).max(initial=0) + 2 * EPSILON * np.abs(size).max(initial=0)
        assert error <= allowed, f"{shape}, numbers of size {spread}: error {error:.3e}, allowed {allowed:.3e}"


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(kernels, rng, shape, spread):
    check(kernels, rng, shape, spread)


def check_relative_precision(kernels: ctypes.CDLL) -> None:
    x = -np.geomspace(1e-30, 100, 8000).astype(np.float32).reshape(100, 80)
    truth = np.expm1(x.astype(np.float64))
    for found in (forward(kernels, x)[:, :80], forward(kernels, -x)[:, 80:]):
        error = np.abs(found / truth - 1).max()
        assert error < 4 * EPSILON, f"relative error {error / EPSILON:.1f} epsilon"


def test_results_near_zero_keep_their_relative_precision(kernels):
    """Where exp(x) - 1, the naive form, cancels to nothing."""
    check_relative_precision(kernels)


def check_extremes(kernels: ctypes.CDLL) -> None:
    tiny = np.finfo(np.float32).tiny
    x = np.array([0.0, -0.0, 3e38, -3e38, tiny, -tiny, 87.5, -87.5, 200, -200, np.inf, -np.inf], np.float32)
    for position in range(20):  # in every lane
        padded = np.concatenate([np.ones(position, np.float32), x, np.ones(3, np.float32)])[np.newaxis]
        expected, slope = naive(padded.astype(np.float64), np.ones([1, 2 * padded.size]))
        np.testing.assert_allclose(forward(kernels, padded), expected, rtol=1e-6, atol=1e-36)
        ones = np.ones([1, 2 * padded.size], np.float32)
        np.testing.assert_allclose(backward(kernels, padded, ones), slope, rtol=1e-6, atol=1e-36)
        padded[0, position] = np.nan
        y = forward(kernels, padded)
        assert np.isnan(y[0, position])
        assert np.isnan(y[0, padded.size + position])
        assert np.isnan(backward(kernels, padded, ones)[0, position])
        assert np.isnan(y).sum() == 2, "neighbours of what is not a number"


def test_extreme_values(kernels):
    check_extremes(kernels)


def test_nothing_beyond_the_arrays_is_touched(kernels, rng):
    for shape in SHAPES:
        x, dy = drawn(rng, shape, 1.0)
        y, dx = forward(kernels, x), backward(kernels, x, dy)
        beside_y, beside_dx = (np.full(array.size + 64, 7, np.float32) for array in (y, dx))
        kernels.tfgen_concat_elu_forward_cpu(x.ctypes.data, beside_y.ctypes.data + 4 * 32, *shape)
        kernels.tfgen_concat_elu_backward_cpu(x.ctypes.data, dy.ctypes.data, beside_dx.ctypes.data + 4 * 32, *shape)
        for memory, expected in ((beside_y, y), (beside_dx, dx)):
            np.testing.assert_array_equal(memory[32:-32], expected.ravel())
            assert (memory[:32] == 7).all()
            assert (memory[-32:] == 7).all()


def test_the_gradient_may_replace_x(kernels, rng):
    for shape in SHAPES:
        x, dy = drawn(rng, shape, 1.0)
        expected = backward(kernels, x, dy)
        kernels.tfgen_concat_elu_backward_cpu(x.ctypes.data, dy.ctypes.data, x.ctypes.data, *shape)
        np.testing.assert_array_equal(x, expected)


def check_cuts(kernels: ctypes.CDLL, rng: np.random.Generator) -> None:
    x, dy = drawn(rng, (60, 21), 3.0)
    for cuts in ((30,), (1, 2, 3, 17, 59), tuple(range(7, 60, 7))):
        parts = [(x[first:last].copy(), dy[first:last].copy()) for first, last in itertools.pairwise((0, *cuts, 60))]
        y, dx = [forward(kernels, part) for part, _ in parts], [backward(kernels, *part) for part in parts]
        np.testing.assert_array_equal(np.concatenate(y), forward(kernels, x))
        np.testing.assert_array_equal(np.concatenate(dx), backward(kernels, x, dy))


def test_cuts_do_not_change_a_bit(kernels, rng):
    """However many threads share the pixels, and wherever they cut them."""
    check_cuts(kernels, rng)


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(kernels, library_path, isa):
    check_in_own_process(kernels, library_path, "tests.kernels.test_concat_elu_cpu", isa)


def main() -> None:
    """Checks everything with one instruction set: `python -m tests.kernels.test_concat_elu_cpu LIBRARY ISA`."""
    kernels = build.load_cpu_kernels(Path(sys.argv[1]))
    assert kernels.tfgen_blocksparse_cpu_isa().decode() == sys.argv[2]
    for shape, spread in itertools.product(SHAPES, SPREADS):
        print(shape, spread, f"TFGEN_TEST_SEED={SEED}")
        check(kernels, np.random.default_rng(SEED), shape, spread)
    check_relative_precision(kernels)
    check_extremes(kernels)
    check_cuts(kernels, np.random.default_rng(SEED))


if __name__ == "__main__":
    main()
