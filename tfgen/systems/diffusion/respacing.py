"""Fewer steps from a process of many: which steps are kept, and the betas between them.

Nichol & Dhariwal (2021), section 4 and equation 19; the strided form is that of Song et al. (2021), DDIM.
"""

from __future__ import annotations

import numpy as np

STRIDED = "ddim"


def kept_steps(steps: int, text: str) -> np.ndarray:
    """The steps of the base process that a text names.

    Args:
      steps: T of the base process.
      text: "" for all; "250", or "10,15,20" for as many equal sections of the process as there are numbers, each of
        which keeps that many evenly spaced steps; "ddim50" for every k-th step from step 0 on, k such that 50 remain.

    Returns:
      int64, ascending, without duplicates.

    Raises:
      ValueError: a text of no such form; more steps than a section has; no stride that keeps that many.
    """
    if text.startswith(STRIDED):
        return _strided(steps, _count(text.removeprefix(STRIDED), text))
    counts = [_count(part, text) for part in text.split(",")] if text else [steps]
    quotient, longer = divmod(steps, len(counts))
    kept: set[int] = set()
    start = 0
    for section, count in enumerate(counts):
        size = quotient + (section < longer)
        if count > size:
            raise ValueError(
                f"expected at most {size} of the {size} steps in section {section + 1} of {len(counts)} of a process "
                f"of {steps} steps, found {count} in the respacing {text!r}"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            kept.add(start + round(position))  # half to even
            position += stride  # adds its rounding up: so do the published steps
        start += size
    return np.array(sorted(kept), np.int64)


def respaced_betas(betas: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Betas of the process that visits the kept steps alone: 1 - abar_i / abar_(the kept step before i).

    Args:
      betas: float64 [T] of the base process.
      kept: int [n], ascending.

    Returns:
      float64 [n].

    Raises:
      ValueError: steps that are not ascending, or not steps of the base process.
    """
    kept = np.asarray(kept)
    if kept.ndim != 1 or (np.diff(kept) <= 0).any() or (kept.size and not 0 <= kept[0] <= kept[-1] < len(betas)):
        raise ValueError(f"expected ascending steps from 0 to {len(betas) - 1}, found {kept.tolist()}")
    alphas_cumprod = np.cumprod(1.0 - np.asarray(betas, np.float64))[kept]
    return 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])


def _strided(steps: int, count: int) -> np.ndarray:
    """Every k-th step with the smallest k that keeps `count` of them."""
    lengths: dict[int, int] = {}  # how many steps remain: the smallest stride that leaves so many
    for stride in range(1, steps):
        lengths.setdefault(len(range(0, steps, stride)), stride)
    if count not in lengths:
        below = max((length for length in lengths if length < count), default=None)
        above = min((length for length in lengths if length > count), default=None)
        nearest = " or ".join(f"{STRIDED}{length}" for length in (below, above) if length)
        raise ValueError(
            f"no stride keeps exactly {count} of {steps} steps; type {nearest}, or {count} without {STRIDED} for steps "
            "that are not quite evenly spaced"
            if 0 < count <= steps
            else f"expected 1 to {steps} steps after {STRIDED}, found {count}; type {nearest}"
        )
    return np.arange(0, steps, lengths[count], dtype=np.int64)


def _count(part: str, text: str) -> int:
    try:
        count = int(part)
    except ValueError:
        count = -1
    if count < 0:
        raise ValueError(
            f"expected a number of steps such as 250, numbers such as 10,15,20, or {STRIDED} and a number such as "
            f"{STRIDED}50, found the respacing {text!r}"
        )
    return count
