"""The data sets of DistAug: the original's own files where they exist, else TFDS, else anything the catalog opens."""

from __future__ import annotations

import logging
import pathlib
from typing import Protocol

import numpy as np

from tfgen.data import builtin, cifar
from tfgen.data.arrays import Layout, open_array
from tfgen.data.catalog import open_dataset
from tfgen.data.errors import DataError
from tfgen.data.source import ImageSpec, Source, Splits, Subset
from tfgen.data.splitting import held_out_size
from tfgen.data.tfds import two_splits
from tfgen.systems.distaug.mixing import MixedSource

_log = logging.getLogger(__name__)

# Side, order within an image (the two files differ), and training rows of the original's ImageNet files.
_IMAGENET: dict[str, tuple[int, Layout, int]] = {
    "imagenet32": (32, "planar", 1_271_167),
    "imagenet64": (64, "interleaved", 1_231_149),
}
_KNOWN_SPECS = {
    "cifar10": ImageSpec(*cifar.SHAPE, num_classes=cifar.CLASSES),
    "imagenet32": ImageSpec(32, 32, 3),
    "imagenet64": ImageSpec(64, 64, 3),
    "digits": builtin.DIGITS_SPEC,
    "photos": builtin.PHOTOS_SPEC,
}


class DataSettings(Protocol):
    """The settings that choose the data; see the flags of the same names."""

    @property
    def dataset(self) -> str: ...
    @property
    def datapoints(self) -> int | None: ...
    @property
    def test_size(self) -> int | None: ...
    @property
    def auxiliary_dataset(self) -> str | None: ...
    @property
    def auxiliary_dataset_fraction(self) -> float: ...
    @property
    def auxiliary_dataset_subset_size(self) -> int | None: ...
    @property
    def auxiliary_dataset_seed(self) -> int: ...


def known_spec(name: str) -> ImageSpec | None:
    """Shape of the images of a data set whose name alone tells it; None where only the data know."""
    return _KNOWN_SPECS.get(name)


def open_splits(config: DataSettings, data_dir: str) -> Splits:
    """Opens the data sets that `config` names.

    * "cifar10": the batches of the "python version" below `data_dir` (`cifar.find_folder`), split as the original does
      (`split_cifar`), else the TFDS data set with the same rule. TFDS stores the images in another order, so that its
      validation images are others; a warning says so.
    * "imagenet32", "imagenet64": `<data_dir>/<name>-train.npy` and, as the test set, `<data_dir>/<name>-valid.npy`.
      The first 1,271,167 (32x32) or 1,231,149 (64x64) rows train, the rest validate; of a file without that many rows
      the last tenth, at most 10,000, validates. Else TFDS' "downsampled_imagenet" under the same rule.
    * Any other name: see `tfgen.data.catalog.open_dataset`.

    With an auxiliary data set, `train` is a `MixedSource`; validation and test images are the main data set's.

    Raises:
      DataError: data that are missing, damaged or of other sizes than expected.
    """
    main = _open(config.dataset, config, data_dir)
    if config.dataset != "cifar10" and (config.datapoints is not None or config.test_size is not None):
        _log.info("--datapoints and --test_size concern cifar10 only; %s is used as it is", config.dataset)
    if config.auxiliary_dataset is None:
        return main
    auxiliary = _open(config.auxiliary_dataset, config, data_dir)
    mixed = MixedSource(
        main.train,
        auxiliary.train,
        config.auxiliary_dataset_fraction,
        config.auxiliary_dataset_seed,
        config.auxiliary_dataset_subset_size,
    )
    return Splits(mixed, main.valid, main.test)


def _open(name: str, config: DataSettings, data_dir: str) -> Splits:
    if name == "cifar10":
        return _open_cifar(config, pathlib.Path(data_dir))
    if name in _IMAGENET:
        return _open_imagenet(name, pathlib.Path(data_dir))
    return open_dataset(name, data_dir)


def _open_cifar(config: DataSettings, data_dir: pathlib.Path) -> Splits:
    train, test = cifar.open_cifar10(data_dir)
    valid_size = cifar.DEFAULT_VALID_IMAGES if config.test_size is None else config.test_size
    train_indices, valid_indices = split_cifar(len(train), valid_size, config.datapoints)
    return Splits(Subset(train, train_indices, "cifar10 train"), Subset(train, valid_indices, "cifar10 valid"), test)


def split_cifar(count: int, valid_size: int, datapoints: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The split of `cifar.split`, of whose training images the first `datapoints` are kept.

    Raises:
      DataError: fewer images than asked for.
    """
    if not 1 <= valid_size < count:
        raise DataError(f"--test_size={valid_size}: expected 1 to {count - 1} of the {count} training images")
    train, valid = cifar.split(count, valid_size)
    if datapoints is not None and not 1 <= datapoints <= len(train):
        raise DataError(
            f"--datapoints={datapoints}: expected 1 to {len(train)}, what {valid_size} validation images "
            f"leave of the {count} training images"
        )
    return train[:datapoints], valid


def _open_imagenet(name: str, data_dir: pathlib.Path) -> Splits:
    side, layout, train_rows = _IMAGENET[name]
    train_file, test_file = data_dir / f"{name}-train.npy", data_dir / f"{name}-valid.npy"
    train: Source
    test: Source
    if train_file.exists() or test_file.exists():
        train = open_array(train_file, shape=(side, side, 3), layout=layout)
        test = open_array(test_file, shape=(side, side, 3), layout=layout)
    else:
        dataset = f"downsampled_imagenet/{side}x{side}"
        train, test = two_splits(dataset, ("train", "validation"), str(data_dir), f"{train_file} and {test_file}")
        _log.warning(
            "%s comes from TFDS, whose order is not that of the original files: validation images differ", name
        )
    if len(train) <= train_rows:
        train_rows = len(train) - held_out_size(len(train))
    if train_rows < 1:
        raise DataError(f"{train.name} has {len(train)} image(s), too few to train and to validate on")
    indices = np.arange(len(train))
    return Splits(
        Subset(train, indices[:train_rows], f"{name} train"), Subset(train, indices[train_rows:], f"{name} valid"), test
    )
