"""One number for a metric over the steps between two log records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

Statistic = Literal["mean", "mean_and_finite", "sum", "largest", "newest"]


Record = Mapping[str, float | tuple[float, float]]


def summarize(records: Sequence[Record], statistics: Mapping[str, Statistic]) -> dict[str, float]:
    """Combines the records of several steps, metric by metric.

    A metric that is a pair, sum and number of what only some samples have, becomes the mean over those of all steps;
    it is left out where there was none.

    Args:
      records: metrics of each step, oldest first; one or more, all with the same names.
      statistics: what becomes of a metric; those not named get their "mean".
        "mean": NaN if any value is.
        "mean_and_finite": the mean, and under NAME_filtered the mean of the finite values (0 if there is none).
        "sum": for counts.
        "largest": of the finite values; 0 if there is none.
        "newest": of the last step.

    Raises:
      ValueError: a statistic that does not exist.
    """
    combined: dict[str, float] = {}
    for name, newest in records[-1].items():
        if isinstance(newest, tuple):
            total, number = (sum(part) for part in zip(*(record[name] for record in records), strict=True))
            if number:
                combined[name] = total / number
            continue
        values = [float(record[name]) for record in records]  # type: ignore[arg-type]
        finite = [value for value in values if math.isfinite(value)]
        statistic = statistics.get(name, "mean")
        if statistic in ("mean", "mean_and_finite"):
            combined[name] = sum(values) / len(values)
            if statistic == "mean_and_finite":
                combined[f"{name}_filtered"] = sum(finite) / len(finite) if finite else 0.0
        elif statistic == "sum":
            combined[name] = sum(values)
        elif statistic == "largest":
            combined[name] = max(finite, default=0.0)
        elif statistic == "newest":
            combined[name] = values[-1]
        else:
            raise ValueError(
                f"no statistic {statistic!r} for {name}; there are mean, mean_and_finite, sum, largest, newest"
            )
    return combined
