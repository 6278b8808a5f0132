"""Recorded training steps, and a recorded checkpoint."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tests.parity.vdvae.model import load, recorded_noise, recorded_system
from tfgen.monitor.window import summarize
from tfgen.systems.vdvae import published
from tfgen.systems.vdvae.system import VeryDeepVAE
from tfgen.training.gradients import clip_by_global_norm
from tfgen.training.recipe import Recipe
from tfgen.training.state import TrainState

# Advised in the description of the recordings.
FROM_RECORDED_RELATIVE, FROM_RECORDED_ABSOLUTE = 1e-5, 1e-6
OWN_GRADIENTS_OF_RATE, OBJECTIVE, NORM, RATE = 2e-2, 1e-5, 1e-4, 1e-9


class Trainer:
    """A system, its recipe and its state, at the start of a recording."""

    def __init__(self, case: Case):
        self.case = case
        self.system = recorded_system(case)
        self.recipe: Recipe = self.system.recipe(train_size=1000, ranks=1)
        self.state = TrainState(self.system, self.recipe)
        self.averages = self.state.averages[0].averages
        self.variables = self.system.network.trainable_variables
        self.named = published.variables(self.system.network)
        load(self.system, case)
        published.assign(self.system.network, case.under("ema_state/"), self.averages, "ema_state")

    def position(self, item: published.Named) -> int:
        return next(i for i, variable in enumerate(self.variables) if variable is item.variable)

    def original(self, values: Sequence[tf.Tensor], item: published.Named) -> np.ndarray:
        return published.to_original(np.asarray(values[self.position(item)]), item.layout)


@checker("vdvae", "train_*.npz")
def check(case: Case) -> None:
    names = [str(name) for name in case["param_order"]]
    recorded = Trainer(case)
    case.equal(
        "param_order", [item.name for item in recorded.named], expected=[n.removeprefix("module.") for n in names]
    )
    skipped = case["stat_skipped_updates"]
    check_from_recorded_gradients(case, recorded, skipped)
    check_from_own_gradients(case, Trainer(case), skipped)
    check_window(case)


def check_from_recorded_gradients(case: Case, trainer: Trainer, skipped: np.ndarray) -> None:
    """Optimizer and averages alone, fed with the recorded gradients."""
    state = trainer.state
    for step in range(len(skipped)):
        rate = float(trainer.recipe.learning_rate(tf.constant(step, tf.int64)))
        case.close(f"step {step}: lr_used", rate, RATE, expected=case["stat_lr_used"][step])
        following = float(trainer.recipe.learning_rate(tf.constant(step + 1, tf.int64)))
        case.close(f"step {step}: lr_logged", following, RATE, expected=case["stat_lr_logged"][step])
        if skipped[step]:
            case.leave_unread(f"step{step}_clipped_grad/*", "nothing is made of the gradients of a skipped step")
        else:
            arrays = case.under(f"step{step}_clipped_grad/")
            gradients: list[tf.Tensor] = [tf.constant(0.0)] * len(trainer.variables)
            for item in trainer.named:
                gradients[trainer.position(item)] = tf.constant(published.to_ours(arrays[item.name], item.layout))
            state.optimizer.apply(gradients, rate)
            state.averages[0].update()
        for item in trainer.named:
            for kind, values in (("param", trainer.variables), ("ema", trainer.averages)):
                within(case, f"step{step}_{kind}/{item.name}", trainer.original(values, item))
    for index, item in enumerate(trainer.named):
        for kind, values in (
            ("exp_avg", state.optimizer.first_moments),
            ("exp_avg_sq", state.optimizer.second_moments),
        ):
            name = f"{kind}/{item.name}" if f"{kind}/{item.name}" in case else f"{kind}/{index}"
            within(case, name, trainer.original(values, item))
    case.equal("adam_step_count", int(state.optimizer.updates))


def within(case: Case, name: str, actual: np.ndarray) -> None:
    """rtol 1e-5 and atol 1e-6 as one number."""
    expected = case[name].astype(np.float64)
    error = np.abs(actual - expected) / (FROM_RECORDED_ABSOLUTE + FROM_RECORDED_RELATIVE * np.abs(expected))
    case.close(name, error, 1.0, expected=np.zeros_like(error))


def check_from_own_gradients(case: Case, trainer: Trainer, skipped: np.ndarray) -> None:
    """Whole steps: objective, norm, decision and update."""
    recipe, state, system = trainer.recipe, trainer.state, trainer.system
    for step in range(len(skipped)):
        with tf.GradientTape() as tape:
            bound = system.bound(
                tf.constant(case[f"step{step}_x"]),
                tf.constant(case[f"step{step}_target"]),
                recorded_noise(case, f"step{step}_eps_"),
            )
            distortion, rate = tf.reduce_mean(bound.distortion), tf.reduce_mean(bound.rate)
            elbo = distortion + rate
        for name, value in {"elbo": elbo, "distortion": distortion, "rate": rate}.items():
            recorded = case[f"stat_{name}"][step]
            case.equal(f"step {step}: {name} is NaN", bool(np.isnan(value)), expected=bool(np.isnan(recorded)))
            if np.isfinite(recorded):
                case.close(f"step {step}: {name}", value, OBJECTIVE, expected=recorded, relative=True)
        for name, value in (("distortion_nans", distortion), ("rate_nans", rate)):
            case.equal(f"step {step}: {name}", int(np.isnan(value)), expected=int(case[f"stat_{name}"][step]))
        clipped = clip_by_global_norm(
            tape.gradient(elbo, trainer.variables, unconnected_gradients="zero"),
            recipe.max_grad_norm,
            epsilon=recipe.clip_epsilon,
            non_finite="skip",
        )
        norm = case["stat_grad_norm"][step]
        if np.isfinite(norm):
            case.close(f"step {step}: grad_norm", clipped.norm, NORM, expected=norm, relative=True)
        take = bool(np.isfinite(elbo)) and bool(clipped.usable)
        if recipe.max_update_norm is not None:
            take = take and bool(clipped.norm < recipe.max_update_norm)
        case.equal(f"step {step}: skipped", int(not take), expected=int(skipped[step]))
        learning_rate = recipe.learning_rate(tf.constant(step, tf.int64))
        if take:
            state.optimizer.apply(clipped.gradients, learning_rate)
            state.averages[0].update()
    last = len(skipped) - 1
    for item in trainer.named:
        name = f"step{last}_param/{item.name}"
        case.close(
            f"own gradients: {name}",
            trainer.original(trainer.variables, item),
            OWN_GRADIENTS_OF_RATE * trainer.system.config.lr,
            expected=case[name],
        )


def check_window(case: Case) -> None:
    for name in case.matching("accumulated_last*"):
        count = int(name.removeprefix("accumulated_last"))
        compare_window(case, name, statistics_of(case)[-count:], case.json(name))


def statistics_of(case: Case) -> list[dict[str, float]]:
    arrays = case.under("stat_")
    return [{name: float(values[step]) for name, values in arrays.items()} for step in range(len(arrays["elbo"]))]


def compare_window(case: Case, title: str, records: list[dict[str, float]], expected: Mapping[str, float]) -> None:
    """Statistics of several steps. The time of a step is left out: here images per second are logged instead."""
    renamed = [{name.replace("skipped_updates", "skipped"): v for name, v in record.items()} for record in records]
    actual = summarize(renamed, VeryDeepVAE.window_statistics)
    for name, value in expected.items():
        if name == "iter_time":
            continue
        found = actual[name.replace("skipped_updates", "skipped")]
        if np.isnan(value):
            case.equal(f"{title}: {name} is NaN", bool(np.isnan(found)), expected=True)
        else:
            case.close(f"{title}: {name}", found, 1e-12, expected=value, relative=True)


@checker("vdvae", "checkpoint_expected*.npz")
def check_checkpoint(case: Case) -> None:
    system = recorded_system(case)
    config = system.config
    folder = case.path.parent / "checkpoint"

    def beside(path: str) -> str:
        return str(folder / pathlib.Path(path).name) if path else ""

    system = VeryDeepVAE(
        dataclasses.replace(
            config,
            restore_path=beside(config.restore_path),
            restore_ema_path=beside(config.restore_ema_path),
            restore_optimizer_path=beside(config.restore_optimizer_path),
            restore_log_path=beside(config.restore_log_path),
            restart_warmup=True,
        ),
        system.spec,
    )
    recipe = system.recipe(train_size=1000, ranks=1)
    state = TrainState(system, recipe)
    system.load_published(recipe.restore_path, state)

    named, variables = published.variables(system.network), system.network.trainable_variables
    names = [str(name).removeprefix("module.") for name in case["param_order"]]
    case.equal("param_order", [item.name for item in named], expected=names)
    averages, optimizer = state.averages[0].averages, state.optimizer
    for index, item in enumerate(named):
        place = next(i for i, variable in enumerate(variables) if variable is item.variable)
        for prefix, values in (("model/module.", variables), ("model/", variables), ("ema/", averages)):
            if f"{prefix}{item.name}" in case:
                actual = published.to_original(values[place].numpy(), item.layout)
                case.close(f"{prefix}{item.name}", actual, 0.0)
        for kind, moments in (("exp_avg", optimizer.first_moments), ("exp_avg_sq", optimizer.second_moments)):
            actual = published.to_original(moments[place].numpy(), item.layout)
            case.close(f"opt_{kind}/{index}", actual, 0.0)
    group = case.json("opt_param_groups")[0]
    case.equal("opt_param_groups: step", int(optimizer.updates), expected=group["step"])
    betas = [system.config.adam_beta1, system.config.adam_beta2]
    case.close("opt_param_groups: betas", betas, 1e-12, expected=group["betas"])
    case.close("opt_param_groups: weight_decay", system.config.wd, 1e-12, expected=group["weight_decay"])
    case.close("opt_param_groups: eps", optimizer.epsilon, 1e-15, expected=group["eps"])
    case.close("opt_param_groups: initial_lr", system.config.lr, 1e-12, expected=group["initial_lr"])

    log = published.read_log(system.config.restore_log_path)
    case.equal("restore_log_iterate", log.step)
    case.equal("restore_log_iterate as step", int(state.step), expected=case["restore_log_iterate"])
    case.equal("restore_log_starting_epoch", log.epoch)
    case.close("restore_log_cur_eval_loss", log.best_elbo, 1e-12, relative=True)
    steps = int(state.step) + np.arange(len(case["lr_first_steps_after_restore"]))
    case.close("lr_first_steps_after_restore", recipe.learning_rate(tf.constant(steps, tf.int64)), RATE)

    inputs, targets = system.preprocessing.input_and_target(case["x_uint8"])
    case.close("x", inputs, 1e-6)
    case.close("target", targets, 1e-6)
    for prefix in ("model", "ema"):
        if prefix == "ema":
            for variable, average in zip(variables, averages, strict=True):
                variable.assign(average)
        bound = system.bound(tf.constant(case["x"]), tf.constant(case["target"]), recorded_noise(case, "eps_"))
        distortion, rate = tf.reduce_mean(bound.distortion), tf.reduce_mean(bound.rate)
        for name, value in {"elbo": distortion + rate, "distortion": distortion, "rate": rate}.items():
            case.close(f"{prefix}_{name}", value, OBJECTIVE, relative=True)
