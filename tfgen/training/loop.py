"""The training loop: restore, then step until the end, with side jobs at their intervals."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfgen import runtime
from tfgen.data.pipeline import IndexStream, Prefetcher
from tfgen.data.source import Splits
from tfgen.distribute import Ranks
from tfgen.likelihood.histogram import baseline_bits_per_dim
from tfgen.monitor.progress import Progress
from tfgen.randomness import StepDraws
from tfgen.settings import Settings
from tfgen.systems.base import System
from tfgen.training.actions import Action
from tfgen.training.checkpoints import CheckpointError, Checkpoints
from tfgen.training.gradients import global_norm
from tfgen.training.interrupts import INTERRUPTED, Interrupts
from tfgen.training.recipe import Recipe
from tfgen.training.reporter import Reporter
from tfgen.training.restoring import begin, roll_back, rollbacks_left, save_rank, set_aside
from tfgen.training.run_folder import RunFolder
from tfgen.training.state import TrainState
from tfgen.training.step import SAVE, STOP, TrainStep

WARN_AFTER = 10  # skipped steps in a row


class TrainingStoppedError(RuntimeError):
    """The run cannot go on; what was saved is intact."""


class _DivergedError(Exception):
    """Too many steps in a row without a usable update, of a run that may go back."""


def train(
    settings: Settings,
    system: System,
    splits: Splits,
    recipe: Recipe,
    ranks: Ranks,
    run: RunFolder,
    make_actions: Callable[[TrainState, Reporter], list[Action]],
) -> int:
    """Trains until the last step, or until interrupted.

    Args:
      run: claimed by the first rank.
      make_actions: builds the side jobs (evaluation, sample grids) once the state exists.

    Returns:
      0 when the last step was reached, `INTERRUPTED` when a signal ended the run after a save.

    Raises:
      TrainingStoppedError: too many steps in a row without a usable update.
      CheckpointError: nothing can be restored, or the last save failed.
    """
    loop = _Loop(settings, system, splits, recipe, ranks, run, make_actions)
    if ranks.is_first:
        if settings.run.restart_from_scratch:
            set_aside(loop.checkpoints)
        loop.checkpoints.remove_partial()
        loop.checkpoints.remove_parts_of_ranks()
    first = begin(loop.state, loop.checkpoints, system, recipe, ranks)
    while True:
        try:
            return INTERRUPTED if loop.run_from(first) else 0
        except _DivergedError:
            first = roll_back(loop.state, loop.checkpoints, system, recipe, ranks, run)


class _Loop:
    """The steps of a run in this process. Arguments are those of `train`."""

    def __init__(
        self,
        settings: Settings,
        system: System,
        splits: Splits,
        recipe: Recipe,
        ranks: Ranks,
        run: RunFolder,
        make_actions: Callable[[TrainState, Reporter], list[Action]],
    ):
        self._settings, self._system, self._splits, self._recipe = settings, system, splits, recipe
        self._ranks, self._run, self._make_actions = ranks, run, make_actions
        self.state = TrainState(system, recipe)
        self._keep_every = settings.run.keep_every or recipe.keep_every
        self.checkpoints = run.checkpoints(settings.run.keep_last, self._keep_every)
        self._stream = IndexStream(splits.train, recipe.batch_size, ranks.size, recipe.seed)
        self._step_function = TrainStep(system, recipe, self.state, ranks, settings.run.grad_accumulation)

    def run_from(self, first: int) -> bool:
        """Takes the steps after `first`, with side jobs; returns whether a signal ended them.

        Raises:
          _DivergedError: the run is to go back.
        """
        recipe, ranks, system = self._recipe, self._ranks, self._system
        reporter = Reporter(
            self._run,
            self._settings,
            first,
            enabled=ranks.is_first,
            statistics=system.window_statistics,
            stepwise=recipe.every_step,
        )
        actions = self._make_actions(self.state, reporter)
        reporter.settings()
        reporter.say(runtime.summary(system, self._splits, recipe, ranks.size))
        reporter.say(f"resuming after step {first:,}" if first else "starting at step 0")

        step, last, interrupted, saved_at = first, recipe.steps, False, time.monotonic()
        training = first < last and not recipe.stop_before_training
        # Data come from the batch after the last one that was used.
        with Interrupts() as interrupts, reporter, Prefetcher(self._load, first) as batches:
            for action in actions:
                if wanted_at_start(action, first, last, ranks, recipe):
                    action.run(first)
            progress = Progress(last, first, "training", enabled=ranks.is_first and training)
            with progress:
                while training and step < last and not interrupted:
                    # Step.
                    reporter.profile(step)
                    batch = {name: tf.convert_to_tensor(value) for name, value in next(batches).items()}
                    logged = reporter.is_logged(step + 1, recipe.log_every)
                    before = [tf.identity(item) for item in system.network.trainable_variables] if logged else []
                    requests = np.zeros(2, np.float32)
                    requests[STOP] = interrupts.requested
                    requests[SAVE] = self._asks_to_save(saved_at)
                    outputs = {name: value.numpy() for name, value in self._step_function(batch, requests).items()}
                    step += 1
                    asked = outputs.pop("requests")
                    interrupted = bool(asked[STOP])
                    system.after_update(step, outputs)

                    # Report, before the checkpoint of this step: a resumed run then has every record up to it.
                    reporter.add(step, outputs, recipe.batch_size * ranks.size, batches.wait_seconds)
                    progress.update(step, reporter.headline())
                    if logged:
                        after = system.network.trainable_variables
                        reporter.log(
                            step,
                            skipped_steps=int(self.state.skipped_steps),
                            param_norm=global_norm(after),
                            update_norm=global_norm([new - old for new, old in zip(after, before, strict=True)]),
                        )
                    self._check_progress(step, outputs)

                    # Save, before side jobs that may take long.
                    if interrupted or step == last:
                        self._save(step, must=True)
                    elif self._save_is_due(step, outputs, bool(asked[SAVE])):
                        self._save(step, must=False)
                        saved_at = time.monotonic()

                    # Side jobs.
                    if not interrupted:
                        for action in actions:
                            if action.due(step, last):
                                action.run(step)

        reporter.finish(step, last, interrupted, {} if interrupted else self._notes())
        return interrupted

    def _load(self, step: int) -> dict[str, np.ndarray]:
        ranks, recipe = self._ranks, self._recipe
        draws = StepDraws(recipe.seed, step, ranks.rank, ranks.size, recipe.batch_size)
        return self._system.prepare(self._splits.train.read(self._stream.indices(step, ranks.rank)), draws)

    def _asks_to_save(self, saved_at: float) -> bool:
        return self._ranks.is_first and time.monotonic() - saved_at > 60 * self._settings.run.save_minutes

    def _save_is_due(self, step: int, outputs: dict[str, float], asked: bool) -> bool:
        if self._recipe.max_rollbacks and outputs["troubled_steps"]:
            return False  # a run goes back to a checkpoint from before the trouble
        return asked or any(every and step % every == 0 for every in (self._recipe.save_every, self._keep_every))

    def _save(self, step: int, must: bool) -> None:
        try:
            save_rank(self.checkpoints, step, self.state, self._ranks)
            if self._ranks.is_first:
                self.checkpoints.save(step, self.state, self._system.spec, self._settings.to_flagfile())
        except CheckpointError as error:  # a full disk need not end a run: there may be room next time
            if must:
                raise
            logging.error("%s", error)

    def _check_progress(self, step: int, outputs: dict[str, float]) -> None:
        """Warns of a run that skips all of its steps, and stops it or makes it go back."""
        limit = self._settings.run.max_skipped_steps
        if outputs["troubled_steps"] >= limit:
            if rollbacks_left(self.state, self._recipe, self.checkpoints, self._ranks):
                raise _DivergedError
            raise TrainingStoppedError(diagnosis(outputs, step, self._recipe, self.checkpoints))
        if outputs["troubled_steps"] == WARN_AFTER and self._ranks.is_first:
            logging.warning("%s", warning(outputs, step, self._recipe, limit))

    def _notes(self) -> dict[str, float]:
        if not (self._settings.run.baseline and self._ranks.is_first):
            return {}
        source = getattr(self._splits, self._recipe.eval_split)
        bits = baseline_bits_per_dim(self._splits.train, source, self._settings.run.eval_images)
        return {"per-pixel histogram bits_per_dim": bits}


def wanted_at_start(action: Action, first: int, last: int, ranks: Ranks, recipe: Recipe) -> bool:
    """Whether a side job runs before the first step of this process; the ranks agree.

    It does if the system asks for it, and if the step resumed from is one of its steps but an earlier process was
    killed after the save and before the job was done.
    """
    if recipe.stop_before_training:
        return action.at_start
    missed = first > 0 and action.due(first, last) and ranks.is_first and not action.done(first)
    return action.at_start or bool(ranks.sum(tf.constant(float(missed))))


def warning(outputs: dict[str, float], step: int, recipe: Recipe, stop_after: int) -> str:
    """That a run has begun to skip every step."""
    limit = f" (limit {recipe.max_update_norm:g})" if recipe.max_update_norm else ""
    return (
        f"step {step}: the last {WARN_AFTER} steps in a row gave no usable update; loss {outputs['loss']:g}, gradient "
        f"norm {outputs['grad_norm']:g}{limit}. The run stops after {stop_after} such steps (--max_skipped_steps)."
    )


def diagnosis(outputs: dict[str, float], step: int, recipe: Recipe, checkpoints: Checkpoints) -> str:
    """Why a run that makes no progress was stopped, and what to try."""
    saved = checkpoints.steps()
    kept = f"The newest checkpoint is of step {saved[-1]}." if saved else "No checkpoint had been saved."
    advice = recipe.advice
    if recipe.loss_scale:
        advice += ", or train with --precision=float32 or mixed_bfloat16"
    limit = f" (limit {recipe.max_update_norm:g})" if recipe.max_update_norm else ""
    shown = [name for name in recipe.every_step if name not in ("loss", "grad_norm")]
    others = "".join(f"{name} {float(outputs[name]):g}, " for name in shown)
    return (
        f"stopped at step {step}: the last {int(outputs['troubled_steps'])} steps in a row gave no usable update; "
        f"loss {outputs['loss']:g}, {others}gradient norm {outputs['grad_norm']:g}{limit}, "
        f"loss scale {outputs['loss_scale']:g}, "
        f"learning rate {outputs['learning_rate']:g}. {kept} "
        f"Try: {advice}; --max_skipped_steps sets how long to wait."
    )
