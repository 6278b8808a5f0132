"""The training loop: restore, then step until the end, with side jobs at their intervals."""

from __future__ import annotations

import logging
import shutil
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
from tfgen.training.checkpoints import Checkpoint, CheckpointError, Checkpoints
from tfgen.training.gradients import global_norm
from tfgen.training.interrupts import INTERRUPTED, Interrupts
from tfgen.training.recipe import Recipe
from tfgen.training.reporter import Reporter
from tfgen.training.run_folder import RunFolder
from tfgen.training.state import TrainState
from tfgen.training.step import SAVE, STOP, TrainStep

WARN_AFTER = 10  # skipped steps in a row


class TrainingStoppedError(RuntimeError):
    """The run cannot go on; what was saved is intact."""


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
    # State, from the newest checkpoint if there is one. The first rank reads, the others receive.
    state = TrainState(system, recipe)
    keep_every = settings.run.keep_every or recipe.keep_every
    checkpoints = run.checkpoints(settings.run.keep_last, keep_every)
    if ranks.is_first:
        if settings.run.restart_from_scratch:
            set_aside(checkpoints)
        checkpoints.remove_partial()
    first = begin(state, checkpoints, system, recipe, ranks)
    last = recipe.steps

    # Data, from the batch after the last one that was used.
    stream = IndexStream(splits.train, recipe.batch_size, ranks.size, recipe.seed)

    def load(step: int) -> dict[str, np.ndarray]:
        draws = StepDraws(recipe.seed, step, ranks.rank, ranks.size, recipe.batch_size)
        return system.prepare(splits.train.read(stream.indices(step, ranks.rank)), draws)

    def save(step: int, must: bool) -> None:
        try:
            save_rank(checkpoints, step, state, ranks)
            if ranks.is_first:
                checkpoints.save(step, state, system.spec, settings.to_flagfile())
        except CheckpointError as error:  # a full disk need not end a run: there may be room next time
            if must:
                raise
            logging.error("%s", error)

    step_function = TrainStep(system, recipe, state, ranks, settings.run.grad_accumulation)

    def run_from(first: int) -> bool | None:
        """Steps from `first` to the end. Returns whether a signal ended them; None to go back."""
        reporter = Reporter(
            run, settings, first, enabled=ranks.is_first, statistics=system.window_statistics, stepwise=recipe.every_step
        )
        actions = make_actions(state, reporter)
        reporter.settings()
        reporter.say(runtime.summary(system, splits, recipe, ranks.size))
        reporter.say(f"resuming after step {first:,}" if first else "starting at step 0")

        step, interrupted, saved_at = first, False, time.monotonic()
        training = first < last and not recipe.stop_before_training
        with Interrupts() as interrupts, reporter, Prefetcher(load, first) as batches:
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
                    requests[SAVE] = ranks.is_first and time.monotonic() - saved_at > 60 * settings.run.save_minutes
                    outputs = {name: value.numpy() for name, value in step_function(batch, requests).items()}
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
                            skipped_steps=int(state.skipped_steps),
                            param_norm=global_norm(after),
                            update_norm=global_norm([new - old for new, old in zip(after, before, strict=True)]),
                        )
                    if outputs["troubled_steps"] >= settings.run.max_skipped_steps:
                        if rollbacks_left(state, recipe, checkpoints, ranks):
                            return None
                        raise TrainingStoppedError(diagnosis(outputs, step, recipe, checkpoints))
                    if outputs["troubled_steps"] == WARN_AFTER and ranks.is_first:
                        logging.warning("%s", warning(outputs, step, recipe, settings.run.max_skipped_steps))

                    # Save, before side jobs that may take long. A run that may go back saves nothing amid trouble.
                    if interrupted or step == last:
                        save(step, must=True)
                    elif asked[SAVE] or any(every and step % every == 0 for every in (recipe.save_every, keep_every)):
                        if not (recipe.max_rollbacks and outputs["troubled_steps"]):
                            save(step, must=False)
                            saved_at = time.monotonic()

                    # Side jobs.
                    if not interrupted:
                        for action in actions:
                            if action.due(step, last):
                                action.run(step)

        notes = {}
        if settings.run.baseline and ranks.is_first and not interrupted:
            source = getattr(splits, recipe.eval_split)
            notes["per-pixel histogram bits_per_dim"] = baseline_bits_per_dim(
                splits.train, source, settings.run.eval_images
            )
        reporter.finish(step, last, interrupted, notes)
        return interrupted

    while (interrupted := run_from(first)) is None:
        first = roll_back(state, checkpoints, system, recipe, ranks, run)
    return INTERRUPTED if interrupted else 0


