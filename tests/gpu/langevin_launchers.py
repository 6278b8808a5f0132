"""The CUDA launchers of kernels/langevin/langevin.h, called through ctypes with PyTorch tensors."""

from __future__ import annotations

import ctypes
import dataclasses
import pathlib

import numpy as np
import torch

from tests.kernels.build import LangevinBackward, LangevinForward, LangevinMask, LangevinStep, Random, RandomDraw
from tests.kernels.langevin import CLIPS, PROJECTIONS, Result, Step
from tests.kernels.langevin_cases import Inputs

DEVICE = "cuda"
PIECE = 4096  # elements of a piece of a sum (kernels/langevin/rows.h)
KINDS = {"words": torch.int32, "uniform": torch.float32, "normal": torch.float32}  # in the order of TfgenRandomKind


def on_device(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array).to(DEVICE)


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of NaN, so that what a kernel leaves out is seen."""
    if dtype == torch.int32:
        return torch.zeros(shape, dtype=dtype, device=DEVICE)
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


class Launchers:
    """Args:
    path: the shared library.
    """

    def __init__(self, path: pathlib.Path):
        self._library = ctypes.CDLL(str(path))

    def draw(self, kind: str, count: int, random: Random) -> torch.Tensor:
        out = empty(count, dtype=KINDS[kind])
        self.call("random", RandomDraw(random, count, list(KINDS).index(kind), address(out)))
        return out

    def step(self, options: Step, inputs: Inputs) -> Result:
        """Both passes; arrays come from the host and go back."""
        prepared = Prepared(options, *(on_device(value) for value in (inputs.x, inputs.g, inputs.mask, inputs.anchor)))
        x_next, y_next = empty(*inputs.x.shape), empty(*inputs.x.shape) if options.emit_next else None
        self.call("langevin_forward", prepared.forward(x_next, y_next))
        upstreams = [on_device(value) for value in inputs.upstreams]
        dx, dg = empty(*inputs.x.shape), empty(*inputs.x.shape)
        self.call(
            "langevin_backward", prepared.backward(upstreams[0], upstreams[1] if options.emit_next else None, dx, dg)
        )
        return Result(*(None if value is None else value.cpu().numpy() for value in (x_next, y_next, dx, dg)))

    def call(self, name: str, arguments: ctypes.Structure) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        error = getattr(self._library, f"tfgen_{name}_cuda")(ctypes.byref(arguments), ctypes.c_void_p(stream))
        if error:
            raise RuntimeError(f"{name} returned CUDA error {error}")


def random_of(options: Step) -> Random:
    return Random(options.seed, options.first_element, options.step, options.stream)


@dataclasses.dataclass
class Prepared:
    """Tensors of a step on the device, with the memory that its passes share."""

    options: Step
    x: torch.Tensor
    g: torch.Tensor
    mask: torch.Tensor | None = None
    anchor: torch.Tensor | None = None

    def __post_init__(self) -> None:
        samples, size, options = len(self.x), self.x[0].numel(), self.options
        rows = 0 if self.mask is None else len(self.mask)
        self._norms = empty(max(samples, 1)), empty(samples)
        # Room for the pieces of samples and of the whole tensor, whichever are summed.
        pieces = samples * -(-size // PIECE) + -(-self.x.numel() // PIECE)
        self._scratch = empty(2 * samples + 1 + pieces, dtype=torch.float64)
        self._step = LangevinStep(
            samples, size, CLIPS.index(options.clip_mode), PROJECTIONS.index(options.projection),
            options.gradient_first, options.eta, options.sigma, options.lower, options.upper, options.clip,
            options.radius, random_of(options), address(self.x), address(self.g), address(self.anchor),
            LangevinMask(address(self.mask), rows), *map(address, self._norms),
        )  # fmt: skip

    def forward(self, x_next: torch.Tensor, y_next: torch.Tensor | None) -> LangevinForward:
        return LangevinForward(self._step, address(x_next), address(y_next), address(self._scratch))

    def backward(self, dx_next, dy_next, dx, dg) -> LangevinBackward:
        return LangevinBackward(self._step, *map(address, (dx_next, dy_next, dx, dg, self._scratch)))
