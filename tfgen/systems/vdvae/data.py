"""The data sets of VDVAE: the original's own files and splits, and anything else that holds square RGB images."""

from __future__ import annotations

import logging
import pathlib
from typing import Protocol

import numpy as np

from tfgen.data import builtin, cifar
from tfgen.data.arrays import open_array
from tfgen.data.catalog import is_path, open_dataset
from tfgen.data.channels import grey_as_rgb
from tfgen.data.errors import DataError, UnknownDatasetError
from tfgen.data.folder import ImageFolder, open_files
from tfgen.data.source import ImageSpec, Source, Splits, Subset
from tfgen.data.splitting import held_out_size
from tfgen.data.tfds import two_splits

_log = logging.getLogger(__name__)

DEFAULT_DATA_ROOT = "./"  # of the original's flag; it then means --data_dir
CHANNELS = 3  # the head models red, then green given red, then blue given both

# Images that the original holds out of a stored training set, and the seed of the order in which it takes them.
# cifar10 has a rule of its own, `cifar.split`.
_VALID_IMAGES = {"cifar10": cifar.DEFAULT_VALID_IMAGES, "imagenet32": 5_000, "imagenet64": 5_000, "ffhq_256": 7_000}
_SPLIT_SEEDS = {"imagenet32": 42, "imagenet64": 42, "ffhq_256": 5}

# Images that the published files have. The small ImageNet of 2016 (no longer hosted by image-net.org) has 1,281,149
# and 49,999; the down-sampling of 2017 that replaced it has 1,281,167 and 50,000, and other likelihoods.
_USUAL_COUNTS = {
    "cifar10": (cifar.TRAIN_IMAGES, 10_000),
    "imagenet32": (1_281_149, 49_999),
    "imagenet64": (1_281_149, 49_999),
    "ffhq_256": (70_000, None),
    "ffhq_1024": (65_000, 5_000),
}
_KNOWN_SPECS = {
    "cifar10": ImageSpec(*cifar.SHAPE, num_classes=cifar.CLASSES),
    "imagenet32": ImageSpec(32, 32, CHANNELS),
    "imagenet64": ImageSpec(64, 64, CHANNELS),
    "ffhq_256": ImageSpec(256, 256, CHANNELS),
    "ffhq_1024": ImageSpec(1024, 1024, CHANNELS),
    "digits": ImageSpec(
        builtin.DIGITS_SPEC.height, builtin.DIGITS_SPEC.width, CHANNELS, builtin.DIGITS_SPEC.num_classes
    ),
    "photos": builtin.PHOTOS_SPEC,
}


class DataSettings(Protocol):
    """The settings that choose the data; see the flags of the same names."""

    @property
    def dataset(self) -> str: ...
    @property
    def data_root(self) -> str: ...


def known_spec(dataset: str) -> ImageSpec | None:
    """Shape of the images of a data set whose name alone tells it; None where only the data know."""
    return _KNOWN_SPECS.get(dataset)


def open_splits(config: DataSettings, data_dir: str) -> Splits:
    """Opens the data set that `config` names. `.npy` files are memory-mapped, image files decoded when they are read.

    The files of the original's data sets lie below `--data_root` where that was changed, else below `--data_dir`:

    * "cifar10": the batches of the "python version" (`cifar.find_folder`), else the TFDS data set with a warning that
      its order, and so its validation set, is another one.
    * "imagenet32", "imagenet64": `<name>-train.npy` and, as the test set, `<name>-valid.npy`, uint8 [N, R, R, 3]; else
      TFDS' "downsampled_imagenet" with the same warning.
    * "ffhq_256": `ffhq-256.npy`, uint8 [N, 256, 256, 3]. The test set is the validation set.
    * "ffhq_1024": the image folders `ffhq1024/train` and `ffhq1024/valid`, or `train` and `valid`, in order of
      their paths. The test set is the validation set.

    What validates is chosen by `original_split`. Beyond the original:

    * "digits": the bundled grey digits with their channel repeated, 8x8x3 (`GreyAsRgb`).
    * Any other name or path: see `tfgen.data.catalog.open_dataset`. The images must be square and RGB.

    Raises:
      DataError: data that are missing, damaged, empty, grey, not square or of other sizes than expected.
    """
    root, where = _place(config, data_dir)
    name = config.dataset
    if name == "cifar10":
        train, test = cifar.open_cifar10(root)
        splits = _split(name, train, test)
    elif name in ("imagenet32", "imagenet64"):
        splits = _split(name, *_open_imagenet(name, root))
    elif name == "ffhq_256":
        splits = _split(name, _open_npy(root / "ffhq-256.npy", where), None)
    elif name == "ffhq_1024":
        splits = _open_ffhq_1024(root, where)
    elif name == "digits":
        splits = grey_as_rgb(builtin.digits())
    else:
        _refuse_misspelt(name)
        splits = open_dataset(name, str(root))
    _check_images(name, splits)
    return splits


