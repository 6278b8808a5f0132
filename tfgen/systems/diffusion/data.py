"""The data sets of improved diffusion: image folders as the original reads them, and anything else with RGB images."""

from __future__ import annotations

import pathlib

from tfgen.data import builtin, cifar
from tfgen.data.catalog import open_dataset
from tfgen.data.channels import grey_as_rgb
from tfgen.data.errors import DataError
from tfgen.data.prepared_folder import PreparedFolder, open_image_folder
from tfgen.data.source import ImageSpec, Splits
from tfgen.settings import SettingsError
from tfgen.systems.diffusion.config import CHANNELS, Config


def known_spec(config: Config) -> ImageSpec | None:
    """Shape of the images where the settings alone tell it; None where only the data know."""
    if config.dataset == "cifar10":
        return ImageSpec(*cifar.SHAPE, num_classes=cifar.CLASSES)
    if config.dataset == "digits":
        digits = builtin.DIGITS_SPEC
        return ImageSpec(digits.height, digits.width, CHANNELS, digits.num_classes)
    if config.dataset == "photos":
        return builtin.PHOTOS_SPEC
    if not config.dataset:  # resized to what the settings say
        classes = config.num_classes if config.class_cond else None
        return ImageSpec(config.side, config.side, CHANNELS, classes)
    return None


def open_splits(config: Config, data_dir: str) -> Splits:
    """Opens the data set that `config` names.

    * "": the image folder or .zip archive `data_dir`, of any sizes, prepared as the original does. The sub-folders
      "train", "valid" and "test" of a folder are the splits if "train" is there. Otherwise all images train, and
      evaluations are of the same images unless `--data_dir` of `tfgen.evaluate` names others.
    * "cifar10": the 50,000 training images all train, the 10,000 test images validate and test.
    * "digits": the bundled grey digits with their channel repeated.
    * Any other name or path: see `tfgen.data.catalog.open_dataset`.

    Raises:
      DataError: data that are missing, damaged, empty, or without the labels asked for.
    """
    if not config.dataset:
        return _image_folder(config, pathlib.Path(data_dir).expanduser())
    if config.dataset == "cifar10":
        train, test = cifar.open_cifar10(pathlib.Path(data_dir).expanduser())
        return Splits(train, test, test)
    splits = open_dataset(config.dataset, data_dir)
    return grey_as_rgb(splits) if splits.spec.channels == 1 else splits


def _image_folder(config: Config, folder: pathlib.Path) -> Splits:
    archive = folder.suffix.lower() == ".zip" and folder.is_file()
    if not (archive or folder.is_dir()):
        raise DataError(
            f"no folder or .zip archive {folder}: improved diffusion learns the images of --data_dir=FOLDER, or "
            "another data set: --dataset=digits, photos, cifar10, a path or a TFDS name"
        )

    def opened(place: pathlib.Path, like: PreparedFolder | None = None) -> PreparedFolder:
        source = open_image_folder(
            place,
            config.side,
            class_cond=config.class_cond,
            convert_first=config.convert_first,
            class_names=None if like is None else like.class_names,
        )
        if like is None and source.class_names is not None and len(source.class_names) > config.num_classes:
            raise SettingsError(
                f"{place} has {len(source.class_names)} classes ({', '.join(source.class_names[:5])} ...) and the "
                f"network {config.num_classes}: set --num_classes={len(source.class_names)}, or rename the files so "
                "that what precedes the first underscore names the class"
            )
        return source

    if not (folder / "train").is_dir():
        whole = opened(folder)
        return Splits(whole, whole, whole)
    train = opened(folder / "train")
    held_out = {name: opened(folder / name, train) for name in ("valid", "test") if (folder / name).is_dir()}
    valid = held_out.get("valid") or held_out.get("test") or train
    return Splits(train, valid, held_out.get("test") or valid)
