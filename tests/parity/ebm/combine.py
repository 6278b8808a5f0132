"""Recorded combinations of networks, and labels found for images."""

from __future__ import annotations

import json
import re

import numpy as np
import tensorflow as tf

from tests.parity.ebm import formula
from tests.parity.harness import Case, checker
from tfgen.systems.ebm import concepts, label_discovery, sampler
from tfgen.systems.ebm.combination import Combination, PlainArithmetic, panel
from tfgen.systems.ebm.networks import EnergyNetwork

# Advised in the description of the recordings, for step sizes of 10 and more; labels move by steps of 1.
CHAIN, LABEL, STORED_LABEL = 2e-4, 1e-5, 1e-9


@checker("ebm", "combine*.npz")
def check(case: Case) -> None:
    for name in case.matching("*/x_out"):
        check_combination(case, name.removesuffix("x_out"))
    if "labeldiscover/label_init" in case:
        check_discovery(case)
    case.leave_unread("images_bits", "images stand beside the samples in a picture of which the size is recorded")


def recorded_networks(case: Case) -> dict[str, EnergyNetwork]:
    """The network of each concept, with the variables of its context; the recording has one graph for all."""
    config = case.json("config")
    names = [str(name) for name in case["var_names"]]
    shapes = [json.loads(str(text)) for text in case["var_shapes"]]
    networks, own = {}, []
    for name, context in contexts(config["order"]).items():
        shape = concepts.network_shape(name, config["F"], swish=config["swish_act"])
        network = networks[name] = EnergyNetwork(shape, seed=None, context=context)
        own += [(variable.name.removesuffix(":0"), variable) for variable in network.all_variables]
    case.equal("names of the variables, in order", [name for name, _ in own], expected=names)
    for (name, variable), shape in zip(own, shapes, strict=True):
        variable.assign(formula.variable(name, shape, config["formula_seed"], config["c2_scale"]))
    return networks


def contexts(text: str) -> dict[str, int]:
    """Number of each concept's context, of a text like "size(context_0), shape(1)"."""
    return {name: int(number) for name, number in re.findall(r"(\w+)\((?:context_)?(\d+)\)", text)}


def check_combination(case: Case, prefix: str) -> None:
    """One combination; its file's name tells which concepts it has. Chains of the first images alone are recorded."""
    config = case.json("config")
    networks = recorded_networks(case)
    file_name = str(case[f"{prefix}file"])
    members = {name: network for name, network in networks.items() if concepts.CONCEPTS[name].suffix in file_name}
    case.equal(f"{prefix}file", concepts.file_name(list(members)))
    starts = tf.constant(case[f"{prefix}x_init"])
    labels = {}
    for name in networks:
        drawn = concepts.CONCEPTS[name].labels(case["latents"])
        case.close(f"{prefix}labels_{name}", drawn, STORED_LABEL)
        labels[name] = tf.constant(drawn[: len(starts)], tf.float32)
    noise = tf.constant(np.stack([case[name] for name in case.matching(f"{prefix}rand/*_normal")]), tf.float32)
    case.equal(f"{prefix}rand: draws", len(noise), expected=config["num_steps"] * len(members))
    chain = concepts.chain(config["num_steps"], config["step_lr"])
    combination = Combination(members, chain)
    ends = combination.run(starts, labels, PlainArithmetic(chain, sampler.given(noise)))
    case.close(f"{prefix}x_out", ends, CHAIN)
    column = np.zeros([len(drawn), *starts.shape[1:], 1], np.uint8)
    case.equal(f"{prefix}panel_shape", panel([column, column]).shape[:2])


def check_discovery(case: Case) -> None:
    """The first batch: the labels that chains end at."""
    config = case.json("config")
    network = recorded_networks(case)["size"]
    starts = case["labeldiscover/label_init"]
    side = network.shape.side
    bits = np.unpackbits(case["labeldiscover/x_bits"])[: len(starts) * side * side]
    images = tf.constant(bits.reshape(len(starts), side, side), tf.float32)
    drawn = label_discovery.starts(np.random.RandomState(config["numpy_seed"]), len(starts))
    case.close("labeldiscover/label_init", drawn, STORED_LABEL)
    noise = tf.constant(case["labeldiscover/rand_normal"], tf.float32)
    discovery = label_discovery.Discovery(network, len(noise))
    found = discovery.run(images, tf.constant(starts, tf.float32), sampler.given(noise))
    case.close("labeldiscover/label_out_batch0", found, LABEL)
    case.leave_unread("labeldiscover/printed_mean_abs_error", "only the first of its batches is recorded")
