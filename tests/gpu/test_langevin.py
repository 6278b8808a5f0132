"""The CUDA kernels of the Langevin step on a card, by the rules of tests/kernels/test_langevin_cpu.py."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.gpu import build
from tests.kernels import langevin
from tests.kernels.langevin_cases import MASKS, OPTIONS, SHAPES, Inputs, check
from tests.seeds import SEED

_REASON = build.reason_to_skip()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=_REASON or "")
if _REASON is None:
    from tests.gpu.langevin_launchers import Launchers, random_of

RANDOM = np.random.default_rng(SEED)


@pytest.fixture(scope="module")
def launchers():
    return Launchers(build.library("langevin"))


def drawn(launchers, kind: str, count: int, options: langevin.Step) -> np.ndarray:
    return launchers.draw(kind, count, random_of(options)).cpu().numpy()


@pytest.mark.parametrize("first_element", [0, 3, 2**34 - 30, 2**62 + 1])
@pytest.mark.parametrize("count", [1, 4, 1023, 100_000])
def test_random_numbers(launchers, count, first_element):
    options = langevin.Step(seed=2**64 - 5, step=2**32 - 1, stream=3, first_element=first_element)
    source = {"seed": options.seed, "step": options.step, "stream": 3, "first_element": first_element}
    words = drawn(launchers, "words", count, options).view(np.uint32)
    np.testing.assert_array_equal(words, langevin.words(count, **source))
    np.testing.assert_array_equal(drawn(launchers, "uniform", count, options), langevin.uniform(count, **source))
    normal = drawn(launchers, "normal", count, options)
    np.testing.assert_allclose(normal, langevin.normal(count, **source), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_step_and_gradient(launchers, name):
    options = OPTIONS[name]
    for index, shape in enumerate(SHAPES):
        inputs = Inputs.random(RANDOM, options, shape, MASKS[(index + len(name)) % len(MASKS)])
        normals = tuple(
            drawn(launchers, "normal", inputs.x.size, dataclasses.replace(options, step=(options.step + k) % 2**32))
            for k in (0, 1)
        )
        check(launchers.step(options, inputs), options, inputs, tuple(n.reshape(shape) for n in normals))


def test_same_bits_twice(launchers):
    for name in ("ball_sample_norm", "ball_tensor_norm"):
        inputs = Inputs.random(RANDOM, OPTIONS[name], (3, 100_001), "shared")
        one, other = (launchers.step(OPTIONS[name], inputs) for _ in range(2))
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_large_tensor(launchers):
    """More thread blocks than fit a card at once; words of elements far apart."""
    options = dataclasses.replace(OPTIONS["plain"], first_element=1)
    inputs = Inputs.random(RANDOM, options, (64, 3, 256, 256), None)
    found = launchers.step(options, inputs).y_next.ravel()
    part = dataclasses.replace(options, first_element=1 + found.size - 999)
    tail = Inputs(inputs.x.reshape(1, -1)[:, -999:].copy(), inputs.g.reshape(1, -1)[:, -999:].copy(),
                  tuple(u.reshape(1, -1)[:, -999:].copy() for u in inputs.upstreams), None, None)  # fmt: skip
    np.testing.assert_array_equal(launchers.step(part, tail).y_next[0], found[-999:])
