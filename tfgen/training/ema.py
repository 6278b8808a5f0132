"""Exponential moving averages of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfgen.training.targets import Targets


class Ema(tf.Module):
    """One average of a set of variables: average <- average - (1 - decay) (average - variable).

    The averages start as copies of the variables; there is no bias correction. Polyak averaging in the form of
    `tf.train.ExponentialMovingAverage`.

    Args:
      decay: in [0, 1).
      warmup: use min(decay, (1 + n) / (10 + n)) for update n = 0, 1, ..., so that the initial weights are
        forgotten early on.
      rounded_rate: average <- decay average + (1 - decay) variable with decay and 1 - decay rounded to float32 one
        after the other, as PyTorch code with a float32 decay has it: at 0.9999 the variable weighs 0.017 % more.

    Attributes:
      averages: list of variables, in the order given to `build`.
      updates: int64 scalar, number of updates made (only with `warmup`).

    Raises:
      ValueError: `decay` outside its range, or `warmup` with `rounded_rate`.
    """

    def __init__(self, decay: float, warmup: bool = False, rounded_rate: bool = False):
        super().__init__(name="ema")
        if not 0 <= decay < 1:
            raise ValueError(
                f"decay is {decay}, expected at least 0 and less than 1 (0.999 remembers about 1000 updates)"
            )
        if warmup and rounded_rate:
            raise ValueError(
                "warmup and rounded_rate together: the rate of a warm-up changes with every update; drop one"
            )
        self.decay, self.warmup, self.rounded_rate = decay, warmup, rounded_rate
        self.averages: list[tf.Variable] = []
        self._targets = Targets(())
        self._swapped = False

    @property
    def targets(self) -> tuple[tf.Variable, ...]:
        """The variables that are averaged."""
        return self._targets.variables

    def build(self, variables: Sequence[tf.Variable]) -> None:
        """Creates the averages as copies of `variables`. Call it once, when those hold their initial values."""
        if self.averages:
            raise ValueError("these averages are built already: make a new Ema for other variables")
        self._targets = Targets.of(variables)
        self.averages = [
            tf.Variable(variable.read_value(), trainable=False, name=f"{variable.name.removesuffix(':0')}/ema")
            for variable in self.targets
        ]
        if self.warmup:
            self.updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="ema/updates")

    def update(self, take: tf.Tensor | None = None) -> None:
        """Moves every average towards its variable. Call it after each optimizer update (eagerly or traced).

        Args:
          take: bool scalar; where it is False nothing changes. None: always.
        """
        if self._swapped:
            raise ValueError("update() inside swapped_in(): leave the block first")
        if self.rounded_rate:
            decay = np.float32(self.decay)
            for average, variable in zip(self.averages, self.targets, strict=True):
                moved = decay * average + (np.float32(1.0) - decay) * variable
                average.assign(moved if take is None else tf.where(take, moved, average.read_value()))
            return
        forget = tf.constant(1.0 - self.decay, tf.float32)
        if self.warmup:
            count = tf.cast(self.updates, tf.float32)
            forget = tf.maximum(forget, 9.0 / (10.0 + count))  # 1 - (1 + n) / (10 + n), without the cancellation
            self.updates.assign_add(1 if take is None else tf.cast(take, tf.int64))
        if take is not None:
            forget = tf.where(take, forget, 0.0)  # average - 0 (average - variable) is the average, bit for bit
        for average, variable in zip(self.averages, self.targets, strict=True):
            average.assign_sub(forget * (average - variable))

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside the block the variables hold the averages, and the averages the variables' values.

        On leaving it, by an exception too, both hold again exactly what they held before. Save no checkpoint and
        make no update inside. Not for use inside `tf.function`.

        Raises:
          ValueError: inside another such block of this object, or inside `tf.function`.
        """
        if self._swapped:
            raise ValueError("swapped_in() inside swapped_in(): the averages are in place already")
        if not tf.executing_eagerly():
            raise ValueError("swapped_in() inside tf.function: enter the block first, then call the function")
        # References, not copies: assignment gives a variable a new buffer and leaves the old one to its readers.
        values = [(variable.read_value(), average.read_value()) for variable, average in self._pairs()]
        self._swapped = True
        try:
            for (variable, average), (raw, averaged) in zip(self._pairs(), values, strict=True):
                variable.assign(averaged)
                average.assign(raw)
            yield
        finally:
            for (variable, average), (raw, averaged) in zip(self._pairs(), values, strict=True):
                variable.assign(raw)
                average.assign(averaged)
            self._swapped = False

    def _pairs(self) -> Iterator[tuple[tf.Variable, tf.Variable]]:
        return zip(self.targets, self.averages, strict=True)
