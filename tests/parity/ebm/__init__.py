"""Checkers of the recordings of the energy-based models."""

from tests.parity.ebm import (  # noqa: F401  (registration)
    combine,
    data,
    hmc,
    imagenet,
    langevin,
    loop,
    networks,
    optimizer,
    replay,
    second_order,
    spectral,
    train,
)
