"""Systems small enough for tests, with weights as far from their initial values as training would bring them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfgen.data.source import ImageSpec
from tfgen.randomness import Key
from tfgen.systems.diffusion.config import Config
from tfgen.systems.diffusion.system import ImprovedDiffusion

SIDE = 8
CLASSES = 3
SPEC = ImageSpec(SIDE, SIDE, 3)
LABELLED = ImageSpec(SIDE, SIDE, 3, CLASSES)
SMALL = {
    "dataset": "pictures",
    "image_size": SIDE,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "4",
    "num_heads": 2,
    "learn_sigma": True,
    "diffusion_steps": 20,
    "noise_schedule": "cosine",
    "batch_size": 4,
}
OF_CLASSES = {"class_cond": True, "num_classes": CLASSES}
SUPER_RESOLUTION = {"super_resolution": True, "large_size": SIDE, "small_size": 4}
KEY = Key.create(0, "test")


def config(**changes) -> Config:
    return Config(**(SMALL | changes))


def system(spec: ImageSpec = SPEC, **changes) -> ImprovedDiffusion:
    """A system in whose network nothing is zero, as the last kernels of fresh blocks are."""
    built = ImprovedDiffusion(config(**changes), spec)
    generator = np.random.RandomState(3)
    for variable in built.network.trainable_variables:
        variable.assign_add(generator.normal(0, 0.05, variable.shape).astype(np.float32))
    return built


def images(count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, SIDE, SIDE, 3]."""
    return np.random.RandomState(seed).randint(0, 256, [count, SIDE, SIDE, 3]).astype(np.uint8)


def batch(count: int, classes: int = 0) -> dict[str, tf.Tensor]:
    """A prepared batch."""
    columns = {"image": tf.constant(images(count))}
    if classes:
        columns["label"] = tf.constant(np.arange(count) % classes, tf.int32)
    return columns
