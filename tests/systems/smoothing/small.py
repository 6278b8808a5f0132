"""Networks small enough for tests, with weights as far from their initial values as training would bring them."""

from __future__ import annotations

import numpy as np

from tfgen.data.source import ImageSpec
from tfgen.systems.smoothing.config import Config, Stage
from tfgen.systems.smoothing.pixelcnn import PixelCNN
from tfgen.systems.smoothing.system import DistributionSmoothing

SPEC = ImageSpec(8, 12, 3)
SMALL = {"dataset": "photos", "nr_resnet": 1, "nr_filters": 6, "nr_logistic_mix": 2, "batch_size": 4, "sample_batch": 4}


def disturbed(network: PixelCNN, seed: int = 3) -> PixelCNN:
    """The network with other gains, directions and biases."""
    generator = np.random.RandomState(seed)
    for variable in network.trainable_variables:
        variable.assign_add(generator.normal(0, 0.15, variable.shape).astype(np.float32))
    return network


def system(stage: Stage = Stage.SMOOTHED, spec: ImageSpec = SPEC, **settings) -> DistributionSmoothing:
    built = DistributionSmoothing(Config(**(SMALL | {"runner": stage.value} | settings)), spec)
    disturbed(built.network)
    return built


def images(count: int, spec: ImageSpec = SPEC, seed: int = 0) -> np.ndarray:
    """uint8 [count, H, W, C]."""
    return np.random.RandomState(seed).randint(0, 256, [count, *spec.shape]).astype(np.uint8)
