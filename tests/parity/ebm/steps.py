"""Recorded calls of the sampler on a network: everywhere, and in the box that boxcorrupt restores."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.parity.ebm.described import described_network
from tests.parity.ebm.train import CHAIN, CHAIN_OF_LARGE_STEPS, LARGE_STEP
from tests.parity.harness import Case, checker
from tfgen.randomness import Key
from tfgen.systems.ebm import sampler
from tfgen.systems.ebm.networks import OFF
from tfgen.systems.ebm.tasks import calls, restoration
from tfgen.systems.ebm.tasks.options import EvaluateOptions


@checker("ebm", "sandbox_steps*.npz")
def check(case: Case) -> None:
    for name in case.matching("*/X_final"):
        check_call(case, name.removesuffix("/X_final"))


def check_call(case: Case, name: str) -> None:
    config = case.json("config")
    network = described_network(case)
    images, labels = tf.constant(case[f"{name}/X"]), tf.constant(case[f"{name}/Y_GT"])
    normals = np.stack([case[draws].astype(np.float32) for draws in sorted(case.matching(f"{name}/rand/*_normal"))])
    options = EvaluateOptions(
        num_steps=config["num_steps"], step_lr=config["step_lr"], proj_norm=config["proj_norm"][name]
    )
    chain = calls.chain_of(options)
    weights = network.normalized()

    def energy(x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        del step
        return network.energy(weights, x, labels, OFF)

    shape = tuple(int(extent) for extent in images.shape[1:])
    mask = tf.constant(restoration.box_mask(shape)[np.newaxis]) if "box" in name else None
    moves = calls.MaskedMoves(energy, chain, Key.create(0, "nothing is drawn"), mask, tf.constant(normals))
    tolerance = CHAIN_OF_LARGE_STEPS if chain.step_size >= LARGE_STEP else CHAIN
    case.close(f"{name}/X_final", sampler.run(images, chain.steps, moves), tolerance)
