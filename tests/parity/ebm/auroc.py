"""The recorded area under the curve of given scores."""

from __future__ import annotations

from tests.parity.harness import Case
from tfgen.metrics.auroc import auroc

VALUE = 1e-12


def check_auroc(case: Case) -> None:
    """Arrays `auroc/*` of a recording of metrics; scores have ties."""
    scores, labels = case["auroc/scores"], case["auroc/labels"]
    case.close("auroc/value", auroc(scores[labels == 1], scores[labels == 0]), VALUE)
