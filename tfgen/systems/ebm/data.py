"""The data sets of energy-based models, and those that are no data of theirs: out of distribution.

Du & Mordatch, "Implicit Generation and Generalization in Energy Based Models", 2019, arXiv:1903.08689, released code.
"""

from __future__ import annotations

import pathlib

import numpy as np

from tfgen.data import builtin, cifar, imagenet32, imagenet128, mnist, svhn, textures
from tfgen.data import sprites as sprite_data
from tfgen.data.catalog import open_dataset
from tfgen.data.errors import DataError
from tfgen.data.source import ImageSpec, Source, Splits, Subset
from tfgen.systems.ebm import sprites
from tfgen.systems.ebm.config import Config

_KNOWN_SPECS = {
    "mnist": mnist.SPEC,
    "cifar10": ImageSpec(*cifar.SHAPE, num_classes=cifar.CLASSES),
    "imagenet": imagenet32.SPEC,
    "imagenetfull": imagenet128.SPEC,
    "dsprites": sprite_data.ARCHIVE_SPEC,
    "sprites": sprite_data.SPEC,
    "digits": builtin.DIGITS_SPEC,
    "photos": builtin.PHOTOS_SPEC,
}


def known_spec(config: Config) -> ImageSpec | None:
    """Shape of the images of a data set whose name alone tells it; None where only the data know."""
    return _KNOWN_SPECS.get(config.dataset)


def open_splits(config: Config, data_dir: str) -> Splits:
    """Opens the data set of a run.

    * "mnist", "cifar10", "imagenet" (32x32): the original's files below `data_dir` (see `mnist.open_mnist`,
      `cifar.open_cifar10`, `imagenet32.open_imagenet32`), else TFDS' images.
    * "imagenetfull" (128x128): the TFRecord files of `imagenet128.open_imagenet128`.
    * "dsprites": the archive (see `sprites.open_dsprites` of `tfgen.data`), else TFDS' images.
    * "sprites": shapes like those of dSprites, which come with the library.
    * any other name or path: see `tfgen.data.catalog.open_dataset`.

    The original has two splits, or of dSprites one: validation and test images are the same, and with dSprites they are
    those that are learned. With --single the first image makes up whole epochs.

    Raises:
      DataError: data that are missing, damaged or empty.
    """
    splits = _sprites_splits(config, data_dir) if config.is_sprites else _open(config, data_dir)
    if not config.single:
        return splits
    first = Subset(splits.train, np.zeros(1, np.int64), f"{splits.train.name}, first image")
    return Splits(RepeatedSource(first, splits.train.epoch_size), splits.valid, splits.test)


def open_other(name: str, data_dir: str) -> Source:
    """Images that a model was not trained on.

    Args:
      name: one of
        "svhn": the training images, which the original takes for the test images (`svhn.open_svhn`);
        "cifar100": the test images (`cifar.open_cifar100_test`);
        "textures": corners of textures (`textures.open_textures`);
        any name or path that `open_splits` takes, whose test images they are.

    Raises:
      DataError: data that are missing, damaged or empty.
    """
    folder = _folder(data_dir)
    if name == "svhn":
        return svhn.open_svhn(folder, "train")
    if name == "cifar100":
        return cifar.open_cifar100_test(folder)
    if name == "textures":
        return textures.open_textures(folder)
    return open_splits(Config(dataset=name), data_dir).test


class RepeatedSource(Source):
    """Images that are gone through several times in an epoch, all equally often but for those of a last round."""

    def __init__(self, parent: Source, epoch_size: int):
        self.parent, self.name, self.spec = parent, parent.name, parent.spec
        self._epoch_size = epoch_size

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def epoch_size(self) -> int:
        return self._epoch_size

    def epoch_order(self, generator: np.random.RandomState) -> np.ndarray:
        """See `Source.epoch_order`: the rounds are shuffled together, as rows that were stored several times."""
        return generator.permutation(self._epoch_size) % len(self.parent)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.parent.read(indices)


def _open(config: Config, data_dir: str) -> Splits:
    folder = _folder(data_dir)
    if config.dataset == "mnist":
        train, test = mnist.open_mnist(folder)
    elif config.dataset == "cifar10":
        train, test = cifar.open_cifar10(folder)
    elif config.dataset == "imagenet":
        train, test = imagenet32.open_imagenet32(folder, config.imagenet_path)
    elif config.dataset == "imagenetfull":
        train, test = imagenet128.open_imagenet128(folder, config.imagenet_datadir)
    else:
        return open_dataset(config.dataset, data_dir)
    return Splits(train, test, test)


def _sprites_splits(config: Config, data_dir: str) -> Splits:
    source: sprite_data.SpriteSource | sprite_data.TfdsSprites
    if config.dataset == "sprites":
        source = sprite_data.sprites()
    else:
        source = sprite_data.open_dsprites(_folder(data_dir), config.dsprites_path)
    mode = sprites.mode(config.sprites_mode, config.dsprites_restrict)
    if not mode.fixed:  # all images, whose latent values need not be looked at
        return Splits(source, source, source)
    rows = mode.rows(source.latents)
    flag = config.sprites_mode if mode.repeats > 1 else "dsprites_restrict"
    if not len(rows):
        raise DataError(f"--{flag}: {source.name} has no image of {mode.described()}; leave the flag out")
    chosen = Subset(source, rows, f"{source.name} with --{flag}")
    return Splits(RepeatedSource(chosen, len(rows) * mode.repeats), chosen, chosen)


def _folder(data_dir: str) -> pathlib.Path:
    return pathlib.Path(data_dir).expanduser()
