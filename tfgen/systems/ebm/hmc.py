"""Hamiltonian Monte Carlo: one transition, as the sampler's alternative to a Langevin step and within AIS.

Neal, "MCMC using Hamiltonian dynamics" (arXiv:1206.1901), section 5.2, for unit masses. Momentum and acceptance come
from streams of random numbers of their own (`tfgen.ops.philox.Stream`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfgen.ops.philox import Integer, Stream, philox_normal, philox_uniform

# Positions [N, ...] -> energies [N] or [N, 1], and the gradient of their sum, [N, ...].
EnergyGradient = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Trajectory(NamedTuple):
    """Where a trajectory ends.

    Attributes:
      position, momentum: [N, ...].
      first_energy, last_energy: of positions and momenta together (the Hamiltonian) at both ends, [N].
    """

    position: tf.Tensor
    momentum: tf.Tensor
    first_energy: tf.Tensor
    last_energy: tf.Tensor


class Transition(NamedTuple):
    """Attributes:
    position: [N, ...], the start of a sample where its trajectory was rejected.
    accepted: bool [N].
    acceptance: probability of being accepted, [N].
    """

    position: tf.Tensor
    accepted: tf.Tensor
    acceptance: tf.Tensor


def transition(
    energy_gradient: EnergyGradient,
    position: tf.Tensor,
    *,
    step_size: float | tf.Tensor,
    leapfrogs: int,
    seed: Integer,
    step: Integer,
    first_sample: Integer = 0,
    momentum: tf.Tensor | None = None,
    uniform: tf.Tensor | None = None,
) -> Transition:
    """Draws a momentum, follows the trajectory, and accepts its end with probability min(1, exp(H0 - H1)).

    An energy that is not a number rejects. Bounds of the positions are not looked at.

    Args:
      energy_gradient: see `EnergyGradient`.
      position: [N, ...], float32, with known sizes of all axes but the first.
      step_size, leapfrogs: as of `trajectory`.
      seed, step, first_sample: numbers of the draws, see `tfgen.ops.philox`; the first sample in the global batch.
      momentum, uniform: in place of the draws: standard normal [N, ...], and in [0, 1) [N].

    Raises:
      ValueError: `leapfrogs` below 0.
    """
    samples = tf.cast(tf.shape(position)[0], tf.int64)
    first_sample = tf.cast(first_sample, tf.int64)
    if momentum is None:
        first_element = first_sample * tf.reduce_prod(tf.cast(tf.shape(position)[1:], tf.int64))
        momentum = philox_normal(tf.shape(position), seed, step, Stream.HMC_MOMENTUM, first_element)
    if uniform is None:
        uniform = philox_uniform(samples[tf.newaxis], seed, step, Stream.HMC_ACCEPTANCE, first_sample)
    end = trajectory(energy_gradient, position, momentum, step_size, leapfrogs)
    acceptance = tf.exp(end.first_energy - end.last_energy)
    accepted = acceptance > uniform  # False for NaN
    chosen = tf.where(_like(accepted, position), end.position, position)
    return Transition(chosen, accepted, tf.minimum(acceptance, 1.0))


def trajectory(
    energy_gradient: EnergyGradient,
    position: tf.Tensor,
    momentum: tf.Tensor,
    step_size: float | tf.Tensor,
    leapfrogs: int,
) -> Trajectory:
    """Leapfrog steps with half a step of the momentum at either end.

    `leapfrogs` counts those between the first and the last update of the momentum, as the original does: there are
    `leapfrogs` + 1 updates of the position.

    Raises:
      ValueError: `leapfrogs` below 0.
    """
    if leapfrogs < 0:
        raise ValueError(f"leapfrogs must be 0 or more, found {leapfrogs}")
    step_size = tf.cast(step_size, tf.float32)
    energy, gradient = energy_gradient(position)
    first_energy = _hamiltonian(energy, momentum)
    momentum = momentum - 0.5 * step_size * gradient
    position = position + step_size * momentum

    def leapfrog(index: tf.Tensor, position: tf.Tensor, momentum: tf.Tensor) -> tuple[tf.Tensor, ...]:
        momentum = momentum - step_size * energy_gradient(position)[1]
        return index + 1, position + step_size * momentum, momentum

    start = tf.constant(0), position, momentum
    _, position, momentum = tf.while_loop(lambda index, *_: index < leapfrogs, leapfrog, start)
    energy, gradient = energy_gradient(position)
    momentum = momentum - 0.5 * step_size * gradient
    return Trajectory(position, momentum, first_energy, _hamiltonian(energy, momentum))


def _hamiltonian(energy: tf.Tensor, momentum: tf.Tensor) -> tf.Tensor:
    """Energy and kinetic energy of each sample, [N]."""
    samples = tf.shape(momentum)[0]
    kinetic = 0.5 * tf.reduce_sum(tf.square(tf.reshape(momentum, [samples, -1])), axis=1)
    return tf.reshape(energy, [samples]) + kinetic


def _like(values: tf.Tensor, tensor: tf.Tensor) -> tf.Tensor:
    """[N] -> [N, 1, ...] with as many axes as `tensor`."""
    return tf.reshape(values, [-1, *[1] * (tensor.shape.rank - 1)])
