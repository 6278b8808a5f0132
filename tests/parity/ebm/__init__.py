"""Checkers of the recordings of the energy-based models."""

from tests.parity.ebm import data, loop, networks, optimizer, replay, second_order, spectral, train  # noqa: F401  (registration)
