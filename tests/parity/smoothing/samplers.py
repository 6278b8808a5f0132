"""The recorded samplers on given outputs of a network, and the bisection alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tests.parity.smoothing.likelihood import channels_first, channels_last, within
from tfgen.likelihood import mixture_sampling as sampling

GUMBEL = (1e-5, 2e-5)  # relative, absolute
INVERSE_CDF = {3: (0.0, 2e-4), 1: (0.0, 1e-5)}  # by the number of colours; at least one `spacing`
BISECTION = (1e-6, 1e-6)
DEFAULT_ITERATIONS = 15  # of the original's function where nothing is said; it then clips, too
BISECTION_BOUND = 20.0


@checker("smoothing", "samplers_fixed_output*.npz")
def check(case: Case) -> None:
    for options in case.json("config")["cases"]:
        check_sampler(case, options)
    for name in case.matching("binary_search/*_it*"):
        check_bisection(case, name)


def check_sampler(case: Case, options: Mapping[str, Any]) -> None:
    name = options["name"]
    recorded = case[f"{name}/out"]
    parameters = channels_last(case["l_gray" if recorded.shape[1] == 1 else "l_rgb"])
    draw = gumbel if name.startswith("gumbel") else inverse_cdf
    noise = tf.constant(channels_last(case[f"{name}/noise"])) if options["noise"] else None
    drawn = case[f"{name}/u_given" if options["u_given"] else f"{name}/u"]
    image = draw(tf.constant(parameters), tf.constant(drawn), channels_last(recorded).shape[1:], options, noise)
    tolerance = GUMBEL if draw is gumbel else INVERSE_CDF[recorded.shape[1]]
    if draw is inverse_cdf:
        tolerance = tolerance[0], max(tolerance[1], 1.01 * spacing(recorded.shape[1], options))
    within(case, f"{name}/out", channels_first(image), *tolerance)


def gumbel(parameters, drawn, shape, options, noise) -> tf.Tensor:
    assert noise is None, "the original's Gumbel sampler takes no noise"
    mixture, logistic = sampling.published_gumbel_order(drawn, shape)
    return sampling.gumbel(parameters, mixture, logistic, options.get("clamp", True), options.get("T", 1.0))


def inverse_cdf(parameters, drawn, shape, options, noise) -> tf.Tensor:
    ordered = sampling.published_inverse_cdf_order(drawn, shape)
    return sampling.inverse_cdf(
        parameters,
        ordered if options["u_given"] else sampling.logit(ordered),  # given numbers are logits already
        options.get("clamp", True),
        options.get("bisection_iter", DEFAULT_ITERATIONS),
        options.get("T", 1.0),
        noise,
    )


def spacing(channels: int, options: Mapping[str, Any]) -> float:
    """Between neighbouring samples, odd multiples of a fraction of the interval: rounding may decide for either."""
    bound = 1.0 if options.get("clamp", True) else sampling.SEARCH_BOUNDS[channels]
    return 2 * (2 * bound) / 2 ** options.get("bisection_iter", DEFAULT_ITERATIONS)


def check_bisection(case: Case, name: str) -> None:
    """Of x^3 / 4 + x in [-20, 20]."""
    iterations = int(name.rpartition("_it")[2])
    target = tf.constant(case["binary_search/target"])[:, tf.newaxis]
    low = tf.fill(target.shape, -BISECTION_BOUND)
    found = sampling.bisect(lambda x: x**3 / 4 + x < target, low, 2 * BISECTION_BOUND, iterations)
    within(case, name, np.asarray(found)[:, 0], *BISECTION)
