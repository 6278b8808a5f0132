"""Learning rates as pure functions of the number of finished updates.

A schedule takes a Python integer, a NumPy array or an int64 tensor of any shape and returns a float32 tensor
of the same shape. It holds no state, so that a resumed run sees the rate that the uninterrupted one saw.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import numpy as np
import tensorflow as tf

Steps: TypeAlias = int | np.ndarray | tf.Tensor


def _as_int64(steps: Steps) -> tf.Tensor:
    # Through NumPy: TensorFlow alone would take a Python integer for int32 and refuse large ones.
    return tf.cast(steps, tf.int64) if tf.is_tensor(steps) else tf.constant(np.asarray(steps, np.int64))


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same rate at every step."""

    value: float

    def __call__(self, finished_updates: Steps) -> tf.Tensor:
        return tf.fill(tf.shape(_as_int64(finished_updates)), np.float32(self.value))


@dataclasses.dataclass(frozen=True)
class LinearWarmup:
    """A straight line up from zero, then the same rate for ever: peak min(1, i / warmup_steps) at step i = 0, 1, ...

    The very first step has rate zero. Without warm-up the rate is `peak` from the first step on.

    Raises:
      ValueError: negative `warmup_steps`.
    """

    peak: float
    warmup_steps: float

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, expected 0 or more (0 for no warm-up)")

    def __call__(self, finished_updates: Steps) -> tf.Tensor:
        i = _as_int64(finished_updates)
        if self.warmup_steps == 0:
            return tf.fill(tf.shape(i), np.float32(self.peak))
        share = tf.minimum(tf.cast(i, tf.float32) / np.float32(self.warmup_steps), 1.0)
        return share * np.float32(self.peak)


@dataclasses.dataclass(frozen=True)
class LinearDecay:
    """A straight line down to zero: peak (1 - i / steps) at step i = 0, 1, ..., and zero from `steps` on.

    Raises:
      ValueError: `steps` below 1.
    """

    peak: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected the number of updates until the rate is zero, 1 or more")

    def __call__(self, finished_updates: Steps) -> tf.Tensor:
        # In float64: 1 - i / steps in float32 would lose the last digits of the last rates.
        share = 1.0 - tf.cast(_as_int64(finished_updates), tf.float64) / self.steps
        return tf.cast(self.peak * tf.maximum(share, 0.0), tf.float32)


@dataclasses.dataclass(frozen=True)
class ExponentialDecay:
    """The same factor at every step: first decay^i at step i = 0, 1, ...

    Raises:
      ValueError: `decay` not above 0.
    """

    first: float
    decay: float

    def __post_init__(self) -> None:
        if self.decay <= 0:
            raise ValueError(f"decay is {self.decay}, expected the factor of each step, above 0")

    def __call__(self, finished_updates: Steps) -> tf.Tensor:
        # In float64: 0.999995 in float32 is off by 2e-8, which 100,000 steps make 0.2 %.
        exponent = tf.cast(_as_int64(finished_updates), tf.float64)
        return tf.cast(self.first * tf.pow(tf.constant(self.decay, tf.float64), exponent), tf.float32)


@dataclasses.dataclass(frozen=True)
class WarmupDecay:
    """A linear warm-up, then half a cosine or a straight line down to zero.

    With t = finished_updates - offset + 1 (the update about to be made, counted from 1), w = warmup_steps
    and N = total_steps:

        t < w:      peak t / w
        "cosine":   peak (1 + cos(pi (t - w) / (N - w))) / 2        SGDR, arXiv:1608.03983, equation 5
        "linear":   peak (1 - min((t - w) / (N - w), 1))

    Args:
      peak: the rate at the end of the warm-up.
      warmup_steps, total_steps: w and N, in updates. A run with N < w ends inside its warm-up.
      offset: updates by which the schedule starts late; before its start the rate is zero or negative.
      shape: of the decay.
      clamp: keep the cosine at zero after N. By default it rises again, with period 2 (N - w).

    Raises:
      ValueError: an argument outside its range.
    """

    peak: float
    warmup_steps: int
    total_steps: int
    offset: int = 0
    shape: Literal["cosine", "linear"] = "cosine"
    clamp: bool = False

    def __post_init__(self) -> None:
        if self.shape not in ("cosine", "linear"):
            raise ValueError(f"shape is {self.shape!r}, expected 'cosine' or 'linear'")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, expected 0 or more (0 for no warm-up)")
        if self.total_steps < 1:
            raise ValueError(f"total_steps is {self.total_steps}, expected the number of updates of the run, 1 or more")

    def __call__(self, finished_updates: Steps) -> tf.Tensor:
        t = _as_int64(finished_updates) - (self.offset - 1)
        # Integers are subtracted before they become float32, which holds no odd number beyond 2^24.
        since_peak = tf.cast(t - self.warmup_steps, tf.float32)
        # Constants are folded here, in float32 and one per product. Where the rate is small, 1 + cos(angle) and
        # 1 - progress keep few correct digits, so another grouping (pi (t-w) / (N-w)) would change the rate by
        # 1e-5 of itself; and a graph optimizer that finds two constants in a row may regroup them.
        per_step = np.float32(1) / np.float32(self.total_steps - self.warmup_steps or 1)
        if self.shape == "cosine":
            angle = since_peak * (np.float32(np.pi) * per_step)
            if self.clamp:
                angle = tf.minimum(angle, np.float32(np.pi))
            decay = (1.0 + tf.cos(angle)) * np.float32(0.5 * self.peak)
        else:
            decay = (1.0 - tf.minimum(since_peak * per_step, 1.0)) * np.float32(self.peak)
        warmup = tf.cast(t, tf.float32) * np.float32(self.peak / max(self.warmup_steps, 1))
        return tf.where(t < self.warmup_steps, warmup, decay)
