"""The recorded sampler of steps by their losses: weights after scripted updates, seeded draws."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.systems.diffusion.timestep_samplers import LossSecondMomentSampler, UniformSampler

TOLERANCE = 1e-10  # relative


@checker("diffusion", "schedule_sampler*.npz")
def check(case: Case) -> None:
    config = case.json("config")
    sampler = LossSecondMomentSampler(config["num_timesteps"], config["history_per_term"], config["uniform_prob"])
    case.close("weights_0", sampler.weights(), TOLERANCE, relative=True)
    steps, losses = case["update_ts"], case["update_losses"]
    ends = case["snap_after"]
    weights, warm = [], []
    for begin, end in zip(np.append(0, ends[:-1]), ends, strict=True):
        sampler.update(tf.constant(steps[begin:end]), tf.constant(losses[begin:end]))
        weights.append(sampler.weights().numpy())
        warm.append(bool(sampler.warmed_up()))
    sampler.update(tf.constant(steps[ends[-1] :]), tf.constant(losses[ends[-1] :]))
    case.close("snap_weights", weights, TOLERANCE, relative=True)
    case.equal("snap_warmed_up", warm)
    case.close("final_history", sampler.history, TOLERANCE, relative=True)
    case.equal("final_counts", sampler.counts)

    generator = np.random.RandomState(config["seed"])
    uniform = UniformSampler(config["num_timesteps"])
    for name, drawn_from in (("sample", sampler), ("uniform", uniform)):
        uniforms = generator.random_sample(len(case[f"{name}_idx"]))
        drawn, importance = drawn_from.draw(tf.constant(uniforms))
        case.equal(f"{name}_idx", drawn)
        case.close(f"{name}_weights", importance, 1e-6, relative=True)
