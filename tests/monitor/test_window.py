"""One number for a metric over several steps."""

from __future__ import annotations

import math

import pytest

from tfgen.monitor.window import summarize


def test_statistics():
    records = [
        {"a": 1.0, "b": 2.0, "c": math.nan, "d": 5.0, "e": 1.0},
        {"a": 3.0, "b": 2.0, "c": 4.0, "d": 7.0, "e": 0.0},
    ]
    combined = summarize(records, {"b": "sum", "c": "mean_and_finite", "d": "newest", "e": "largest"})
    assert math.isnan(combined.pop("c"))
    assert combined == {"a": 2.0, "b": 4.0, "c_filtered": 4.0, "d": 7.0, "e": 1.0}


def test_pairs_are_averaged_over_the_samples_that_have_a_value():
    records = [{"q0": (6.0, 3.0), "q1": (0.0, 0.0)}, {"q0": (10.0, 1.0), "q1": (0.0, 0.0)}]
    assert summarize(records, {}) == {"q0": 4.0}


def test_unknown_statistic():
    with pytest.raises(ValueError, match="no statistic 'median' for a"):
        summarize([{"a": 1.0}], {"a": "median"})
