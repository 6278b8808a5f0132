"""Checkers of the recordings of the energy-based models."""

from tests.parity.ebm import (  # noqa: F401  (registration)
    ais,
    combine,
    data,
    hmc,
    imagenet,
    langevin,
    loop,
    metrics,
    mixenergy,
    networks,
    optimizer,
    panels,
    pgd,
    replay,
    second_order,
    spectral,
    steps,
    train,
)
