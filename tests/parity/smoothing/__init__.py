"""Checkers of the smoothing recordings."""

from tests.parity.smoothing import (  # noqa: F401  (registration)
    data,
    incremental,
    layers,
    likelihood,
    network,
    samplers,
    train,
)
