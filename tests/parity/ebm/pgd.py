"""Recorded attacks on the classifier, and the refinement of what they lead to."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tests.parity.ebm.described import described_network
from tests.parity.ebm.recorded import of_largest, relative_norm
from tests.parity.harness import Case, checker
from tfgen.systems.ebm import sampler
from tfgen.systems.ebm.networks import OFF
from tfgen.systems.ebm.objective import with_every_class
from tfgen.systems.ebm.sampler import Chain
from tfgen.systems.ebm.tasks.classes import Energy
from tfgen.systems.ebm.tasks.robustness import (
    Attack,
    Refinement,
    attacked,
    box_moves,
    correct,
    logits_and_gradient,
    logits_of,
    refined,
)

ENERGY, GRADIENT = 1e-5, 1e-4
POSITION = 1e-6
LARGE_STEP, CHAIN_OF_LARGE_STEPS, CHAIN = 10.0, 2e-4, 1e-5
SIGNS = 0.002  # share of the entries whose gradient is so near 0 that rounding may turn its sign
START_AND_BOX = 8


@checker("ebm", "sandbox_pgd_*.npz")
def check(case: Case) -> None:
    config = case.json("config")
    network = described_network(case)
    prefix = f"{case.matching('*/Y_GT')[0].partition('/')[0]}/"
    classes = network.shape.label_columns
    images, labels = tf.constant(case[f"{prefix}X"]), tf.constant(case[f"{prefix}Y_GT"])
    # All of it is one run.
    weights = network.normalized()

    def energy(x: tf.Tensor, y: tf.Tensor | None) -> tf.Tensor:
        return network.energy(weights, x, y, OFF)

    flags = config["flags"]
    euclidean = flags.get("lnorm", -1) == 2
    budget = config["l2_norm" if euclidean else "l1_norm"]
    attack = Attack(flags.get("pgd", 0), euclidean, budget, START_AND_BOX, original=True)
    kinks = network.shape.stem.activation == "leaky"
    end = check_attack(case, prefix, energy, attack, images, labels, kinks)
    clip = flags.get("proj_norm", 0.0)
    chain = Chain(
        steps=flags.get("num_steps", 20),
        step_size=flags.get("step_lr", 10.0),
        noise=0.005,
        low=-math.inf,
        high=math.inf,
        clip_mode="li" if clip else "none",
        clip=clip,
    )
    check_refinement(case, prefix, energy, Refinement(chain, START_AND_BOX), end, labels, classes)


def check_attack(
    case: Case, prefix: str, energy: Energy, attack: Attack, images: tf.Tensor, labels: tf.Tensor, kinks: bool
) -> tf.Tensor:
    """Every step, from where it was recorded to begin; returns where the attack ends."""
    if not attack.steps:
        return images
    (name,) = case.matching(f"{prefix}rand/*_randint")
    offsets = tf.constant(case[name], tf.float32)
    x = attack.begin(images, offsets)
    for step in range(attack.steps):
        at = f"{prefix}pgd{step}/"
        _close_but_for_signs(case, f"{at}x_before", x, 0.0 if step == 0 else SIGNS)
        x = tf.constant(case[f"{at}x_before"])
        before = x if step else images
        logits, gradient = logits_and_gradient(energy, x, labels)
        of_largest(case, f"{at}logits", logits, ENERGY)
        relative_norm(case, f"{at}loss_grad", gradient, GRADIENT, kinks=kinks)
        x = attack.move(x, gradient, images, before)
    whole = tf.function(lambda: attacked(energy, images, labels, attack, offsets))()
    # Signs that rounding turns in one step may turn others in the next.
    _close_but_for_signs(case, f"{prefix}all steps", whole, attack.steps * SIGNS, expected=x.numpy())
    return x


def _close_but_for_signs(case: Case, name: str, actual: tf.Tensor, share: float, expected=None) -> None:
    wanted = case[name] if expected is None else expected
    wrong = np.abs(np.asarray(actual) - wanted) > POSITION
    case.close(f"{name}: share of other signs", wrong.mean(), share, expected=0.0)
    case.close(name, actual, POSITION, expected=wanted, where=~wrong)


def check_refinement(
    case: Case,
    prefix: str,
    energy: Energy,
    refinement: Refinement,
    images: tf.Tensor,
    labels: tf.Tensor,
    classes: int,
) -> None:
    names = sorted(case.matching(f"{prefix}rand/*_normal"))
    noise = sampler.given(tf.constant(np.stack([case[name] for name in names]).astype(np.float32)))
    tiled, tiled_labels = with_every_class(images, classes)
    noised = box_moves(energy, tiled, tiled_labels, refinement, noise).begin(tiled, tf.constant(0))
    name = f"{prefix}refine_x_tiled_after_noise0_head"
    _close_but_for_signs(case, name, noised[: len(case[name])], SIGNS)
    chains = tf.function(lambda: refined(energy, images, classes, refinement, noise))()
    tolerance = CHAIN_OF_LARGE_STEPS if refinement.chain.step_size >= LARGE_STEP else CHAIN
    name = f"{prefix}final_x_tiled_first10"
    case.close(name, chains[: len(case[name])], tolerance)
    logits = logits_of(energy, chains, classes)
    of_largest(case, f"{prefix}final_logits", logits, ENERGY * 10)
    of_largest(case, f"{prefix}energies", -tf.reshape(logits, [-1, 1]), ENERGY * 10)
    case.close(f"{prefix}accuracy", tf.reduce_mean(tf.cast(correct(logits, labels), tf.float32)), POSITION)
