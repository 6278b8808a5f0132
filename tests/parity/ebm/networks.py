"""Recorded networks: energies, gradients by images and variables, vectors of the power iteration."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.parity.ebm.recorded import load, of_largest, recorded_shape, relative_norm, vectors
from tests.parity.harness import Case, checker
from tfgen.systems.ebm import networks, spectral
from tfgen.systems.ebm.networks import EnergyNetwork

# Advised in the description of the recordings; the second for networks of the published width.
ENERGY, WIDE_ENERGY = 1e-5, 1e-4
GRADIENT, STATISTIC = 1e-4, 1e-4
_WIDE = 64


@checker("ebm", "net_*.npz")
def check(case: Case) -> None:
    config = case.json("config")
    flags, arguments = config["flags"], config["ctor"]
    filters = arguments["num_filters"]
    shape = recorded_shape(config["cls"], flags | arguments, filters, dropout=arguments.get("train", False))
    network = EnergyNetwork(shape, seed=None)
    load(network, case, config["formula_seed"], config["c2_scale"])
    check_variables(case, network)

    images = tf.constant(case["x"])
    labels = tf.constant(case["label"]) if "label" in case else None
    masks = recorded_masks(case)
    tolerance = WIDE_ENERGY if filters >= _WIDE else ENERGY

    energy = check_first_run(case, network, images, labels, masks)
    of_largest(case, "energy_run1", energy, tolerance)
    # With --spec_eval a run improves the vectors as well, and does not keep them.
    of_largest(case, "energy_spec_eval", energy, tolerance)
    for run in (1, 2):
        weights = network.normalized()
        if run == 2 and "energy_run2" in case:
            of_largest(case, "energy_run2", network.energy(weights, images, labels, masks), tolerance)
        network.store_vectors(weights)
        if case.matching(f"u_after{run}/*"):
            vectors(case, f"u_after{run}/", network)


def check_variables(case: Case, network: EnergyNetwork) -> None:
    untrained = [v.name for v in network.shape.variables() if v.trainable and v.name not in network.trained]
    case.equal("no_grad_vars", [f"context_0/{name}" for name in untrained])


def recorded_masks(case: Case) -> list[np.ndarray] | None:
    """Dropout masks, 0 or 1, in the order of the residual blocks."""
    names = case.matching("dropout_mask/*")
    return [unpacked(case[name], case[name.replace("_mask/", "_shape/")]) for name in names] or None


def unpacked(bits: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits)[: int(np.prod(shape))].reshape(shape).astype(np.float32)


def check_first_run(case: Case, network: EnergyNetwork, images, labels, masks) -> tf.Tensor:
    """What every layer gives, and both kinds of gradients; returns the energy."""
    trained = network.trained
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(images)
        outputs = network.activations(network.normalized(), images, labels, masks)
        energy = outputs["fc5"]
        total, mean = tf.reduce_sum(energy), tf.reduce_mean(energy)
    check_outputs(case, outputs)
    kinks = network.shape.stem.activation == "leaky"
    relative_norm(case, "dEdx_run1", tape.gradient(total, images), GRADIENT, kinks=kinks)
    names = [f"context_0/{name}" for name in trained]
    gradients = dict(zip(names, tape.gradient(mean, list(trained.values())), strict=True))
    # A bias of all keys changes no softmax: its gradient is rounding, on the scale of that of the queries.
    beside = {name: name.replace("atten_k_b1", "atten_q_b1") for name in names}
    if "grad_norms" in case:
        case.equal("grad_norms_names", names)
        recorded = dict(zip(names, case["grad_norms"], strict=True))
        scale = np.array([recorded[beside[name]] for name in names])
        norms = np.array([np.linalg.norm(np.asarray(gradient, np.float64)) for gradient in gradients.values()])
        case.close("grad_norms", norms / scale, GRADIENT, expected=case["grad_norms"] / scale)
    else:
        recorded = case.under("grad_meanE/")
        case.equal("grad_meanE: names", sorted(names), expected=sorted(recorded))
        for name, gradient in gradients.items():
            scale = float(np.linalg.norm(recorded[beside[name]])) if beside[name] != name else None
            relative_norm(case, f"grad_meanE/{name}", gradient, GRADIENT, scale=scale)
    return energy


def check_outputs(case: Case, outputs: dict[str, tf.Tensor]) -> None:
    """Mean, mean magnitude, first and last element of what every layer gives, on the scale of its magnitudes."""
    case.equal("act_names", list(outputs))
    case.equal("act_shapes", [str(list(output.shape)) for output in outputs.values()])
    arrays = [np.asarray(output, np.float64) for output in outputs.values()]
    statistics = np.array([[a.mean(), np.abs(a).mean(), a.flat[0], a.flat[-1]] for a in arrays])
    scale = case["act_stats"][:, 1:2]
    case.close("act_stats", statistics / scale, STATISTIC, expected=case["act_stats"] / scale)


@checker("ebm", "attention*.npz")
def check_attention(case: Case) -> None:
    """The attention layer alone, with weights that are normalised once."""
    case.json("config")  # the seed of the formula; the variables are stored
    values = {name: tf.constant(value) for name, value in case.under("var/").items()}
    for name in [name for name in values if name.endswith("weight")]:
        values[name], _ = spectral.normalized(values[name], values[f"{name.removesuffix('weight')}_u"])
    x = tf.constant(case["x"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = networks.attention(x, values)
        total = tf.reduce_sum(tf.square(y))
    relative_norm(case, "y", y, ENERGY)
    relative_norm(case, "dx", tape.gradient(total, x), GRADIENT)
