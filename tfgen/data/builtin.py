"""Images that need no download: two sets of real ones that come with scikit-learn, and drawn ones."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from tfgen.data import sprites as drawn
from tfgen.data.arrays import ArraySource
from tfgen.data.source import ImageSpec, Source, Splits
from tfgen.data.splitting import shuffled_parts

DIGITS_SPEC = ImageSpec(8, 8, 1, num_classes=10)
PHOTOS_SPEC = ImageSpec(32, 32, 3)
_DIGITS_HELD_OUT = 150
_LARGEST_DIGIT_LEVEL = 16
_SPRITES_HELD_OUT = 1000

# Every 160 columns of a photograph: 96 to train on, 32 to validate on, 32 to test on. The strips alternate so that
# each set sees sky, water and leaves alike; 640 columns hold exactly four periods.
_PERIOD = 160
_STRIPS = {"train": (0, 96), "valid": (96, 128), "test": (128, 160)}
_TRAIN_STRIDE = 2


def digits() -> Splits:
    """Handwritten digits, uint8 8x8x1 with labels 0..9: 1497 to train on, 150 to validate and 150 to test on.

    The 17 grey levels g = 0..16 of `sklearn.datasets.load_digits` become round(g * 255 / 16). The split is the fixed
    shuffle of `shuffled_parts`.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository (1998), test part.
    """
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / _LARGEST_DIGIT_LEVEL)).astype(np.uint8)  # [N, 8, 8]
    source = ArraySource(images, "digits", labels=bunch.target, num_classes=10)
    return shuffled_parts(source, _DIGITS_HELD_OUT, _DIGITS_HELD_OUT)


def photos() -> Splits:
    """Colour crops, uint8 32x32x3 without labels, of scikit-learn's two photographs ("china" and "flower", 427x640).

    The photographs are cut into vertical strips (see `_STRIPS`), and a crop lies within one strip: no validation or
    test crop shares a pixel with a training crop. Training crops start at every second row and column of their strips
    (52,272 crops, cut out when read); validation and test crops do not overlap one another (104 each).
    """
    photographs = np.stack(load_sample_images().images)  # [2, 427, 640, 3]
    return Splits(
        train=CropSource(photographs, _origins(photographs, "train", _TRAIN_STRIDE), "photos train"),
        valid=CropSource(photographs, _origins(photographs, "valid", PHOTOS_SPEC.height), "photos valid"),
        test=CropSource(photographs, _origins(photographs, "test", PHOTOS_SPEC.height), "photos test"),
    )


def sprites() -> Splits:
    """The drawn shapes of `tfgen.data.sprites.sprites`, uint8 32x32x1: 9466 to train on, 1000 to validate on, 1000 to
    test on, by the fixed shuffle of `shuffled_parts`."""
    return shuffled_parts(drawn.sprites(), _SPRITES_HELD_OUT, _SPRITES_HELD_OUT)


def _origins(photographs: np.ndarray, split: str, stride: int) -> np.ndarray:
    """(photograph, row, column) of the upper left corners of a split's crops: int32 [N, 3]."""
    count, height, width, _ = photographs.shape
    first, last = _STRIPS[split]
    rows = np.arange(0, height - PHOTOS_SPEC.height + 1, stride)
    columns = np.concatenate(
        [np.arange(start + first, start + last - PHOTOS_SPEC.width + 1, stride) for start in range(0, width, _PERIOD)]
    )
    grid = np.meshgrid(np.arange(count), rows, columns, indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 3).astype(np.int32)


class CropSource(Source):
    """Square crops of larger images, cut out when they are read.

    Args:
      photographs: uint8 [P, H, W, C].
      origins: int [N, 3]: photograph, top row and left column of each crop.
      size: side of a crop in pixels.
    """

    def __init__(self, photographs: np.ndarray, origins: np.ndarray, name: str, size: int = PHOTOS_SPEC.height):
        self.name, self.origins = name, origins
        self.spec = ImageSpec(size, size, photographs.shape[-1])
        # A view, not a copy: [P, H - size + 1, W - size + 1, 1, 1, size, size, C].
        window = (1, size, size, photographs.shape[-1])
        self._windows = np.lib.stride_tricks.sliding_window_view(photographs, window)

    def __len__(self) -> int:
        return len(self.origins)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        photograph, row, column = self.origins[indices].T
        return {"image": self._windows[photograph, row, column].reshape(-1, *self.spec.shape)}  # [n, size, size, C]
