"""Recorded updates of the clipped Adam, with given gradients."""

from __future__ import annotations

import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.training.clipped_adam import ClippedAdam

TOLERANCE = 1e-6  # of the largest entry


@checker("ebm", "clipped_adam*.npz")
def check(case: Case) -> None:
    config = case.json("config")
    for name in [name for name in config if name != "eps"]:
        check_run(case, f"{name}/", config[name], config["eps"])


def check_run(case: Case, prefix: str, settings: dict, epsilon: float) -> None:
    initial = (name.removeprefix(prefix) for name in case.matching(f"{prefix}*0"))
    names = [name.removesuffix("0") for name in initial if "/" not in name]
    variables = [tf.Variable(case[f"{prefix}{name}0"], name=name) for name in names]
    optimizer = ClippedAdam(settings["beta1"], settings["beta2"], epsilon)
    optimizer.build(variables)
    for step in range(1, 1 + len(case.matching(f"{prefix}t*/beta1_power"))):
        at = f"{prefix}t{step}/"
        optimizer.apply([tf.constant(case[f"{at}g{name}"]) for name in names], settings["lr"])
        for index, name in enumerate(names):
            for part, value in (
                ("", variables[index]),
                ("/Adam", optimizer.first_moments[index]),
                ("/Adam_1", optimizer.second_moments[index]),
            ):
                recorded = case[f"{at}{name}{part}"]
                case.close(f"{at}{name}{part}", value, TOLERANCE * float(abs(recorded).max()))
        case.close(f"{at}beta1_power", optimizer.beta1_power, 1e-6, relative=True)
        case.close(f"{at}beta2_power", optimizer.beta2_power, 1e-6, relative=True)
