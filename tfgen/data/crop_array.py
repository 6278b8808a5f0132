"""The prepared crops of a folder of images as one `.npy` file, which is read without decoding or resizing."""

from __future__ import annotations

import pathlib
import warnings

import numpy as np
from PIL import Image

from tfgen.data import crops, prepared_folder
from tfgen.data.arrays import labels_path
from tfgen.data.conversion import Inventory, OnProgress, write_array
from tfgen.data.image_codec import UnusableImageError
from tfgen.data.image_files import ImageFiles
from tfgen.data.reading import attempt, in_threads
from tfgen.files import atomic_path


def take_inventory(
    files: ImageFiles, size: int, labels: bool = False, on_progress: OnProgress = lambda done: None
) -> Inventory:
    """Looks at the header of every file; see `crops.inspect` for what is rejected.

    Args:
      files: see `listing.open_listed`.
      size: side of the crops in pixels.
      labels: whether the names have to tell classes.
      on_progress: called with the number of files done.

    Raises:
      DataError: no files, or names that tell no classes.
      UnreadableFileError: the operating system refuses a file, several times.
    """
    prepared_folder.check_not_empty(files)
    if labels:
        prepared_folder.classes_of(files)

    def examine(name: str) -> str | None:
        """Why the file cannot be used."""
        try:
            attempt(lambda stream: crops.inspect(stream, size), files, name)
        except UnusableImageError as error:
            return str(error)
        return None

    taken, rejects = [], {}
    with warnings.catch_warnings():
        # Pillow warns of sizes that are rejected. Set around all threads: filters belong to the process.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for name, reason in zip(files.names, in_threads(examine, files.names), strict=True):
            if reason is None:
                taken.append(name)
            else:
                rejects[name] = reason
            on_progress(len(taken) + len(rejects))
    return Inventory(files, size, size, taken, rejects, prepared_folder.WANTED)


def write_crops(
    inventory: Inventory,
    path: pathlib.Path,
    labels: bool = False,
    allow_rejects: bool = False,
    convert_first: bool = False,
    on_progress: OnProgress = lambda done: None,
) -> tuple[int, tuple[str, ...] | None]:
    """Writes uint8 [N, R, R, 3] in the order of the listing and, if asked, the labels, where `open_array` finds them.

    Files appear when they are whole, in place of those that may be there. Labels are numbered over all files,
    rejected or not, as in `PreparedFolder`.

    Args:
      inventory: of `take_inventory`.
      path: of the array file.
      labels: whether the images have labels, int32 [N] in `arrays.labels_path(path)`.
      allow_rejects: leave out what cannot be used.
      convert_first: see `crops.prepare`.
      on_progress: called after each image.

    Returns:
      N, and the names of the classes or None.

    Raises:
      DataError: names that tell no classes; too little room on the disk.
      RejectedImagesError: something was rejected and `allow_rejects` does not permit it; nothing was written.
      UnreadableFileError: the operating system refuses a file, several times.
    """
    size, beside = inventory.height, labels_path(path)

    def read(stream) -> np.ndarray:
        return crops.read(stream, size, convert_first)

    if not labels:
        count = write_array(inventory, path, allow_rejects, on_progress, read)
        beside.unlink(missing_ok=True)  # those of other images
        return count, None
    class_names, numbers = prepared_folder.classes_of(inventory.files)
    with atomic_path(beside) as temporary:
        count = write_array(inventory, path, allow_rejects, on_progress, read)
        beside.unlink(missing_ok=True)  # those of other images, should this end here
        kept = [name not in inventory.rejects for name in inventory.files.names]
        np.save(temporary, numbers[kept])
    return count, class_names
