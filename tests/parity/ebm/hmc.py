"""Recorded transitions of Hamiltonian Monte Carlo: of a quadratic energy, and of a small network."""

from __future__ import annotations

import json

import numpy as np
import tensorflow as tf

from tests.parity.ebm import formula
from tests.parity.ebm.recorded import recorded_shape
from tests.parity.harness import Case, checker
from tfgen.systems.ebm import hmc
from tfgen.systems.ebm.hmc import EnergyGradient
from tfgen.systems.ebm.networks import EnergyNetwork

RELATIVE = 1e-5  # of the largest number of an array
NETWORK_POSITION = 1e-4  # rounding of a network's gradients is that large


@checker("ebm", "hmc*.npz")
def check(case: Case) -> None:
    check_quadratic(case)
    check_network(case)


def check_quadratic(case: Case) -> None:
    options = case.json("config")["quad"]
    precision = tf.constant(case["quad/prec"])

    def energy_gradient(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return 0.5 * tf.reduce_sum(precision * tf.square(x), axis=1), precision * x

    start, momentum, uniform = draws(case, "quad/")
    end = hmc.trajectory(energy_gradient, start, momentum, options["step"], options["L"])
    for name, actual in (
        ("leap_x", end.position),
        ("leap_v", end.momentum),
        ("H0", end.first_energy),
        ("H1", end.last_energy),
    ):
        close(case, f"quad/{name}", actual, RELATIVE)
    close(case, "quad/x1", moved(energy_gradient, start, momentum, uniform, options), RELATIVE)


def check_network(case: Case) -> None:
    config = case.json("config")
    options = config["mnist"]
    name, _, arguments = options["net"].partition("(")
    filters = int(arguments.removesuffix(")").removeprefix("num_filters="))
    network = EnergyNetwork(recorded_shape(name, {}, filters), seed=None)
    set_variables(network, case, config["formula_seed"])
    weights = network.normalized()

    def energy_gradient(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            energy = network.energy(weights, x)
        return energy, tape.gradient(energy, x)

    start, momentum, uniform = draws(case, "mnist/")
    close(case, "mnist/x1", moved(energy_gradient, start, momentum, uniform, options), NETWORK_POSITION)


def set_variables(network: EnergyNetwork, case: Case, seed: int) -> None:
    """By the formula, which the names and shapes of the recording stand for."""
    names = [str(name) for name in case["mnist/var_names"]]
    shapes = [json.loads(str(text)) for text in case["mnist/var_shapes"]]
    own = [variable.name.removesuffix(":0") for variable in network.all_variables]
    case.equal("names of the variables, in order", own, expected=names)
    for variable, name, shape in zip(network.all_variables, names, shapes, strict=True):
        variable.assign(formula.variable(name, shape, seed))


def draws(case: Case, prefix: str) -> list[tf.Tensor]:
    """Start, momentum and the number that decides on acceptance."""
    return [tf.constant(case[prefix + name], tf.float32) for name in ("x0", "v0_normal", "u")]


def moved(energy_gradient: EnergyGradient, start, momentum, uniform, options: dict) -> tf.Tensor:
    result = hmc.transition(
        energy_gradient,
        start,
        step_size=options["step"],
        leapfrogs=options["L"],
        seed=0,
        step=0,
        momentum=momentum,
        uniform=uniform,
    )
    return result.position


def close(case: Case, name: str, actual: tf.Tensor, tolerance: float) -> None:
    case.close(name, actual, tolerance * float(np.abs(case[name]).max()))
