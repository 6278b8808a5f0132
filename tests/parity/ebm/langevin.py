"""The recorded fused Langevin step: words and normal numbers of Philox, and every kind of step.

What a case sets beside the settings of the whole file is told by its text ("|g|<=0.01") and its name ("masked_li").
Everything is checked for the operation that runs here and for the form in plain TensorFlow.
"""

from __future__ import annotations

import contextlib
import re
from fractions import Fraction
from typing import Any

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.ops import library
from tfgen.ops.langevin import initial_noise, langevin_step
from tfgen.ops.philox import philox_normal, philox_words

NORMAL = 1e-6  # absolute, as specified
POSITION = 1e-6  # relative to the largest position
# Streams of the two draws that are not of stream 0; only the description of the recordings tells them.
RAW_STREAM, SHIFTED_STREAM = 3, 2
NUMBER = r"([\d.]+(?:/\d+)?)"
# What a text may say: the number, and the options that come with it.
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    rf"\|g\| ?<= ?{NUMBER}": ("clip", {"clip_mode": "value"}),
    rf"whole-tensor norm {NUMBER}": ("clip", {"clip_mode": "tensor_norm"}),
    rf"per-sample norm {NUMBER}": ("clip", {"clip_mode": "sample_norm"}),
    rf"ref \+- {NUMBER}": ("radius", {"projection": "box"}),
    rf"ball {NUMBER}": ("radius", {"projection": "ball"}),
    rf"\blo={NUMBER}": ("lower", {}),
    rf"\bhi={NUMBER}": ("upper", {}),
    rf"step_lr={NUMBER}": ("eta", {}),
    rf"sigma={NUMBER}": ("sigma", {}),
}


@checker("ebm", "fused_langevin*.npz")
def check(case: Case) -> None:
    for form, choose in (("running", contextlib.nullcontext), ("plain", library.plain_tensorflow)):
        with choose():
            check_draws(case, form)
            check_steps(case, form)


def check_draws(case: Case, form: str) -> None:
    config = case.json("config")
    seed, step = int(config["seed"], 16), config["step"]
    raw = case["philox_raw"]
    # Row i is the whole block of element i; the words of a block are those of its four elements.
    words = philox_words([len(raw) + -len(raw) % 4], seed, step, RAW_STREAM).numpy().reshape(-1, 4)
    case.equal(f"philox_raw ({form})", np.repeat(words, 4, axis=0)[: len(raw)], expected=raw)
    for name, later in (("normal_stream0", 0), ("normal_stream0_next", 1)):
        found = philox_normal(case[name].shape, seed, step + later)
        case.close(f"{name} ({form})", found, NORMAL, expected=case[name])
    for name in case.matching("normal_base*"):
        first_element = int(name.removeprefix("normal_base"))
        found = philox_normal(case[name].shape, seed, step, SHIFTED_STREAM, first_element)
        case.close(f"{name} ({form})", found, NORMAL, expected=case[name])
    x = case["x"]
    found = initial_noise(tf.constant(x), sigma=config["sigma"], seed=seed, step=step)
    case.close(f"noise_only_y0 ({form})", found, POSITION * np.abs(x).max(), expected=case["noise_only_y0"])


def check_steps(case: Case, form: str) -> None:
    config = case.json("config")
    x, gradient, mask, anchor = (tf.constant(case[name]) for name in ("x", "g", "mask", "ref"))
    for name in (array.removesuffix("/x_next") for array in case.matching("*/x_next")):
        options = options_of(name, config)
        expected = {array: case[f"{name}/{array}"] for array in ("x_next", "y_next") if f"{name}/{array}" in case}
        found = langevin_step(
            x,
            gradient,
            seed=int(config["seed"], 16),
            step=config["step"],
            mask=mask if name.startswith("masked") else None,
            anchor=None if options.get("projection", "range") == "range" else anchor,
            emit_next="y_next" in expected,
            **options,
        )
        for array, actual in zip(("x_next", "y_next"), found, strict=True):
            if array in expected:
                tolerance = POSITION * max(1.0, float(np.abs(expected[array]).max()))
                case.close(f"{name}/{array} ({form})", actual, tolerance, expected=expected[array])


def options_of(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Options of `langevin_step` for a case."""
    options: dict[str, Any] = {
        "eta": config["step_lr"], "sigma": config["sigma"], "lower": config["lo"], "upper": config["hi"],
        "gradient_first": "grad_first" in name,
    }  # fmt: skip
    text = config["cases"].get(name, config["cases"].get(name.removeprefix("masked_"), ""))
    for pattern, (number, others) in TEXTS.items():
        found = re.search(pattern, text)
        if found:
            options |= {number: float(Fraction(found[1])), **others}
    return options
