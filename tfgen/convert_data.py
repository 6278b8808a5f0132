"""The words of `tfgen.convert` that make data sets: `images`, `crops`, `cifar10` and `lsun`."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable

from tfgen.flagfields import SettingsError, check_values, flag

_ALLOW_REJECTS = "Leave out files that cannot be used, and write the others."


@dataclasses.dataclass(frozen=True)
class ImagesOptions:
    """Flags of `tfgen.convert images`."""

    size: str = flag(
        "", "HEIGHTxWIDTH of the images, or one number for both; others are rejected. By default that of most of them."
    )
    allow_rejects: bool = flag(False, _ALLOW_REJECTS)
    overwrite: bool = flag(False, "Replace OUT.npy if it is there.")

    def __post_init__(self) -> None:
        check_values(self)
        _ = self.height_and_width

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """The size in pixels, or None for that of most images."""
        if not self.size:
            return None
        match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", self.size)
        if match is None:
            raise SettingsError(f"--size={self.size}: expected HEIGHTxWIDTH such as 64x64, or one number for both")
        return int(match[1]), int(match[2] or match[1])


@dataclasses.dataclass(frozen=True)
class CropsOptions:
    """Flags of `tfgen.convert crops`."""

    size: int | None = flag(None, "Side of the crops in pixels.", minimum=1)
    labels: bool = flag(False, "Write OUT_labels.npy too: the classes that the file names tell.")
    convert_first: bool = flag(
        False, "Convert to RGB before resizing, not after it: smoother palette images than the original's."
    )
    allow_rejects: bool = flag(False, _ALLOW_REJECTS)
    overwrite: bool = flag(False, "Replace OUT.npy and OUT_labels.npy if they are there.")

    def __post_init__(self) -> None:
        check_values(self)


@dataclasses.dataclass(frozen=True)
class Cifar10Options:
    """Flags of `tfgen.convert cifar10`."""

    data_dir: str = flag("data", "Folder with the batches of cifar-10-python.tar.gz; without them TFDS is asked.")

    def __post_init__(self) -> None:
        check_values(self)


@dataclasses.dataclass(frozen=True)
class LsunOptions:
    """Flags of `tfgen.convert lsun`."""

    image_size: int = flag(256, "Side of the images in pixels.", minimum=1)
    prefix: str = flag("bedroom", "What the file names begin with: the class.")
    allow_rejects: bool = flag(False, "Leave out records that cannot be used, and write the others.")

    def __post_init__(self) -> None:
        check_values(self)
        if "/" in self.prefix or self.prefix.startswith("."):
            raise SettingsError(f"--prefix={self.prefix}: expected what a file name can begin with, no / or .")


def convert_images(source: str, out: str, options: ImagesOptions) -> int:
    """Writes the array file; returns the exit code. Raises `DataError` where that cannot be done."""
    from tfgen.data import conversion
    from tfgen.data.arrays import labels_path
    from tfgen.data.folder import open_files
    from tfgen.monitor.progress import Progress

    path = _new_array(out, options.overwrite)
    files = open_files(source)
    with Progress(len(files.names), description="read headers", unit="files") as progress:
        inventory = conversion.take_inventory(files, options.height_and_width, progress.update)
    try:
        with Progress(len(inventory.names), description="convert", unit="images") as progress:
            count = conversion.write_array(inventory, path, options.allow_rejects, progress.update)
    finally:
        _print_rejects(inventory.rejects, len(files.names))
    labels_path(path).unlink(missing_ok=True)  # of the images that were overwritten
    print(f"{out}: uint8 [{count}, {inventory.height}, {inventory.width}, 3], sorted by path")
    return 0


def convert_crops(source: str, out: str, options: CropsOptions) -> int:
    """Writes the array file and, if asked, that of the labels; returns the exit code. Raises `DataError`."""
    from tfgen.data import crop_array, listing
    from tfgen.data.arrays import labels_path
    from tfgen.monitor.progress import Progress

    if options.size is None:
        raise SettingsError("crops needs the side of the crops in pixels: type --size=R, such as --size=64")
    path = _new_array(out, options.overwrite)
    files = listing.open_listed(source)
    with Progress(len(files.names), description="read headers", unit="files") as progress:
        inventory = crop_array.take_inventory(files, options.size, options.labels, progress.update)
    try:
        with Progress(len(inventory.names), description="convert", unit="images") as progress:
            count, class_names = crop_array.write_crops(
                inventory, path, options.labels, options.allow_rejects, options.convert_first, progress.update
            )
    finally:
        _print_rejects(inventory.rejects, len(files.names))
    print(f"{out}: uint8 [{count}, {options.size}, {options.size}, 3], in the order of the original's listing")
    if class_names is not None:
        listed = ", ".join(class_names[:10]) + (", ..." if len(class_names) > 10 else "")
        print(f"{labels_path(path)}: int32 [{count}], {len(class_names)} classes: {listed}")
    return 0


def convert_cifar10(out: str, options: Cifar10Options) -> int:
    """Writes the two folders of PNG files; returns the exit code. Raises `DataError`."""
    from tfgen.data import cifar, cifar_files
    from tfgen.monitor.progress import Progress

    folders = [pathlib.Path(out, name) for name in (cifar_files.TRAIN_FOLDER, cifar_files.TEST_FOLDER)]
    missing = [folder for folder in folders if not folder.exists()]
    for folder in folders:
        if folder not in missing:
            print(f"{folder} exists already and is skipped; to write it again, remove it first")
    if not missing:
        return 0
    sources = cifar.open_cifar10(pathlib.Path(options.data_dir).expanduser())
    for folder, source in zip(folders, sources, strict=True):
        if folder in missing:
            with Progress(len(source), description=folder.name, unit="images") as progress:
                cifar_files.write_split(source, folder, progress.update)
            print(f"{folder}: {len(source)} PNG files CLASS_IIIII.png")
    return 0


def convert_lsun(source: str, out: str, options: LsunOptions) -> int:
    """Writes the folder of PNG files; returns the exit code. Raises `DataError`."""
    from tfgen.data import lsun
    from tfgen.monitor.progress import Progress

    folder, size, prefix = pathlib.Path(out), options.image_size, options.prefix
    with lsun.open_records(source) as records:
        partial = lsun.partial_folder(folder, size, prefix, len(records))
        if partial.is_dir():
            print(f"goes on with what an earlier conversion left in {partial}", flush=True)
        with Progress(len(records), description="convert", unit="records") as progress:
            rejects = lsun.write_folder(records, folder, size, prefix, options.allow_rejects, progress.update)
        _print_rejects(rejects, len(records), "records")
        print(f"{out}: {len(records) - len(rejects)} PNG files {prefix}_IIIIIII.png of {size}x{size} pixels")
    return 0


def _new_array(out: str, overwrite: bool) -> pathlib.Path:
    """The path of an array file that may be written."""
    from tfgen.data.arrays import labels_path
    from tfgen.data.errors import DataError

    path = pathlib.Path(out)
    if path.suffix != ".npy":
        raise SettingsError(f"{out}: expected a name that ends in .npy")
    if path.is_dir():
        raise DataError(f"{out} is a folder: choose another name")
    for existing in (path, labels_path(path)):  # labels of other images would be taken for theirs
        if existing.exists() and not overwrite:
            raise DataError(f"{existing} exists already: choose another name, or replace it with --overwrite")
    return path


def _print_rejects(rejects: dict[str, str], count: int, unit: str = "files") -> None:
    from tfgen.data.conversion import rejects_table

    if rejects:
        print(f"rejected {len(rejects)} of {count} {unit}:")
        print(rejects_table(rejects), flush=True)


@dataclasses.dataclass(frozen=True)
class Verb:
    """One of these words.

    Attributes:
      places: what stands for the arguments that are no flags.
      options: dataclass of the flags.
      convert: takes the places and the options, returns the exit code.
      needed: flags without which it does not work, as `usage` shows them.
    """

    places: tuple[str, ...]
    options: type
    convert: Callable[..., int]
    needed: str = ""

    def usage(self, name: str) -> str:
        return " ".join(word for word in (name, *self.places, self.needed) if word)


VERBS = {
    "images": Verb(("FOLDER", "OUT.npy"), ImagesOptions, convert_images),
    "crops": Verb(("FOLDER", "OUT.npy"), CropsOptions, convert_crops, "--size=R"),
    "cifar10": Verb(("OUT_FOLDER",), Cifar10Options, convert_cifar10),
    "lsun": Verb(("LMDB_FOLDER", "OUT_FOLDER"), LsunOptions, convert_lsun),
}
