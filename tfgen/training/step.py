"""One training step as one compiled function."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfgen.distribute import Ranks
from tfgen.randomness import Key
from tfgen.systems.base import System
from tfgen.training.gradients import clip_by_global_norm
from tfgen.training.recipe import Recipe
from tfgen.training.state import TrainState

Metrics = dict[str, tf.Tensor]

SAVE, STOP = 0, 1  # what a rank may ask of all ranks, as columns of the `requests` vector


class TrainStep:
    """Forward, backward, reduction over ranks, clipping, update and averaging.

    A step whose loss is not finite on any rank, or whose gradient norm reaches `recipe.max_update_norm`,
    changes no weight, average or moment on any rank, and is counted.

    Args:
      accumulation: microbatches per update; the batch is split in this many equal parts. Not with
        `recipe.microbatch`.
    """

    def __init__(self, system: System, recipe: Recipe, state: TrainState, ranks: Ranks, accumulation: int = 1):
        self._system, self._recipe, self._state, self._ranks = system, recipe, state, ranks
        self._parts = _parts(recipe.batch_size, recipe.microbatch, accumulation)
        self._variables = system.network.trainable_variables
        self._key = Key.create(recipe.seed, "train", first_sample=ranks.rank * recipe.batch_size)

    # Nothing here depends on the value of a tensor: AutoGraph would only cost time.
    @tf.function(reduce_retracing=True, autograph=False)
    def __call__(self, batch: dict[str, tf.Tensor], requests: tf.Tensor) -> dict[str, tf.Tensor]:
        """Takes one step.

        Args:
          batch: this rank's prepared batch; first axis [batch_size].
          requests: float32 [2], nonzero where this rank asks for SAVE or STOP.

        Returns:
          float32 scalars, equal on all ranks: the loss and the system's metrics averaged over ranks, "grad_norm",
          "learning_rate", "loss_scale", "skipped", "troubled_steps"; and, summed over ranks, "requests" [2] and the
          system's partial metrics [2].
        """
        state, recipe = self._state, self._recipe
        key = self._key.fold(state.step)
        if recipe.max_rollbacks:
            key = key.fold("rollbacks", state.rollbacks)  # the same steps again, with other noise
        scale = state.loss_scale.scale if state.loss_scale else tf.constant(1.0)
        metrics, partial, gradients, settle = self._loss_and_gradients(batch, key, scale)
        gradients = self._ranks.average_gradients(gradients, recipe.wire_dtype, recipe.gradient_groups)

        # One small reduction carries all that the ranks must agree on.
        names = sorted(metrics)
        values = tf.stack([metrics[name] for name in names])
        pairs = [partial[name] for name in sorted(partial)]  # of [2]
        loss_is_bad = tf.cast(~tf.math.is_finite(metrics["loss"]), tf.float32)
        summed = self._ranks.sum(tf.concat([[loss_is_bad], requests, values, *pairs], 0))
        loss_is_finite = summed[0] == 0.0
        end = 3 + len(names)
        averaged = dict(zip(names, tf.unstack(summed[3:end] / self._ranks.size, len(names)), strict=True))
        counted = {name: summed[end + 2 * place : end + 2 * place + 2] for place, name in enumerate(sorted(partial))}

        static_scale = recipe.loss_scale is not None and not recipe.loss_scale.dynamic
        clipped = clip_by_global_norm(
            gradients,
            recipe.max_grad_norm,
            scale=1.0 / scale if state.loss_scale else 1.0,
            epsilon=recipe.clip_epsilon,
            non_finite="clamp" if static_scale else recipe.non_finite,
        )
        norm_is_finite = tf.math.is_finite(clipped.norm)
        take = loss_is_finite & clipped.usable
        if recipe.max_update_norm:
            take &= clipped.norm < recipe.max_update_norm
        learning_rate = recipe.learning_rate(state.step if recipe.skipped_steps_count else state.updates)

        # No tf.cond: its branches would take every gradient, weight, moment and average as an input each, and with a
        # thousand variables building them would take longer than the rest of the step.
        state.optimizer.apply(clipped.gradients, learning_rate, take)
        for average in state.averages:
            average.update(take)
        for function in settle:
            function(take)
        skipped = tf.cast(~take, tf.int64)
        # An overflow is only trouble when the loss scale can no longer give way.
        overflow = ~norm_is_finite
        if recipe.loss_scale and recipe.loss_scale.dynamic:
            overflow &= scale <= recipe.loss_scale.minimum
        troubled = (skipped > 0) | overflow
        state.troubled_steps.assign(tf.where(troubled, state.troubled_steps + 1, 0))
        state.skipped_steps.assign_add(skipped)
        if state.loss_scale:
            state.loss_scale.update(loss_is_finite, norm_is_finite)
        state.step.assign_add(1)
        return (
            averaged
            | counted
            | {
                "grad_norm": clipped.norm,
                "learning_rate": learning_rate,
                "loss_scale": scale,
                "skipped": tf.cast(skipped, tf.float32),
                "troubled_steps": tf.cast(state.troubled_steps, tf.float32),
                "requests": summed[1:3],
            }
        )

    def _loss_and_gradients(
        self, batch, key, scale
    ) -> tuple[Metrics, Metrics, list[tf.Tensor], list[Callable[[tf.Tensor], None]]]:
        """Means over this rank's batch, (sum, number) of partial metrics, gradients of the scaled objective, and what
        is to be told whether the step counts.

        Gradients and metrics of microbatches are averaged over the images. Or the gradients are added, and the metrics
        are means of the microbatches', whatever their sizes: see `Recipe.microbatches_add`.
        """
        metrics: Metrics = {}
        partial: Metrics = {}
        gradients: list[tf.Tensor] = []
        settle: list[Callable[[tf.Tensor], None]] = []
        for part in self._parts:
            rows = {name: value[part] for name, value in batch.items()}
            with tf.GradientTape() as tape:
                loss = self._system.loss(rows, key.skip(part.start), training=True)
                objective = loss.objective * scale
            if loss.settle is not None:
                settle.append(loss.settle)
            if loss.observations:
                self._system.observe(self._of_all_ranks(loss.observations))
            new = tape.gradient(objective, self._variables, unconnected_gradients="zero")
            weight = share = (part.stop - part.start) / self._recipe.batch_size
            if self._recipe.microbatches_add:
                weight, share = 1.0, 1.0 / len(self._parts)
            _add(gradients, [tf.convert_to_tensor(gradient) for gradient in new], weight)
            _accumulate(metrics, {"loss": loss.objective, **loss.metrics}, share)
            _accumulate(partial, loss.partial_metrics, 1.0)
        return metrics, partial, gradients, settle

    def _of_all_ranks(self, observations: Metrics) -> Metrics:
        """The rows of every rank, in the order of ranks. One collective operation carries them all."""
        names = sorted(observations)
        columns = tf.stack([tf.cast(observations[name], tf.float64) for name in names], axis=1)  # [B, values]
        gathered = tf.unstack(self._ranks.concatenate(columns), len(names), axis=1)
        return {name: tf.cast(value, observations[name].dtype) for name, value in zip(names, gathered, strict=True)}


def _add(totals: list[tf.Tensor], tensors: list[tf.Tensor], weight: float) -> None:
    """Adds `tensors`, times `weight`, to `totals`, which may be empty."""
    weighted = tensors if weight == 1.0 else [tensor * weight for tensor in tensors]
    totals[:] = [total + item for total, item in zip(totals, weighted, strict=True)] if totals else weighted


def _accumulate(totals: Metrics, values: Metrics, weight: float) -> None:
    for name, value in values.items():
        weighted = tf.cast(value, tf.float32) * weight
        totals[name] = totals[name] + weighted if name in totals else weighted


def _parts(batch_size: int, microbatch: int, accumulation: int) -> list[slice]:
    """The rows of each microbatch."""
    if microbatch and accumulation > 1:
        raise ValueError(
            f"--grad_accumulation={accumulation} and microbatches of {microbatch} images both split the batch: drop one"
        )
    if batch_size % accumulation:
        raise ValueError(
            f"the batch of {batch_size} images per rank cannot be split in {accumulation} equal parts: "
            "choose a --grad_accumulation that divides it"
        )
    size = microbatch or batch_size // accumulation
    return [slice(start, min(start + size, batch_size)) for start in range(0, batch_size, size)]
