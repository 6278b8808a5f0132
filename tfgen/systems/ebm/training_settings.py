"""Settings of a run as the parts of a training step want them."""

from __future__ import annotations

from typing import cast

from tfgen.systems.ebm.config import Config
from tfgen.systems.ebm.objective import Kind, Objective
from tfgen.systems.ebm.sampler import Chain, ClipMode

_NOISE = 0.005  # of the range of the pixels, standard deviation of the noise of a step
_CLIP_MODES: dict[str, ClipMode] = {"li": "li", "l2": "l2_tensor", "l2_sample": "l2_sample"}


def objective_of(config: Config) -> Objective:
    """The loss that the flags describe."""
    return Objective(
        kind=cast(Kind, config.objective),
        ml_coeff=config.ml_coeff,
        l2_coeff=config.l2_coeff,
        temperature=float(config.temperature),
        zero_kl=config.zero_kl,
    )


def chain_of(config: Config) -> Chain:
    """The chain of a training step. Step size and noise grow with the range of the pixels."""
    return Chain(
        steps=config.num_steps,
        step_size=config.step_lr * config.rescale,
        noise=_NOISE * config.rescale * config.noise_scale,
        low=0.0,
        high=config.rescale,
        clip_mode=_CLIP_MODES[config.proj_norm_type] if config.proj_norm else "none",
        clip=config.proj_norm,
    )
