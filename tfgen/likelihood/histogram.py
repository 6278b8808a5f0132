"""The per-pixel histogram model: what a likelihood is worth without any modelling of dependence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tfgen.data.source import Source, Subset
from tfgen.likelihood.bits import bits_per_dim, nats_per_dim

LEVELS = 256
SMOOTHING = tuple(float(strength) for strength in np.logspace(-5, 2, 29))  # pseudo-counts per level
_READ_AT_ONCE = 1024

# uint8 [N, H, W, C]; or a source; or batches, each such an array or a dict with it under "image".
Images = np.ndarray | Source | Iterable[Any]


@dataclasses.dataclass(frozen=True)
class HistogramScore:
    """Result of `PixelHistogram.evaluate`.

    Attributes:
      bits_per_dim: mean over the evaluated images.
      smoothing: pseudo-counts per level that gave it.
      images: number of images evaluated.
    """

    bits_per_dim: float
    smoothing: float
    images: int


class PixelHistogram:
    """An independent categorical distribution over 256 levels at each sub-pixel position.

    Probabilities are counts over the training images plus a number of pseudo-counts (additive smoothing).
    That number is chosen from `SMOOTHING` to suit the *evaluated* images best. No honest model may do so;
    this one is a baseline, and a baseline should be as strong as it can be.
    """

    def __init__(self) -> None:
        self._counts: np.ndarray | None = None  # int64 [H, W, C, 256]

    def fit(self, images: Images) -> PixelHistogram:
        """Counts the training images, batch by batch; earlier counts are forgotten. Returns itself.

        Raises:
          ValueError: no images, or images that are not uint8 [N, H, W, C] of one size.
        """
        self._counts = _count(images)
        return self

    def evaluate(self, images: Images) -> HistogramScore:
        """Scores images with the smoothing that suits them best.

        Raises:
          ValueError: nothing was fitted; no images; images of another size than the training images.
        """
        if self._counts is None:
            raise ValueError("the histogram has no counts yet; call fit(training images) first")
        counts = _count(images)
        if counts.shape != self._counts.shape:
            raise ValueError(
                f"expected images of the size of the training images, {list(self._counts.shape[:3])}, "
                f"found {list(counts.shape[:3])}"
            )
        # The score depends on the images through their own histogram alone.
        dims = int(counts.sum())
        nats = [
            nats_per_dim(-float(np.vdot(counts, _log_probabilities(self._counts, strength))), dims)
            for strength in SMOOTHING
        ]
        best = int(np.argmin(nats))
        return HistogramScore(bits_per_dim(nats[best]), SMOOTHING[best], int(counts[0, 0, 0].sum()))

    def bits_per_dim(self, images: Images) -> float:
        """`evaluate(images).bits_per_dim`."""
        return self.evaluate(images).bits_per_dim


def baseline_bits_per_dim(train: Source, evaluated: Source, limit: int | None = None) -> float:
    """Bits per dimension of `evaluated` under the histogram of `train`.

    Args:
      limit: score this many images at most, the first ones: those that `tfgen.evaluation.evaluate` takes.
    """
    if limit is not None and limit < len(evaluated):
        evaluated = Subset(evaluated, np.arange(limit), evaluated.name)
    return PixelHistogram().fit(train).bits_per_dim(evaluated)


def _log_probabilities(counts: np.ndarray, smoothing: float) -> np.ndarray:
    """ln p of each level: float64 [H, W, C, 256]."""
    smoothed = counts + smoothing
    return np.log(smoothed / smoothed.sum(axis=-1, keepdims=True))


def _count(images: Images) -> np.ndarray:
    """How often each level occurs at each position: int64 [H, W, C, 256]."""
    shape: tuple[int, ...] | None = None
    counts = np.zeros(0, np.int64)
    for batch in _batches(images):
        if batch.dtype != np.uint8 or batch.ndim != 4:
            raise ValueError(f"expected images as uint8 [N, H, W, C], found {batch.dtype} {list(batch.shape)}")
        if shape is None:
            shape = batch.shape[1:]
            counts = np.zeros(math.prod(shape) * LEVELS, np.int64)
        if batch.shape[1:] != shape:
            raise ValueError(f"expected images of one size, found {list(shape)} and then {list(batch.shape[1:])}")
        flat = batch.reshape(len(batch), math.prod(shape))  # [N, D]
        cells = np.arange(flat.shape[1]) * LEVELS + flat  # [N, D], position and level as one index
        counts += np.bincount(cells.ravel(), minlength=counts.size)
    if shape is None or not counts.any():
        raise ValueError("expected at least one image, found none")
    return counts.reshape(*shape, LEVELS)


def _batches(images: Images) -> Iterator[np.ndarray]:
    if isinstance(images, Source):
        for first in range(0, len(images), _READ_AT_ONCE):
            yield images.read(np.arange(first, min(first + _READ_AT_ONCE, len(images))))["image"]
    elif isinstance(images, np.ndarray):
        for first in range(0, len(images), _READ_AT_ONCE):
            yield images[first : first + _READ_AT_ONCE]
    else:
        for batch in images:
            yield np.asarray(batch["image"] if isinstance(batch, Mapping) else batch)
