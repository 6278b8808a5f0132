"""A small system and what its tasks work with: 8x8 grey images of random pixels in four classes."""

from __future__ import annotations

import pathlib

import numpy as np

from tfgen.data.arrays import ArraySource
from tfgen.data.source import ImageSpec, Source, Splits
from tfgen.randomness import Key
from tfgen.systems.base import TaskRun
from tfgen.systems.ebm.config import Config
from tfgen.systems.ebm.system import EnergyBasedModel
from tfgen.systems.ebm.tasks.options import EvaluateOptions

CLASSES = 4
SPEC = ImageSpec(8, 8, 1, CLASSES)


def system(cclass: bool = True, seed: int = 0, **settings) -> EnergyBasedModel:
    """A network with weights as far from their initial values as training would bring them."""
    config = Config(**{"dataset": "digits", "cclass": cclass, "num_filters": 4, "seed": seed} | settings)
    built = EnergyBasedModel(config, SPEC)
    generator = np.random.RandomState(seed + 1)
    for variable in built.network.trainable_variables:
        variable.assign_add(generator.normal(0, 0.3, variable.shape).astype(np.float32))
    return built


def source(count: int = 12, seed: int = 0, spec: ImageSpec = SPEC) -> Source:
    generator = np.random.RandomState(seed)
    images = generator.randint(0, 256, [count, *spec.shape]).astype(np.uint8)
    labels = np.arange(count) % CLASSES
    return ArraySource(images, f"pixels {seed}", labels=labels, num_classes=CLASSES)


def job(folder: pathlib.Path, batch_size: int = 4, images: Source | None = None) -> TaskRun:
    """A run folder with what a task reads there, and an empty folder for its files."""
    run = folder / "runs" / "pixels"
    outputs = run / "evaluation"
    outputs.mkdir(parents=True, exist_ok=True)
    (run / "flags.txt").write_text("--dataset=digits\n")
    test = source() if images is None else images
    splits = Splits(source(10, seed=1), test, test)
    return TaskRun(test, splits, str(folder), outputs, run, batch_size, Key.create(0, "task"))


def options(task: str, **values) -> EvaluateOptions:
    return EvaluateOptions(task=task, **values)
