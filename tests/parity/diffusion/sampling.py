"""Recorded sampling steps and loops, and likelihood loops, with forced noise and a small recorded network."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tests.parity.diffusion.functions import channels_first, channels_last, within
from tests.parity.diffusion.network import recorded_network
from tests.parity.harness import Case, checker
from tfgen.likelihood.logistic_mixture import to_uint8
from tfgen.systems.diffusion import noise_schedules, samplers
from tfgen.systems.diffusion.likelihood_terms import bits_per_dim_loop
from tfgen.systems.diffusion.process import LossType, MeanType, Process, VarianceType

STEP = (1e-4, 1e-4)  # relative, absolute
LOOP = 1e-3  # absolute
BITS = (2e-3, 3e-6)
FIRST_STEP = 2e-2  # relative, of the likelihood at t = 0
LEVEL = 127.5  # levels per unit
ULP = np.finfo(np.float32).eps  # relative
NEAR_A_LEVEL = 1e-3


def recorded_process(config: dict[str, Any]) -> Process:
    """The process that the flags of a case describe; a flag that is not named has its default."""
    if config.get("learn_sigma", False):
        variance = VarianceType.LEARNED_RANGE
    else:
        variance = VarianceType.FIXED_SMALL if config.get("sigma_small", False) else VarianceType.FIXED_LARGE
    mean = MeanType.START_X if config.get("predict_xstart", False) else MeanType.EPSILON
    process = Process.create(
        noise_schedules.betas(config["noise_schedule"], config["steps"]),
        mean,
        variance,
        LossType.MSE,
        config.get("rescale_timesteps", False),
    )
    return process.respaced(config.get("timestep_respacing", ""))


def recorded_model(case: Case, model_file: str) -> Callable[[Process], samplers.Model]:
    """Of the network in another file, for a process: its leading output channels, as many as the process needs."""
    network = recorded_network(case.sibling(model_file))

    def for_process(process: Process) -> samplers.Model:
        def model(x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
            return network(x, process.network_timesteps(t))[..., : process.output_channels(x.shape[-1])]

        return model

    return for_process


@checker("diffusion", "sampling*.npz")
def check_sampling(case: Case) -> None:
    config = case.json("config")
    model_for = recorded_model(case, config["model_file"])
    for name, settings in config["cases"].items():
        process = recorded_process(settings)
        if "timesteps" in settings:
            case.equal(f"{name}: timesteps", process.timestep_map, expected=settings["timesteps"])
        check_loops(case, f"{name}/", process, model_for(process))
    process = recorded_process(config["single"])
    clip = config["single"].get("clip_denoised", True)
    check_single_steps(case, process, model_for(process), clip)


def check_single_steps(case: Case, process: Process, model: samplers.Model, clip: bool) -> None:
    x, t, noise = (tf.constant(case[f"single/{name}"]) for name in ("x", "t", "noise"))
    x, noise = (tf.transpose(images, [0, 2, 3, 1]) for images in (x, noise))
    prediction = process.p_mean_variance(model(x, t), x, t, clip)
    for name in case.matching("single/*/sample"):
        kind = name.split("/")[1]
        if kind == "p_sample":
            sample = samplers.ancestral_step(prediction, t, noise)
        elif kind == "ddim_reverse":
            sample = samplers.reverse_ddim_step(process, prediction, x, t)
        else:
            sample = samplers.ddim_step(process, prediction, x, t, noise, float(kind.removeprefix("ddim_eta")))
        within(case, name, channels_first(sample), *STEP)
        within(case, f"single/{kind}/pred_xstart", channels_first(prediction.pred_xstart), *STEP)


def check_loops(case: Case, prefix: str, process: Process, model: samplers.Model) -> None:
    """All loops of one process. What is compared follows from the names of the arrays."""
    x_last = tf.constant(channels_last(case[f"{prefix}x_T"]))
    noises = tf.constant(channels_last(case[f"{prefix}noises"]))

    def run(sampler: samplers.SamplerFunction, x: tf.Tensor, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Samples and predictions of x_0 after every step, channels first."""
        steps: list[tuple[np.ndarray, np.ndarray]] = []
        result = sampler(
            process,
            model,
            x,
            lambda i: noises[i],
            callback=lambda done, total, x, x_0: steps.append((channels_first(x), channels_first(x_0))),
            **options,
        )
        samples, predictions = map(np.stack, zip(*steps, strict=True))
        assert np.array_equal(samples[-1], channels_first(result))
        return samples, predictions

    samples, predictions = run(samplers.ancestral, x_last)
    case.close(f"{prefix}ddpm_samples", samples, LOOP)
    case.close(f"{prefix}ddpm_pred_xstart_last", predictions[-1], LOOP)
    check_uint8(case, prefix, samples[-1])
    for name in case.matching(f"{prefix}ddpm_noclip_first*"):
        count = int(re.search(r"\d+$", name).group())
        unclipped, _ = run(samplers.ancestral, x_last, clip_denoised=False)
        # Predictions of x_0 are 1 / sqrt(abar) times as large as x, and small samples the differences of large numbers.
        within(case, name, unclipped[:count], STEP[0], LOOP + 4 * ULP * np.abs(case[name]).max())
    for name in case.matching(f"{prefix}ddim_eta*"):
        eta, kind = re.search(r"ddim_eta([\d.]+)_(samples|final)$", name).groups()
        samples, _ = run(samplers.ddim, x_last, eta=float(eta))
        noise = np.abs(x_last).max() * float(case[f"{prefix}ddpm_sensitivity"])
        tolerance = LOOP + rounding_of_direction(process, float(eta)) * noise
        case.close(name, samples if kind == "samples" else samples[-1], tolerance)
    encoded, _ = run(samplers.reverse_ddim, tf.constant(channels_last(case[f"{prefix}rev_x0"])))
    case.close(f"{prefix}rev_samples", encoded, LOOP)


