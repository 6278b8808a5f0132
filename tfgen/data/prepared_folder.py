"""A folder or zip archive of images of any sizes as a data set of square crops, as improved diffusion reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from tfgen.data import crops, listing
from tfgen.data.errors import DataError
from tfgen.data.image_files import ImageFiles
from tfgen.data.reading import UsableFiles, attempt
from tfgen.data.source import ImageSpec, Source

WANTED = f"8-bit images ({', '.join(crops.FORMATS)})"
_SHOWN = 5  # classes in a message about many


class PreparedFolder(Source):
    """Square RGB crops of image files, prepared when they are read (`crops.prepare`), in the order of `files.names`.

    Opening reads the header of every file. Files that cannot be used are logged, kept in `rejects` and left out, and
    those whose damage shows only when they are decoded are replaced, as in `tfgen.data.folder.ImageFolder`.

    Labels are numbered over all files, usable or not: damage to a file does not change the classes of others.

    Args:
      files: see `listing.open_listed`.
      image_size: side of the crops in pixels.
      class_cond: whether images have labels: the part of the file name before the first underscore, all of it where
        there is none, is the class, and the distinct ones are numbered in the order of code points.
      max_classes: number of classes that the network has, the limit of the data's.
      convert_first: see `crops.prepare`.
      class_names: the classes, where they are known (images to evaluate on must be numbered as the training set is).

    Attributes:
      names: paths of the images.
      rejects: reason by name of the files that are left out.
      class_names: names of the classes, or None.

    Raises:
      DataError: no images; more than `max_classes` classes, or others than `class_names`; without `class_names`, names
        that tell no classes: a single one, or another for every file.
      RejectedImagesError: more than 1 % of the files cannot be used.
      UnreadableFileError: the operating system refuses a file, several times.
    """

    def __init__(
        self,
        files: ImageFiles,
        image_size: int,
        class_cond: bool = False,
        max_classes: int | None = None,
        convert_first: bool = False,
        class_names: Sequence[str] | None = None,
    ):
        self.name = files.title
        check_not_empty(files)
        self._size, self._convert_first = image_size, convert_first
        self.class_names: tuple[str, ...] | None = None
        self._labels: np.ndarray | None = None  # int32 [N]
        if class_cond:
            self.class_names, labels = classes_of(files, class_names)
            _check_count(self.name, self.class_names, max_classes)
        remedy = f"Convert these files to {WANTED}, or move them away."
        self._usable = UsableFiles(files, files.names, self.name, remedy)
        self._usable.inspect(lambda name: attempt(lambda stream: crops.inspect(stream, image_size), files, name))
        self.rejects = self._usable.rejects
        self.names = self._usable.names
        if class_cond:
            self._labels = labels[[name not in self.rejects for name in files.names]]
        self.spec = ImageSpec(image_size, image_size, 3, None if self.class_names is None else len(self.class_names))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images, shown = self._usable.read(
            np.asarray(indices).tolist(), lambda stream: crops.read(stream, self._size, self._convert_first)
        )
        batch = {"image": np.stack(images)}  # uint8 [n, R, R, 3]
        if self._labels is not None:
            batch["label"] = self._labels[shown]
        return batch


def open_image_folder(
    path: str | os.PathLike,
    image_size: int,
    class_cond: bool = False,
    max_classes: int | None = None,
    convert_first: bool = False,
    class_names: Sequence[str] | None = None,
) -> PreparedFolder:
    """Opens a folder or a zip archive of images (see `PreparedFolder`), listed by `listing.open_listed`.

    Raises:
      DataError: no such folder, or as `PreparedFolder`.
    """
    if not os.fspath(path):
        raise DataError("no image folder was given: name a folder or a .zip archive of images")
    files = listing.open_listed(os.path.expanduser(path))
    return PreparedFolder(files, image_size, class_cond, max_classes, convert_first, class_names)


def check_not_empty(files: ImageFiles) -> None:
    """Raises `DataError` where there are no images."""
    if not files.names:
        suffixes = ", ".join(f".{suffix}" for suffix in listing.SUFFIXES)
        raise DataError(f"{files.title} has no images: looked for {suffixes} files, sub-folders included")


def classes_of(files: ImageFiles, known: Sequence[str] | None = None) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes, `known` or found, and the number of each file's: int32 [N].

    Raises:
      DataError: as `PreparedFolder`.
    """
    found, labels = listing.number_classes(files.names)
    if known is not None:
        numbers = {name: number for number, name in enumerate(known)}
        unknown = [name for name in found if name not in numbers]
        if unknown:
            raise DataError(f"{files.title} has classes {unknown[:_SHOWN]} that the training set does not have")
        return tuple(known), np.array([numbers[name] for name in found], np.int32)[labels]
    if len(found) in (1, len(files.names)):
        what = "one class" if len(found) == 1 else "a class of its own for every file"
        raise DataError(
            f"{files.title}: the file names tell {what}: {', '.join(found[:_SHOWN])}. The part before the first "
            "underscore names the class: expected names such as cat_1.png, cat_2.png and dog_1.png. Rename the files, "
            "or train without classes"
        )
    return found, labels


def _check_count(title: str, classes: Sequence[str], most: int | None) -> None:
    if most is not None and len(classes) > most:
        raise DataError(
            f"{title} has {len(classes)} classes, {', '.join(classes[:_SHOWN])} ...; the network has {most}: give it "
            "as many classes, or rename the files so that the part before the first underscore names the class"
        )
