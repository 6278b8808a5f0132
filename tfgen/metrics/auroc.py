"""Area under the receiver operating characteristic: how well a score tells two kinds of images apart."""

from __future__ import annotations

import numpy as np


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a random positive has a higher score than a random negative, ties counted half.

    1 where every positive is above every negative, 0.5 for scores that say nothing. It is the U of Mann and Whitney
    ("On a test of whether one of two random variables is stochastically larger than the other", 1947) over the number
    of pairs.

    Args:
      positive, negative: scores [N] and [M], any real type. Whether two are tied is decided in their own precision.

    Raises:
      ValueError: no scores, other shapes, or scores that are not numbers.
    """
    positive, negative = np.asarray(positive), np.asarray(negative)
    for name, scores in (("positive", positive), ("negative", negative)):
        if scores.ndim != 1 or not len(scores):
            raise ValueError(f"{name} scores have shape {list(scores.shape)}, expected [N] with N of at least 1")
        if np.isnan(scores).any():
            raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} {name} scores are not numbers")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(ordered, positive, side="right").sum(dtype=np.int64)
    return float(below + not_above) / (2.0 * len(positive) * len(negative))