def original_split(dataset: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation images among `count` stored ones, as the original chooses them.

    "cifar10": `cifar.split` with 5,000 held out. Others: with p = RandomState(seed).permutation(count), validation is
    the last 5,000 (ImageNet, seed 42) or 7,000 (ffhq_256, seed 5) of p, in that order, and training what precedes.
    Of a set that has no more images than that, a tenth validates.

    Returns:
      Two int64 vectors, training first.

    Raises:
      DataError: fewer than two images.
    """
    valid_size = _VALID_IMAGES[dataset]
    if count <= valid_size:
        valid_size = held_out_size(count)
    if count <= valid_size:
        raise DataError(f"{dataset} has {count} image(s), too few to train and to validate on: expected at least 2")
    if dataset == "cifar10":
        return cifar.split(count, valid_size)
    order = np.random.RandomState(_SPLIT_SEEDS[dataset]).permutation(count)
    return order[:-valid_size], order[-valid_size:]


def _place(config: DataSettings, data_dir: str) -> tuple[pathlib.Path, str]:
    """The folder of the data files, and where its name comes from."""
    if pathlib.Path(config.data_root) == pathlib.Path(DEFAULT_DATA_ROOT):
        return pathlib.Path(data_dir), f"{data_dir} (--data_dir)"
    return pathlib.Path(config.data_root).expanduser(), f"{config.data_root} (--data_root)"


def _split(name: str, stored: Source, test: Source | None) -> Splits:
    _warn_of_counts(name, stored, test)
    train_indices, valid_indices = original_split(name, len(stored))
    valid = Subset(stored, valid_indices, f"{name} valid")
    return Splits(Subset(stored, train_indices, f"{name} train"), valid, valid if test is None else test)


def _warn_of_counts(name: str, *sources: Source | None) -> None:
    for source, usual in zip(sources, _USUAL_COUNTS[name], strict=True):
        if source is not None and usual is not None and len(source) != usual:
            _log.warning(
                "%s has %d images; the published set has %d. The data set is used as it is, split by the same rule, "
                "but results do not compare with published ones",
                source.name,
                len(source),
                usual,
            )


def _open_npy(path: pathlib.Path, where: str) -> Source:
    if not path.is_file():
        raise DataError(
            f"no file {path.name} in {where}: place it there, or make it from a folder of images with "
            f"`python -m tfgen.convert images FOLDER {path}`"
        )
    return open_array(path)


def _open_imagenet(name: str, root: pathlib.Path) -> tuple[Source, Source]:
    train_file, test_file = root / f"{name}-train.npy", root / f"{name}-valid.npy"
    if train_file.exists() or test_file.exists():
        return _open_npy(train_file, str(root)), _open_npy(test_file, str(root))
    side = _KNOWN_SPECS[name].height
    dataset = f"downsampled_imagenet/{side}x{side}"
    sources = two_splits(dataset, ("train", "validation"), str(root), f"{train_file} and {test_file}")
    _log.warning("%s comes from TFDS, whose order is not that of the original files: validation images differ", name)
    return sources


def _open_ffhq_1024(root: pathlib.Path, where: str) -> Splits:
    # The original's loader reads the first of these folders, its set-up script fills the second.
    folder = next((place for place in (root / "ffhq1024", root) if (place / "train").is_dir()), None)
    if folder is None or not (folder / "valid").is_dir():
        raise DataError(
            f"no folders train and valid of ffhq_1024 in {root / 'ffhq1024'} or {root}; looked in {where}: "
            "make them, and move 00000.png to 64999.png of images1024x1024 to train/0, the others to valid/0"
        )
    train, valid = (ImageFolder(open_files(folder / part), labels="none") for part in ("train", "valid"))
    _warn_of_counts("ffhq_1024", train, valid)
    return Splits(train, valid, valid)


def _refuse_misspelt(name: str) -> None:
    """Presets are called "ffhq256", data sets "ffhq_256"; other spellings would be searched for on the network."""
    letters = name.lower().replace("_", "").replace("-", "")
    meant = next((known for known in _KNOWN_SPECS if known.replace("_", "") == letters), None)
    if meant not in (None, name) and not is_path(name):
        raise UnknownDatasetError(f"no data set named {name!r}: type --dataset={meant}")


def _check_images(name: str, splits: Splits) -> None:
    expected = known_spec(name)
    for source in (splits.train, splits.valid, splits.test):
        spec = source.spec
        if spec.channels != CHANNELS:
            raise DataError(
                f"{source.name} has images of {spec}; VDVAE needs {CHANNELS} channels (RGB). Grey image files are "
                "made RGB by `python -m tfgen.convert images FOLDER OUT.npy`, grey arrays by "
                "numpy.repeat(images, 3, axis=-1)"
            )
        if spec.height != spec.width:
            raise DataError(f"{source.name} has images of {spec}; VDVAE needs square ones: crop or resize them")
        if expected is not None and spec.shape != expected.shape:
            raise DataError(f"{source.name} has images of {spec}; those of {name} are {expected}")
        if spec.shape != splits.spec.shape:
            raise DataError(f"{source.name} has images of {spec}, {splits.train.name} of {splits.spec}")
        if not len(source):
            raise DataError(f"{source.name} is empty: add images")
