"""Evaluation of every combination of augmentations: the likelihood of augmented images given what was done to them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen.files import atomic_path
from tfgen.likelihood.bits import bits_per_dim

if TYPE_CHECKING:
    from tfgen.systems.distaug.system import DistAug


def evaluate_combinations(
    system: DistAug, batches: Iterable[dict[str, np.ndarray]], folder: pathlib.Path, write_images: bool
) -> dict[str, float]:
    """Per-sub-pixel losses of images augmented by each combination of tokens, the network being told the tokens.

    Writes `<tok>_<tok>..._losses.npz` for every combination: `aug_types` (names), `tokens`, `loss` (nats), `bpd` and
    `losses` float32 [N, T]; and `..._imgs.npz` with `imgs` uint8 [N, H, W, C]. Files that exist already are kept and
    not computed again. RandAugment changes no image here, only the token (it belongs to training).

    Returns:
      "bits_per_dim" of the identity and of each combination as "bits_per_dim[tok_tok]", and "examples".

    Raises:
      ValueError: more than one rank; a rank would write its share of the images only.
    """
    if getattr(batches, "ranks", 1) > 1:
        raise ValueError("evaluating every augmentation writes one file for all images: run it in a single process")
    folder.mkdir(parents=True, exist_ok=True)
    names = [kind.name for kind in system.augmentations.types]
    result: dict[str, float] = {}
    examples = 0
    for combination in system.augmentations.combinations():
        label = "_".join(map(str, combination)) or "identity"
        path = folder / f"{label}_losses.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as saved:
                losses = saved["losses"]
        else:
            losses, images = _losses(system, batches, combination)
            loss = float(losses.mean(dtype=np.float64))
            with atomic_path(path) as temporary:
                np.savez(
                    temporary,
                    aug_types=np.array(names, dtype=np.str_),
                    tokens=np.array(combination, np.int32),
                    loss=loss,
                    bpd=bits_per_dim(loss),
                    losses=losses,
                )
            if write_images:
                with atomic_path(folder / f"{label}_imgs.npz") as temporary:
                    np.savez(temporary, imgs=images)
        examples = len(losses)
        result[f"bits_per_dim[{label}]"] = float(bits_per_dim(losses.mean(dtype=np.float64)))
    first = next(iter(result.values()))  # the product of tokens begins with all zeros
    return {"bits_per_dim": first, **result, "examples": examples}


def _losses(system: DistAug, batches, combination: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, T] and the augmented images uint8 [N, H, W, C]."""
    losses, images = [], []
    for batch in batches:
        raw = batch["image"]
        tokens = np.tile(np.array(combination, np.int32), [len(raw), 1])  # [B, K]
        permuted, coordinates = system.augmentations.apply(raw.reshape(len(raw), -1), tokens)
        told = tokens if system.config.conditioning_types else tokens[:, :0]
        losses.append(system.token_losses(tf.constant(permuted), tf.constant(coordinates), tf.constant(told)).numpy())
        images.append(permuted.reshape(raw.shape))
    return np.concatenate(losses), np.concatenate(images)
