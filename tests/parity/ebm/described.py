"""Networks of recordings that tell them in words: "ResNet32(num_filters=4), cclass"."""

from __future__ import annotations

import re

from tests.parity.ebm import formula
from tests.parity.ebm.recorded import load, recorded_shape
from tests.parity.harness import Case
from tfgen.systems.ebm.networks import EnergyNetwork

_DESCRIPTION = re.compile(r"(\w+)(?:\(num_filters=(\d+)\))?(.*)")


def described_network(case: Case) -> EnergyNetwork:
    """The network of a recording, with its variables."""
    config = case.json("config")
    found = _DESCRIPTION.fullmatch(config["net"])
    if found is None:
        raise ValueError(f"network {config['net']!r}, expected NAME or NAME(num_filters=N), and flags")
    kind, filters, others = found[1], found[2] or config["num_filters"], found[3]
    flags = {word.strip(): True for word in others.split(",") if word.strip()}
    settings = {"dataset": "cifar10", **config, **config.get("flags", {}), **flags}
    network = EnergyNetwork(recorded_shape(kind, settings, int(filters)), seed=None)
    if "var_names" in case or case.matching("var/*"):
        load(network, case, config["formula_seed"], config["c2_scale"])
    else:
        set_by_formula(network, config["formula_seed"], config["c2_scale"])
    return network


def set_by_formula(network: EnergyNetwork, seed: int, zero_scale: float) -> None:
    """Where a recording does not list its variables: all of them by the formula, under the original's names."""
    for variable in network.all_variables:
        name = variable.name.removesuffix(":0")
        variable.assign(formula.variable(name, variable.shape.as_list(), seed, zero_scale))