# Where steps begin -------------------------------------------------------------------------------------------


def set_aside(checkpoints: Checkpoints) -> None:
    """Lets a run begin again at step 0."""
    aside = checkpoints.set_aside()
    if aside:
        logging.warning("starting again at step 0; the old checkpoints are in %s", aside)


def begin(state: TrainState, checkpoints: Checkpoints, system: System, recipe: Recipe, ranks: Ranks) -> int:
    """Brings `state` to the newest good checkpoint, else to the published one of the recipe, if any, on all ranks.

    Returns:
      The number of steps that were made.
    """
    if ranks.is_first:
        newest = checkpoints.newest()
        if newest:
            state.restore(newest)
        elif recipe.restore_path:
            system.load_published(recipe.restore_path, state)
    ranks.broadcast(state.shared_variables)
    first = int(state.step)
    if state.rank_state is not None and not ranks.is_first and checkpoints.path(first).exists():
        prefix = Checkpoint(checkpoints.path(first), first, system.spec).rank_prefix(ranks.rank)
        if prefix is None:
            logging.warning(
                "rank %d: the checkpoint of step %d was saved by fewer ranks; its replay buffer begins empty",
                ranks.rank,
                first,
            )
        else:
            tf.train.Checkpoint(state.rank_state).read(prefix).assert_consumed()
    return first


def save_rank(checkpoints: Checkpoints, step: int, state: TrainState, ranks: Ranks) -> None:
    """Writes what this rank has of its own; returns when all ranks have. Raises `CheckpointError` if one has not."""
    if state.rank_state is None or ranks.size == 1:
        return
    problem: CheckpointError | None = None
    if not ranks.is_first:
        try:
            checkpoints.save_rank(step, ranks.rank, state.rank_state)
        except CheckpointError as error:
            problem = error
    failed = float(ranks.sum(tf.constant(float(problem is not None))))
    if problem is not None:
        raise problem
    if failed:
        raise CheckpointError(
            f"{failed:g} rank(s) could not write their parts of the checkpoint of step {step}; their own messages say "
            "why. Earlier checkpoints are intact."
        )


def rollbacks_left(state: TrainState, recipe: Recipe, checkpoints: Checkpoints, ranks: Ranks) -> bool:
    """Whether the run may go back, and has a checkpoint to go back to; the ranks agree."""
    if state.rollbacks is None or int(state.rollbacks) >= recipe.max_rollbacks:
        return False
    saved = float(ranks.is_first and bool(checkpoints.steps()))
    return bool(ranks.sum(tf.constant(saved)))


def roll_back(
    state: TrainState, checkpoints: Checkpoints, system: System, recipe: Recipe, ranks: Ranks, run: RunFolder
) -> int:
    """Brings `state` back to the newest checkpoint, with other random numbers from there on.

    The records of the steps that are given up stay in a copy of `metrics.jsonl`.

    Returns:
      The number of steps that were made.
    """
    assert state.rollbacks is not None
    made, failed_at = int(state.rollbacks) + 1, int(state.step)
    if ranks.is_first and run.metrics_path.exists():
        shutil.copy2(run.metrics_path, run.metrics_path.with_name(f"metrics-before-rollback-{made}.jsonl"))
    first = begin(state, checkpoints, system, recipe, ranks)
    state.rollbacks.assign(made)
    if ranks.is_first:
        logging.warning(
            "step %d: no usable update for too long; went back to the checkpoint of step %d, on with other noise "
            "(%d of %d times)",
            failed_at,
            first,
            made,
            recipe.max_rollbacks,
        )
    return first


# What may be wrong, and what is due ----------------------------------------------------------------------------


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
    advice = "look at the data of these steps, lower --lr or lengthen the warm-up"
    if recipe.loss_scale:
        advice += ", or train with --precision=float32 or mixed_bfloat16"
    limit = f" (limit {recipe.max_update_norm:g})" if recipe.max_update_norm else ""
    return (
        f"stopped at step {step}: the last {int(outputs['troubled_steps'])} steps in a row gave no usable update; "
        f"loss {outputs['loss']:g}, gradient norm {outputs['grad_norm']:g}{limit}, "
        f"loss scale {outputs['loss_scale']:g}, "
        f"learning rate {outputs['learning_rate']:g}. {kept} "
        f"Try: {advice}; --max_skipped_steps sets how long to wait."
    )
