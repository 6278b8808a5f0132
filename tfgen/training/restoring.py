"""Where the steps of a process begin: at a checkpoint, its own parts of all ranks included, or at the beginning."""

from __future__ import annotations

import logging
import shutil

import tensorflow as tf

from tfgen.distribute import Ranks
from tfgen.systems.base import System
from tfgen.training.checkpoints import Checkpoint, CheckpointError, Checkpoints
from tfgen.training.recipe import Recipe
from tfgen.training.run_folder import RunFolder
from tfgen.training.state import TrainState


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
            for variable in state.rank_state.variables:  # after steps of this process they would not be empty
                variable.assign(tf.zeros_like(variable))
        else:
            _read_rank(state.rank_state, prefix)
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
    if failed and ranks.is_first:
        checkpoints.remove_parts_of_ranks()
    if problem is not None:
        raise problem
    if failed:
        raise CheckpointError(
            f"{failed:g} rank(s) could not write their parts of the checkpoint of step {step}; their own messages say "
            "why. Earlier checkpoints are intact."
        )


def rollbacks_left(state: TrainState, recipe: Recipe, checkpoints: Checkpoints, ranks: Ranks) -> bool:
    """Whether the run may go back, and has a checkpoint to go back to; the ranks agree."""
    if state.rollbacks is None or int(state.rollbacks) >= (recipe.max_rollbacks or 0):
        return False
    saved = float(ranks.is_first and bool(checkpoints.steps()))
    return bool(ranks.sum(tf.constant(saved)))


def roll_back(
    state: TrainState, checkpoints: Checkpoints, system: System, recipe: Recipe, ranks: Ranks, run: RunFolder
) -> int:
    """Brings `state` back to the newest checkpoint, with other random numbers from there on.

    The records of the steps that are given up stay in copies of `metrics.jsonl` and `steps.jsonl`.

    Returns:
      The number of steps that were made.
    """
    assert state.rollbacks is not None
    made, failed_at = int(state.rollbacks) + 1, int(state.step)
    if ranks.is_first:
        _copy_records(run, made)
    first = begin(state, checkpoints, system, recipe, ranks)
    state.rollbacks.assign(made)
    state.troubled_steps.assign(0)  # a run that was interrupted amid trouble has saved how long it had lasted
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


def _read_rank(module: tf.Module, prefix: str) -> None:
    try:
        tf.train.Checkpoint(module).read(prefix).assert_consumed()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise CheckpointError(f"{prefix} does not hold what these settings keep of a rank: {error}") from error


def _copy_records(run: RunFolder, number: int) -> None:
    for path in (run.metrics_path, run.steps_path):
        if path.exists():
            copy = path.with_name(f"{path.stem}-before-rollback-{number}.jsonl")
            try:
                shutil.copy2(path, copy)
            except OSError as error:  # a full disk: the other ranks are waiting, and the run can go on
                logging.error("%s could not be kept: %s", copy, error)
