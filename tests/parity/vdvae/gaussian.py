"""The recorded Gaussian parts, to be called by the checker of the units: the divergence, its gradients, a draw."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case
from tfgen.likelihood import gaussian

TOLERANCE = 1e-5  # absolute below 1, relative above


def check(case: Case) -> None:
    """Reads every array of `case` named kl_* or draw_*."""
    inputs = [tf.constant(case[f"kl_{name}"]) for name in ("mu_q", "logsigma_q", "mu_p", "logsigma_p")]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        divergence = gaussian.kl_divergence(*inputs)
    gradients = tape.gradient(divergence, inputs)
    compare(case, "kl_out", divergence)
    for name, gradient in zip(("mu_q", "logsigma_q", "mu_p", "logsigma_p"), gradients, strict=True):
        compare(case, f"kl_grad_{name}", gradient)
    compare(case, "draw_z", gaussian.draw(inputs[0], inputs[1], tf.constant(case["draw_eps"])))


def compare(case: Case, name: str, actual: tf.Tensor) -> None:
    scale = np.maximum(1, np.abs(case[name]))
    case.close(name, actual / scale, TOLERANCE, expected=case[name] / scale)
