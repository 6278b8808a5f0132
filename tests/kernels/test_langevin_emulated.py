"""The CUDA kernels of the Langevin step on the CPU: launchers and device code as C++ (see cuda_emulation/)."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest

from tests.kernels import build
from tests.kernels.emulated import compile_emulated
from tests.kernels.langevin_calls import Calls
from tests.kernels.langevin_cases import MASKS, OPTIONS, Inputs
from tests.kernels.test_langevin_cpu import (
    check_normals,
    check_not_finite,
    check_shards,
    check_step,
    check_words,
)

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

# Within a thread block and beyond one, samples that no vector of 16 bytes divides, more than one piece of a sum.
SHAPES = ((3, 5), (2, 7, 3), (2, 4096), (1, 4097))


@pytest.fixture(scope="session")
def calls(kernels: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> Calls:
    library = tmp_path_factory.mktemp("emulated") / "langevin.so"
    return Calls(kernels, compile_emulated("kernels/langevin/langevin.cu", library))


def test_random_numbers(calls):
    check_words(calls)
    check_normals(calls, count=4000)


@pytest.mark.parametrize("name", OPTIONS)
def test_step_and_gradient(calls, rng, name):
    for index, shape in enumerate(SHAPES):
        check_step(calls, rng, OPTIONS[name], shape, MASKS[(index + len(name)) % len(MASKS)])


@pytest.mark.parametrize("change", [{}, {"emit_next": False}, {"gradient_first": True}, {"sigma": 0.0}], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_steps_of_whole_blocks_without_mask(calls, rng, name, change):
    """Most of those take the kernel of plain.cuh."""
    options = dataclasses.replace(OPTIONS[name], **change)
    for shape in ((2, 4096), (3, 700, 4)):
        check_step(calls, rng, options, shape, None)


def test_results_may_replace_arguments(calls, rng):
    for name in ("value", "ball_sample_norm"):
        inputs = Inputs.random(rng, OPTIONS[name], (2, 7, 3), "shared")
        one, other = (
            dataclasses.replace(calls, in_place=yes).step(OPTIONS[name], *inputs.arguments()) for yes in (False, True)
        )
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_shards_of_a_batch_are_the_batch(calls, rng):
    check_shards(calls, rng)


def test_what_is_not_finite(calls, rng):
    check_not_finite(calls, rng)


def test_noise_of_the_first_point(calls, kernels, rng):
    inputs = Inputs.random(rng, OPTIONS["other_stream"], (5, 33), "shared")
    found, expected = (c.noise(OPTIONS["other_stream"], inputs.x, inputs.mask) for c in (calls, Calls(kernels)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_nothing_to_do(calls):
    empty = np.zeros((0, 5), np.float32)
    found = calls.step(OPTIONS["ball_tensor_norm"], empty, empty, (empty, empty), anchor=empty)
    assert found.dg.shape == (0, 5)


def test_the_same_numbers_as_on_the_cpu(calls, kernels):
    """Bit for bit where the processor multiplies and adds in one rounding, as a GPU does."""
    if kernels.tfgen_blocksparse_cpu_isa() == b"portable":
        pytest.skip("the portable kernels round twice")
    for first in (0, 2):
        found, expected = (
            each.draw("normal", 5000, seed=11, step=3, first_element=first) for each in (calls, Calls(kernels))
        )
        np.testing.assert_array_equal(found, expected)
