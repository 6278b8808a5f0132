"""Energies of images: of a run's own, and against those of images it has not learned (Du & Mordatch,
arXiv:1903.08689, section 4.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen.data.pipeline import EvaluationBatches
from tfgen.files import atomic_path
from tfgen.metrics.auroc import auroc
from tfgen.randomness import Key, host_generator
from tfgen.settings import SettingsError
from tfgen.systems.base import TaskRun
from tfgen.systems.ebm import preprocess
from tfgen.systems.ebm.prepare import levels_of
from tfgen.systems.ebm.tasks import other_images
from tfgen.systems.ebm.tasks.classes import (
    Energy,
    class_count,
    energy_of,
    limited,
    lowest_energy,
    open_other,
    own_images,
    whole_batches,
)
from tfgen.systems.ebm.tasks.options import EvaluateOptions

if TYPE_CHECKING:
    from tfgen.systems.ebm.system import EnergyBasedModel

# Flags of other images, and what they stand for; without any of them they are interpolations of the run's own.
_MIXES = {
    "svhnmix": "svhn",
    "cifar100mix": "cifar100",
    "texturemix": "textures",
    "randommix": "random",
    "uniformmix": "uniform",
    "constantmix": "constant",
}


def energyeval(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """Mean and standard deviation of the energies of test and training images with their own labels.

    All of them are written as test_ebm.npy and train_ebm.npy, float32 [N], in stored order. With --svhn they are those
    of the images of SVHN, as test_ebm.npy alone. With --images they are the first ones of each.
    """
    splits = {"test": job.splits.test, "train": job.splits.train}
    sources = {"test": own_images(system, options, job)} if options.svhn else splits
    columns = system.label_columns

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *system.spec.shape], tf.float32),
            tf.TensorSpec([None, columns], tf.float32),
        ],
        autograph=False,
    )
    def energies_of(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return energy_of(system, options.advance_vectors)(images, labels)[:, 0]

    results: dict[str, float] = {}
    for name, source in sources.items():
        parts = []
        for batch in EvaluationBatches(limited(source, job), job.batch_size):
            images = system.scaled(levels_of(batch))
            labels = system.labels_of(batch)
            parts.append(energies_of(images, np.zeros([len(images), 0], np.float32) if labels is None else labels))
        energies = np.concatenate([part.numpy() for part in parts])
        with atomic_path(job.folder / f"{name}_ebm.npy") as temporary:
            np.save(temporary, energies)
        exact = energies.astype(np.float64)
        results |= {f"energy_{name}": float(exact.mean()), f"energy_{name}_sd": float(exact.std())}
        results[f"images_{name}"] = len(exact)
    return results


def mixenergy(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """How well low energies tell the run's images from others: the area under the curve of the scores -E.

    The energy of a conditional network is the lowest one of all classes. Scores are written as pos.npy (the run's own)
    and neg.npy (others), float32 [N].

    Returns:
      "auroc"; means "energy_in" and "energy_out", of the run's images and of others; numbers "images_in", "images_out".
    """
    classes = class_count(system, "mixenergy")
    source = own_images(system, options, job)

    @tf.function(input_signature=[tf.TensorSpec([None, *system.spec.shape], tf.float32)], autograph=False)
    def scores_of(images: tf.Tensor) -> tf.Tensor:
        return scores(energy_of(system, options.advance_vectors), images, classes)

    inside: list[np.ndarray] = []
    outside: list[np.ndarray] = []
    others = _others(system, options, job)
    order = host_generator(options.seed, "images of mixenergy").permutation(len(source))
    first = 0
    for batch in whole_batches(source, job.batch_size, order):
        images = _own_scaled(system, options, job, levels_of(batch), first)
        inside.append(scores_of(images).numpy())
        other = others(images, first)
        if other is not None:
            outside.append(scores_of(other).numpy())
        first += len(images)
    positive, negative = np.concatenate(inside), np.concatenate(outside)
    for name, values in (("pos", positive), ("neg", negative)):
        with atomic_path(job.folder / f"{name}.npy") as temporary:
            np.save(temporary, values)
    return {
        "auroc": auroc(positive, negative),
        "energy_in": float(-positive.mean(dtype=np.float64)),
        "energy_out": float(-negative.mean(dtype=np.float64)),
        "images_in": len(positive),
        "images_out": len(negative),
    }


def scores(energy: Energy, images: tf.Tensor, classes: int) -> tf.Tensor:
    """Minus the lowest energy of images [B, ...] with any of the classes, [B]; `classes` is 0 where there are none."""
    return -lowest_energy(energy, images, classes)


def _own_scaled(
    system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun, images: np.ndarray, first: int
) -> np.ndarray:
    """float32 of the run's own images, or of those that --svhn puts in their place; `first` numbers the first image."""
    if not options.svhn:
        return system.scaled(images)
    return _other_scaled(system, options, "svhn", job.key.fold("own images").skip(first), images)


def _other_scaled(
    system: EnergyBasedModel, options: EvaluateOptions, name: str, key: Key, images: np.ndarray
) -> np.ndarray:
    own, theirs = preprocess.scaling_of(system.config.dataset), preprocess.scaling_of(name)
    return other_images.scaled(images, system.spec, own, theirs, key if options.original_scaling else None)


def _others(
    system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun
) -> Callable[[np.ndarray, int], np.ndarray | None]:
    """What gives the other images for a batch of the run's own and the number of the first of them.

    None where a data set has no further batch. No image of a data set comes twice.
    """
    key = job.key.fold("other images")
    chosen = next((flag for flag in _MIXES if getattr(options, flag)), "")
    name = options.mix or _MIXES.get(chosen, "")
    if not name:
        return lambda images, first: other_images.interpolated(images)
    if chosen and name in other_images.NOISES:
        return lambda images, first: other_images.noise(name, key.skip(first), len(images), system.spec)
    if options.svhn and name == "svhn":
        raise SettingsError("--svhn and --svhnmix compare SVHN with itself: drop one of them")
    source = open_other(name, options, job.data_dir)
    order = host_generator(options.seed, "other images of mixenergy").permutation(len(source))

    def converted(images: np.ndarray, first: int) -> np.ndarray:
        return _other_scaled(system, options, name, key.skip(first), images)

    batches = other_images.batches(source, job.batch_size, order, converted)
    return lambda images, first: next(batches, None)
