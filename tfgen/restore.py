"""A trained system from a run folder: all that a command needs is `--run=DIR`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfgen import runtime
from tfgen.data.source import Splits
from tfgen.settings import Settings, SettingsError, read_run
from tfgen.systems import load
from tfgen.systems.base import System
from tfgen.training.checkpoints import Checkpoint, CheckpointError
from tfgen.training.ema import Ema
from tfgen.training.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Restored:
    """A system with trained weights.

    Attributes:
      checkpoint: where they came from.
      weights: "ema" or "raw".
      label: the same as part of a file name, with the rate where the average is not the first of the run.
    """

    system: System
    checkpoint: Checkpoint
    weights: str
    label: str

    @property
    def description(self) -> str:
        return f"{self.label} weights of step {self.checkpoint.step:,}"

    def open_data(self, settings: Settings, data_dir: str | None = None, options: Any = None) -> Splits:
        """Opens the data sets of the run, below `data_dir` if they have moved.

        Args:
          options: of the command, for `System.check_data`.

        Raises:
          ValueError: their images have another shape than those of the run, or do not go with the model.
        """
        splits = self.system.open_data(settings.config, settings.run.data_dir if data_dir is None else data_dir)
        if splits.spec.shape != self.system.spec.shape:
            raise ValueError(
                f"the run models images of {self.system.spec.shape}, {splits.train.name} has {splits.spec.shape}"
            )
        self.system.check_data(splits.spec, options)
        return splits


def restore(
    settings: Settings,
    folder: str,
    weights: str = "ema",
    step: int | None = None,
    options: Any = None,
    ema_rate: float | None = None,
) -> Restored:
    """Builds the system of a run, and the systems it works with, and reads their weights from checkpoints.

    Args:
      settings: of the run.
      weights: "ema" for the averaged weights (the raw ones where the run keeps no average), or "raw".
      step: of the checkpoint; None for the newest good one.
      options: of the command, for `System.companion_runs`; companions have the weights of their newest checkpoints.
      ema_rate: decay of the average that is wanted, of a run that keeps several; None for its first.

    Raises:
      CheckpointError: there is no (good) checkpoint.
      SettingsError: the run has no average with that decay.
    """
    checkpoints = RunFolder(folder).checkpoints()
    checkpoint = checkpoints.newest() if step is None else checkpoints.at(step)
    if checkpoint is None:
        raise CheckpointError(
            f"the run {folder} has no checkpoint yet: train it first (python -m tfgen.train --run={folder})"
        )
    system_class = load(settings.system)
    runtime.set_precision(settings.run.precision, system_class.half_precision(settings.config))
    system = system_class(settings.config, checkpoint.spec)
    decays = system.recipe(train_size=1_000_000, ranks=1).ema_decays
    chosen = _place_of(ema_rate, decays, weights, folder)
    decays = decays if weights == "ema" else ()
    parts: dict[str, Any] = {"system_state": system.state}
    if system.rank_state.variables:
        parts["rank_state"] = system.rank_state
    read_network(system.network, checkpoint, decays, parts, chosen)
    system.accept_companions(
        {
            role: restore(read_run(run), run, weights).system
            for role, run in system_class.companion_runs(settings.config, options).items()
        }
    )
    kind = "ema" if decays else "raw"
    return Restored(system, checkpoint, kind, f"{kind}_{decays[chosen]}" if chosen else kind)


def _place_of(ema_rate: float | None, decays: Sequence[float], weights: str, folder: str) -> int:
    """Which of the averages with `decays` the flag `--ema_rate` of a command names. Raises `SettingsError`."""
    if ema_rate is None:
        return 0
    if weights != "ema":
        raise SettingsError(f"--ema_rate={ema_rate} chooses an average, and --weights={weights} none: drop one")
    if ema_rate not in decays:
        rates = ", ".join(map(str, decays))
        has = f"has those of {rates}: choose one of them" if decays else "keeps none: leave it out"
        raise SettingsError(f"--ema_rate={ema_rate}: no such average, the run {folder} {has}")
    return list(decays).index(ema_rate)


def read_network(
    network: tf.keras.Model,
    checkpoint: Checkpoint,
    decays: Sequence[float],
    others: Mapping[str, Any] | None = None,
    chosen: int = 0,
) -> None:
    """Reads the weights of a checkpoint.

    Args:
      network: as the run of the checkpoint has it.
      decays: of the averages that the run keeps; with any, the weights are those of one of them. None for raw weights.
      others: further objects to read, by their names in a checkpoint.
      chosen: which average it is.

    Raises:
      CheckpointError: it holds another network.
    """
    averages = [Ema(decay) for decay in decays]
    for average in averages:
        average.build(network.trainable_variables)
    saved = tf.train.Checkpoint(network=network, averages=averages, **(others or {}))
    try:
        saved.read(checkpoint.prefix).assert_existing_objects_matched().expect_partial()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise CheckpointError(f"{checkpoint.path} does not hold the model of its settings: {error}") from error
    if averages:
        for variable, average in zip(network.trainable_variables, averages[chosen].averages, strict=True):
            variable.assign(average)
