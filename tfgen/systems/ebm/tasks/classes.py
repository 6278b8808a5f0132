"""What the evaluations share: energies of images with every class, and batches in random order."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen.data.errors import DataError
from tfgen.data.source import Source, Subset
from tfgen.settings import SettingsError
from tfgen.systems.base import TaskRun
from tfgen.systems.ebm.objective import with_every_class
from tfgen.systems.ebm.tasks.options import EvaluateOptions

if TYPE_CHECKING:
    from tfgen.systems.ebm.system import EnergyBasedModel

# Energies [B, 1] of images float32 [B, ...] with labels float32 [B, K]; None for an unconditional network.
Energy = Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor]


def energy_of(system: EnergyBasedModel, advance: bool, high: float = 1.0) -> Energy:
    """The energy with weights that are normalised once, here.

    Args:
      advance: keep what that improves of the power iteration.
      high: of the range [0, high] of the images it is given, which are brought to the range of the run.
    """
    weights = system.normalized(advance=advance).stopped()
    factor = system.config.rescale / high

    def energy(images: tf.Tensor, labels: tf.Tensor | None) -> tf.Tensor:
        return system.energy(weights, images if factor == 1.0 else factor * images, labels)

    return energy


def class_count(system: EnergyBasedModel, task: str) -> int:
    """Classes that a network is conditioned on; 0 for an unconditional one.

    Raises:
      SettingsError: the labels are no classes.
    """
    if system.label_columns and not system.config.labels_are_classes:
        raise SettingsError(
            f"--task={task} needs classes to choose from: the labels of this run are numbers "
            f"(--{system.config.sprites_mode}); use a run "
            "conditioned on shapes, or an unconditional one"
        )
    return int(system.label_columns)


def class_energies(energy: Energy, images: tf.Tensor, classes: int) -> tf.Tensor:
    """Energies [B, K] of images [B, ...] with each class, all in one pass."""
    return tf.reshape(energy(*with_every_class(images, classes)), [-1, classes])


def lowest_energy(energy: Energy, images: tf.Tensor, classes: int) -> tf.Tensor:
    """Energies [B] of images [B, ...] with the class that gives the lowest one.

    One class after the other: a pass of all classes would be a thousand times as large on ImageNet.

    Args:
      classes: 0 for an unconditional network.
    """
    if not classes:
        return energy(images, None)[:, 0]
    count = tf.shape(images)[0]

    def of_class(index: tf.Tensor, lowest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        energies = energy(images, tf.one_hot(tf.fill([count], index), classes))
        return index + 1, tf.minimum(lowest, energies[:, 0])

    start = tf.constant(1), energy(images, tf.one_hot(tf.zeros([count], tf.int32), classes))[:, 0]
    _, lowest = tf.while_loop(lambda index, _: index < classes, of_class, start, parallel_iterations=1)
    return lowest


def own_images(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> Source:
    """The images a task is about: those asked for, or with --svhn as many of SVHN's.

    Raises:
      SettingsError: SVHN's do not fit the network.
    """
    if not options.svhn:
        return job.source
    source = open_other("svhn", options, job.data_dir)
    found, expected = source.spec, system.spec
    if found.shape != expected.shape or (system.label_columns and found.num_classes != system.label_columns):
        raise SettingsError(f"--svhn: its images are {found}, expected {expected} as of this run: leave it out")
    return limited(source, job)


def limited(source: Source, job: TaskRun) -> Source:
    """A source that is not the one asked for, with no more images than were asked for (--images)."""
    count = job.images
    if count is None or len(source) <= count:
        return source
    return Subset(source, np.arange(count), f"the first {count} images of {source.name}")


def open_other(name: str, options: EvaluateOptions, data_dir: str) -> Source:
    """Another data set, see `data.open_other`: of SVHN the test images, which the original means to take but does not.

    With --original_scaling, where images are to be those of the original, they are the training images.
    """
    # Here: these modules read files of every format.
    from tfgen.data import svhn
    from tfgen.systems.ebm import data

    if name == "svhn" and not options.original_scaling:
        return svhn.open_svhn(pathlib.Path(data_dir).expanduser(), "test")
    return data.open_other(name, data_dir)


def whole_batches(source: Source, batch_size: int, order: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Batches of images in the given order. As in the original those after the last whole batch are left out.

    Args:
      batch_size: images of a batch; all images are one batch where there are fewer.
      order: indices in the source, int64 [n].

    Raises:
      DataError: there is no image.
    """
    if not len(order):
        raise DataError(f"nothing to evaluate: {source.name} has no images; expected at least 1")
    size = min(batch_size, len(order))
    for first in range(0, len(order) - size + 1, size):
        yield source.read(order[first : first + size])
