"""Runs for the tests of tasks: small networks, images in memory, a folder for the results."""

from __future__ import annotations

import pathlib

import numpy as np

from tfgen.data.arrays import ArraySource
from tfgen.data.source import ImageSpec, Splits
from tfgen.randomness import Key
from tfgen.systems.base import TaskRun
from tfgen.systems.ebm.config import Config
from tfgen.systems.ebm.system import EnergyBasedModel

SIDE, CLASSES = 8, 3


def system(channels: int = 1, side: int = SIDE, **settings) -> EnergyBasedModel:
    """Conditional on three classes unless told otherwise: MnistNet for grey images, ResNet32 for colours."""
    chosen = {"dataset": "digits" if channels == 1 else "colours", "cclass": True, "num_filters": 2, "filters": 2}
    run = EnergyBasedModel(Config(**chosen | settings), ImageSpec(side, side, channels, CLASSES))
    generator = np.random.RandomState(0)
    for variable in run.network.trainable_variables:
        # Away from the beginning, where half of the kernels of a residual network are nearly zero.
        variable.assign_add(generator.normal(0, 0.05, variable.shape).astype(np.float32))
    return run


def source(name: str, count: int, run: EnergyBasedModel, seed: int = 0) -> ArraySource:
    images = np.random.RandomState(seed).randint(0, 256, [count, *run.spec.shape]).astype(np.uint8)
    return ArraySource(images, name, labels=np.arange(count) % CLASSES, num_classes=CLASSES)


def job(of: EnergyBasedModel, folder: pathlib.Path, count: int = 24, batch_size: int = 10, **others) -> TaskRun:
    """`count` images in the training and the test split, other ones. The folder is that of the run and the results."""
    train, test = source("train", count, of, 1), source("test", count, of, 2)
    return TaskRun(test, Splits(train, test, test), "data", folder, folder, batch_size, Key.create(3, "task"), **others)
