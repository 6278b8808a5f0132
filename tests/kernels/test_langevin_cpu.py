"""The CPU kernels of the Langevin step and of its random numbers, through their C interface."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kernels import build, langevin
from tests.kernels.isas import ISAS, check_in_own_process
from tests.kernels.langevin import Step
from tests.kernels.langevin_calls import Calls
from tests.kernels.langevin_cases import MASKS, OPTIONS, SHAPES, Inputs, check
from tests.seeds import SEED

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

# Known answers of Salmon et al.: all zeros and all ones. A counter of ones is element 2^66 - 4, beyond 64 bits, and is
# checked in `test_known_answers` through the oracle alone.
ZEROS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
ONES = (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
STREAMS = (
    {"seed": 0},
    {"seed": 2**64 - 1, "step": 2**32 - 1, "stream": 2**32 - 1, "first_element": 2**63 - 99_999},
    {"seed": 0x1234567890ABCDEF, "step": 7, "stream": 3, "first_element": 1001},
    {"seed": 5, "step": 1, "first_element": 2**34 - 30},  # the counter's low word overflows on the way
)


def check_step(calls: Calls, rng: np.random.Generator, options: Step, shape: tuple[int, ...], mask: str | None) -> None:
    inputs = Inputs.random(rng, options, shape, mask)
    size = int(np.prod(shape))
    normals = tuple(
        calls.draw("normal", size, options.seed, (options.step + k) % 2**32, options.stream, options.first_element)
        .reshape(shape) for k in (0, 1)
    )  # fmt: skip
    check(calls.step(options, *inputs.arguments()), options, inputs, normals)


def test_known_answers():
    counters = np.array([[0] * 4, [2**32 - 1] * 4], np.uint32)
    assert tuple(langevin.philox(counters[:1], 0)[0]) == ZEROS
    assert tuple(langevin.philox(counters[1:], 2**64 - 1)[0]) == ONES


def check_words(calls: Calls) -> None:
    assert tuple(calls.draw("words", 4, seed=0)) == ZEROS
    for stream, count in itertools.product(STREAMS, (0, 1, 3, 4, 5, 127, 1000)):
        np.testing.assert_array_equal(calls.draw("words", count, **stream), langevin.words(count, **stream))
        np.testing.assert_array_equal(calls.draw("uniform", count, **stream), langevin.uniform(count, **stream))


def test_words_and_uniform_numbers(kernels):
    check_words(Calls(kernels))


def check_normals(calls: Calls, count: int = 40_000) -> None:
    for stream in STREAMS:
        found = calls.draw("normal", count, **stream)
        np.testing.assert_allclose(found, langevin.normal(count, **stream), rtol=0, atol=1e-6)


def test_normal_numbers_against_float64(kernels):
    check_normals(Calls(kernels))


def test_normal_numbers_are_normal(kernels):
    """Moments, the share in each of 16 equally likely intervals, and neighbours that know nothing of each other."""
    count = 1_000_000
    x = Calls(kernels).draw("normal", count, seed=SEED, step=3).astype(np.float64)
    for power, expected in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        deviation = np.sqrt(np.prod(np.arange(2 * power - 1, 0, -2, dtype=np.float64)))
        assert abs((x**power).mean() - expected) < 5 * deviation / count**0.5
    edges = [-1.53412, -1.15035, -0.88715, -0.67449, -0.48878, -0.31864, -0.15731]
    shares = np.histogram(x, [-np.inf, *edges, 0, *[-e for e in reversed(edges)], np.inf])[0] / count
    np.testing.assert_allclose(shares, 1 / 16, atol=5 * (1 / 16 / count) ** 0.5)
    for distance in (1, 2, 3, 4):
        assert abs(np.corrcoef(x[distance:], x[:-distance])[0, 1]) < 5 / count**0.5


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", OPTIONS)
def test_step_and_gradient(kernels, rng, name, mask):
    for shape in SHAPES:
        check_step(Calls(kernels), rng, OPTIONS[name], shape, mask)


def test_results_may_replace_arguments(kernels, rng):
    for name, shape in itertools.product(OPTIONS, SHAPES[2:6]):
        inputs = Inputs.random(rng, OPTIONS[name], shape, "shared")
        one, other = (Calls(kernels, in_place=yes).step(OPTIONS[name], *inputs.arguments()) for yes in (False, True))
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
        noised = [Calls(kernels, in_place=yes).noise(OPTIONS[name], inputs.x, inputs.mask) for yes in (False, True)]
        np.testing.assert_array_equal(*noised)


def check_cuts(kernels: ctypes.CDLL, rng: np.random.Generator) -> None:
    for name in ("value", "ball_sample_norm", "ball_tensor_norm"):
        inputs = Inputs.random(rng, OPTIONS[name], (3, 9001), "shared")
        results = [Calls(kernels, cut=cut).step(OPTIONS[name], *inputs.arguments()) for cut in (1, 2, 5, 1000)]
        for other, field in itertools.product(results[1:], dataclasses.fields(results[0])):
            np.testing.assert_array_equal(getattr(other, field.name), getattr(results[0], field.name))


def test_cuts_do_not_change_a_bit(kernels, rng):
    """However many threads share an array, and wherever they cut it."""
    check_cuts(kernels, rng)


def check_shards(calls: Calls, rng: np.random.Generator) -> None:
    for name, shape in itertools.product(("value", "ball_sample_norm", "gradient_first_next"), ((6, 7, 5), (5, 1030))):
        options = dataclasses.replace(OPTIONS[name], first_element=10)
        inputs = Inputs.random(rng, options, shape, "whole")
        whole = calls.step(options, *inputs.arguments())
        size = int(np.prod(shape[1:]))
        for first, last in ((0, 1), (1, 3), (3, shape[0])):
            part = dataclasses.replace(options, first_element=10 + first * size)
            rows = Inputs(
                *(None if v is None else v[first:last].copy() for v in (inputs.x, inputs.g)),
                tuple(u[first:last].copy() for u in inputs.upstreams),
                *(None if v is None else v[first:last].copy() for v in (inputs.mask, inputs.anchor)),
            )
            found = calls.step(part, *rows.arguments())
            for field in dataclasses.fields(found):
                values = getattr(whole, field.name)
                if values is not None:
                    np.testing.assert_array_equal(getattr(found, field.name), values[first:last], err_msg=field.name)


def test_shards_of_a_batch_are_the_batch(kernels, rng):
    check_shards(Calls(kernels), rng)


def check_not_finite(calls: Calls, rng: np.random.Generator) -> None:
    """NaN comes through, to the samples it belongs to; infinite gradients end on the bounds."""
    for name, option in OPTIONS.items():
        for argument in ("x", "g", "anchor"):
            inputs = Inputs.random(rng, option, (3, 21), None)
            if getattr(inputs, argument) is None:
                continue
            getattr(inputs, argument)[1, 4] = np.nan
            found = calls.step(option, *inputs.arguments())
            for values in (found.x_next, found.y_next):
                if values is None:
                    continue
                expected = np.zeros([3, 21], bool)
                expected[1, 4] = True
                if argument == "g" and option.clip_mode == "tensor_norm":
                    expected[:] = True
                elif option.projection == "ball" or (argument == "g" and option.clip_mode == "sample_norm"):
                    expected[1] = True
                np.testing.assert_array_equal(np.isnan(values), expected, err_msg=f"{name} {argument}")
    inputs = Inputs.random(rng, OPTIONS["plain"], (1, 9), None)
    inputs.g[0, :2] = np.inf, -np.inf
    np.testing.assert_array_equal(calls.step(OPTIONS["plain"], *inputs.arguments()).x_next[0, :2], [0, 1])


def test_what_is_not_finite(kernels, rng):
    check_not_finite(Calls(kernels), rng)


def test_bounds_pass_the_gradient(kernels):
    """On a bound exactly, and a step beyond it; the same for the bounds of the gradient's values."""
    options = Step(clip_mode="value", clip=0.25, eta=1.0, emit_next=False)
    x = np.array([[0.25, 1.25, 0.5, 0.2, 1.3, 0.5, 0.5]], np.float32)
    g = np.array([[0.25, 0.25, 0.25, 0.25, 0.25, 0.3, -0.25]], np.float32)
    ones = np.ones_like(x)
    found = Calls(kernels).step(options, x, g, (ones, ones))
    np.testing.assert_array_equal(found.dx, [[1, 1, 1, 0, 0, 1, 1]])
    np.testing.assert_array_equal(found.dg, [[-1, -1, -1, 0, 0, 0, -1]])


