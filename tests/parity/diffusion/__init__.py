"""Checkers of the recordings of improved diffusion."""

from tests.parity.diffusion import (  # noqa: F401  (registration)
    commandline,
    functions,
    network,
    preprocess,
    published,
    sampling,
    schedules,
    timestep_sampler,
    train,
)
