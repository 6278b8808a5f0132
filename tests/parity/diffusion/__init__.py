"""Checkers of the recordings of improved diffusion."""

from tests.parity.diffusion import functions, network, published, sampling, schedules, timestep_sampler  # noqa: F401  (registration)
