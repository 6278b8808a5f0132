"""From the bytes of images to what the networks learn, where chains begin, and back to bytes.

Everything is a function of its arguments: whoever calls draws the random numbers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Scaling = Literal["levels", "centred", "binary"]

_LARGEST, _LEVELS = 255, 256
_PADDING = 4  # of a random crop
_START_NOISE = 0.3  # of chains that begin at images
_SPRITES_MEAN, _SPRITES_DEVIATION = 0.5, 0.5  # of chains on dSprites


def scaling_of(dataset: str) -> Scaling:
    """How the bytes of a data set become numbers, see `scaled`."""
    if dataset in ("dsprites", "sprites"):
        return "binary"
    return "centred" if dataset in ("imagenet", "cifar100", "svhn", "textures") else "levels"


def scaled(images: np.ndarray, scaling: Scaling, uniforms: np.ndarray | None, rescale: float = 1.0) -> np.ndarray:
    """float32 images of uint8 ones.

    * "levels" (CIFAR-10, MNIST, ImageNet 128x128, and all that the original does not know): level k is (k + u) / 256 of
      the range [0, rescale). Without `uniforms` it is k / 256, and the range is [0, 1) in any case: so the original's
      evaluations have it.
    * "centred" (ImageNet 32x32, CIFAR-100, SVHN, textures): k / 255 with uniform noise of +-1/512.
    * "binary" (dSprites): 1 where there is anything, else 0.

    Args:
      images: uint8; or float32 levels in [0, 255], as images have that were resized and not rounded.
      uniforms: in [0, 1), like the images; None for no noise.

    Raises:
      ValueError: a range other than [0, 1] for images that the original does not rescale.
    """
    if scaling == "levels":
        # k / 255 first and then 255 / 256, as in the original.
        values = images.astype(np.float32) / np.float32(_LARGEST) * (_LARGEST / _LEVELS)
        if uniforms is not None:
            values = np.clip(values + uniforms / _LEVELS, 0.0, 1.0) * rescale
        return values.astype(np.float32)
    if rescale != 1.0:
        raise ValueError(f"rescale is {rescale:g}, expected 1 for images that are scaled as {scaling}")
    if scaling == "binary":
        return (images > 0).astype(np.float32)
    values = images.astype(np.float32) / np.float32(_LARGEST)
    return (values if uniforms is None else values + (uniforms - 0.5) / _LEVELS).astype(np.float32)


def starts_at_images(images: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Chains that begin at images with noise, --datasource=default. They may leave the range of images."""
    return (images + _START_NOISE * normals).astype(np.float32)


def uniform_starts(uniforms: np.ndarray, rescale: float = 1.0) -> np.ndarray:
    """Chains that begin anywhere in the range of images, --datasource=random."""
    return (rescale * uniforms).astype(np.float32)


def sprites_starts(normals: np.ndarray) -> np.ndarray:
    """Chains on dSprites, whatever --datasource is. They may leave the range of images."""
    return (_SPRITES_MEAN + _SPRITES_DEVIATION * normals).astype(np.float32)


# Augmentation ----------------------------------------------------------------------------------------------


def cropped_and_mirrored(images: np.ndarray, generator: np.random.RandomState) -> np.ndarray:
    """Random crops of images [B, H, W, C] with four zeros of padding on all sides; half of them are mirrored."""
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))
    tops, lefts = generator.randint(0, 2 * _PADDING + 1, (2, count))
    mirrored = generator.uniform(size=count) < 0.5
    crops = [
        image[top : top + height, left : left + width] for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    return np.stack([crop[:, ::-1] if flip else crop for crop, flip in zip(crops, mirrored, strict=True)])


def cutout_box(
    generator: np.random.RandomState, height: int, width: int, size: int, inside: bool, probability: float
) -> tuple[slice, slice] | None:
    """Rows and columns of the square that one image loses (DeVries & Taylor, arXiv:1708.04552); None for no square.

    Args:
      height, width: of the image. The original takes its channels for the height, so that squares lie at the top.
      size: side of the square. It is cut off at the image's edges.
      inside: centres are such that the square lies within the image, up to a pixel.
      probability: of there being a square.
    """
    if generator.uniform() > probability:
        return None
    half, extra = size // 2, 1 - size % 2
    margin = half if inside else 0
    if min(height, width) + extra <= 2 * margin:
        raise ValueError(f"a square of {size} pixels does not lie inside an image of {height}x{width}: make it smaller")
    column = generator.randint(margin, width + extra - margin)
    row = generator.randint(margin, height + extra - margin)
    top, left = row - half, column - half
    return slice(max(top, 0), min(top + size, height)), slice(max(left, 0), min(left + size, width))


def with_cutout(
    images: np.ndarray, generator: np.random.RandomState, size: int, inside: bool, probability: float
) -> np.ndarray:
    """Images [B, H, W, C] whose squares of `cutout_box` are 0."""
    result = images.copy()
    _, height, width, _ = images.shape
    for image in result:
        box = cutout_box(generator, height, width, size, inside, probability)
        if box is not None:
            image[box] = 0
    return result


def mixed(images: np.ndarray, shares: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Blends of images [B, ...] with those in another order (mixup, Zhang et al., arXiv:1710.09412), labels apart.

    Args:
      shares: [B], of the image that stays, from Beta(1, 1).
      order: a permutation of the batch.
    """
    share = shares.reshape([-1] + [1] * (images.ndim - 1)).astype(images.dtype)
    return share * images + (1 - share) * images[order]


# Bytes -----------------------------------------------------------------------------------------------------


def logged_bytes(images: np.ndarray, rescale: float = 1.0, inverted: bool = False) -> np.ndarray:
    """uint8 as in the original's training log: 256 times the share of the range, cut down.

    Args:
      inverted: black for the largest value, as MNIST and dSprites are logged.
    """
    clipped = np.clip(images, 0.0, rescale)
    shown = rescale - clipped if inverted else clipped
    return np.clip(shown * _LEVELS / rescale, 0, _LARGEST).astype(np.uint8)


def sampled_bytes(images: np.ndarray) -> np.ndarray:
    """uint8 as in the original's sampling programs: 256 times the image, cut down."""
    return np.clip(images * _LEVELS, 0, _LARGEST).astype(np.uint8)


def rounded_bytes(images: np.ndarray) -> np.ndarray:
    """uint8 as in the original's other programs: 255 times the image, rounded to the nearest and half to even."""
    return np.rint(np.clip(images, 0.0, 1.0) * _LARGEST).astype(np.uint8)
