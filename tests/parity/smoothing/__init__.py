"""Checkers of the smoothing recordings."""

from tests.parity.smoothing import likelihood  # noqa: F401  (registration)
