"""Images that a run has not learned, brought to the size and range of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tfgen.data.source import ImageSpec, Source
from tfgen.randomness import Key
from tfgen.systems.ebm import preprocess
from tfgen.systems.ebm.prepare import levels_of
from tfgen.systems.ebm.preprocess import Scaling
from tfgen.systems.ebm.tasks.classes import whole_batches

_MEAN, _DEVIATION = 0.5, 0.5  # of normal noise, as in the original
_LEVEL = 1 / 256  # width of the noise that some data sets have in the original
NOISES = ("random", "uniform", "constant")


def interpolated(images: np.ndarray) -> np.ndarray:
    """The mean of each image [B, ...] and the next one of the batch; the last one's next is the first."""
    return (images + np.roll(images, -1, axis=0)) / 2


def noise(kind: str, key: Key, count: int, spec: ImageSpec) -> np.ndarray:
    """Images that show nothing, float32 [count, H, W, C].

    Args:
      kind: "random", normal numbers that may leave the range of images; "uniform", each number in [0, 1); "constant",
        one colour for an image, uniform.
      key: of the first image.
    """
    if kind == "random":
        return (_MEAN + _DEVIATION * key.fold(kind).normal([count, *spec.shape])).numpy()
    if kind == "uniform":
        return key.fold(kind).uniform([count, *spec.shape]).numpy()
    if kind == "constant":
        colours = key.fold(kind).uniform([count, 1, 1, spec.channels])
        return np.broadcast_to(colours.numpy(), [count, *spec.shape])
    raise ValueError(f"noise of kind {kind!r}, expected one of {', '.join(NOISES)}")


def fitted(images: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Images of any size and 1 or 3 channels, float32 [B, h, w, c], in the size and channels of `spec`: [B, H, W, C].

    The largest centred part with the proportions of `spec` is resized by area. Colours become their mean; grey
    becomes three equal channels.
    """
    _, height, width, channels = images.shape
    scale = min(height / spec.height, width / spec.width)
    rows, columns = max(round(scale * spec.height), 1), max(round(scale * spec.width), 1)
    top, left = (height - rows) // 2, (width - columns) // 2
    images = images[:, top : top + rows, left : left + columns]
    if (rows, columns) != (spec.height, spec.width):
        images = tf.image.resize(images, [spec.height, spec.width], method="area").numpy()
    if channels == spec.channels:
        return images
    grey = images.mean(axis=-1, keepdims=True, dtype=np.float32)
    return np.repeat(grey, spec.channels, axis=-1)


def scaled(images: np.ndarray, spec: ImageSpec, own: Scaling, theirs: Scaling, key: Key | None) -> np.ndarray:
    """float32 [B, H, W, C] in [0, 1] of another data set's images, levels [B, h, w, c] (`prepare.levels_of`).

    Args:
      own: how the run's images are scaled.
      theirs: how the original scales those of the other data set.
      key: with a key images are as in the original: `theirs`, and "centred" ones have noise. None: as the run's own,
        without noise, so that the energy cannot tell data sets apart by how they were scaled.
    """
    if key is None and theirs != "binary":
        # Those of a run on dSprites are 0 and 1, which says nothing of images with 256 levels.
        theirs = "centred" if own == "binary" else own
    values = fitted(preprocess.scaled(images, theirs, None), spec)
    if key is not None and theirs == "centred":
        values = values + _LEVEL * (key.fold("levels").uniform(values.shape).numpy() - 0.5)
    return values


def batches(
    source: Source, batch_size: int, order: np.ndarray, convert: Callable[[np.ndarray, int], np.ndarray]
) -> Iterator[np.ndarray]:
    """Batches of another data set, float32 [B, H, W, C].

    Args:
      order: indices in the source, int64 [n].
      convert: of levels [B, h, w, c] (`prepare.levels_of`) and the number of the first of them.
    """
    first = 0
    for batch in whole_batches(source, batch_size, order):
        levels = levels_of(batch)
        yield convert(levels, first)
        first += len(levels)
