"""From what a user types to a data set."""

from __future__ import annotations

import pathlib

from tfgen.data import builtin
from tfgen.data.arrays import open_array
from tfgen.data.errors import DataError, UnknownDatasetError
from tfgen.data.folder import ImageFolder, open_files
from tfgen.data.image_files import ImageFiles
from tfgen.data.source import Splits
from tfgen.data.splitting import complete_splits

BUILTIN = {"digits": builtin.digits, "photos": builtin.photos, "sprites": builtin.sprites}
ARRAY_SUFFIXES = (".npy", ".npz")
_FILE_SUFFIXES = (*ARRAY_SUFFIXES, ".zip")
_VALID_FOLDERS, _TEST_FOLDERS = ("valid", "validation", "val"), ("test",)


def open_dataset(name: str, data_dir: str) -> Splits:
    """Opens a data set by name or path.

    Args:
      name: one of
        "digits", "photos" and "sprites", which come with the library (`tfgen.data.builtin`);
        the path of an .npy or .npz file (`tfgen.data.arrays`), or of a folder or .zip of images
        (`tfgen.data.folder`). A path ends in .npy, .npz or .zip, or begins with "/", "./", "../" or "~", or is an
        existing folder with a "/" in its name;
        the name of a TFDS data set, "mnist", "downsampled_imagenet/32x32", "name:version" (`tfgen.data.tfds`).
      data_dir: where TFDS data sets are kept.

    Returns:
      Folders and archives with sub-folders "train" and "valid" (or "validation", "val") and "test" are split as they
      say; splits that a data set lacks are held out in a fixed random order (`complete_splits`).

    Raises:
      UnknownDatasetError: nothing has that name; the text names what comes near.
      DataError: it exists and cannot be used.
    """
    if name in BUILTIN:
        return BUILTIN[name]()
    if is_path(name):
        return open_path(name)

    from tfgen.data import tfds  # here: only TFDS names need it

    try:
        return tfds.open_tfds(name, data_dir)
    except UnknownDatasetError as error:
        near = tfds.suggestion(name, [*BUILTIN, *tfds.known_names()])
        folder = f"; for the folder {name} of this directory type ./{name}" if pathlib.Path(name).is_dir() else ""
        raise UnknownDatasetError(
            f"no data set named {name!r}{near}{folder}. Expected {', '.join(BUILTIN)}, the path of an array file, "
            "image folder or zip archive, or a TensorFlow Datasets name"
        ) from error


def is_path(name: str) -> bool:
    """Whether `open_dataset` takes `name` for a path."""
    if name.lower().endswith(_FILE_SUFFIXES) or name.startswith(("/", "./", "../", "~")) or name in (".", ".."):
        return True
    return "/" in name and pathlib.Path(name).is_dir()


def open_path(name: str) -> Splits:
    """Opens an array file, an image folder or a zip of images. Raises `DataError`."""
    path = pathlib.Path(name).expanduser()
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return complete_splits(open_array(path))
    if not path.exists():
        raise DataError(f"no file or folder {path}")
    return _image_splits(open_files(path))


def _image_splits(files: ImageFiles) -> Splits:
    folders = {name.partition("/")[0] for name in files.names if "/" in name}
    if "train" not in folders:
        return complete_splits(ImageFolder(files))
    train = ImageFolder(files, "train")

    def held_out(choices: tuple[str, ...]) -> ImageFolder | None:
        folder = next((choice for choice in choices if choice in folders), None)
        if folder is None:
            return None
        source = ImageFolder(files, folder, train.label_rule, train.class_names)
        if source.spec != train.spec:
            raise DataError(f"{source.name} has images of {source.spec}, {train.name} of {train.spec}")
        return source

    return complete_splits(train, held_out(_VALID_FOLDERS), held_out(_TEST_FOLDERS))
