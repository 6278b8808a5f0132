"""Recorded products of the energy's Hessian with vectors."""

from __future__ import annotations

import re

import tensorflow as tf

from tests.parity.ebm.recorded import load, recorded_shape, relative_norm
from tests.parity.harness import Case, checker
from tfgen.systems.ebm.networks import EnergyNetwork
from tfgen.systems.ebm.tasks import directions

PRODUCT = 1e-4


@checker("ebm", "latent_hvp*.npz")
def check(case: Case) -> None:
    config = case.json("config")
    network = recorded_network(config["net"])
    load(network, case, config["formula_seed"], 0.0)  # there are no weights near zero
    images = tf.constant(case["x"])
    for index, vector in enumerate(case["v"]):
        weights = network.normalized()
        product = directions.hessian(network, weights, images, None, tf.reshape(vector, [1, -1]))
        relative_norm(case, f"hv{index}", tf.reshape(product, images.shape), PRODUCT)
        network.store_vectors(weights)  # each product is a run of its own


def recorded_network(text: str) -> EnergyNetwork:
    """The network described as "DspritesNet(num_filters=4), swish, uncond"."""
    match = re.fullmatch(r"(\w+)\(num_filters=(\d+)\)((?:, \w+)*)", text)
    assert match, f"a network described as {text!r}"
    words = match[3].split(", ")
    assert "uncond" in words, f"expected an unconditional network, found {text!r}"
    return EnergyNetwork(recorded_shape(match[1], {"swish_act": "swish" in words}, int(match[2])), seed=None)
