"""Learning rates, Adam with its overflow rules and 16-bit moments, and the activation: `optimizer_units*.npz`."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.training import moments16
from tfgen.training.gradients import clip_by_global_norm
from tfgen.training.optimizers import Adam
from tfgen.training.schedules import WarmupDecay


@checker("distaug", "optimizer_units*.npz")
def check_optimizer_units(case: Case) -> None:
    for prefix in _case_prefixes(case, "lr"):
        _check_learning_rate(case, prefix)
    for prefix in _case_prefixes(case, "adam"):
        _check_adam(case, prefix)
    if case.matching("moment16/*"):
        _check_moment_formats(case)
    if case.matching("fast_gelu/*"):
        from tfgen.systems.distaug.transformer import quick_gelu  # here, so that the rest runs without the network

        case.close("fast_gelu/y", quick_gelu(tf.constant(case["fast_gelu/x"])).numpy(), 1e-6)


def _case_prefixes(case: Case, kind: str) -> list[str]:
    """ "<kind>/case0/", "<kind>/case1/", ... as the file has them."""
    return [name.removesuffix("config") for name in case.matching(f"{kind}/*/config")]


def _check_learning_rate(case: Case, prefix: str) -> None:
    config = case.json(f"{prefix}config")
    schedule = WarmupDecay(
        peak=config["lr"],
        warmup_steps=config["warmup_iters"],
        total_steps=config["n_updates_total"],
        offset=config["lr_offset"],
        shape="linear" if config["linear"] else "cosine",
    )
    recorded, actual = case[f"{prefix}lr"], schedule(case[f"{prefix}global_step"]).numpy()
    # Half the last digit of 1 + cos(angle), as a float32 near 1, is 1e-6 of a rate of 0.03 peak. Below that no
    # formula in float32 holds 1e-6 of the rate on every processor; one such digit of the peak is allowed there.
    near_zero = np.abs(recorded) < 0.03 * config["lr"]
    case.close(f"{prefix}lr", actual, 1e-6, relative=True, where=~near_zero)
    case.close(f"{prefix}lr", actual, 2.0**-24 * config["lr"], where=near_zero)


def _check_adam(case: Case, prefix: str) -> None:
    config = case.json(f"{prefix}config")
    packed = config["moments16"]
    initial = case.under(f"{prefix}init/")  # "p0", "p1" ...
    variables = {name: tf.Variable(value, name=name) for name, value in initial.items()}
    optimizer = Adam(config["beta1"], config["beta2"], config["eps"], packed_moments=packed)
    optimizer.build(list(variables.values()))

    norms = []
    for step, learning_rate in enumerate(config["lr"], start=1):
        at = f"{prefix}step{step}/"
        gradients = [tf.constant(case[f"{at}grad{name.removeprefix('p')}"]) for name in variables]
        clipped = clip_by_global_norm(
            gradients,
            config["max_grad_norm"],
            scale=config["grad_scale"],
            non_finite="zero" if config["dynamic"] else "clamp",
        )
        norms.append(clipped.norm.numpy())
        if clipped.usable:
            optimizer.apply(clipped.gradients, learning_rate)
        for index, (name, variable) in enumerate(variables.items()):
            case.close(f"{at}{name}", variable.numpy(), 1e-4 if packed else 1e-5)
            _check_moment(case, f"{at}{name}/Adam", optimizer.first_moments[index])
            _check_moment(case, f"{at}{name}/Adam_1", optimizer.second_moments[index])
        case.close(f"{at}adam_beta/beta1_power", optimizer.beta1_power.numpy(), 1e-6, relative=True)
        case.close(f"{at}adam_beta/beta2_power", optimizer.beta2_power.numpy(), 1e-6, relative=True)

    # A NaN is a result here: it has to be reported where the recording has one, and nowhere else.
    name, reported = f"{prefix}global_norm_reported", np.array(norms)
    recorded = case[name]
    case.equal(name, np.isnan(reported), expected=np.isnan(recorded))
    number = ~np.isnan(recorded)
    case.close(name, reported[number], 1e-5, expected=recorded[number], relative=True)


def _check_moment(case: Case, name: str, slot: tf.Variable) -> None:
    recorded = case[name]
    if recorded.dtype == np.uint16:
        case.equal(name, slot.numpy().view(np.uint16), within=1, except_share=0.005)
    elif name.endswith("/Adam_1"):
        case.close(name, slot.numpy(), 1e-3, relative=True)
    else:  # unclipped gradients can be large, and sums of both signs keep the rounding of their largest terms
        case.close(name, slot.numpy(), 1e-6 * max(1.0, float(np.abs(recorded).max())))


def _check_moment_formats(case: Case) -> None:
    values = case["moment16/values"]
    for recorded, number_format in (("mean", moments16.MEAN), ("var", moments16.VARIANCE)):
        code, decoded = f"moment16/{recorded}_code", f"moment16/{recorded}_decoded"
        case.equal(code, number_format.encode(values))
        case.equal(code, number_format.pack(tf.constant(values)).numpy().view(np.uint16))
        case.close(decoded, number_format.decode(case[code]), 0.0)

        name = f"moment16/all_codes_{recorded}"  # the values of codes 0, k, 2 k ... of all 65536
        codes = np.arange(0, 2**16, -(-(2**16) // len(case[name]))).astype(np.uint16)
        case.close(name, number_format.decode(codes), 0.0)
        case.close(name, number_format.unpack(tf.constant(codes.view(np.float16))).numpy(), 0.0)
