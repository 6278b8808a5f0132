"""Networks small enough for tests, with weights as far from their initial values as training would bring them."""

from __future__ import annotations

import numpy as np

from tfgen.data.arrays import ArraySource
from tfgen.data.source import ImageSpec
from tfgen.systems.vdvae.config import Config
from tfgen.systems.vdvae.system import VeryDeepVAE

SIDE = 8
SPEC = ImageSpec(SIDE, SIDE, 3)
SMALL = {
    "dataset": "photos",
    "enc_blocks": "8x1,8d2,4x1,4d4,1x1",
    "dec_blocks": "1x1,4m1,8m4",
    "width": 8,
    "zdim": 2,
    "num_mixtures": 2,
    "bottleneck_multiple": 0.5,
    "sample_batch": 4,
}
LAYERS = 3


def system(spec: ImageSpec = SPEC, **settings) -> VeryDeepVAE:
    """A network in which nothing is zero, as the last kernels of fresh bottlenecks are."""
    built = VeryDeepVAE(Config(**(SMALL | settings)), spec)
    generator = np.random.RandomState(3)
    for variable in built.network.trainable_variables:
        variable.assign_add(generator.normal(0, 0.15, variable.shape).astype(np.float32))
    return built


def images(count: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """uint8 [count, side, side, 3]."""
    return np.random.RandomState(seed).randint(0, 256, [count, side, side, 3]).astype(np.uint8)


def source(count: int) -> ArraySource:
    return ArraySource(images(count), "numbers")
