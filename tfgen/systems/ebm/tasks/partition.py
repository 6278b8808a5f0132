"""The partition function by annealed importance sampling (Neal, arXiv:physics/9803008).

A chain goes from the uniform density on the range of images to that of the network through densities between them,
and back. In both directions the weight of a chain, the product of the ratios of the densities along its way, says how
much larger the integral of the last density is than that of the first (Wu et al., "On the quantitative analysis of
decoder-based generative models", arXiv:1611.04273): forward the mean log weight is too low, backward too high.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from tfgen.data.pipeline import EvaluationBatches
from tfgen.randomness import Key
from tfgen.systems.base import TaskRun
from tfgen.systems.ebm import hmc, preprocess
from tfgen.systems.ebm.prepare import levels_of
from tfgen.systems.ebm.tasks.classes import Energy, class_count, energy_of
from tfgen.systems.ebm.tasks.options import EvaluateOptions

if TYPE_CHECKING:
    from tfgen.systems.ebm.config import Config
    from tfgen.systems.ebm.system import EnergyBasedModel

LEAPFROGS = 10
_WALL = 100.0  # how steeply the energy rises where images leave their range
_DECAY = 5.0, 2.5  # the step size of a share a is 5^(-2.5 a) of the first one
# First step sizes. The original knows no other data sets.
_GREY_STEP, _STEP, _STEP_OF_8 = 0.0065, 0.0045, 0.0085
_WIDE_RANGE = 8.0


class Step(NamedTuple):
    """One transition of a chain.

    Attributes:
      previous, following: share of the energy in the densities before and after it; 0 is the uniform density, 1 the
        network's.
      step_size: of its Hamiltonian trajectory.
    """

    previous: float
    following: float
    step_size: float


def schedule(distributions: int, first_step_size: float) -> tuple[list[Step], list[Step]]:
    """The transitions of a chain forward and back, `distributions` each way.

    Raises:
      ValueError: fewer than 1 distribution.
    """
    if distributions < 1:
        raise ValueError(f"{distributions} distributions, expected 1 or more")
    base, rate = _DECAY

    def step(previous: int, following: int) -> Step:
        share = previous / distributions
        return Step(share, following / distributions, first_step_size * base ** (-rate * share))

    forward = [step(index - 1, index) for index in range(1, distributions + 1)]
    return forward, [step(index, index - 1) for index in range(distributions, 0, -1)]


def bridge(energy: Energy, labels: tf.Tensor | None, share: tf.Tensor, high: float) -> hmc.EnergyGradient:
    """The energy of the density with `share` of the network's: share E(x), and a wall around the range [0, high].

    Args:
      energy: as the temperature has it.
      labels: float32 [B, K], or None.
    """

    def energy_gradient(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            outside = _WALL * (x - tf.clip_by_value(x, 0.0, high))
            wall = tf.reduce_sum(tf.square(outside), axis=list(range(1, x.shape.rank)))
            total = share * energy(x, labels)[:, 0] + wall
        return total, tape.gradient(total, x)

    return energy_gradient


class Transition(NamedTuple):
    """Attributes:
    position: float32 [B, ...].
    log_weight: what the step adds to the logarithm of the weight of a chain, [B].
    acceptance: probability that the move was accepted, [B].
    """

    position: tf.Tensor
    log_weight: tf.Tensor
    acceptance: tf.Tensor


def transition(
    energy: Energy,
    labels: tf.Tensor | None,
    x: tf.Tensor,
    step: Step,
    high: float,
    *,
    seed: tf.Tensor | int,
    number: tf.Tensor | int,
    momentum: tf.Tensor | None = None,
    uniform: tf.Tensor | None = None,
    leapfrogs: int = LEAPFROGS,
) -> Transition:
    """Weighs chains at x [B, ...] and moves them by one transition of the following density.

    Args:
      energy: as the temperature has it.
      step: its numbers may be float32 scalars.
      high: of the range of images.
      seed, number: of the draws of this transition, see `hmc.transition`.
      momentum, uniform: in place of the draws, see there.
    """
    # The walls of both densities are the same and drop out.
    log_weight = (step.previous - step.following) * energy(x, labels)[:, 0]
    moved = hmc.transition(
        bridge(energy, labels, step.following, high),
        x,
        step_size=step.step_size,
        leapfrogs=leapfrogs,
        seed=seed,
        step=number,
        momentum=momentum,
        uniform=uniform,
    )
    return Transition(moved.position, log_weight, moved.acceptance)


def log_mean_exp(values: np.ndarray) -> float:
    """ln mean exp of float64 values [N]."""
    largest = values.max()
    return float(largest + np.log(np.exp(values - largest).mean())) if np.isfinite(largest) else float(largest)


def summary(forward: np.ndarray, backward: np.ndarray, log_volume: float) -> dict[str, float]:
    """Logarithms of the partition function, from the log weights of chains.

    Args:
      forward, backward: sums of the steps' log weights in each direction, float64 [B].
      log_volume: of the range of images, which the original leaves out.

    Returns:
      "lower_value" and "upper_value", means over chains as the original has them, "..._sd" their standard deviations
      over chains, and "..._log_mean_exp": forward the logarithm of the mean weight, whose expectation is still below
      the partition function and comes near to it with the number of chains; backward the same of the inverse.
    """
    return {
        "lower_value": float(forward.mean()) + log_volume,
        "lower_value_sd": float(forward.std()),
        "lower_value_log_mean_exp": log_mean_exp(forward) + log_volume,
        "upper_value": float(-backward.mean()) + log_volume,
        "upper_value_sd": float(backward.std()),
        "upper_value_log_mean_exp": -log_mean_exp(backward) + log_volume,
    }


# The task --------------------------------------------------------------------------------------------------


def ais(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """Log-likelihood of images: --pdist distributions between the uniform density and exp(-temperature E).

    A conditional network is one of the images of class 0.

    Returns:
      "positive_sample_probability", the mean of -temperature E over the images, and "..._sd"; what `summary` gives;
      "log_likelihood", in nats, by the forward estimate of the partition function; of a conditional network that of
      the images of class 0, where there are any. "acceptance", the mean over both directions.
    """
    classes = class_count(system, "ais")
    energies, own = _image_energies(system, options, job, classes)
    positive = -energies
    config, spec = system.config, system.spec
    first_step_size = default_step_size(config, spec.channels) if options.alr is None else options.alr
    forward_steps, backward_steps = schedule(options.pdist, first_step_size)
    move = _move_function(system, options, job.key, classes)
    x = job.key.fold("start").uniform([options.ais_batch, *spec.shape]) * config.rescale
    log_weights: list[tf.Tensor] = []
    acceptance: list[tf.Tensor] = []
    for number, step in enumerate([*forward_steps, *backward_steps]):
        result = move(x, tf.constant(step, tf.float32), tf.constant(number, tf.int64))
        x = result.position
        log_weights.append(result.log_weight)
        acceptance.append(tf.reduce_mean(result.acceptance))
    totals = np.stack([part.numpy() for part in log_weights]).astype(np.float64)
    turn = len(forward_steps)
    volume = spec.dims * math.log(config.rescale)
    results = {
        "positive_sample_probability": float(positive.mean()),
        "positive_sample_probability_sd": float(positive.std()),
        **summary(totals[:turn].sum(axis=0), totals[turn:].sum(axis=0), volume),
    }
    if own.any():
        results["log_likelihood"] = float(positive[own].mean()) - results["lower_value_log_mean_exp"]
    return results | {"acceptance": float(np.mean([value.numpy() for value in acceptance]))}


def default_step_size(config: Config, channels: int) -> float:
    """What --alr is by default: the original's for MNIST, here of all grey images, and for CIFAR-10."""
    if channels == 1:
        return _GREY_STEP
    return _STEP_OF_8 if config.rescale == _WIDE_RANGE else _STEP


