"""Networks small enough for tests, with weights as far from their initial values as training would bring them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfgen.systems.ebm.catalog import network_shape
from tfgen.systems.ebm.networks import EnergyNetwork


def network(kind: str = "ResNet32", filters: int = 3, seed: int = 0, **settings) -> EnergyNetwork:
    """A network in which nothing is zero, as half of the kernels of fresh blocks nearly are."""
    built = EnergyNetwork(network_shape(kind, filters, **settings), seed)
    generator = np.random.RandomState(seed + 1)
    for variable in built.trainable_variables:
        variable.assign_add(generator.normal(0, 0.05, variable.shape).astype(np.float32))
    return built


def images(of: EnergyNetwork, count: int = 2, seed: int = 0) -> tf.Tensor:
    """float32 in [0, 1], of the size that the network reads."""
    shape = of.shape
    pixels = np.random.RandomState(seed).uniform(size=[count, shape.side, shape.side, shape.channels])
    return tf.constant(pixels, tf.float32)


def labels(of: EnergyNetwork, count: int = 2) -> tf.Tensor | None:
    """One-hot classes 0, 1, ...; None for an unconditional network."""
    columns = of.shape.label_columns
    return tf.one_hot(tf.range(count) % columns, columns) if columns else None
