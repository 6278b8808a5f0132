"""Which files of a folder are its images, in what order, and their classes, as improved diffusion has them.

Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021). The order decides which images are
evaluated first, the numbers of the classes what a published class-conditional checkpoint draws.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tfgen.data.errors import DataError
from tfgen.data.image_files import FolderFiles, ImageFiles, ZipFiles

SUFFIXES = ("jpg", "jpeg", "png", "gif")

_log = logging.getLogger(__name__)


def open_listed(path: str | os.PathLike) -> ImageFiles:
    """The images of a folder or of a zip archive (a name ending in .zip), sub-folders included; `names` in order.

    The entries of each folder come in the order of their names (of code points: "Z" before "a"), so that what a
    sub-folder holds stands at its alphabetical place among the files. Files count by their names, `is_image_name`,
    hidden ones too.

    Raises:
      DataError: no such folder or archive, or one that cannot be listed.
    """
    if not os.fspath(path).lower().endswith(".zip"):
        return FolderFiles(path, list_folder)
    files = ZipFiles(path, hidden=True)
    files.names = in_listing_order(files.names)
    return files


def is_image_name(name: str) -> bool:
    """Whether what follows the last dot of a file name is one of `SUFFIXES`, in capitals or not; ".png" is one."""
    _, dot, suffix = name.rpartition(".")
    return bool(dot) and suffix.lower() in SUFFIXES


def list_folder(root: str | os.PathLike) -> list[str]:
    """Paths of the images below `root`, relative to it, in the order of `open_listed`.

    Links are followed, except one that leads back to a folder that it lies in. A folder whose own name ends as that
    of an image is a folder; the original took it for a file.

    Raises:
      DataError: a folder that the operating system does not list.
    """
    return list(_walk(os.fspath(root), "", ()))


def in_listing_order(names: Iterable[str]) -> list[str]:
    """The images among the paths of an archive, in the same order. What macOS adds in `__MACOSX` is left out."""
    paths = [(name.split("/"), name) for name in names]
    return [name for parts, name in sorted(paths) if is_image_name(parts[-1]) and "__MACOSX" not in parts]


def class_name(name: str) -> str:
    """What precedes the first underscore of a file name, or all of it, whatever the folder: "x/cat_17.png" -> "cat"."""
    return name.rpartition("/")[2].partition("_")[0]


def number_classes(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct `class_name`s in the order of code points, and the number of each file's class: int32 [N]."""
    found = [class_name(name) for name in names]
    classes = tuple(sorted(set(found)))
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, np.array([numbers[name] for name in found], np.int32)


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        _log.warning("%s is a link to a folder that it lies in, and is left out", folder)
        return
    for entry in ordered:
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here))
        elif is_image_name(entry.name):
            yield prefix + entry.name
