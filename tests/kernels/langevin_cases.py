"""Shapes and options for tests of the Langevin step, and what every implementation of it must satisfy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from tests.kernels import langevin
from tests.kernels.langevin import Result, Step

# Below, at and above the widths of vectors and units; samples that are no multiple of a block of random numbers; pieces
# of sums. None of one element: in float32 the gradient through the norm of one number is 0 but for rounding.
SHAPES = ((1, 2), (3, 5), (2, 7, 3), (5, 33), (2, 1024), (3, 700, 3), (1, 4097), (2, 4096), (2, 9001))
OPTIONS = {
    "plain": Step(),
    "value": Step(clip_mode="value"),
    "tensor_norm": Step(clip_mode="tensor_norm", clip=0.05),
    "sample_norm": Step(clip_mode="sample_norm", clip=0.05),
    "no_next": Step(clip_mode="value", emit_next=False),
    "gradient_first": Step(gradient_first=True, emit_next=False),
    "gradient_first_next": Step(gradient_first=True, clip_mode="sample_norm", clip=0.05),
    "box": Step(projection="box"),
    "ball": Step(projection="ball", radius=40 / 255),
    "ball_sample_norm": Step(projection="ball", radius=0.1, clip_mode="sample_norm", clip=0.05, gradient_first=True),
    "ball_tensor_norm": Step(projection="ball", radius=0.1, clip_mode="tensor_norm", clip=0.05, emit_next=False),
    "ball_value": Step(projection="ball", radius=0.1, clip_mode="value"),
    "wide_range": Step(lower=-0.5, upper=2.0, eta=20.0),
    "norms_within_bounds": Step(projection="ball", radius=1e4, clip_mode="sample_norm", clip=1e4),
    "other_stream": Step(stream=6, seed=2**64 - 1, step=2**32 - 2, first_element=1002),
    "beyond_32_bits": Step(gradient_first=True, first_element=2**34 - 6),
    "no_noise": Step(sigma=0.0, gradient_first=True),
}
MASKS = (None, "whole", "shared")

Runner = Callable[..., Result]  # of the arguments of `langevin.step`, but for the normals


@dataclasses.dataclass(frozen=True)
class Inputs:
    x: np.ndarray
    g: np.ndarray
    upstreams: tuple[np.ndarray, np.ndarray]
    mask: np.ndarray | None
    anchor: np.ndarray | None

    @classmethod
    def random(cls, rng: np.random.Generator, options: Step, shape: tuple[int, ...], mask: str | None) -> Inputs:
        x = (rng.random(shape) * 1.2 - 0.1).astype(np.float32)
        g = (0.02 * rng.standard_normal(shape)).astype(np.float32)
        upstreams = tuple(rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        mask_shape = {"whole": shape, "shared": (1, *shape[1:])}
        # Zeros, ones, and some that are neither.
        values = None if mask is None else rng.choice([0.0, 1.0, 0.3], mask_shape[mask]).astype(np.float32)
        anchor = None if options.projection == "range" else rng.random(shape).astype(np.float32)
        return cls(x, g, upstreams, values, anchor)

    def wide(self) -> Inputs:
        """The same in float64."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Inputs(*(tuple(u.astype(np.float64) for u in v) if isinstance(v, tuple) else
                        None if v is None else v.astype(np.float64) for v in values))  # fmt: skip

    def arguments(self) -> tuple:
        return self.x, self.g, self.upstreams, self.mask, self.anchor


def check(
    found: Result, options: Step, inputs: Inputs, normals: tuple[np.ndarray, np.ndarray], exact_bits: bool = True
) -> None:
    """Against float64, and against NumPy's float32 given the normal numbers: bit for bit but for the norms.

    Without `exact_bits` products of three factors may be formed in another order.
    """
    exact, single = (
        langevin.step(options, *values.arguments(), normals=drawn)
        for values, drawn in ((inputs.wide(), None), (inputs, normals))
    )
    by_norm = options.clip_mode.endswith("norm") or options.projection == "ball"
    rounding = 0.0 if exact_bits else 3e-7
    for name in ("x_next", "y_next"):
        ours, truth, theirs = (getattr(result, name) for result in (found, exact, single))
        if truth is None:
            assert ours is None
            continue
        # Positions are below 4: half a unit in their last place for each of five operations.
        np.testing.assert_allclose(ours, truth, rtol=0, atol=6e-7 * max(1, np.abs(truth).max()), err_msg=name)
        tolerances = {"rtol": 3e-7, "atol": 1e-7} if by_norm else {"rtol": 0, "atol": rounding / 3}
        np.testing.assert_allclose(ours, theirs, **tolerances, err_msg=name)
    # Elements within rounding of a bound may pass or not: NumPy's float32 rounds like ours, float64 does not.
    for name in ("dx", "dg"):
        ours, theirs = getattr(found, name), getattr(single, name)
        tolerances = {"rtol": 1e-5, "atol": 2e-6 * np.abs(theirs).max()} if by_norm else {"rtol": rounding}
        np.testing.assert_allclose(ours, theirs, **tolerances, err_msg=name)
