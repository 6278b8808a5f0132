"""The CPU kernels of Winograd convolutions, through their C interface, against float64.

The rule is that of the attention kernels: an error at most twice that of a naive computation in float32, three times
for gradients.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from tests.kernels import build
from tests.kernels.isas import ISAS, check_in_own_process
from tests.seeds import SEED

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

# Batch, height, width, inputs, outputs. Sides even, odd and below a tile; channels below, at and above the widths of
# vectors, of registers and of the depth of products.
SHAPES = (
    (1, 1, 1, 1, 1),
    (1, 2, 2, 1, 3),
    (2, 1, 5, 3, 1),
    (3, 5, 7, 7, 9),
    (1, 4, 4, 8, 16),
    (2, 6, 3, 16, 17),
    (1, 9, 8, 24, 32),
    (2, 16, 16, 33, 13),
    (1, 7, 7, 64, 48),
    (1, 3, 4, 260, 6),
    (2, 4, 5, 5, 130),
    (1, 32, 31, 12, 12),
)
TAPS = ((3, 3), (2, 3), (2, 2))  # rows and columns of kernels
GUARD = np.float32(7)


class Guarded:
    """An array of uninitialised numbers between guards."""

    def __init__(self, *shape: int):
        count = int(np.prod(shape))
        self.memory = np.full(count + 64, GUARD, np.float32)
        self.array = self.memory[32 : 32 + count].reshape(shape)
        self.array[...] = np.nan

    def checked(self) -> np.ndarray:
        assert (self.memory[:32] == GUARD).all(), "written before the array"
        assert (self.memory[-32:] == GUARD).all(), "written beyond the array"
        return self.array


def pieces(units: int, size: int) -> Iterable[tuple[int, int]]:
    """[first, last) of all units; the last piece first, since order must not matter."""
    return [(first, min(first + size, units)) for first in range(0, units, size)][::-1]


def convolve(
    kernels: ctypes.CDLL,
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    reverse: bool = False,
    size: int = 1 << 40,
    by_kernel: bool = False,
    enlarge: bool = False,
) -> np.ndarray:
    """The convolution, its work in pieces of `size` units; `by_kernel`: of units of the kernel and not tiles."""
    outputs = kernel.shape[2 if reverse else 3]
    batch, height, width, inputs = x.shape
    scale = 2 if enlarge else 1
    shape = build.WinogradShape(batch, scale * height, scale * width, inputs, outputs, *kernel.shape[:2])
    transformed = Guarded(kernels.tfgen_winograd_kernel_size(shape))
    y = Guarded(batch, scale * height, scale * width, outputs)
    for piece in pieces(kernels.tfgen_winograd_kernel_units(shape), size):
        kernels.tfgen_winograd_transform_kernel_cpu(
            shape, kernel.ctypes.data, reverse, transformed.array.ctypes.data, *piece
        )
    at_bias = None if bias is None else bias.ctypes.data
    arguments = build.WinogradConvolution(
        shape, x.ctypes.data, transformed.array.ctypes.data, at_bias, y.array.ctypes.data, reverse, enlarge
    )
    if by_kernel:
        for piece in pieces(kernels.tfgen_winograd_kernel_units(shape), size):
            kernels.tfgen_winograd_convolve_by_kernel_cpu(arguments, *piece)
    else:
        for piece in pieces(kernels.tfgen_winograd_tiles(shape), size):
            kernels.tfgen_winograd_convolve_cpu(arguments, *piece)
    transformed.checked()
    return y.checked()


def kernel_gradient(
    kernels: ctypes.CDLL,
    x: np.ndarray,
    dy: np.ndarray,
    taps: tuple[int, int],
    threads: int = 1,
    size: int = 1 << 40,
) -> np.ndarray:
    """The gradient by a kernel of `taps`, in chunks for so many threads, each in pieces of `size` units."""
    shape = build.WinogradShape(*x.shape, dy.shape[3], *taps)
    chunk_tiles, tiles = kernels.tfgen_winograd_chunk_tiles(shape, threads), kernels.tfgen_winograd_tiles(shape)
    scratch = Guarded(kernels.tfgen_winograd_scratch_size(shape, chunk_tiles))
    dkernel = Guarded(*taps, x.shape[3], dy.shape[3])
    arguments = build.WinogradKernelGradient(
        shape, x.ctypes.data, dy.ctypes.data, chunk_tiles, scratch.array.ctypes.data, dkernel.array.ctypes.data
    )
    for chunk in range(0, tiles, chunk_tiles):
        count = min(chunk_tiles, tiles - chunk)
        for piece in pieces(count, size):
            kernels.tfgen_winograd_transform_tiles_cpu(arguments, chunk, *piece)
        for piece in pieces(kernels.tfgen_winograd_product_units(shape), size):
            kernels.tfgen_winograd_add_products_cpu(arguments, chunk, count, *piece)
    for piece in pieces(x.shape[3], size):
        kernels.tfgen_winograd_finish_cpu(arguments, *piece)
    scratch.checked()
    return dkernel.checked()


def windows(x: np.ndarray, taps: tuple[int, int], reverse: bool = False) -> np.ndarray:
    """[B, H, W, *taps, C]: what every result reads, with zeros before the image and, for three taps, behind it.

    `reverse`: with the zeros of the gradient by the images, of those before as many as else behind.
    """
    sides = [(1, count - 2)[:: -1 if reverse else 1] for count in taps]
    padded = np.pad(x, ((0, 0), *sides, (0, 0)))
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(padded, taps, (1, 2)), 3, 5)


def sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [rows, n] times b [n, columns], summed one after the other in their dtype."""
    total = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(a.shape[1]):
        total += a[:, i : i + 1] * b[i]
    return total


