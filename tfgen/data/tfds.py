"""Data sets of TensorFlow Datasets (TFDS) by their TFDS names, with random access.

A data set is prepared once, in the array_record format, under `<data_dir>/tfds`.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfgen.data.errors import DataError, UnknownDatasetError
from tfgen.data.reading import reading_threads
from tfgen.data.source import ImageSpec, Source, Splits
from tfgen.data.splitting import complete_splits

_log = logging.getLogger(__name__)

# TFDS tries each download eleven times, which without a network takes minutes; five attempts take seconds.
_DOWNLOAD_RETRIES = 4


class TfdsSource(Source):
    """One split of a prepared TFDS data set, in its stored order.

    Args:
      builder: a prepared `tfds.core.DatasetBuilder` in the array_record format.
      split: a split or slice of one: "train", "train[:90%]", "test[100:200]".

    Raises:
      DataError: no such split; no image feature; images that are not uint8 or of several sizes.
    """

    def __init__(self, builder: Any, split: str):
        self.name = f"{builder.info.full_name} {split}"
        self._image_key, self._label_key, classes = _features(builder)
        try:
            self._items = builder.as_data_source(split)
        except (ValueError, KeyError) as error:
            available = ", ".join(builder.info.splits) or "none"
            raise DataError(f"{builder.info.full_name} has no split {split!r}; it has {available} ({error})") from error
        if not len(self._items):
            raise DataError(f"{self.name} is empty")
        # Some data sets declare no fixed shape though all their images have one; `read` checks each against the first.
        shape = np.shape(self._items[0][self._image_key])
        if len(shape) != 3 or shape[-1] not in (1, 3):
            raise DataError(f"{self.name} has images of shape {shape}; expected [H, W, C] with 1 or 3 channels")
        self.spec = ImageSpec(*shape, num_classes=classes)

    def __len__(self) -> int:
        return len(self._items)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        items = list(reading_threads().map(self._item, np.asarray(indices).tolist()))
        batch = {"image": np.stack([item[self._image_key] for item in items])}  # uint8 [n, H, W, C]
        if self._label_key is not None:
            batch["label"] = np.array([item[self._label_key] for item in items], np.int32)
        return batch

    def _item(self, index: int) -> dict[str, Any]:
        item = self._items[index]
        image = item[self._image_key]
        if image.dtype != np.uint8 or image.shape != self.spec.shape:
            raise DataError(
                f"image {index} of {self.name} is {image.dtype} {image.shape}, the first was uint8 {self.spec.shape}: "
                "only data sets whose images all have one size can be used"
            )
        return item


def open_tfds(name: str, data_dir: str) -> Splits:
    """Opens a TFDS data set, preparing it first if need be.

    Args:
      name: "cifar10", "downsampled_imagenet/32x32", "mnist:3.0.1" ...
      data_dir: its sub-folder "tfds" holds the prepared data.

    Returns:
      Its splits "train", "validation" and "test". What it lacks is chosen by `complete_splits`.

    Raises:
      UnknownDatasetError: no data set or configuration of that name.
      DataError: it cannot be prepared (no network, files to be fetched by hand) or holds no usable images.
    """
    builder = prepared_builder(name, data_dir)
    # TFDS' own mock data reports no splits at all, yet answers to their names.
    found = set(builder.info.splits) or {"train"}
    if "train" not in found:
        raise DataError(f"{name} has no split 'train'; it has {', '.join(sorted(found))}")
    train = TfdsSource(builder, "train")
    valid = TfdsSource(builder, "validation") if "validation" in found else None
    test = TfdsSource(builder, "test") if "test" in found else None
    return complete_splits(train, valid, test)


def two_splits(name: str, splits: tuple[str, str], data_dir: str, files: str) -> tuple[TfdsSource, TfdsSource]:
    """Two splits of a TFDS data set in their stored order, where the files of the original code are not there.

    Args:
      name, data_dir: as for `open_tfds`.
      splits: names of the splits.
      files: for the message: which files could be placed where instead.

    Raises:
      DataError: the data set cannot be prepared.
    """
    builder = replacing_builder(name, data_dir, files)
    return TfdsSource(builder, splits[0]), TfdsSource(builder, splits[1])


def one_split(name: str, split: str, data_dir: str, files: str) -> TfdsSource:
    """One split, otherwise as `two_splits`."""
    return TfdsSource(replacing_builder(name, data_dir, files), split)


def replacing_builder(name: str, data_dir: str, files: str) -> Any:
    """`prepared_builder` of a data set that stands in for files; the message of its `DataError` names them, too."""
    try:
        return prepared_builder(name, data_dir)
    except DataError as error:
        raise DataError(f"{error}\nOr place the original's own files: {files}.") from error


def prepared_builder(name: str, data_dir: str) -> Any:
    """A `tfds.core.DatasetBuilder` whose data are on disk. Raises as `open_tfds` does."""
    import tensorflow_datasets as tfds  # here: it takes seconds, and most runs do without

    folder = pathlib.Path(data_dir) / "tfds"

    def create() -> Any:
        return tfds.builder(name, data_dir=str(folder), file_format="array_record")

    try:
        builder = create()
    except tfds.core.DatasetNotFoundError as error:
        raise UnknownDatasetError(f"no data set named {name!r}{suggestion(name, known_names())}") from error
    except (ValueError, ImportError, OSError) as error:
        raise _cannot_open(name, folder, error) from error
    if not builder.is_prepared():
        _prepare(builder, name, folder)
        builder = create()  # if another rank prepared it, the first builder does not know the splits
    return builder


def known_names() -> list[str]:
    """Names of the data sets that come with TFDS, without configurations."""
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


def suggestion(name: str, known: list[str]) -> str:
    """ "; did you mean ...?", or nothing where no known name is near."""
    near = difflib.get_close_matches(name.partition("/")[0].partition(":")[0], known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _features(builder: Any) -> tuple[str, str | None, int | None]:
    """Name of the image feature, of the label feature (or None), and the number of classes (or None)."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items()) if hasattr(builder.info.features, "items") else {}
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if not images:
        listed = ", ".join(features) or str(builder.info.features)
        raise DataError(f"{builder.info.full_name} has no image feature; its features are {listed}")
    image = "image" if "image" in images else images[0]
    if features[image].np_dtype != np.uint8:
        raise DataError(f"{builder.info.full_name} has {features[image].np_dtype} images; only uint8 can be used")
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if not labels:
        return image, None, None
    label = "label" if "label" in labels else labels[0]
    return image, label, features[label].num_classes


