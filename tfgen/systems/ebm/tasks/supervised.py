"""An energy network trained further as a classifier, which is kept apart from the checkpoints of its run."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen.data.source import Source
from tfgen.randomness import host_generator
from tfgen.settings import SettingsError
from tfgen.systems.ebm.prepare import levels_of
from tfgen.systems.ebm.tasks.classes import class_energies, whole_batches
from tfgen.training.checkpoints import Checkpoints
from tfgen.training.optimizers import Adam
from tfgen.training.run_folder import RunFolder

if TYPE_CHECKING:
    from tfgen.systems.ebm.system import EnergyBasedModel

FOLDER = "model_supervised"  # in the folder of the run
_LEARNING_RATE, _BETA1, _BETA2 = 1e-3, 0.9, 0.999


def train(system: EnergyBasedModel, source: Source, batch_size: int, seed: int) -> dict[str, float]:
    """One epoch of Adam on the cross-entropy of the logits -E(x, k), summed over a batch; changes the network.

    Args:
      seed: of the order of the images.

    Returns:
      "train_loss", the mean cross-entropy of an image during the epoch.

    Raises:
      SettingsError: the cross-entropy stopped being a number.
    """
    network, classes = system.network, system.label_columns
    optimizer = Adam(_BETA1, _BETA2)
    variables = list(network.trained.values())
    optimizer.build(variables)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *system.spec.shape], tf.float32),
            tf.TensorSpec([None, classes], tf.float32),
        ],
        autograph=False,
    )
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            weights = network.normalized()
            scaled = system.config.rescale * images
            logits = -class_energies(lambda x, y: system.energy(weights, x, y), scaled, classes)
            loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
        take = tf.math.is_finite(loss)
        optimizer.apply(tape.gradient(loss, variables), _LEARNING_RATE, take)
        network.store_vectors(weights, take)
        return loss

    order = source.epoch_order(host_generator(seed, "images of labelfinetune"))
    losses: list[tf.Tensor] = []
    count = 0
    for batch in whole_batches(source, batch_size, order):
        losses.append(step(system.scaled(levels_of(batch)), system.labels_of(batch)))
        count += len(batch["image"])
    total = np.array([loss.numpy() for loss in losses], np.float64)
    if not np.isfinite(total).all():
        raise SettingsError(
            f"--task=labelfinetune: the loss was not a number in {int((~np.isfinite(total)).sum())} of {len(total)} "
            "steps, so that nothing was saved: begin at another checkpoint, --checkpoint_step=N"
        )
    return {"train_loss": float(total.sum() / count)}


def save(system: EnergyBasedModel, run: pathlib.Path) -> None:
    """Writes the network to <run>/model_supervised, in place of the one that is there; whole or not at all.

    Raises:
      CheckpointError: it could not be written.
    """
    saved = Checkpoints(run / FOLDER, keep_last=1)
    # Each training has a number of its own: the earlier one stays until the new one is whole.
    number = max(saved.steps(), default=0) + 1
    saved.save(number, system.network, system.spec, RunFolder(run).flags_path.read_text(encoding="utf-8"))


def restore(system: EnergyBasedModel, run: pathlib.Path) -> None:
    """Reads what `save` has written into the network.

    Raises:
      SettingsError: nothing has been saved.
      CheckpointError: it is damaged.
    """
    found = Checkpoints(run / FOLDER).newest()
    if found is None:
        raise SettingsError(
            f"--notrain reads the classifier {run / FOLDER}, which is not there: run --task=labelfinetune --train first"
        )
    tf.train.Checkpoint(system.network).read(found.prefix).assert_existing_objects_matched()
