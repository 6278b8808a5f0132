"""Checkers of the recordings of the energy-based models."""

from tests.parity.ebm import networks, optimizer, spectral, train  # noqa: F401  (registration)
