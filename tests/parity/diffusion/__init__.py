"""Checkers of the recordings of improved diffusion."""

from tests.parity.diffusion import network, preprocess, published  # noqa: F401  (registration)
