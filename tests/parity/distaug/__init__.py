"""Checkers of the DistAug recordings."""

from tests.parity.distaug import augmentation, data, network, optimizer, presets  # noqa: F401  (registration)
