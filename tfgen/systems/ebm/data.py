"""The data sets of energy-based models."""

from __future__ import annotations

from tfgen.data import builtin
from tfgen.data.catalog import open_dataset
from tfgen.data.source import ImageSpec, Splits
from tfgen.systems.ebm.config import Config

_KNOWN_SPECS = {"digits": builtin.DIGITS_SPEC, "photos": builtin.PHOTOS_SPEC}


def known_spec(config: Config) -> ImageSpec | None:
    """Shape of the images of a data set whose name alone tells it; None where only the data know."""
    return _KNOWN_SPECS.get(config.dataset)


def open_splits(config: Config, data_dir: str) -> Splits:
    """Opens the data set of a run."""
    return open_dataset(config.dataset, data_dir)
