"""The Langevin step and its random numbers in NumPy, from the formulas: the oracle of all tests of it."""

from __future__ import annotations

import dataclasses

import numpy as np

WORD = np.uint64(0xFFFFFFFF)
CLIPS = ("none", "value", "tensor_norm", "sample_norm")  # in the order of TfgenLangevinClip
PROJECTIONS = ("range", "box", "ball")  # in the order of TfgenLangevinProjection


def philox(counters: np.ndarray, seed: int) -> np.ndarray:
    """Philox4x32-10: uint32 [n, 4] blocks of the counters [n, 4]."""
    a, b, c, d = (counters[:, i].astype(np.uint64) for i in range(4))
    key = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)]
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (second >> np.uint64(32)) ^ b ^ key[0], second & WORD
        c, d = (first >> np.uint64(32)) ^ d ^ key[1], first & WORD
        key = [np.uint64((int(k) + step) & 0xFFFFFFFF) for k, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def _elements(count: int, first_element: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint64) + np.uint64(first_element)


def blocks(count: int, seed: int, step: int, stream: int, first_element: int) -> np.ndarray:
    """uint32 [count, 4], the block of each element."""
    numbers = _elements(count, first_element) >> np.uint64(2)
    counters = np.empty([count, 4], np.uint32)
    counters[:, 0], counters[:, 1] = numbers & WORD, numbers >> np.uint64(32)
    counters[:, 2:] = step, stream
    return philox(counters, seed)


def words(count: int, seed: int, step: int = 0, stream: int = 0, first_element: int = 0) -> np.ndarray:
    """uint32 [count], the word of each element."""
    lanes = (_elements(count, first_element) % np.uint64(4)).astype(np.int64)
    return np.take_along_axis(blocks(count, seed, step, stream, first_element), lanes[:, None], axis=1)[:, 0]


def uniform(*args, **kwargs) -> np.ndarray:
    """float32 [count]; arguments of `words`."""
    return ((words(*args, **kwargs) >> np.uint32(8)) * 2.0**-24).astype(np.float32)


def normal(count: int, seed: int, step: int = 0, stream: int = 0, first_element: int = 0) -> np.ndarray:
    """float64 [count], by Box and Muller."""
    lanes = (_elements(count, first_element) % np.uint64(4)).astype(np.int64)
    pairs = (blocks(count, seed, step, stream, first_element) >> np.uint32(8)).astype(np.float64) * 2.0**-24
    pair = pairs.reshape(count, 2, 2)[np.arange(count), lanes // 2]  # [count, 2]
    radius, angle = np.sqrt(-2 * np.log(pair[:, 0] + 2.0**-24)), 2 * np.pi * pair[:, 1]
    return radius * np.where(lanes % 2, np.sin(angle), np.cos(angle))


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step is, but for its tensors."""

    clip_mode: str = "none"
    projection: str = "range"
    gradient_first: bool = False
    emit_next: bool = True
    eta: float = 10.0
    sigma: float = 0.005
    lower: float = 0.0
    upper: float = 1.0
    clip: float = 0.01
    radius: float = 8 / 255
    seed: int = 0x1234567890ABCDEF
    step: int = 7
    stream: int = 0
    first_element: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    x_next: np.ndarray
    y_next: np.ndarray | None
    dx: np.ndarray
    dg: np.ndarray


def step(
    options: Step,
    x: np.ndarray,
    g: np.ndarray,
    upstreams: tuple[np.ndarray, np.ndarray],
    mask: np.ndarray | None = None,
    anchor: np.ndarray | None = None,
    normals: tuple[np.ndarray, np.ndarray] | None = None,
) -> Result:
    """The step, and its gradient for `upstreams` of x' and y', in the dtype of `x`; norms in float64.

    Args:
      x, g, anchor, upstreams: [N, ...].
      mask: broadcasts to x.
      normals: in place of those of this step and the next, to compare float32 arithmetic alone.
    """
    dtype = x.dtype.type
    eta, sigma, lower, upper, clip, radius = (
        dtype(np.float32(getattr(options, name))) for name in ("eta", "sigma", "lower", "upper", "clip", "radius")
    )
    m = np.broadcast_to(dtype(1) if mask is None else mask.astype(dtype), x.shape)
    if normals is None:
        args = options.seed, options.stream, options.first_element
        drawn = [normal(x.size, args[0], options.step + k & 0xFFFFFFFF, *args[1:]) for k in (0, 1)]
        normals = tuple(n.astype(dtype).reshape(x.shape) for n in drawn)

    def norm(values: np.ndarray, whole: bool) -> np.ndarray:
        axes = tuple(range(0 if whole else 1, values.ndim))
        return np.sqrt((values.astype(np.float64) ** 2).sum(axes, keepdims=True)).astype(dtype)

    gradient_norm = norm(g, options.clip_mode == "tensor_norm")
    clipped = {
        "none": lambda: g,
        "value": lambda: np.maximum(np.minimum(g, clip), -clip),
    }.get(options.clip_mode, lambda: g * clip / np.maximum(gradient_norm, clip))()
    t = x + (sigma * normals[0]) * m if options.gradient_first else x
    t = t - (eta * clipped) * m
    d = np.zeros_like(t) if anchor is None else t - anchor
    displacement_norm = norm(d, False)
    if options.projection == "ball":
        x_next = anchor + d * radius / np.maximum(displacement_norm, radius)
    else:
        bounds = (lower, upper) if options.projection == "range" else (anchor - radius, anchor + radius)
        x_next = np.maximum(np.minimum(t, bounds[1]), bounds[0])
    y_next = x_next + (sigma * normals[1]) * m if options.emit_next else None

    upstream = upstreams[0] + upstreams[1] if options.emit_next else upstreams[0]
    if options.projection == "ball":
        dt = through_norm(upstream, d, displacement_norm, radius, whole=False)
    else:
        dt = np.where((t >= bounds[0]) & (t <= bounds[1]), upstream, dtype(0))
    dg = -(eta * dt) * m
    if options.clip_mode == "value":
        dg = np.where(np.abs(g) <= clip, dg, dtype(0))
    elif options.clip_mode != "none":
        dg = through_norm(dg, g, gradient_norm, clip, options.clip_mode == "tensor_norm")
    return Result(x_next, y_next, dt, dg)


def through_norm(upstream: np.ndarray, value: np.ndarray, norm: np.ndarray, bound: float, whole: bool) -> np.ndarray:
    """The Jacobian of v bound / max(|v|, bound), transposed, times `upstream`."""
    axes = tuple(range(0 if whole else 1, value.ndim))
    product = (value.astype(np.float64) * upstream).sum(axes, keepdims=True)
    safe = np.where(norm < bound, 1, norm).astype(np.float64)
    inside = (upstream - value * product / safe**2) * (bound / safe)
    return np.where(norm < bound, upstream, inside).astype(value.dtype)
