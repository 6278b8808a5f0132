"""The recorded output head alone: likelihood, its gradients, samples."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.likelihood import logistic_mixture, mixture_sampling
from tfgen.likelihood.bits import nats_per_dim
from tfgen.systems.vdvae.preprocess import PREPROCESSING

NLL = 2e-5  # relative
GRADIENT = 1e-3  # of the largest entry
SAMPLE = 1e-4
# By the recorded name: the cut of the real line, and a data set that has such targets.
_VARIANTS = {"full": (logistic_mixture.EIGHT_BIT, "cifar10"), "low": (logistic_mixture.FIVE_BIT, "ffhq_256")}


@checker("vdvae", "dmol*.npz")
def check(case: Case) -> None:
    mixes = case.json("config")["mixes"]
    every_level = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1).repeat(3, axis=-1)
    for variant, (_, dataset) in _VARIANTS.items():
        targets_of = PREPROCESSING[dataset].input_and_target
        case.close(f"{variant}_target", targets_of(case["x_uint8"])[1], 1e-6)
        case.close(f"ladder_{variant}_target", targets_of(every_level)[1], 1e-6)
        for mix in mixes:
            check_likelihood(case, variant, f"{variant}_m{mix}")
        check_edges(case, variant)
        check_ladder(case, variant)
    for name in case.matching("*_u_mix"):
        check_sample(case, name.removesuffix("_u_mix"))


def check_likelihood(case: Case, variant: str, name: str) -> None:
    weights = 1 + np.arange(len(case[f"{name}_l"]), dtype=np.float32)
    per_pixel, nll, gradient = head(case[f"{name}_l"], case[f"{variant}_target"], variant, weights)
    case.close(f"{name}_nll", nll, NLL, relative=True)
    case.close(f"{name}_nll_f64", nll, NLL, relative=True)
    scale = np.maximum(1, np.abs(case[f"{name}_nll_per_pixel"]))  # single pixels may be near 0
    case.close(f"{name}_nll_per_pixel", per_pixel / scale, NLL, expected=case[f"{name}_nll_per_pixel"] / scale)
    check_gradient(case, f"{name}_grad_l", gradient)


def check_edges(case: Case, variant: str) -> None:
    """Targets that straddle the bounds of the open buckets."""
    weights = np.ones(len(case["edge_l"]), np.float32)
    _, nll, gradient = head(case["edge_l"], case["edge_target"], variant, weights)
    case.close(f"edge_nll_{variant}", nll, NLL, relative=True)
    check_gradient(case, f"edge_grad_{variant}", gradient)


def check_ladder(case: Case, variant: str) -> None:
    """All 256 levels under one logistic."""
    targets = case[f"ladder_{variant}_target"]
    parameters = np.repeat(case["ladder_l"], len(targets), axis=0)
    _, nll, _ = head(parameters, targets, variant, np.ones(len(targets), np.float32))
    case.close(f"ladder_{variant}_nll", nll, NLL, relative=True)


def check_gradient(case: Case, name: str, gradient: np.ndarray) -> None:
    largest = np.abs(case[name]).max()
    case.close(name, gradient / largest, GRADIENT, expected=case[name] / largest)


def check_sample(case: Case, name: str) -> None:
    parameters = case[name.rpartition("_")[0] + "_l"]
    image = mixture_sampling.gumbel(parameters, case[f"{name}_u_mix"], case[f"{name}_u_logistic"])
    case.close(f"{name}_float", image, SAMPLE)
    case.equal(f"{name}_uint8", logistic_mixture.to_uint8(image), within=1, except_share=1e-3)


def head(
    parameters: np.ndarray, target: np.ndarray, variant: str, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nats per dimension of each pixel [B, H, W] and example [B]; gradient of the weighted sum [B, H, W, 10 M]."""
    buckets, _ = _VARIANTS[variant]
    dims = math.prod(target.shape[1:])

    @tf.function
    def evaluate(parameters: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        log_prob = logistic_mixture.log_prob(parameters, target, buckets)  # [B, H, W]
        nll = nats_per_dim(-tf.reduce_sum(log_prob, axis=[1, 2]), dims)  # [B]
        return nats_per_dim(-log_prob, target.shape[-1]), nll, tf.gradients(weights * nll, parameters)[0]

    return tuple(part.numpy() for part in evaluate(tf.constant(parameters), tf.constant(target)))
