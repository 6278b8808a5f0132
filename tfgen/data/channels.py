"""Grey images for systems that model colours only."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfgen.data.errors import DataError
from tfgen.data.source import Source, Splits


class GreyAsRgb(Source):
    """The images of a grey source with its one channel repeated in all three, labels and order unchanged.

    Two of the three values of a pixel then follow from the first, so that the bits per dimension of a good model come
    down to a third of those of the grey images: the two are not to be compared.

    Args:
      parent: images of one channel.

    Raises:
      DataError: the images have another number of channels.
    """

    def __init__(self, parent: Source):
        if parent.spec.channels != 1:
            raise DataError(f"{parent.name} has images of {parent.spec}; expected one channel to repeat")
        self.parent, self.name = parent, parent.name
        self.spec = dataclasses.replace(parent.spec, channels=3)

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def epoch_size(self) -> int:
        return self.parent.epoch_size

    def epoch_order(self, generator: np.random.RandomState) -> np.ndarray:
        return self.parent.epoch_order(generator)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = self.parent.read(indices)
        return batch | {"image": np.repeat(batch["image"], 3, axis=-1)}  # [n, H, W, 1] -> [n, H, W, 3]


def grey_as_rgb(splits: Splits) -> Splits:
    """All three sources of a grey data set as RGB; see `GreyAsRgb`."""
    return Splits(GreyAsRgb(splits.train), GreyAsRgb(splits.valid), GreyAsRgb(splits.test))
