"""Calls the C interface of kernels/langevin with NumPy arrays: kernels for the CPU, and CUDA's that run on it."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np

from tests.kernels import build
from tests.kernels.langevin import CLIPS, PROJECTIONS, Result, Step

PHASES = 5
KINDS = {"words": np.uint32, "uniform": np.float32, "normal": np.float32}  # in the order of TfgenRandomKind
GUARD = 64  # elements around each result, which no kernel may touch


def address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


class Results:
    """Arrays of NaN for results, between elements that stay as they are."""

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []

    def array(self, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
        size = int(np.prod(shape))
        buffer = np.full(size + 2 * GUARD, 7, dtype)
        buffer[GUARD : GUARD + size].view(np.uint8)[:] = 0xFF  # NaN
        self._buffers.append(buffer)
        return buffer[GUARD : GUARD + size].reshape(shape)

    def check(self) -> None:
        for buffer in self._buffers:
            assert (buffer[:GUARD] == 7).all(), "a kernel writes before an array"
            assert (buffer[-GUARD:] == 7).all(), "a kernel writes beyond an array"


@dataclasses.dataclass(frozen=True)
class Calls:
    """Args:
    kernels: the CPU kernels, or a library with the launchers of langevin.cu for a CPU, and the former beside it.
    launchers: that library; None for the CPU kernels.
    cut: units that are run at a time.
    in_place: results take the place of arguments wherever the interface allows it.
    """

    kernels: ctypes.CDLL
    launchers: ctypes.CDLL | None = None
    cut: int = 1000
    in_place: bool = False

    def step(
        self,
        options: Step,
        x: np.ndarray,
        g: np.ndarray,
        upstreams: tuple[np.ndarray, np.ndarray],
        mask: np.ndarray | None = None,
        anchor: np.ndarray | None = None,
    ) -> Result:
        """Arguments as in `langevin.step`; the first axis of `mask` is 1 or N, the rest is that of x."""
        results, shape = Results(), x.shape
        step = self._struct(options, x, g, mask, anchor)
        count = len(x) if options.clip_mode == "sample_norm" else 1
        norms = results.array((count,)), results.array((len(x),))
        step.gradient_norms, step.displacement_norms = map(address, norms)
        scratch = results.array((self.kernels.tfgen_langevin_scratch(step),), np.float64)

        x_next, y_next = results.array(shape), results.array(shape) if options.emit_next else None
        forward_step, place = self._copied(step, "x", x) if self.in_place else (step, None)
        if place is not None:
            x_next = place
        self._run("forward", build.LangevinForward(forward_step, *map(address, (x_next, y_next, scratch))))
        if options.emit_next is False:
            upstreams = upstreams[:1]
        inputs = [np.array(upstream) for upstream in upstreams]
        dx, dg = results.array(shape), results.array(shape)
        if self.in_place:
            dx, dg = inputs[0], (inputs[1] if len(inputs) == 2 else dg)
        pointers = [*map(address, inputs), *[None] * (2 - len(inputs)), *map(address, (dx, dg, scratch))]
        self._run("backward", build.LangevinBackward(step, *pointers))
        results.check()
        return Result(x_next, y_next, dx, dg)

    def noise(self, options: Step, x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        results = Results()
        y = x.copy() if self.in_place else results.array(x.shape)
        source = y if self.in_place else x
        args = build.LangevinNoise(
            len(x), x.size // max(len(x), 1), options.sigma, self._random(options), address(source), self._mask(mask),
            address(y),
        )  # fmt: skip
        self._run_elements("langevin_noise", args, x.size)
        results.check()
        return y

    def draw(self, kind: str, count: int, seed: int, step: int = 0, stream: int = 0, first_element: int = 0):
        results = Results()
        out = results.array((count,), KINDS[kind])
        random = build.Random(seed, first_element, step, stream)
        self._run_elements("random", build.RandomDraw(random, count, list(KINDS).index(kind), address(out)), count)
        results.check()
        return out

    def _random(self, options: Step) -> build.Random:
        return build.Random(options.seed, options.first_element, options.step, options.stream)

    def _mask(self, mask: np.ndarray | None) -> build.LangevinMask:
        return build.LangevinMask(address(mask), 0 if mask is None else len(mask))

    def _struct(self, options: Step, x, g, mask, anchor) -> build.LangevinStep:
        return build.LangevinStep(
            len(x), x.size // max(len(x), 1), CLIPS.index(options.clip_mode), PROJECTIONS.index(options.projection),
            options.gradient_first, options.eta, options.sigma, options.lower, options.upper, options.clip,
            options.radius, self._random(options), address(x), address(g), address(anchor), self._mask(mask),
        )  # fmt: skip

    def _copied(self, step: build.LangevinStep, name: str, array: np.ndarray) -> tuple[build.LangevinStep, np.ndarray]:
        """The struct with a copy of one tensor, which may be written over."""
        other, copy = build.LangevinStep.from_buffer_copy(step), array.copy()
        setattr(other, name, address(copy))
        return other, copy

    def _run(self, name: str, args: ctypes.Structure) -> None:
        if self.launchers is not None:
            return self._launch(f"langevin_{name}", args)
        for phase in range(PHASES):
            units = self.kernels.tfgen_langevin_units(args.step, phase, name == "backward")
            for first in range(0, units, self.cut):
                function = getattr(self.kernels, f"tfgen_langevin_{name}_cpu")
                function(args, phase, first, min(first + self.cut, units))

    def _run_elements(self, name: str, args: ctypes.Structure, elements: int) -> None:
        if self.launchers is not None:
            return self._launch(name, args)
        units = self.kernels.tfgen_langevin_element_units(elements)
        for first in range(0, units, self.cut):
            getattr(self.kernels, f"tfgen_{name}_cpu")(args, first, min(first + self.cut, units))

    def _launch(self, name: str, args: ctypes.Structure) -> None:
        code = getattr(self.launchers, f"tfgen_{name}_cuda")(ctypes.byref(args), None)
        assert code == 0, f"CUDA error {code}: {self.launchers.tfgen_emulated_error().decode()}"
