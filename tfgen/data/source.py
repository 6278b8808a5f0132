"""What every data set looks like to the rest of the library: images by index."""

from __future__ import annotations

import abc
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Shape of one image, and the number of classes (None when the images carry no labels)."""

    height: int
    width: int
    channels: int
    num_classes: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def dims(self) -> int:
        """Sub-pixels of one image: the D of bits per dimension."""
        return self.height * self.width * self.channels

    def __str__(self) -> str:
        labels = "no labels" if self.num_classes is None else f"{self.num_classes} classes"
        return f"{self.height}x{self.width}x{self.channels}, {labels}"


class Source(abc.ABC):
    """Random access to images. Reading index i gives the same pixels every time, in any order, from any thread.

    Attributes:
      name: for messages ("cifar10 train").
      spec: `ImageSpec` of every image.
    """

    name: str
    spec: ImageSpec

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @property
    def epoch_size(self) -> int:
        """Images of one epoch."""
        return len(self)

    def epoch_order(self, generator: np.random.RandomState) -> np.ndarray:
        """Indices of one epoch in shuffled order: int64 [epoch_size], a function of the generator's state."""
        return generator.permutation(len(self))

    @abc.abstractmethod
    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Images at `indices` (int [n], each in [0, len)).

        Returns a dict with "image": uint8 [n, H, W, C] and, where `spec.num_classes` is set,
        "label": int32 [n]. A source may add columns of its own (`MixedSource` adds "dataset").
        """


class Subset(Source):
    """The images of `parent` at `indices`, in that order."""

    def __init__(self, parent: Source, indices: np.ndarray, name: str):
        self.parent, self.indices = parent, np.asarray(indices, np.int64)
        self.name, self.spec = name, parent.spec

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.parent.read(self.indices[indices])


@dataclasses.dataclass(frozen=True)
class Splits:
    """The three sources of a data set. `test` may be the same object as `valid` where there is no third split."""

    train: Source
    valid: Source
    test: Source

    @property
    def spec(self) -> ImageSpec:
        return self.train.spec
