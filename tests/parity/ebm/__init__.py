"""Checkers of the recordings of the energy-based models."""

from tests.parity.ebm import langevin  # noqa: F401  (registration)
