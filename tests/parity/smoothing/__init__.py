"""Checkers of the smoothing recordings."""

from tests.parity.smoothing import data, likelihood, samplers  # noqa: F401  (registration)
