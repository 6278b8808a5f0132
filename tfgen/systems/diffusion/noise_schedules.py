"""How much noise each step of the forward process adds."""

from __future__ import annotations

import math

import numpy as np

LINEAR_FIRST, LINEAR_LAST = 1e-4, 0.02  # betas of Ho et al. (2020), section 4, for 1000 steps
COSINE_OFFSET = 0.008  # keeps the first betas from vanishing
MAX_BETA = 0.999  # of the cosine schedule, whose last beta would be 1
MIN_STEPS = 2


def betas(name: str, steps: int) -> np.ndarray:
    """Variances of the noise that each step adds.

    Args:
      name: a key of `SCHEDULES`: linear or cosine.
      steps: T.

    Returns:
      float64 [T], each in (0, 1).

    Raises:
      ValueError: an unknown name; fewer steps than the schedule allows.
    """
    if name not in SCHEDULES:
        raise ValueError(f"expected the noise schedule {' or '.join(SCHEDULES)}, found {name!r}")
    if steps < MIN_STEPS:
        raise ValueError(
            f"expected at least {MIN_STEPS} diffusion steps, found {steps}; type a number such as 1000 or 4000"
        )
    return SCHEDULES[name](steps)


def linear(steps: int) -> np.ndarray:
    """Ho et al. (2020), section 4, scaled so that another number of steps destroys an image as much as 1000 do.

    Raises:
      ValueError: so few steps that the last one would have a beta of 1 or more.
    """
    scale = 1000 / steps
    if LINEAR_LAST * scale >= 1:
        least = math.floor(LINEAR_LAST * 1000) + 1
        raise ValueError(
            f"expected at least {least} diffusion steps of the linear schedule, found {steps}: the last one would have "
            f"a beta of {LINEAR_LAST * scale:g}, and it must be below 1; type {least} or more, or the cosine schedule"
        )
    return np.linspace(LINEAR_FIRST * scale, LINEAR_LAST * scale, steps, dtype=np.float64)


def cosine(steps: int) -> np.ndarray:
    """Nichol & Dhariwal (2021), equation 17: abar(u) = f(u) / f(0), f(u) = cos^2((u + s) / (1 + s) * pi / 2)."""

    def level(time: float) -> float:
        # The mathematics of one number, not of an array: the last digits of NumPy's cosine depend on the processor.
        return math.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2

    return np.array([min(1 - level((i + 1) / steps) / level(i / steps), MAX_BETA) for i in range(steps)], np.float64)


SCHEDULES = {"linear": linear, "cosine": cosine}