def _prepare(builder: Any, name: str, folder: pathlib.Path) -> None:
    import tensorflow_datasets as tfds

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder), _few_retries():
            _log.info("preparing the TFDS data set %s in %s (once)", name, folder)
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except Exception as error:  # each data set's own code runs here and may fail in its own way
        raise _cannot_open(name, folder, error) from error


def _cannot_open(name: str, folder: pathlib.Path, error: Exception) -> DataError:
    # The text of TFDS' errors can run to pages.
    reason = f"{type(error).__name__}: {str(error).strip()[:600]}"
    return DataError(
        f"cannot prepare the TFDS data set {name!r}: {reason}\n"
        "Without a network, prepare it on another machine with\n"
        f'  python -c "import tensorflow_datasets as t; '
        f"t.builder('{name}', data_dir='tfds', file_format='array_record').download_and_prepare()\"\n"
        f"and copy its folder tfds/{name.partition(':')[0].partition('/')[0]} into {folder}. "
        f"Files that a data set wants fetched by hand go to {folder / 'downloads' / 'manual'}."
    )


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Holds a lock on `folder`: of several ranks one prepares, the others wait and find it done."""
    with open(folder / ".preparing.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    from tensorflow_datasets.core.download import downloader

    connections = logging.getLogger("urllib3.connectionpool")  # warns of each attempt at each file
    before = downloader.MAX_RETRIES, connections.level
    downloader.MAX_RETRIES = _DOWNLOAD_RETRIES
    connections.setLevel(logging.ERROR)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before[0]
        connections.setLevel(before[1])
