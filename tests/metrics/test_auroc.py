"""The area under the curve against its definition, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from tests.seeds import SEED
from tfgen.metrics.auroc import auroc


def by_pairs(positive, negative) -> float:
    difference = np.asarray(positive)[:, None] - np.asarray(negative)[None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def test_every_pair_counts_and_ties_half():
    generator = np.random.default_rng(SEED)
    positive = generator.integers(0, 9, 37).astype(np.float32)
    negative = generator.integers(2, 11, 23).astype(np.float32)
    assert len(np.intersect1d(positive, negative)) > 1
    assert auroc(positive, negative) == pytest.approx(by_pairs(positive, negative), abs=1e-12)


@pytest.mark.parametrize(("positive", "expected"), [([3.0, 4.0], 1.0), ([0.0], 0.0), ([1.0, 2.0], 0.5)])
def test_known_values(positive, expected):
    assert auroc(np.array(positive), np.array([1.0, 2.0])) == expected


def test_scores_are_not_rounded_to_float32():
    assert auroc(np.array([1.0 + 1e-12]), np.array([1.0])) == 1.0


def test_what_is_no_score():
    with pytest.raises(ValueError, match=r"1 of 2 negative scores are not numbers"):
        auroc(np.ones(3), np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"positive scores have shape \[0\], expected \[N\]"):
        auroc(np.zeros(0), np.ones(2))
