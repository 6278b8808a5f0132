"""The recorded loss on given outputs of a network: continuous mixtures of logistics."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.likelihood.continuous_mixture import log_density

LOSS = 1e-5  # relative
LOG_LIKELIHOOD = (1e-5, 1e-4)  # relative, absolute
LOG_LIKELIHOOD_EXTREME = (1e-5, 2e-3)
GRADIENT = (1e-3, 1e-4)  # relative; and of the largest entry


@checker("smoothing", "losses*.npz")
def check(case: Case) -> None:
    case.json("config")
    for name in case.matching("*/x"):
        check_case(case, name.removesuffix("/x"))


def check_case(case: Case, name: str) -> None:
    parameters, target = channels_last(case[f"{name}/l"]), channels_last(case[f"{name}/x"])
    log_likelihood, loss, by_parameters, by_target = evaluate(tf.constant(parameters), tf.constant(target))
    tolerance = LOG_LIKELIHOOD_EXTREME if name.endswith("extreme") else LOG_LIKELIHOOD
    for suffix in ("", "_f64"):
        case.close(f"{name}/loss{suffix}", loss, LOSS, relative=True)
        within(case, f"{name}/loglik{suffix}", log_likelihood, *tolerance)
    for array, gradient in (("grad_l", by_parameters), ("grad_x", by_target), ("grad_x_of_sum_loglik", -by_target)):
        recorded = case[f"{name}/{array}"]
        relative, of_largest = GRADIENT
        within(case, f"{name}/{array}", channels_first(gradient), relative, of_largest * np.abs(recorded).max())


def within(case: Case, name: str, actual: np.ndarray, relative: float, absolute: float) -> None:
    """|actual - recorded| <= absolute + relative |recorded|, reported as a share of what is allowed."""
    recorded = np.asarray(case[name], np.float64)
    allowed = np.maximum(absolute + relative * np.abs(recorded), 1e-12)  # where all is 0, ours has to be 0
    case.close(name, actual / allowed, 1.0, expected=recorded / allowed)


def evaluate(parameters: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Log-likelihood [B, H, W], minus its sum, and the gradients of that by parameters and by target."""
    with tf.GradientTape() as tape:
        tape.watch([parameters, target])
        log_likelihood = log_density(parameters, target)
        loss = -tf.reduce_sum(log_likelihood)
    return log_likelihood, loss, *tape.gradient(loss, [parameters, target])


def channels_last(images: np.ndarray) -> np.ndarray:
    """[B, C, H, W] to [B, H, W, C]."""
    return np.moveaxis(images, 1, -1)


def channels_first(images: np.ndarray) -> np.ndarray:
    """[B, H, W, C] to [B, C, H, W]."""
    return np.moveaxis(np.asarray(images), -1, 1)
