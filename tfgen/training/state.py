"""Everything that a restart must bring back."""

from __future__ import annotations

import tensorflow as tf

from tfgen.systems.base import System
from tfgen.training.checkpoints import Checkpoint, CheckpointError
from tfgen.training.ema import Ema
from tfgen.training.loss_scale import LossScale
from tfgen.training.recipe import Recipe


class TrainState(tf.Module):
    """The variables of a run: what a checkpoint holds.

    Attributes:
      step: int64, batches taken from the data, skipped ones included. Progress is counted in it.
      skipped_steps: int64, updates left out because of a non-finite loss or a gradient norm above the limit.
      troubled_steps: int64, how many of the newest steps in a row were skipped or overflowed.
      rollbacks: int64, how often the run has gone back, None where the recipe's `max_rollbacks` is.
      network, optimizer, averages, loss_scale, system_state: see `Recipe` and `System`.
      rank_state: see `System`; None where it is empty. A checkpoint's is the first rank's, others have files of their
        own.
    """

    def __init__(self, system: System, recipe: Recipe):
        super().__init__()
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.skipped_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="skipped_steps")
        self.troubled_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="troubled_steps")
        self.rollbacks: tf.Variable | None = None
        if recipe.max_rollbacks is not None:
            self.rollbacks = tf.Variable(0, dtype=tf.int64, trainable=False, name="rollbacks")
        self.network = system.network
        self.optimizer = recipe.optimizer
        self.optimizer.build(self.network.trainable_variables)
        self.averages = [Ema(decay, rounded_rate=recipe.ema_rounded_rate) for decay in recipe.ema_decays]
        for average in self.averages:
            average.build(self.network.trainable_variables)
        self.loss_scale = LossScale(recipe.loss_scale) if recipe.loss_scale else None
        self.system_state = system.state
        # Absent where it is empty: checkpoints of other systems have no such part.
        self.rank_state = system.rank_state if system.rank_state.variables else None

    @property
    def updates(self) -> tf.Tensor:
        """int64, finished updates: what schedules count."""
        return self.step - self.skipped_steps

    @property
    def shared_variables(self) -> list[tf.Variable]:
        """All variables that are the same on every rank."""
        own = {variable.ref() for variable in (self.rank_state.variables if self.rank_state else ())}
        return [variable for variable in self.variables if variable.ref() not in own]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Reads every variable from a verified checkpoint.

        Raises:
          CheckpointError: the checkpoint holds other variables than this state.
        """
        try:
            status = tf.train.Checkpoint(self).read(checkpoint.prefix)
            status.assert_consumed()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            raise CheckpointError(
                f"{checkpoint.path} holds another model than these settings build: {error}. "
                f"Its own settings are in {checkpoint.path / 'flags.txt'}."
            ) from error
