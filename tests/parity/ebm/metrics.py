"""Recorded metrics: each kind of them, by the beginning of its arrays' names, has a checker of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.parity.ebm.auroc import check_auroc
from tests.parity.ebm.generation import check_distances, check_protocol, check_scores
from tests.parity.harness import Case, checker

# Of the arrays whose names begin with this.
CHECKERS: Mapping[str, Callable[[Case], None]] = {
    "auroc/": check_auroc,
    "is/": check_scores,
    "fid/": check_distances,
    "protocol/": check_protocol,
}


@checker("ebm", "metrics*.npz")
def check(case: Case) -> None:
    for prefix, check_part in CHECKERS.items():
        if case.matching(f"{prefix}*"):
            check_part(case)
