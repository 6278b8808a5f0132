"""Image files of a folder or a zip archive as a data set."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from tfgen.data.errors import DataError
from tfgen.data.image_codec import SUFFIXES, Header, UnusableImageError, decode, inspect
from tfgen.data.image_files import FolderFiles, ImageFiles, ZipFiles
from tfgen.data.reading import UsableFiles, attempt
from tfgen.data.source import ImageSpec, Source

LabelRule = Literal["auto", "folder", "prefix", "none"]

_SHOWN = 10  # sizes or classes in a message about many


def open_files(path: str | os.PathLike) -> ImageFiles:
    """The files of a zip archive (a name ending in .zip) or of a folder."""
    return ZipFiles(path) if os.fspath(path).lower().endswith(".zip") else FolderFiles(path)


class ImageFolder(Source):
    """Images in files, all of one size, in the order of their names.

    Opening reads the header of every file. Files that cannot be used (empty, truncated, not an image, 16-bit, CMYK,
    with transparency, too large) are logged once each with the reason, kept in `rejects` and left out. A file whose
    damage shows only when it is decoded is logged and kept in `rejects` as well, and the next good file stands in for
    it, so that the number of images and the order of training do not depend on when the damage was found.

    Where any image has colours, grey ones are read as RGB.

    Args:
      files: a folder's or an archive's.
      under: only files below this sub-folder; "" for all. Names and labels are then relative to it.
      labels: "folder": the first sub-folder of each file names its class. "prefix": the part of the file name before
        the first underscore does. "none": no labels. "auto": "folder" if every file lies in one of at least two
        sub-folders; else "prefix" if every file name has an underscore and there are at least two prefixes, which on
        average name at least two files each; else "none". Classes are numbered in the order of their names.
      class_names: the classes, where they are known (a validation set must number them as the training set does).

    Attributes:
      rejects: reason by file name.
      label_rule: "folder", "prefix" or "none": what "auto" came to.
      class_names: names of the classes, or None.

    Raises:
      DataError: no files, images of several sizes, or files without the class name that `labels` asks for.
      RejectedImagesError: more than 1 % of the files cannot be used.
      UnreadableFileError: the operating system refuses a file, several times.
    """

    def __init__(
        self,
        files: ImageFiles,
        under: str = "",
        labels: LabelRule = "auto",
        class_names: Sequence[str] | None = None,
    ):
        self._files, self._prefix = files, f"{under}/" if under else ""
        self.name = os.path.join(files.title, under) if under else files.title
        candidates = [name for name in files.names if name.startswith(self._prefix)]
        if not candidates:
            raise DataError(f"{self.name} is empty: looked for {', '.join(SUFFIXES)} files, sub-folders included")
        remedy = f"Convert these files to 8-bit grey or RGB images ({', '.join(SUFFIXES)}), or move them away."
        self._usable = UsableFiles(files, candidates, self.name, remedy)
        self.rejects = self._usable.rejects

        headers = self._usable.inspect(self._header_of)
        self._names = self._usable.names
        self._header = self._common_header(headers)
        self.label_rule = self._resolved(labels)
        self.class_names: tuple[str, ...] | None = None
        self._labels: np.ndarray | None = None
        if self.label_rule != "none":
            found = [_CLASS_OF[self.label_rule](self._relative(name)) for name in self._names]
            self.class_names = tuple(sorted(set(found)) if class_names is None else class_names)
            numbers = {name: number for number, name in enumerate(self.class_names)}
            unknown = sorted(set(found) - set(numbers))
            if unknown:
                raise DataError(f"{self.name} has classes {unknown[:_SHOWN]} that the training set does not have")
            self._labels = np.array([numbers[name] for name in found], np.int32)
        header = self._header
        classes = None if self.class_names is None else len(self.class_names)
        self.spec = ImageSpec(header.height, header.width, header.channels, classes)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images, shown = self._usable.read(np.asarray(indices).tolist(), lambda stream: decode(stream, self._header))
        batch = {"image": np.stack(images)}  # uint8 [n, H, W, C]
        if self._labels is not None:
            batch["label"] = self._labels[shown]
        return batch

    def _header_of(self, name: str) -> Header:
        if not name.lower().endswith(SUFFIXES):
            raise UnusableImageError(f"not an image by its name; expected {', '.join(SUFFIXES)}")
        return attempt(inspect, self._files, name)

    def _common_header(self, headers: Sequence[Header]) -> Header:
        sizes = collections.Counter((header.height, header.width) for header in headers)
        if len(sizes) > 1:
            listed = ", ".join(f"{height}x{width} ({count})" for (height, width), count in sizes.most_common(_SHOWN))
            rarest = sizes.most_common()[-1][0]
            found = zip(self._names, headers, strict=True)
            example = next(name for name, header in found if (header.height, header.width) == rarest)
            raise DataError(
                f"the images of {self.name} have {len(sizes)} different sizes (height x width, count): {listed}; for "
                f"example {example}. Resize them to one size first"
            )
        (height, width), channels = next(iter(sizes)), max(header.channels for header in headers)
        return Header(height, width, channels)

    def _relative(self, name: str) -> str:
        return name.removeprefix(self._prefix)

    def _resolved(self, rule: LabelRule) -> LabelRule:
        """`rule`, with "auto" decided and the others checked."""
        names = [self._relative(name) for name in self._names]
        if rule in _CLASS_OF:
            unnamed = [name for name in names if not _CLASS_OF[rule](name)]
            if unnamed:
                raise DataError(
                    f"{self.name}: labels={rule!r}, but {len(unnamed)} file(s) such as {unnamed[0]} have none"
                )
        elif rule == "auto":
            for candidate, least_per_class in _AUTO_RULES:
                classes = [_CLASS_OF[candidate](name) for name in names]
                if all(classes) and 2 <= len(set(classes)) <= len(names) / least_per_class:
                    return candidate
            return "none"
        elif rule != "none":
            raise DataError(f"expected labels 'auto', 'folder', 'prefix' or 'none', found {rule!r}")
        return rule


def folder_class(name: str) -> str:
    """The first sub-folder of a relative path, or "": "cat/1/a.png" -> "cat"."""
    folder, slash, _ = name.partition("/")
    return folder if slash else ""


def prefix_class(name: str) -> str:
    """What precedes the first underscore of a file name, or "": "x/cat_17_b.png" -> "cat"."""
    prefix, underscore, _ = name.rpartition("/")[2].partition("_")
    return prefix if underscore else ""


_CLASS_OF: dict[str, Callable[[str], str]] = {"folder": folder_class, "prefix": prefix_class}
_AUTO_RULES: tuple[tuple[LabelRule, int], ...] = (("folder", 1), ("prefix", 2))  # and files per class, on average