def rounding_of_direction(process: Process, eta: float) -> float:
    """What the last digit of sigma does to the factor sqrt(1 - abar - sigma^2) of the predicted noise, at most.

    With eta 1 and a tiny abar the difference is below float32 rounding: the original's own square roots, whose last
    digit depends on its processor, decide whether it is 0, an ulp, or negative and the result NaN.
    """
    before = 1 - process.alphas_cumprod_prev
    variance = eta**2 * before / process.one_minus_alphas_cumprod
    variance *= 1 - process.alphas_cumprod / process.alphas_cumprod_prev
    exact = np.maximum(before - variance, 0)
    return float(np.max(np.sqrt(exact + ULP * before) - np.sqrt(np.maximum(exact - ULP * before, 0))))


def check_uint8(case: Case, prefix: str, sample: np.ndarray) -> None:
    """The recorded sample in levels exactly, ours but where it lies within its tolerance of a boundary."""
    name = f"{prefix}ddpm_uint8"
    recorded = case[f"{prefix}ddpm_samples"][-1]
    levels = (recorded.astype(np.float64) + 1) * LEVEL
    distance = np.abs(levels - np.round(levels))
    for whose, values, margin in (("recorded", recorded, NEAR_A_LEVEL), ("ours", sample, LOOP * LEVEL)):
        difference = np.abs(to_uint8(values).numpy().astype(int) - case[name])
        case.close(f"{name}: {whose}", difference, 0.0, expected=np.zeros_like(levels), where=distance > margin)
        case.close(f"{name}: {whose}, near a boundary", difference, 1.0, expected=np.zeros_like(levels))


@checker("diffusion", "bpd_loop*.npz")
def check_likelihood_loop(case: Case) -> None:
    config = case.json("config")
    model_for = recorded_model(case, config["model_file"])
    for name, settings in config["cases"].items():
        process = recorded_process(settings)
        x_start = tf.constant(channels_last(case[f"{name}/x_start"]))
        noises = tf.constant(channels_last(case[f"{name}/noises"]))
        run = functools.partial(bits_per_dim_loop, process, model_for(process), x_start, lambda i, n=noises: n[i])
        for clip in sorted({array.split("/")[1] for array in case.matching(f"{name}/clip?/*")}):
            results = run(clip_denoised=clip == "clip1")
            for array in case.matching(f"{name}/{clip}/*"):
                relative = np.full(case[array].shape, BITS[0])
                if relative.ndim == 2:
                    relative[:, -1] = FIRST_STEP
                within(case, array, results[array.rsplit("/", 1)[1]], relative, BITS[1])
