"""Checkers of the DistAug recordings."""

from tests.parity.distaug import attention, augmentation, data, network, optimizer, presets  # noqa: F401  (registration)
