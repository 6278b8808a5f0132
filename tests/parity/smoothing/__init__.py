"""Checkers of the smoothing recordings."""

from tests.parity.smoothing import data, layers, likelihood, network, samplers, train  # noqa: F401  (registration)