def direct(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    rows = windows(x, kernel.shape[:2]).reshape(-1, kernel[..., 0].size)
    return (sums(rows, kernel.reshape(rows.shape[1], -1)) + bias).reshape(*x.shape[:3], -1)


def direct_images_gradient(dy: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    mirrored = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    rows = windows(dy, kernel.shape[:2], reverse=True).reshape(-1, mirrored[..., 0].size)
    return sums(rows, mirrored.reshape(rows.shape[1], -1)).reshape(*dy.shape[:3], -1)


def direct_kernel_gradient(x: np.ndarray, dy: np.ndarray, taps: tuple[int, int]) -> np.ndarray:
    rows = windows(x, taps).reshape(dy[..., 0].size, -1)
    return sums(rows.T, dy.reshape(len(rows), -1)).reshape(*taps, x.shape[3], -1)


def drawn(rng: np.random.Generator, shape: tuple[int, ...], taps: tuple[int, int] = (3, 3)) -> tuple[np.ndarray, ...]:
    batch, height, width, inputs, outputs = shape
    sizes = ((batch, height, width, inputs), (*taps, inputs, outputs), (outputs,), (batch, height, width, outputs))
    return tuple(rng.standard_normal(size).astype(np.float32) for size in sizes)


def check(kernels: ctypes.CDLL, rng: np.random.Generator, shape: tuple[int, ...], taps: tuple[int, int]) -> None:
    x, kernel, bias, dy = drawn(rng, shape, taps)
    by_taps = functools.partial(direct_kernel_gradient, taps=taps)
    arguments = {
        "y": (direct, 2, x, kernel, bias),
        "dx": (direct_images_gradient, 3, dy, kernel),
        "dkernel": (by_taps, 3, x, dy),
    }
    results = {
        "y": convolve(kernels, x, kernel, bias),
        "dx": convolve(kernels, dy, kernel, None, reverse=True),
        "dkernel": kernel_gradient(kernels, x, dy, taps),
    }
    for name, (function, factor, *arrays) in arguments.items():
        found, naive, truth = results[name], function(*arrays), function(*(a.astype(np.float64) for a in arrays))
        # Of a sum of terms of random signs; those beyond the edges cancel in the transformed domain only.
        columns = arrays[1].reshape(-1, arrays[1].shape[-1])
        if name == "dx":
            columns = kernel.transpose(0, 1, 3, 2).reshape(-1, shape[3])
        size = np.sqrt(np.square(arrays[0]).mean()) * np.linalg.norm(columns, axis=0).max()
        assert np.isfinite(found).all()
        error, allowed = (np.abs(values - truth).max() for values in (found, naive))
        # The floor: a few roundings of sums of such size, for few channels, where the naive form is all but exact.
        floor = 4 * 2.0**-23 * size
        print(f"{shape} {taps} {name}: error {error:.3e}, naive {allowed:.3e}, ratio {error / (allowed or 1):.2f}")
        assert error <= factor * allowed + floor, f"{name} of {shape}, {taps}: error {error:.3e}, naive {allowed:.3e}"


@pytest.mark.parametrize("taps", TAPS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(kernels, rng, shape, taps):
    check(kernels, rng, shape, taps)


def check_cuts(kernels: ctypes.CDLL, rng: np.random.Generator) -> None:
    for shape, taps in itertools.product(((2, 9, 8, 24, 40), (3, 16, 15, 70, 33), (1, 3, 4, 30, 100)), TAPS):
        x, kernel, bias, dy = drawn(rng, shape, taps)
        dx = convolve(kernels, dy, kernel, None, reverse=True)
        y, dkernel = convolve(kernels, x, kernel, bias), kernel_gradient(kernels, x, dy, taps)
        for size in (1, 5, 64):
            np.testing.assert_array_equal(convolve(kernels, x, kernel, bias, size=size), y)
            np.testing.assert_array_equal(kernel_gradient(kernels, x, dy, taps, size=size), dkernel)
        for size in (1, 2, 64):
            np.testing.assert_array_equal(convolve(kernels, x, kernel, bias, size=size, by_kernel=True), y)
            found = convolve(kernels, dy, kernel, None, reverse=True, size=size, by_kernel=True)
            np.testing.assert_array_equal(found, dx)


def test_cuts_do_not_change_a_bit(kernels, rng):
    """However many threads share the work, and wherever they cut it."""
    check_cuts(kernels, rng)


def check_chunks(kernels: ctypes.CDLL, rng: np.random.Generator) -> None:
    x, _, _, dy = drawn(rng, (2, 40, 40, 150, 140))
    shape = build.WinogradShape(*x.shape, 140, 3, 3)
    sizes = [kernels.tfgen_winograd_chunk_tiles(shape, threads) for threads in (1, 4, 64)]
    assert sizes == sorted(set(sizes)), f"chunks of {sizes} tiles: too alike to test anything"
    results = [kernel_gradient(kernels, x, dy, (3, 3), threads) for threads in (1, 4, 64)]
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_chunks_do_not_change_a_bit(kernels, rng):
    """More threads take larger chunks of tiles, for the same sums."""
    check_chunks(kernels, rng)


def check_enlarged(kernels: ctypes.CDLL, rng: np.random.Generator) -> None:
    for shape in SHAPES:
        x, kernel, bias, _ = drawn(rng, shape)
        twice = x.repeat(2, axis=1).repeat(2, axis=2)
        expected = convolve(kernels, twice, kernel, bias)
        np.testing.assert_array_equal(convolve(kernels, x, kernel, bias, enlarge=True), expected)
        for by_kernel in (False, True):
            found = convolve(kernels, x, kernel, bias, size=3, by_kernel=by_kernel, enlarge=True)
            np.testing.assert_array_equal(found, expected)


def test_enlarged_images(kernels, rng):
    """What is left out would have added zero: not a bit changes."""
    check_enlarged(kernels, rng)


def test_small_images_are_shared_by_the_kernel(kernels):
    def shared(*shape: int, threads: int) -> bool:
        return bool(kernels.tfgen_winograd_by_kernel(build.WinogradShape(*shape, 3, 3), threads))

    assert shared(8, 4, 4, 256, 128, threads=2)
    assert not shared(8, 4, 4, 256, 128, threads=1)
    assert not shared(8, 32, 32, 64, 64, threads=2)  # many tiles
    assert not shared(8, 4, 4, 256, 16, threads=2)  # a kernel that cannot be shared


@pytest.mark.parametrize("taps", TAPS, ids=str)
def test_images_do_not_depend_on_their_batch(kernels, rng, taps):
    x, kernel, bias, _ = drawn(rng, (5, 7, 6, 20, 30), taps)
    together = convolve(kernels, x, kernel, bias)
    for index in range(5):
        np.testing.assert_array_equal(convolve(kernels, x[index : index + 1].copy(), kernel, bias)[0], together[index])


def test_integers_are_exact(kernels, rng):
    """Sums of few small integers, which float32 holds exactly in both domains: any wrong index shows."""
    for shape, taps in itertools.product(SHAPES, TAPS):
        x, kernel, bias, dy = (np.round(4 * array) for array in drawn(rng, shape, taps))
        kernel *= 4  # the transform divides by 4
        np.testing.assert_array_equal(convolve(kernels, x, kernel, bias), direct(x, kernel, bias))
        np.testing.assert_array_equal(kernel_gradient(kernels, x, dy, taps), direct_kernel_gradient(x, dy, taps))
        np.testing.assert_array_equal(
            convolve(kernels, dy, kernel, None, reverse=True), direct_images_gradient(dy, kernel)
        )


@pytest.mark.parametrize("taps", TAPS, ids=str)
def test_what_is_not_finite_stays_near(kernels, rng, taps):
    """It reaches the results that read its tile, and the channels of no other."""
    x, kernel, bias, _ = drawn(rng, (2, 9, 9, 9, 20), taps)
    clean = convolve(kernels, x, kernel, bias)
    x[0, 3, 3, 4] = np.inf
    found = convolve(kernels, x, kernel, bias)
    changed = ~(found == clean).all(axis=-1)
    rows, columns = (slice(3 if count == 2 else 2, 5) for count in taps)
    assert not np.isfinite(found[0, rows, columns]).any(), "results that multiply infinity"
    assert not changed[1].any()
    assert not changed[0, 6:].any()
    assert not changed[0, :, 6:].any()


def test_what_is_not_finite_stays_near_when_images_are_enlarged(kernels, rng):
    x, kernel, bias, _ = drawn(rng, (2, 6, 6, 9, 20))
    clean = convolve(kernels, x, kernel, bias, enlarge=True)
    x[0, 2, 2, 4] = np.nan
    found = convolve(kernels, x, kernel, bias, enlarge=True)
    read = np.zeros(found.shape, bool)
    read[0, 3:7, 3:7] = True
    np.testing.assert_array_equal(np.isnan(found), read)
    np.testing.assert_array_equal(found[~read], clean[~read])


@pytest.mark.parametrize("taps", TAPS[1:], ids=str)
def test_what_a_result_does_not_read_changes_its_last_bits_at_most(kernels, rng, taps):
    """Pixels below, and for two columns right of it, cancel but for rounding."""
    x, kernel, bias, _ = drawn(rng, (1, 12, 12, 16, 16), taps)
    before = convolve(kernels, x, kernel, bias)
    x[0, 7:] += 1
    if taps[1] == 2:
        x[0, :7, 7:] += 1
    after = convolve(kernels, x, kernel, bias)
    seen = np.s_[0, :7, :7] if taps[1] == 2 else np.s_[0, :7]
    assert np.abs(after - before)[seen].max() <= 16 * 2.0**-23 * np.abs(before).max()
    assert np.abs(after - before)[0, 7:].max() > 0.1


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(kernels, library_path, isa):
    check_in_own_process(kernels, library_path, "tests.kernels.test_winograd_cpu", isa)


def main() -> None:
    """Checks everything with one instruction set: `python -m tests.kernels.test_winograd_cpu LIBRARY ISA`."""
    kernels = build.load_cpu_kernels(Path(sys.argv[1]))
    assert kernels.tfgen_blocksparse_cpu_isa().decode() == sys.argv[2]
    for shape, taps, seed in itertools.product(SHAPES, TAPS, (SEED, SEED + 1)):
        print(shape, taps, f"TFGEN_TEST_SEED={seed}")
        check(kernels, np.random.default_rng(seed), shape, taps)
    check_cuts(kernels, np.random.default_rng(SEED))
    check_chunks(kernels, np.random.default_rng(SEED))
    check_enlarged(kernels, np.random.default_rng(SEED))


if __name__ == "__main__":
    main()
