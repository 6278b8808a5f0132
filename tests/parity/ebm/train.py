"""Recorded steps of training: sampled negatives, energies, loss, gradients, vectors of the power iteration, update."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tests.parity.ebm.networks import unpacked
from tests.parity.ebm.recorded import load, of_largest, relative_norm, vectors
from tests.parity.harness import Case, checker
from tfgen.systems.ebm import hmc, sampler
from tfgen.systems.ebm import objective as objectives
from tfgen.systems.ebm.config import Config
from tfgen.systems.ebm.networks import Dropout, EnergyNetwork
from tfgen.systems.ebm.objective import Outcome
from tfgen.systems.ebm.training_settings import chain_of, objective_of
from tfgen.training.clipped_adam import ClippedAdam

# Advised in the description of the recordings.
ENERGY, DIFFERENCE, GRADIENT, KL_GRADIENT = 1e-5, 1e-5, 1e-4, 1e-3
LARGE_STEP, CHAIN_OF_LARGE_STEPS, CHAIN = 10.0, 2e-4, 1e-5
HMC_SHARE, HMC_PIXEL, HMC_ENERGY = 0.01, 1e-3, 1e-3
WEIGHT_OF_RATE, WEIGHT_SHARE = 0.05, 0.02
# The order in which the passes of a step draw their dropout masks.
_PASSES = ("positive", "start", "chain", "end", "negative", "of_chain")


class Recorded:
    """A recording at the start of its first step: settings, network and optimizer.

    Args:
      prefix: of the stored variables.
    """

    def __init__(self, case: Case, prefix: str = "var/"):
        config = case.json("config")
        self.case, self.config = case, recorded_config(config)
        self.network = EnergyNetwork(self.config.network_shape(), seed=None)
        load(self.network, case, config["formula_seed"], config.get("c2_scale", 0.0), prefix)
        self.objective, self.chain = objective_of(self.config), chain_of(self.config)
        self.optimizer = ClippedAdam()
        self.optimizer.build(list(self.network.trained.values()))

    @property
    def kinks(self) -> bool:
        return self.network.shape.stem.activation == "leaky"


def recorded_config(config: dict[str, Any]) -> Config:
    """The settings of a recording. Its step size is already multiplied by the range of the pixels."""
    known = {field.name for field in dataclasses.fields(Config)}
    values = {name: value for name, value in config["flags"].items() if name in known}
    rescale = config.get("rescale", 1.0)
    if "net_filters_override" in config:
        values |= {"num_filters": config["net_filters_override"], "filters": config["net_filters_override"]}
    step_size = config.get("effective_step_lr", config["flags"]["step_lr"])
    return Config(**values | {"rescale": rescale, "step_lr": step_size / rescale})


class Draws:
    """The random numbers of one step, in the order in which its graph asks for them."""

    def __init__(self, case: Case, step: int, sites: int):
        prefix = f"s{step}/rand/"
        kinds = [str(site).partition(":")[0] for site in case[f"s{step}/rand_sites"]]
        arrays: dict[str, list[np.ndarray]] = {"normal": [], "uniform": [], "dropout": []}
        for index, kind in enumerate(kinds):
            name = f"{prefix}{index:02d}_{kind}"
            if kind == "dropout":
                arrays[kind].append(unpacked(case[f"{name}_bits"], case[f"{name}_shape"]))
            else:
                arrays[kind].append(case[name].astype(np.float32))
        self.normals, self.uniforms = arrays["normal"], arrays["uniform"]
        masks = arrays["dropout"]
        self._masks = {name: masks[i * sites : (i + 1) * sites] for i, name in enumerate(_PASSES)} if sites else {}

    def dropout(self, name: str, step: tf.Tensor | None = None) -> Dropout | None:
        """See `objective.Passes`. Masks are stacked over the executions of a site: steps of the chain, else one."""
        if name not in self._masks:
            return None
        return [tf.gather(mask, 0 if step is None else step) for mask in self._masks[name]]


@checker("ebm", "train_*.npz")
def check(case: Case) -> None:
    recorded = Recorded(case)
    names = [f"context_0/{name}" for name in recorded.network.trained]
    case.equal("trained_vars", names)
    for step in range(case.json("config")["steps"]):
        check_step(recorded, step)
    check_final(recorded)


def check_step(recorded: Recorded, step: int) -> None:
    case, network, at = recorded.case, recorded.network, f"s{step}/"
    config = recorded.config
    images, starts = tf.constant(case["X"]), tf.constant(case["X_NOISE"])
    fed_labels = tf.constant(case["label"]) if "label" in case else None
    draws = Draws(case, step, network.shape.dropout_sites)
    variables = list(network.trained.values())
    with tf.GradientTape() as tape:
        weights = network.normalized()
        positives, positive_labels, labels = images, fed_labels, fed_labels
        if config.model_cclass:
            positives, positive_labels = objectives.with_every_class(images, network.shape.label_columns)
            energies = network.energy(weights, positives, positive_labels)
            table = tf.reshape(energies, [-1, network.shape.label_columns])
            labels = objectives.inferred_labels(table, tf.constant(draws.uniforms[0][0]))
        outcome = objectives.evaluate(
            network,
            weights,
            recorded.objective,
            positives,
            starts,
            chain_function(recorded, draws),
            labels,
            positive_labels,
            fed_labels,
            draws.dropout,
        )
    gradients = tape.gradient(outcome.loss, variables)
    check_outcome(recorded, at, outcome, weights, labels, draws)
    if f"{at}grad/context_0/fc5/b" in case:
        check_gradients(recorded, at, gradients)
    recorded.optimizer.apply(gradients, config.lr)
    if not config.spec_eval:
        network.store_vectors(weights)
    vectors(case, f"{at}u_after/", network)
    check_slots(recorded, f"{at}adam/")


def chain_function(recorded: Recorded, draws: Draws) -> objectives.Sampler:
    chain, noise = recorded.chain, sampler.given(tf.constant(draws.normals[0]))

    def sample(energy: sampler.StepEnergy, starts: tf.Tensor) -> tf.Tensor:
        if not recorded.config.hmc:
            return sampler.run(starts, chain.steps, sampler.PlainMoves(energy, chain, noise))
        return sampler.run(starts, chain.steps, hmc_moves(recorded, draws, energy))

    return sample


def hmc_moves(recorded: Recorded, draws: Draws, energy: sampler.StepEnergy) -> sampler.Moves:
    """Transitions of Hamiltonian Monte Carlo with the recorded momenta and acceptance numbers, stacked over steps."""
    config, (noise, momenta), uniforms = recorded.config, draws.normals, draws.uniforms[0]

    def transition(y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return hmc.transition(
            lambda x: sampler.energy_and_gradient(energy, x, step),
            y,
            step_size=config.hmc_step_size,
            leapfrogs=config.hmc_leapfrogs,
            seed=0,
            step=step,
            momentum=tf.gather(momenta, step),
            uniform=tf.gather(uniforms, step),
        ).position

    return sampler.TransitionMoves(transition, recorded.chain, sampler.given(tf.constant(noise)))


def check_outcome(recorded: Recorded, at: str, outcome: Outcome, weights, labels, draws: Draws) -> None:
    """Everything that is recorded of a step before its update."""
    case, network, config = recorded.case, recorded.network, recorded.config
    energy = HMC_ENERGY if config.hmc else ENERGY
    check_negatives(recorded, f"{at}x_mod", outcome.negatives)
    of_largest(case, f"{at}energy_pos", outcome.positive, energy)
    of_largest(case, f"{at}energy_neg", outcome.negative, energy)
    start = network.energy(weights, tf.constant(case["X_NOISE"]), labels, draws.dropout("start"))
    of_largest(case, f"{at}energy_start", start, energy)
    if f"{at}loss_energy" in case:
        fed_labels = tf.constant(case["label"]) if "label" in case else None
        of_chain = network.energy(weights, outcome.negatives, fed_labels, draws.dropout("of_chain"))
        of_largest(case, f"{at}loss_energy", of_chain, energy)
    # Differences of energies and sums of their squares have the rounding of what they are made of.
    largest = config.temperature * float(np.abs(case[f"{at}energy_pos"]).max())
    case.close(f"{at}loss_ml", outcome.likelihood, max(DIFFERENCE, energy * largest))
    case.close(f"{at}total_loss", outcome.loss, max(DIFFERENCE, energy * largest, energy * largest**2))
    if f"{at}x_grad" in case:
        end = objectives.gradient_at_end(network, weights, recorded.objective, outcome.negatives, labels, draws.dropout)
        tolerance = HMC_PIXEL if config.hmc else GRADIENT
        relative_norm(case, f"{at}x_grad", end, tolerance, kinks=recorded.kinks)
    distance = objectives.distance(outcome.negatives, tf.constant(case["X"]))
    case.close(f"{at}x_off", distance, HMC_PIXEL if config.hmc else CHAIN, relative=True)
    # Of an unconditional network one 0 is recorded in place of the entropy.
    entropy = 0.0 if labels is None else objectives.label_entropy(labels)
    case.close(f"{at}label_ent", np.reshape(entropy, case[f"{at}label_ent"].shape), 1e-5)


def check_negatives(recorded: Recorded, name: str, negatives: tf.Tensor) -> None:
    case, config = recorded.case, recorded.config
    if config.hmc:  # leapfrogs of this size are chaotic
        differs = np.abs(np.asarray(negatives) - case[name]) > HMC_PIXEL
        case.close(f"{name}: share that differs", differs.mean(), HMC_SHARE, expected=0.0)
    else:
        large = recorded.chain.step_size >= LARGE_STEP
        case.close(name, negatives, CHAIN_OF_LARGE_STEPS if large else CHAIN)


def check_gradients(recorded: Recorded, at: str, gradients: list[tf.Tensor]) -> None:
    tolerance = GRADIENT if recorded.config.zero_kl else KL_GRADIENT
    tolerance = HMC_ENERGY if recorded.config.hmc else tolerance
    for name, gradient in zip(recorded.network.trained, gradients, strict=True):
        relative_norm(recorded.case, f"{at}grad/context_0/{name}", gradient, tolerance)


def check_slots(recorded: Recorded, prefix: str) -> None:
    """Moments and powers of the optimizer, where they are recorded."""
    case, optimizer = recorded.case, recorded.optimizer
    for power in ("beta1_power", "beta2_power"):
        if f"{prefix}{power}" in case:
            case.close(f"{prefix}{power}", getattr(optimizer, power), 1e-6)
    for index, name in enumerate(recorded.network.trained):
        for slot, moments in (("Adam", optimizer.first_moments), ("Adam_1", optimizer.second_moments)):
            recorded_name = f"{prefix}context_0/{name}/{slot}"
            if recorded_name in case:
                # Later gradients are those of weights that differ, see `check_final`.
                relative_norm(case, recorded_name, moments[index], 50 * GRADIENT)


def check_final(recorded: Recorded) -> None:
    """Weights after all steps. The first update of an entry is the sign of its gradient, which may be rounding."""
    case, rate = recorded.case, recorded.config.lr
    for name, variable in recorded.network.by_name.items():
        recorded_name = f"final/context_0/{name}"
        if recorded_name in case:
            differs = np.abs(np.asarray(variable) - case[recorded_name]) > WEIGHT_OF_RATE * rate
            case.close(f"{recorded_name}: share that differs", differs.mean(), WEIGHT_SHARE, expected=0.0)
    check_slots(recorded, "final/")
