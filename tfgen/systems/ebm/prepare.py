"""What a step of training needs of its images, made on the host.

Du & Mordatch, arXiv:1903.08689, released code. There the random numbers of an image depend on the clock; here on the
seed, the step and the image's row of the global batch, so that any number of ranks makes the same batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfgen.data.source import ImageSpec
from tfgen.randomness import StepDraws, host_generator
from tfgen.systems.ebm import preprocess, sprites
from tfgen.systems.ebm.config import Config


def labels_of(batch: Mapping[str, np.ndarray], config: Config, spec: ImageSpec) -> np.ndarray | None:
    """Labels as the network is given them, float32 [n, K]; None for an unconditional network.

    One-hot classes, or what the flags of dSprites make of its latent values (`sprites.MODES`).

    Args:
      batch: as a source gives it, with "label", int [n], or of sprites with "latents", [n, 6].
      spec: of the images.
    """
    columns = config.label_columns(spec)
    if not columns:
        return None
    if config.is_sprites:
        return sprites.MODES[config.sprites_mode].labels(batch["latents"]).astype(np.float32)
    return np.eye(columns, dtype=np.float32)[batch["label"]]


def levels_of(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pixels [n, H, W, C] of a batch as a source gives it: float32 where it has them unrounded, else uint8."""
    return batch["pixels"] if "pixels" in batch else batch["image"]


def prepared(
    batch: Mapping[str, np.ndarray], draws: StepDraws, config: Config, spec: ImageSpec
) -> dict[str, np.ndarray]:
    """Images, where chains begin, and labels.

    Images are cropped and mirrored (--augment), lose a square (--cutout), are scaled and get noise
    (`preprocess.scaled`), and are blended (--mixup) with others of the same rank, whose labels are not.

    Args:
      batch: as a source gives it, the rows that `draws` calls this rank's.
      spec: of the images.

    Returns:
      float32 "image" and "start" [B, H, W, C], and "label" [B, K] where the network is conditional.
    """
    first_row = draws.rank * draws.batch_size
    rows = [
        _prepared_row(image, host_generator(draws.seed, "ebm images", draws.step, row), config)
        for row, image in enumerate(levels_of(batch), first_row)
    ]
    images, starts = np.stack([image for image, _ in rows]), np.stack([start for _, start in rows])
    if config.mixup:
        shares = draws.mine(draws.generator("ebm mixup shares").beta(1.0, 1.0, draws.global_batch_size))
        order = host_generator(draws.seed, "ebm mixup order", draws.step, draws.rank).permutation(len(images))
        images = preprocess.mixed(images, shares, order)
    labels = labels_of(batch, config, spec)
    return {"image": images, "start": starts} | ({} if labels is None else {"label": labels})


def _prepared_row(
    levels: np.ndarray, generator: np.random.RandomState, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """An image and where a chain beside it begins, float32 [H, W, C] each."""
    one = levels[np.newaxis]  # [1, H, W, C]
    if config.augment:
        one = preprocess.cropped_and_mirrored(one, generator)
    if config.cutout:
        one = preprocess.with_cutout(one, generator, config.cutout_mask_size, config.cutout_inside, config.cutout_prob)
    scaling, shape = preprocess.scaling_of(config.dataset), levels.shape
    uniforms = None if scaling == "binary" else generator.uniform(size=shape)
    image = preprocess.scaled(one[0], scaling, uniforms, config.rescale)
    if config.is_sprites:
        return image, preprocess.sprites_starts(generator.standard_normal(shape))
    if config.datasource == "default":
        return image, preprocess.starts_at_images(image, generator.standard_normal(shape))
    return image, preprocess.uniform_starts(generator.uniform(size=shape), config.rescale)
