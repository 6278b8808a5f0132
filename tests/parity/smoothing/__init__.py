"""Checkers of the smoothing recordings."""

from tests.parity.smoothing import likelihood, samplers  # noqa: F401  (registration)
