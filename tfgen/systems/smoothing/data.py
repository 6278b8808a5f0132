"""The data sets of distribution smoothing, and the scales of their pixels.

Meng et al., "Improved Autoregressive Modeling with Distribution Smoothing" (2021), released code.
"""

from __future__ import annotations

import math
import pathlib

import tensorflow as tf

from tfgen.data import builtin, celeba, cifar, mnist
from tfgen.data.catalog import open_dataset
from tfgen.data.source import ImageSpec, Splits

LOGIT_MARGIN = 1e-6  # of the logit transform: its argument lies in [margin, 1 - margin]

_KNOWN_SPECS = {
    "mnist": mnist.SPEC,
    "fashion_mnist": mnist.SPEC,
    "cifar10": ImageSpec(*cifar.SHAPE, num_classes=cifar.CLASSES),
    "celeba": celeba.SPEC,
    "digits": builtin.DIGITS_SPEC,
    "photos": builtin.PHOTOS_SPEC,
}
_ORIGINAL_NAMES = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist", "CIFAR10": "cifar10"}

# Data sets ---------------------------------------------------------------------------------------------------


def known_spec(dataset: str) -> ImageSpec | None:
    """Shape of the images of a data set whose name alone tells it; None where only the data know."""
    return _KNOWN_SPECS.get(_canonical(dataset))


def open_splits(dataset: str, data_dir: str) -> Splits:
    """Opens a data set by name or path.

    As in the original the test images are those to validate on too, where a name is one of

    * "MNIST" and "FashionMNIST": the IDX files below `data_dir` (`mnist.find_folder`), else TFDS' images.
    * "CIFAR10": the batches of the "python version" below `data_dir` (`cifar.find_folder`), else TFDS' images.
    * "celeba": the aligned images in `data_dir`, cropped, resized and split by `tfgen.data.celeba`.

    The names of TFDS, "mnist", "fashion_mnist" and "cifar10", mean the same. Any other name or path: see
    `tfgen.data.catalog.open_dataset`.

    Raises:
      DataError: data that are missing, damaged or empty.
    """
    name, folder = _canonical(dataset), pathlib.Path(data_dir).expanduser()
    if name in mnist.FOLDERS:
        train, test = mnist.open_mnist(folder, name)
    elif name == "cifar10":
        train, test = cifar.open_cifar10(folder)
    elif name == "celeba":
        train, test = celeba.open_celeba(folder)
    else:
        return open_dataset(dataset, data_dir)
    return Splits(train, test, test)


def _canonical(dataset: str) -> str:
    """The original's names as TFDS spells them, "FashionMNIST" -> "fashion_mnist"; others as they are."""
    return _ORIGINAL_NAMES.get(dataset, dataset)


# Scales ------------------------------------------------------------------------------------------------------


def scaled(images: tf.Tensor) -> tf.Tensor:
    """Pixels 0..255 in [-1, 1], as the networks see them: uint8 to float32, of the same shape.

    Raises:
      TypeError: `images` are not uint8.
    """
    images = tf.convert_to_tensor(images)
    if images.dtype != tf.uint8:
        raise TypeError(f"expected uint8 images, found {images.dtype.name}")
    return (tf.cast(images, tf.float32) / 255 - 0.5) * 2


def unscaled(images: tf.Tensor) -> tf.Tensor:
    """[-1, 1] in [0, 1], floating point of any shape; not clipped."""
    return 0.5 * images + 0.5


def to_uint8(images: tf.Tensor) -> tf.Tensor:
    """The nearest of 256 levels, uint8, of values in [-1, 1]; what lies outside goes to the ends."""
    return tf.cast(tf.clip_by_value(unscaled(images) * 255 + 0.5, 0, 255), tf.uint8)


# The logit transform of Dinh et al., "Density estimation using Real NVP" (2017), section 4.1. The original can show
# samples of models of such values, and trains none.


def to_logits(images: tf.Tensor) -> tf.Tensor:
    """ln(p / (1 - p)) of p = margin + (1 - 2 margin) u, with u the value in [0, 1] of an image in [-1, 1]."""
    p = LOGIT_MARGIN + (1 - 2 * LOGIT_MARGIN) * unscaled(images)
    return tf.math.log(p) - tf.math.log1p(-p)


def from_logits(logits: tf.Tensor) -> tf.Tensor:
    """The inverse of `to_logits`: about [-1, 1]."""
    return 2 * ((tf.sigmoid(logits) - LOGIT_MARGIN) / (1 - 2 * LOGIT_MARGIN)) - 1


def log_volume(logits: tf.Tensor) -> tf.Tensor:
    """ln |d image / d logits| of images in [-1, 1], over all entries: a scalar, in nats.

    A log-density of images is that of their logits minus this.
    """
    per_entry = -tf.nn.softplus(-logits) - tf.nn.softplus(logits) - math.log(1 - 2 * LOGIT_MARGIN) - math.log(0.5)
    return tf.reduce_sum(per_entry)
