"""Checkers of the VDVAE recordings."""

from tests.parity.vdvae import dmol, model, preproc, splits, train, units, viz  # noqa: F401  (registration)
