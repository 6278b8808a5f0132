"""Checkers of the diffusion recordings."""

from tests.parity.diffusion import functions, schedules, timestep_sampler  # noqa: F401  (registration)
