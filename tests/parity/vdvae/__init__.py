"""Checkers of the VDVAE recordings."""

from tests.parity.vdvae import preproc, splits  # noqa: F401  (registration)
