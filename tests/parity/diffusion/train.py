"""Recorded updates: the optimizer and the averages by themselves, and whole training steps with given noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tests.parity.diffusion.network import channels_last, compare_stats, load_recorded, recorded_shape, summary, within
from tests.parity.harness import Case, checker
from tfgen.data.source import ImageSpec
from tfgen.distribute import Ranks
from tfgen.systems.diffusion import published
from tfgen.systems.diffusion.config import Config
from tfgen.systems.diffusion.system import ImprovedDiffusion
from tfgen.training.ema import Ema
from tfgen.training.optimizers import AdamW
from tfgen.training.state import TrainState
from tfgen.training.step import TrainStep

# Advised in the description of the recordings.
ADAMW_RELATIVE, ADAMW_ABSOLUTE, MOMENT_RELATIVE = 1e-5, 1e-6, 1e-4
LOG_RELATIVE, HALF_LOG_RELATIVE = 1e-3, 2e-2
NORM_RELATIVE, HEAD_ABSOLUTE = 1e-4, 5e-5
QUIET, FLOORS = 1e-5, 10.0  # variables whose noise floor is above the first are compared with that many floors
NO_GRADIENT, NO_GRADIENT_ALLOWED = 1e-6, 1e-5  # of the largest norm
GRADIENT_RELATIVE = 1e-3
_NO_REQUESTS = np.zeros(2, np.float32)


@checker("diffusion", "train_steps*.npz")
def check(case: Case) -> None:
    check_adamw(case)
    for name in case.matching("*/config"):
        run = name.removesuffix("/config")
        if run.startswith("fp16"):
            check_loss_scale(case, run)
        else:
            check_run(case, run)


# The optimizer ---------------------------------------------------------------------------------------------


def check_adamw(case: Case) -> None:
    for name in case.matching("adamw/*/params"):
        stem = name.removesuffix("/params")
        variable = tf.Variable(case["adamw/p0"])
        weight_decay = float(stem.removeprefix("adamw/wd"))
        learning_rate = recorded_rate(case, case[name][0], weight_decay)
        optimizer = AdamW(0.9, 0.999, 1e-8, weight_decay)
        optimizer.build([variable])
        averages = [Ema(decay) for decay in (0.9, 0.9999)]
        for average in averages:
            average.build([variable])
        parameters, averaged = [], []
        for gradient in case["adamw/grads"]:
            optimizer.apply([tf.constant(gradient)], tf.constant(learning_rate, tf.float32))
            for average in averages:
                average.update()
            parameters.append(variable.numpy())
            averaged.append([average.averages[0].numpy() for average in averages])
        within(case, name, parameters, ADAMW_RELATIVE, ADAMW_ABSOLUTE)
        within(case, f"{stem}/ema", averaged, ADAMW_RELATIVE, ADAMW_ABSOLUTE)
        # The moments of tiny gradients are far below the absolute tolerance: relative to their own size.
        within(case, f"{stem}/exp_avg", optimizer.first_moments[0], MOMENT_RELATIVE, 0.0)
        within(case, f"{stem}/exp_avg_sq", optimizer.second_moments[0], MOMENT_RELATIVE, 0.0)


def recorded_rate(case: Case, after: np.ndarray, weight_decay: float) -> float:
    """The learning rate, which the recording leaves out: the one that the first update tells, to three digits."""
    start, gradient = case["adamw/p0"].astype(np.float64), case["adamw/grads"][0].astype(np.float64)
    direction = gradient / (np.abs(gradient) + 1e-8) + weight_decay * start
    return float(f"{np.dot(start - after, direction) / np.dot(direction, direction):.3g}")


# Steps -----------------------------------------------------------------------------------------------------


class GivenDraws(ImprovedDiffusion):
    """Takes steps of the process, their weights and noise from the batch."""

    def draws(self, batch, key):
        del key
        return batch["t"], batch["w"], batch["noise"]


class Run:
    """A recorded training run, at its start.

    Args:
      settings: of the recording: learning rate, microbatch ...
    """

    def __init__(self, case: Case, settings: dict[str, Any]):
        recording = case.json("config")
        model = case.sibling(recording["model_file"])
        shape = recorded_shape(model.json("config"))
        side = model["x"].shape[2]
        flags = recording["diffusion"]
        config = Config(
            dataset="recorded",
            image_size=side,
            channel_mult=",".join(map(str, shape.channel_mult)),
            num_channels=shape.width,
            num_res_blocks=shape.num_res_blocks,
            num_heads=shape.num_heads,
            num_heads_upsample=shape.num_heads_upsample,
            attention_resolutions=",".join(str(side // rate) for rate in sorted(shape.attention_rates)),
            use_scale_shift_norm=shape.use_scale_shift_norm,
            diffusion_steps=flags["steps"],
            batch_size=recording["batch"],
            **{name: value for name, value in flags.items() if name != "steps"},
            **settings,
        )
        self.system = GivenDraws(config, ImageSpec(side, side, 3))
        load_recorded(self.system.network, model)
        recipe = self.system.recipe(train_size=1_000_000, ranks=1)
        self.recipe = recipe
        self.state = TrainState(self.system, recipe)
        self.step = TrainStep(self.system, recipe, self.state, Ranks())
        self.batches = [
            {
                "image": tf.constant((channels_last(x) + 1.0) * 127.5),
                "noise": tf.constant(channels_last(noise)),
                "t": tf.constant(t, tf.int32),
                "w": tf.constant(w),
            }
            for x, noise, t, w in zip(case["loop/x"], case["loop/noise"], case["loop/t"], case["loop/w"], strict=True)
        ]

    def averages(self, place: int) -> list[tf.Variable]:
        return self.state.averages[place].averages


def check_run(case: Case, name: str) -> None:
    settings, logs = case.json(f"{name}/config"), case.json(f"{name}/logs")
    run = Run(case, settings)
    named = published.variables(run.system.network)
    key = run.step._key.fold(run.state.step)
    _, _, gradients, _ = run.step._loss_and_gradients(run.batches[0], key, tf.constant(1.0))
    compare_gradients(case, f"{name}/grad_step1", named, gradients)
    floor = case["plain/noise_floor"]
    for number, (batch, recorded) in enumerate(zip(run.batches, logs, strict=True), start=1):
        compare_log(case, f"{name}/logs[{number - 1}]", run, run.step(batch, _NO_REQUESTS), recorded, LOG_RELATIVE)
        for stem in case.matching(f"{name}/*_step{number}/stats"):
            place = stem.removesuffix("/stats")
            what = place.removeprefix(f"{name}/").removesuffix(f"_step{number}")
            if what == "grad":
                continue
            variables = (
                run.system.network.trainable_variables
                if what == "params"
                else run.averages(int(what.removeprefix("ema")))
            )
            compare_rows(case, place, named, variables, floor)
    final = run.recipe.learning_rate(run.state.step - 1)
    case.close(f"{name}/final_lr", float(final), 1e-6, relative=True)


def compare_log(case: Case, name: str, run: Run, outputs: dict, recorded: dict, relative: float) -> None:
    """What the original logs of a step; quarters of the process without a sample are absent."""
    actual = {"step": float(run.state.step) - 1, "samples": float(run.state.step) * run.recipe.batch_size}
    for metric, value in outputs.items():
        value = np.asarray(value, np.float64)
        if metric != "requests" and value.ndim and value[1]:
            actual[metric] = value[0] / value[1]
        elif not value.ndim:
            actual[metric] = float(value)
    quarters = {metric for metric in actual if metric[-3:-1] == "_q"}
    case.equal(f"{name}: quarters", sorted(quarters), expected=sorted(m for m in recorded if m[-3:-1] == "_q"))
    for metric, value in recorded.items():
        if metric in actual:
            within(case, f"{name}: {metric}", actual[metric], relative, relative * 1e-2, expected=value)
        elif metric != "lg_loss_scale":
            raise KeyError(f"{name}: nothing here is called {metric}")


def compare_gradients(case: Case, place: str, named: list[published.Named], gradients: list[tf.Tensor]) -> None:
    names = [str(item) for item in case[f"{place}/names"]]
    case.equal(f"{place}/names", [item.name for item in named], expected=names)
    rows, heads = case[f"{place}/stats"], case[f"{place}/head"]
    largest = rows[:, 0].max()
    for item, gradient, recorded, head in zip(named, gradients, rows, heads, strict=True):
        array = published.to_original(gradient.numpy(), item.layout)
        stats, own = summary(item.name, array)
        if recorded[0] < NO_GRADIENT * largest:  # mathematically zero: rounding was recorded
            case.close(f"{place} of {item.name}: none", stats[0] / largest, NO_GRADIENT_ALLOWED, expected=0.0)
            continue
        compare_stats(case, f"{place}/stats of {item.name}", stats, recorded, array.size, GRADIENT_RELATIVE)
        allowed = 1e-4 * np.abs(array).max() + 1e-6 * largest
        within(case, f"{place}/head of {item.name}", own, GRADIENT_RELATIVE, allowed, expected=head)


def compare_rows(
    case: Case, place: str, named: list[published.Named], variables: list[tf.Variable], floor: np.ndarray
) -> None:
    names = [str(item) for item in case[f"{place}/names"]]
    case.equal(f"{place}/names", [item.name for item in named], expected=names)
    rows = zip(named, variables, case[f"{place}/stats"], case[f"{place}/head"], floor, strict=True)
    for item, variable, recorded, head, noise in rows:
        array = published.to_original(variable.numpy(), item.layout)
        stats, own = summary(item.name, array)
        moved = FLOORS * noise if noise > QUIET else 0.0  # how far rounding alone may carry an entry
        relative = NORM_RELATIVE + moved * np.sqrt(array.size) / max(recorded[0], 1e-12)
        compare_stats(case, f"{place}/stats of {item.name}", stats, recorded, array.size, relative)
        within(case, f"{place}/head of {item.name}", own, 0.0, max(HEAD_ABSOLUTE, moved), expected=head)


def check_loss_scale(case: Case, name: str) -> None:
    settings, logs = case.json(f"{name}/config"), case.json(f"{name}/logs")
    start = settings.pop("start_lg_loss_scale")
    previous = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        run = Run(case, settings)
    finally:
        tf.keras.mixed_precision.set_global_policy(previous)
    assert run.state.loss_scale is not None
    run.state.loss_scale.scale.assign(2.0**start)
    for number, (batch, recorded) in enumerate(zip(run.batches, logs, strict=True)):
        outputs = run.step(batch, _NO_REQUESTS)
        if "grad_norm" not in recorded:  # an overflow: nothing is updated, and the norm not logged
            case.equal(f"{name}/logs[{number}]: skipped", int(outputs["skipped"]), expected=1)
        where = f"{name}/logs[{number}]"
        compare_log(case, where, run, outputs, recorded, HALF_LOG_RELATIVE)
        exponent = np.log2(float(run.state.loss_scale.scale))
        case.close(f"{where}: lg_loss_scale", exponent, 1e-5, expected=recorded["lg_loss_scale"])
