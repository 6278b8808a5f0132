"""Validation and test sets for data that come without."""

from __future__ import annotations

import numpy as np

from tfgen.data.errors import DataError
from tfgen.data.source import Source, Splits, Subset

LARGEST_HELD_OUT = 10_000
_SEED = 0  # of the shuffle before splitting; a constant, so that no setting ever moves an image between the splits


def shuffled_parts(source: Source, valid_size: int, test_size: int) -> Splits:
    """Splits `source` in a fixed random order: the first images train, then `valid_size`, then `test_size` images.

    The order is `RandomState(0).permutation(len(source))`: equal on every machine and for every seed of a run.
    With `test_size` 0 the test set is the validation set.

    Raises:
      DataError: no image would be left to train on.
    """
    train_size = len(source) - valid_size - test_size
    if train_size < 1:
        raise DataError(
            f"{source.name} has {len(source)} image(s), too few to hold out {valid_size} for validation and "
            f"{test_size} for testing: add images"
        )
    order = np.random.RandomState(_SEED).permutation(len(source))
    valid_end = train_size + valid_size
    valid = Subset(source, order[train_size:valid_end], f"{source.name} valid")
    test = Subset(source, order[valid_end:], f"{source.name} test") if test_size else valid
    return Splits(Subset(source, order[:train_size], f"{source.name} train"), valid, test)


def held_out_size(count: int) -> int:
    """Images that a held-out set gets where nothing says how many: a tenth, at least one and at most 10,000."""
    return min(max(count // 10, 1), LARGEST_HELD_OUT)


def complete_splits(train: Source, valid: Source | None = None, test: Source | None = None) -> Splits:
    """Fills in the splits that a data set lacks.

    Both missing: both are held out of `train`. No `valid`: it is held out of `train`, so that the test set is
    seen once, at the end. No `test`: it is the validation set.
    """
    if valid is not None:
        return Splits(train, valid, valid if test is None else test)
    held_out = held_out_size(len(train))
    if test is None:
        return shuffled_parts(train, held_out, held_out)
    parts = shuffled_parts(train, held_out, 0)
    return Splits(parts.train, parts.valid, test)
