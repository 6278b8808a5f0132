"""Recorded passes of whole networks: inference, gradients, samples."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.data.source import ImageSpec
from tfgen.likelihood import logistic_mixture, mixture_sampling
from tfgen.systems.vdvae import network as network_module
from tfgen.systems.vdvae import published
from tfgen.systems.vdvae.config import Config
from tfgen.systems.vdvae.network import Draw
from tfgen.systems.vdvae.system import VeryDeepVAE

# Advised in the description of the recordings.
FEATURES, PREPROCESSED, NLL, OBJECTIVE, DOUBLE, NORM = 1e-4, 1e-6, 2e-5, 1e-5, 2e-5, 1e-4
GRADIENT_OF_LARGEST, GRADIENT_RELATIVE = 3e-3, 3e-4
OF_THE_RUN = "seed, batch and name of the recording"


def recorded_system(case: Case) -> VeryDeepVAE:
    """The system that `config` of a recording describes."""
    settings = case.json("config")
    known = {field.name: field for field in dataclasses.fields(Config)}
    # Absent paths are None there and "" here.
    values = {name: value for name, value in settings.items() if name in known and value is not None}
    size = settings["image_size"]
    return VeryDeepVAE(Config(**values), ImageSpec(size, size, settings["image_channels"]))


def load(system: VeryDeepVAE, case: Case, prefix: str = "state/") -> None:
    published.assign(system.network, case.under(prefix), system.network.trainable_variables, case.path.name)


def channels_last(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


def channels_first(tensor: tf.Tensor) -> np.ndarray:
    return np.asarray(tensor).transpose(0, 3, 1, 2)


def recorded_noise(case: Case, prefix: str) -> Draw:
    """The recorded normal draw of each layer."""

    def draw(layer: int, shape: Sequence[int]) -> tf.Tensor:
        noise = channels_last(case[f"{prefix}{layer:03d}"])
        assert noise.shape == tuple(int(extent) for extent in shape), (noise.shape, shape)
        return tf.constant(noise)

    return draw


def close(case: Case, name: str, actual: np.ndarray, tolerance: float) -> None:
    """rtol = atol = tolerance, as one number: |a - b| / (1 + |b|)."""
    expected = case[name]
    error = np.abs(np.asarray(actual, np.float64) - expected) / (1.0 + np.abs(expected))
    case.close(name, error, tolerance, expected=np.zeros_like(error))


@checker("vdvae", "model_*.npz")
def check(case: Case) -> None:
    system = recorded_system(case)
    load(system, case)
    case.equal("n_params", sum(v.shape.num_elements() for v in system.network.trainable_variables))
    inputs, targets = system.preprocessing.input_and_target(case["x_uint8"])
    case.close("x", inputs, PREPROCESSED)
    case.close("target", targets, PREPROCESSED)
    check_inference(case, system)
    check_objective(case, system)
    latents = [tf.constant(channels_last(case[f"z_{i:03d}"])) for i in range(len(system.architecture.decoder))]
    for name in recorded_sets(case, "uncond*_t"):
        check_samples(case, system, name, case.json(f"{name}_t"), [])
    for name in recorded_sets(case, "setlat*_k"):
        check_samples(case, system, name, case.json(f"{name}_t"), latents[: int(case[f"{name}_k"])])


def recorded_sets(case: Case, pattern: str) -> Iterator[str]:
    return (name.rsplit("_", 1)[0] for name in case.matching(pattern))


def check_inference(case: Case, system: VeryDeepVAE) -> None:
    """Encoder and decoder, layer by layer and as one pass."""
    network = system.network
    images = tf.constant(case["x"])
    features = network.encode(images)
    for side in {int(name.removeprefix("act_")) for name in case.matching("act_*")}:
        close(case, f"act_{side}", channels_first(features[side]), FEATURES)
    draw = recorded_noise(case, "eps_")
    inferred = network.infer(images, draw)
    batch = len(case["x"])
    states = network.starting_states(batch)
    sums = []
    for index, block in enumerate(network.decoder_blocks):
        side, name = block.shape.resolution, f"{index:03d}"
        close(case, f"z_{name}", channels_first(inferred.latents[index]), FEATURES)
        close(case, f"kl_{name}", channels_first(inferred.kls[index]), FEATURES)
        sums.append(np.sum(inferred.kls[index], axis=(1, 2, 3)))
        x = network.input_state(states, block.shape, batch)
        if f"q_{name}" in case:
            posterior = network_module.bottleneck(tf.concat([x, features[side]], -1), block.posterior.values)
            close(case, f"q_{name}", channels_first(posterior), FEATURES)
            close(case, f"p_{name}", channels_first(network_module.bottleneck(x, block.prior.values)), FEATURES)
        noise = draw(index, [batch, side, side, network.latents])
        states[side], _, _ = network_module.inference_layer(
            x, features[side], noise, block.posterior.values, block.prior.values, block.rest, False
        )
        if f"decx_{name}" in case:
            close(case, f"decx_{name}", channels_first(states[side]), FEATURES)
    close(case, "kl_sum_per_block", np.array(sums), FEATURES)
    close(case, "px_z", channels_first(inferred.features), FEATURES)
    close(case, "dmol_params", network.mixture_parameters(inferred.features), FEATURES)


def check_objective(case: Case, system: VeryDeepVAE) -> None:
    """The bound, and its gradient by every variable."""
    variables = system.network.trainable_variables
    with tf.GradientTape() as tape:
        bound = system.bound(tf.constant(case["x"]), tf.constant(case["target"]), recorded_noise(case, "eps_"))
        distortion, rate = tf.reduce_mean(bound.distortion), tf.reduce_mean(bound.rate)
        elbo = distortion + rate
    case.close("nll_per_example", bound.distortion, NLL, relative=True)
    for name, value in {"elbo": elbo, "distortion": distortion, "rate": rate}.items():
        case.close(name, value, OBJECTIVE, relative=True)
        case.close(f"{name}_f64", value, DOUBLE, relative=True)

    gradients = dict(zip([v.ref() for v in variables], tape.gradient(elbo, variables), strict=True))
    case.close("grad_norm", tf.linalg.global_norm(list(gradients.values())), NORM, relative=True)
    difference, total = 0.0, 0.0
    for item in published.variables(system.network):
        expected = case[f"grad/{item.name}"]
        actual = published.to_original(np.asarray(gradients[item.variable.ref()]), item.layout)
        largest = float(np.abs(expected).max())
        case.close(f"grad/{item.name}", actual, GRADIENT_OF_LARGEST * largest)
        difference += float(np.sum((actual.astype(np.float64) - expected) ** 2))
        total += float(np.sum(expected.astype(np.float64) ** 2))
    case.close("relative L2 of the gradient", np.sqrt(difference / total), GRADIENT_RELATIVE, expected=0.0)


def check_samples(case: Case, system: VeryDeepVAE, name: str, temperature, latents: list[tf.Tensor]) -> None:
    """One set of samples from recorded draws; its first layers may have given latents."""
    batch = len(case[f"{name}_uint8"])
    temperatures = 1.0 if temperature is None else temperature
    if isinstance(temperatures, list):
        temperatures = [1.0 if value is None else value for value in temperatures]
    features = system.network.generate(batch, recorded_noise(case, f"{name}_eps_"), latents, temperatures)
    close(case, f"{name}_px_z", channels_first(features), FEATURES)
    sampled = mixture_sampling.gumbel(
        system.network.mixture_parameters(features),
        tf.constant(case[f"{name}_u_mix"]),
        tf.constant(case[f"{name}_u_logistic"]),
    )
    if f"{name}_float" in case:
        case.close(f"{name}_float", sampled, FEATURES)
    case.equal(f"{name}_uint8", logistic_mixture.to_uint8(sampled), within=1, except_share=1e-3)
    # Layers with given latents draw nothing.
    unused = [n for n in case.matching(f"{name}_eps_*") if int(re.sub(r".*_", "", n)) < len(latents)]
    for array in unused:
        case.leave_unread(array, "the latents of this layer are given")
