"""Recorded normalisations of single weights, several in a row."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.parity.ebm.recorded import relative_norm
from tests.parity.harness import Case, checker
from tfgen.systems.ebm import spectral

WEIGHT, GRADIENT, VECTOR = 1e-5, 1e-4, 1e-5


@checker("ebm", "spectral_norm*.npz")
def check(case: Case) -> None:
    case.json("config")  # the seed of the formula, and the columns of params, which `check_weight` names
    for name in case.matching("*/params"):
        check_weight(case, name.removesuffix("params"))


def check_weight(case: Case, prefix: str) -> None:
    # What the initial scale was, and whether it belongs to a dense layer, shows in the weight itself.
    zero, _, _, iterations, target = case[f"{prefix}params"]
    weight, kept, cotangent = (tf.constant(case[f"{prefix}{name}"]) for name in ("w", "u0", "R"))
    for run in range(1, 1 + len(case.matching(f"{prefix}wnorm*"))):
        with tf.GradientTape() as tape:
            tape.watch(weight)
            value, u = spectral.normalized(weight, kept, iterations=int(iterations), target=target, zero=bool(zero))
            product = tf.reduce_sum(value * cotangent)
        relative_norm(case, f"{prefix}wnorm{run}", value, WEIGHT)
        relative_norm(case, f"{prefix}grad{run}", tape.gradient(product, weight), GRADIENT)
        # Frozen estimates are recorded under this name: improved for the run, and not kept.
        if "spec_eval" not in prefix:
            kept = u
        case.close(f"{prefix}u{run}", kept, VECTOR * float(np.abs(case[f"{prefix}u{run}"]).max()))
