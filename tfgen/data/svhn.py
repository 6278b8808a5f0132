"""Street View House Numbers: the cropped digits.

Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning" (2011).
"""

from __future__ import annotations

import pathlib

import numpy as np
import scipy.io

from tfgen.data.arrays import ArraySource
from tfgen.data.errors import DataError
from tfgen.data.source import ImageSpec, Source
from tfgen.data.tfds import one_split

CLASSES = 10
SPEC = ImageSpec(32, 32, 3, CLASSES)
_LARGEST = 2**30  # bytes of the images; those of "train" have 225 million
_IMAGES, _LABELS = "X", "y"


def open_svhn(data_dir: pathlib.Path, split: str) -> Source:
    """Images of a split, uint8 32x32x3 with the digits for labels.

    They are those of the file SPLIT_32x32.mat in `<data_dir>/svhn` or in `data_dir`, in its order; else TFDS'.

    Args:
      split: "train" or "test".

    Raises:
      DataError: neither is there, or what is there is damaged.
    """
    file = f"{split}_32x32.mat"
    places = [data_dir / "svhn" / file, data_dir / file]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return one_split("svhn_cropped", split, str(data_dir), " or ".join(map(str, places)))
    try:
        listed = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(path)}
        shape, kind = listed.get(_IMAGES, ((), "nothing"))
        count = shape[-1] if shape else 0
        if kind != "uint8" or shape[:3] != SPEC.shape or len(shape) != 4 or not 0 < count <= _LARGEST // SPEC.dims:
            raise DataError(f"{path}: {_IMAGES} is {kind} {list(shape)}, expected uint8 [32, 32, 3, N]")
        found = listed.get(_LABELS, ((), "nothing"))
        if found[0] != (count, 1):
            raise DataError(f"{path}: expected labels {_LABELS} [{count}, 1], found {found[1]} {list(found[0])}")
        content = scipy.io.loadmat(path, variable_names=[_IMAGES, _LABELS])
    except DataError:
        raise
    except Exception as error:  # `scipy` raises nearly anything on damaged files
        raise DataError(f"{path} is no MATLAB file, or damaged: {error}") from error
    labels = content[_LABELS][:, 0].astype(np.int64)
    if not 1 <= labels.min() <= labels.max() <= CLASSES:
        raise DataError(f"{path} has labels {labels.min()} to {labels.max()}; expected 1 to {CLASSES}, which is 0")
    images = np.ascontiguousarray(content[_IMAGES].transpose(3, 0, 1, 2))  # [N, 32, 32, 3]
    return ArraySource(images, f"svhn {split}", labels=labels % CLASSES, num_classes=CLASSES)
