"""TensorFlow's process-wide switches, set once by a command before anything is built."""

from __future__ import annotations

import logging

import tensorflow as tf

from tfgen.data.source import Splits
from tfgen.systems.base import System
from tfgen.training.recipe import Recipe


def configure(deterministic: bool) -> None:
    """Makes every operation give the same bits every time (`deterministic`), at some cost on a GPU."""
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def resolve_precision(asked: str, half: bool, gpu: bool) -> tuple[str, str]:
    """The Keras mixed-precision policy for `--precision`, and a sentence to print ("" when it is as asked).

    Args:
      asked: "auto" or the name of a policy.
      half: the settings of the system ask for 16-bit compute.
      gpu: there is a GPU.
    """
    if asked != "auto":
        return asked, ""
    if not half:
        return "float32", ""
    if gpu:
        return "mixed_float16", ""
    return "float32", (
        "these settings ask for half precision, but there is no GPU: computing in float32 "
        "(--precision=mixed_bfloat16 or mixed_float16 forces 16 bits)"
    )


def set_precision(asked: str, half: bool, announce: bool = True) -> None:
    """Sets the global Keras policy; models built from here on compute in it."""
    policy, note = resolve_precision(asked, half, bool(tf.config.list_logical_devices("GPU")))
    if note and announce:
        logging.warning("%s", note)
    tf.keras.mixed_precision.set_global_policy(policy)


def summary(system: System, splits: Splits, recipe: Recipe, ranks: int) -> str:
    """A few lines on what will be trained on what, for how long."""
    parameters = sum(variable.shape.num_elements() for variable in system.network.trainable_variables)
    global_batch = recipe.batch_size * ranks
    epochs = recipe.steps * global_batch / splits.train.epoch_size
    return "\n".join(
        [
            f"system: {system.name}, {parameters:,} parameters, "
            f"compute in {tf.keras.mixed_precision.global_policy().compute_dtype}",
            f"data: {splits.train.name} ({len(splits.train):,} images), {splits.valid.name} ({len(splits.valid):,}), "
            f"{splits.test.name} ({len(splits.test):,}); {splits.spec}",
            f"steps: {recipe.steps:,} of {global_batch} images ({recipe.batch_size} on each of {ranks} rank(s)), "
            f"{epochs:,.1f} epochs",
        ]
    )


def parameter_table(system: System) -> str:
    """One line for each trainable variable: name, shape, number of entries."""
    rows = [(variable.name, variable.shape) for variable in system.network.trainable_variables]
    return "\n".join(f"  {name:<48} {tuple(shape)!s:<16} {shape.num_elements():>12,}" for name, shape in rows)
