"""Checkers of the recordings of the energy-based models."""

from tests.parity.ebm import (  # noqa: F401  (registration)
    data,
    hmc,
    langevin,
    loop,
    networks,
    optimizer,
    panels,
    replay,
    second_order,
    spectral,
    steps,
    train,
)
