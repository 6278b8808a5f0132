"""What a step of training needs of its images, made on the host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfgen.data.source import ImageSpec
from tfgen.randomness import StepDraws, host_generator
from tfgen.systems.ebm import preprocess
from tfgen.systems.ebm.config import Config


def labels_of(batch: Mapping[str, np.ndarray], config: Config, spec: ImageSpec) -> np.ndarray | None:
    """float32 [n, K] of a batch as a source gives it; None for an unconditional network."""
    columns = config.label_columns(spec)
    return np.eye(columns, dtype=np.float32)[batch["label"]] if columns else None


def prepared(
    batch: Mapping[str, np.ndarray], draws: StepDraws, config: Config, spec: ImageSpec
) -> dict[str, np.ndarray]:
    """float32 "image" and "start" [B, H, W, C], and "label" [B, K] where the network is conditional."""
    first = draws.rank * draws.batch_size
    scaling = preprocess.scaling_of(config.dataset)
    images, starts = [], []
    for row, image in enumerate(batch["image"], first):
        generator = host_generator(draws.seed, "ebm images", draws.step, row)
        images.append(preprocess.scaled(image, scaling, generator.uniform(size=image.shape), config.rescale))
        starts.append(preprocess.uniform_starts(generator.uniform(size=image.shape), config.rescale))
    labels = labels_of(batch, config, spec)
    return {"image": np.stack(images), "start": np.stack(starts)} | ({} if labels is None else {"label": labels})
