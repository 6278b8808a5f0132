"""One training step as one compiled function."""

from __future__ import annotations

import tensorflow as tf

from tfgen.distribute import Ranks
from tfgen.randomness import Key
from tfgen.systems.base import System
from tfgen.training.gradients import clip_by_global_norm
from tfgen.training.recipe import Recipe
from tfgen.training.state import TrainState

SAVE, STOP = 0, 1  # what a rank may ask of all ranks, as columns of the `requests` vector


class TrainStep:
    """Forward, backward, reduction over ranks, clipping, update and averaging.

    A step whose loss is not finite on any rank, or whose gradient norm reaches `recipe.max_update_norm`,
    changes no weight, average or moment on any rank, and is counted.

    Args:
      accumulation: microbatches per update; the batch is split in this many equal parts.
    """

    def __init__(self, system: System, recipe: Recipe, state: TrainState, ranks: Ranks, accumulation: int = 1):
        if recipe.batch_size % accumulation:
            raise ValueError(
                f"the batch of {recipe.batch_size} images per rank cannot be split in {accumulation} equal parts: "
                "choose a --grad_accumulation that divides it"
            )
        self._system, self._recipe, self._state, self._ranks = system, recipe, state, ranks
        self._accumulation = accumulation
        self._variables = system.network.trainable_variables
        self._key = Key.create(recipe.seed, "train", first_sample=ranks.rank * recipe.batch_size)

    # Nothing here depends on the value of a tensor, but for one explicit tf.cond: AutoGraph would only cost time.
    @tf.function(reduce_retracing=True, autograph=False)
    def __call__(self, batch: dict[str, tf.Tensor], requests: tf.Tensor) -> dict[str, tf.Tensor]:
        """Takes one step.

        Args:
          batch: this rank's prepared batch; first axis [batch_size].
          requests: float32 [2], nonzero where this rank asks for SAVE or STOP.

        Returns:
          float32 scalars, equal on all ranks: the loss and the system's metrics averaged over ranks, "grad_norm",
          "learning_rate", "loss_scale", "skipped", "troubled_steps", and "requests" [2] summed over ranks.
        """
        state, recipe = self._state, self._recipe
        key = self._key.fold(state.step)
        scale = state.loss_scale.scale if state.loss_scale else tf.constant(1.0)
        metrics, gradients = self._loss_and_gradients(batch, key, scale)
        gradients = self._ranks.average_gradients(gradients, recipe.wire_dtype, recipe.gradient_groups)

        # One small reduction carries all that the ranks must agree on.
        names = sorted(metrics)
        values = tf.stack([metrics[name] for name in names])
        loss_is_bad = tf.cast(~tf.math.is_finite(metrics["loss"]), tf.float32)
        summed = self._ranks.sum(tf.concat([[loss_is_bad], requests, values], 0))
        loss_is_finite = summed[0] == 0.0
        averaged = dict(zip(names, tf.unstack(summed[3:] / self._ranks.size, len(names)), strict=True))

        static_scale = recipe.loss_scale is not None and not recipe.loss_scale.dynamic
        clipped = clip_by_global_norm(
            gradients,
            recipe.max_grad_norm,
            scale=1.0 / scale,
            epsilon=recipe.clip_epsilon,
            non_finite="clamp" if static_scale else recipe.non_finite,
        )
        norm_is_finite = tf.math.is_finite(clipped.norm)
        take = loss_is_finite & clipped.usable
        if recipe.max_update_norm:
            take &= clipped.norm < recipe.max_update_norm
        learning_rate = recipe.learning_rate(state.step if recipe.skipped_steps_count else state.updates)

        def update() -> tf.Tensor:
            state.optimizer.apply(clipped.gradients, learning_rate)
            for average in state.averages:
                average.update()
            return tf.constant(0, tf.int64)

        skipped = tf.cond(take, update, lambda: tf.constant(1, tf.int64))
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
        return averaged | {
            "grad_norm": clipped.norm,
            "learning_rate": learning_rate,
            "loss_scale": scale,
            "skipped": tf.cast(skipped, tf.float32),
            "troubled_steps": tf.cast(state.troubled_steps, tf.float32),
            "requests": summed[1:3],
        }

    def _loss_and_gradients(self, batch, key, scale) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        """Means over this rank's batch; gradients of the scaled objective."""
        size = self._recipe.batch_size // self._accumulation
        metrics: dict[str, tf.Tensor] = {}
        gradients: list[tf.Tensor] = []
        for part in range(self._accumulation):
            rows = {name: value[part * size : (part + 1) * size] for name, value in batch.items()}
            with tf.GradientTape() as tape:
                loss = self._system.loss(rows, key.skip(part * size), training=True)
                objective = loss.objective * scale
            new = [
                tf.convert_to_tensor(gradient)
                for gradient in tape.gradient(objective, self._variables, unconnected_gradients="zero")
            ]
            gradients = new if part == 0 else [total + item for total, item in zip(gradients, new, strict=True)]
            for name, value in {"loss": loss.objective, **loss.metrics}.items():
                value = tf.cast(value, tf.float32) / self._accumulation
                metrics[name] = metrics[name] + value if part else value
        return metrics, [gradient / self._accumulation for gradient in gradients]