def test_noise_of_the_first_point(kernels, rng):
    for shape, mask in itertools.product(SHAPES, MASKS):
        options = Step(sigma=0.3, stream=2, first_element=5)
        inputs = Inputs.random(rng, options, shape, mask)
        found = Calls(kernels).noise(options, inputs.x, inputs.mask)
        normals = langevin.normal(inputs.x.size, options.seed, options.step, 2, 5).reshape(shape)
        noise = 0.3 * normals * (1.0 if mask is None else inputs.mask)
        np.testing.assert_allclose(found, inputs.x + noise, rtol=0, atol=1e-6)


def test_nothing_to_do(kernels):
    for shape in ((0, 5), (3, 0)):
        empty = np.zeros(shape, np.float32)
        for name in ("plain", "ball_tensor_norm", "ball_sample_norm"):
            found = Calls(kernels).step(OPTIONS[name], empty, empty, (empty, empty), anchor=empty)
            assert found.dg.shape == shape


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(kernels, library_path, isa):
    check_in_own_process(kernels, library_path, "tests.kernels.test_langevin_cpu", isa)


def main() -> None:
    """Checks everything with one instruction set: `python -m tests.kernels.test_langevin_cpu LIBRARY ISA`."""
    kernels = build.load_cpu_kernels(Path(sys.argv[1]))
    assert kernels.tfgen_blocksparse_cpu_isa().decode() == sys.argv[2]
    rng, calls = np.random.default_rng(SEED), Calls(kernels)
    check_words(calls)
    check_normals(calls)
    for index, (name, shape) in enumerate(itertools.product(OPTIONS, SHAPES)):
        mask = MASKS[index % len(MASKS)]
        print(name, shape, mask, f"TFGEN_TEST_SEED={SEED}")
        check_step(calls, rng, OPTIONS[name], shape, mask)
    check_cuts(kernels, rng)
    check_shards(calls, rng)
    check_not_finite(calls, rng)


if __name__ == "__main__":
    main()
