"""CIFAR-10 as two folders of PNG files whose names tell the class, as improved diffusion reads it."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
from PIL import Image

from tfgen.data.reading import reading_threads
from tfgen.data.source import Source
from tfgen.files import sync_folder

TRAIN_FOLDER, TEST_FOLDER = "cifar_train", "cifar_test"
# In the order of the labels. Not the names of the archive, which has "airplane" and "automobile".
CLASS_NAMES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_AT_ONCE = 1000  # images in memory


def write_split(source: Source, folder: pathlib.Path, on_progress: Callable[[int], None] = lambda done: None) -> None:
    """Writes image i of class c as CLASS_IIIII.png: `CLASS_NAMES[c]`, and i in five digits.

    `folder` appears when it is whole. A write that was cut short leaves `.NAME.partial` behind, and the next one
    starts afresh.

    Args:
      source: RGB images with labels 0..9.
      folder: must not exist.
      on_progress: called with the number of images done.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        for start in range(0, len(source), _AT_ONCE):
            indices = np.arange(start, min(start + _AT_ONCE, len(source)))
            batch = source.read(indices)
            names = [
                f"{CLASS_NAMES[label]}_{index:05d}.png" for index, label in zip(indices, batch["label"], strict=True)
            ]
            paths = [partial / name for name in names]
            list(reading_threads().map(_write, paths, batch["image"]))
            on_progress(start + len(indices))
        os.replace(partial, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(path: pathlib.Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, "PNG")
