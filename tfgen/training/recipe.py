"""What a system tells the training loop about how it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import tensorflow as tf


class Optimizer(Protocol):
    """A `tf.Module` whose variables are saved in every checkpoint."""

    def build(self, variables: Sequence[tf.Variable]) -> None:
        """Creates the slots, all at their initial values."""

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, take: tf.Tensor | None = None) -> None:
        """One update of the variables given to `build`. Gradients are float32, unscaled and clipped.

        Where `take` (bool scalar) is False nothing changes, whatever the gradients hold.
        """


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything the loop needs that is not mathematics of the model.

    Attributes:
      seed: the run's seed: order of the data, initial weights, noise.
      batch_size: images per rank and update.
      microbatch: images of a rank that are computed at a time, the last of a batch may be fewer; 0 for all.
      microbatches_add: the gradients of microbatches, each the mean over its own images, are added; otherwise they are
        averaged over the images, and the update is the same as without microbatches. So are metrics; with added
        gradients they are means of the microbatches' means.
      steps: updates after which the run ends by default.
      optimizer: an unbuilt `Optimizer`.
      learning_rate: function of the number of finished updates (int64 scalar) to a float32 scalar.
      max_grad_norm: global-norm clip; None or 0 for none (the norm is still reported).
      clip_epsilon: added to the norm before the clip divides by it.
      max_update_norm: a step whose gradient norm reaches it is skipped; None for no such limit.
      non_finite: what becomes of inf and NaN in gradients whose loss is finite: "zero" makes the update with the rest,
        "skip" skips the step. A non-finite loss always skips it.
      skipped_steps_count: whether `learning_rate` advances on skipped steps, too.
      ema_decays: decays of the averaged weights; evaluation and sampling use the first unless told otherwise. Empty for
        none.
      ema_rounded_rate: see `Ema`.
      loss_scale: None, or the `LossScale` settings of float16 compute.
      log_every, eval_every, save_every, sample_every: intervals in steps; 0 for only at the end.
      every_step: metrics that are also recorded for each single step, in `steps.jsonl`.
      max_rollbacks: how often a run, instead of being stopped for skipping too many steps in a row, goes back to its
        newest checkpoint, and on with other random numbers on the device; None for systems that never do.
      advice: what to try when a run was stopped for that.
      keep_every: checkpoints at multiples of it are kept for ever; 0 for none.
      initial_evaluation, initial_samples: also before the first step of a process.
      stop_before_training: end after the initial side jobs.
      eval_split: "train", "valid" or "test", the split of the evaluations.
      restore_path: checkpoint of the original code to begin from when the run has none; "" for none.
      sample_count: images of the sample grid; 0 for neither grids nor pictures.
      picture_images: images of the evaluation split that `System.pictures` gets; 0 for no such pictures.
      wire_dtype: dtype of gradients on the wire between ranks.
      gradient_groups: indices of the network's trainable variables whose gradients are reduced together, in the
        order in which they are sent; None for one group. Only speed depends on it.
    """

    seed: int
    batch_size: int
    steps: int
    optimizer: Optimizer
    learning_rate: Callable[[tf.Tensor], tf.Tensor]
    microbatch: int = 0
    microbatches_add: bool = False
    max_grad_norm: float | None = None
    clip_epsilon: float = 0.0
    max_update_norm: float | None = None
    non_finite: Literal["zero", "skip"] = "zero"
    skipped_steps_count: bool = False
    ema_decays: tuple[float, ...] = ()
    ema_rounded_rate: bool = False
    loss_scale: LossScaleSettings | None = None
    log_every: int = 100
    every_step: tuple[str, ...] = ()
    max_rollbacks: int | None = None
    advice: str = "look at the data of these steps, lower --lr or lengthen the warm-up"
    eval_every: int = 0
    save_every: int = 0
    keep_every: int = 0
    sample_every: int = 0
    sample_count: int = 16
    picture_images: int = 0
    initial_evaluation: bool = False
    initial_samples: bool = False
    stop_before_training: bool = False
    eval_split: str = "valid"
    restore_path: str = ""
    wire_dtype: tf.DType = tf.float32
    gradient_groups: tuple[tuple[int, ...], ...] | None = None


@dataclasses.dataclass(frozen=True)
class LossScaleSettings:
    """Loss scaling for float16 compute.

    Attributes:
      initial: scale at the first step of a run.
      minimum: the scale is never halved from at or below this value.
      dynamic: grow on good steps and halve on overflow; otherwise `initial` throughout.
      growth: factor of a good step.
      loss_counts: halve, too, where the loss itself is not finite; otherwise that leaves the scale alone.
    """

    initial: float = 2.0**16
    minimum: float = 2.0**10
    dynamic: bool = True
    growth: float = 1.0003466337  # doubles in 2000 good steps
    loss_counts: bool = False