def _image_energies(
    system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Energies times the temperature, float64 [N], and which images the network is a density of, bool [N].

    Images have the noise of training: without it a density of real numbers says nothing of them.
    """
    config = system.config
    scaling = preprocess.scaling_of(config.dataset)
    key = job.key.fold("levels")

    @tf.function(input_signature=[tf.TensorSpec([None, *system.spec.shape], tf.float32)], autograph=False)
    def energies_of(images: tf.Tensor) -> tf.Tensor:
        energy = energy_of(system, options.advance_vectors, config.rescale)
        return options.temperature * energy(images, first_class(tf.shape(images)[0], classes))[:, 0]

    energies, own = [], []
    for batch in EvaluationBatches(job.source, job.batch_size):
        levels = levels_of(batch)
        uniforms = key.skip(int(batch["index"][0])).uniform(levels.shape).numpy()
        images = preprocess.scaled(levels, scaling, uniforms, config.rescale)
        energies.append(energies_of(images).numpy())
        labels = system.labels_of(batch)
        own.append(np.ones(len(images), bool) if labels is None else labels[:, 0] == 1.0)
    return np.concatenate(energies).astype(np.float64), np.concatenate(own)


def first_class(count: tf.Tensor, classes: int) -> tf.Tensor | None:
    """One-hot labels [count, classes] of class 0; None without classes."""
    return tf.one_hot(tf.zeros([count], tf.int32), classes) if classes else None


def _move_function(
    system: EnergyBasedModel, options: EvaluateOptions, key: Key, classes: int
) -> Callable[..., Transition]:
    """`transition` of chains x, the three numbers of a step and its number, compiled."""
    seed = tf.bitcast(key.fold("transitions").seed, tf.int64)

    @tf.function(
        input_signature=[
            tf.TensorSpec([options.ais_batch, *system.spec.shape], tf.float32),
            tf.TensorSpec([3], tf.float32),
            tf.TensorSpec([], tf.int64),
        ],
        autograph=False,
    )
    def move(x: tf.Tensor, numbers: tf.Tensor, number: tf.Tensor) -> Transition:
        of_network = energy_of(system, options.advance_vectors, system.config.rescale)
        return transition(
            lambda images, labels: options.temperature * of_network(images, labels),
            first_class(tf.constant(options.ais_batch), classes),
            x,
            Step(*tf.unstack(numbers)),
            system.config.rescale,
            seed=seed,
            number=number,
        )

    return move
