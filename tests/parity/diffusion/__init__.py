"""Checkers of the improved diffusion recordings."""

from tests.parity.diffusion import preprocess  # noqa: F401  (registration)
