"""The pickles of ImageNet 32x32."""

from __future__ import annotations

import pathlib
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.test_cifar import Payload, planar
from tfgen.data import imagenet32
from tfgen.data import tfds as tfds_module
from tfgen.data.errors import DataError

FILES = (*imagenet32.TRAIN_FILES, imagenet32.VALID_FILE)


def write_file(path: pathlib.Path, images, labels) -> None:
    """As published: with the mean image, of another type, beside the images."""
    content = {"data": images, "labels": labels, "mean": np.zeros(3072)}
    path.write_bytes(pickle.dumps(content, 4))


def write_imagenet32(folder: pathlib.Path) -> None:
    """File i, from 0, has i + 1 images, with labels 1000 - i."""
    folder.mkdir(parents=True)
    for number, name in enumerate(FILES):
        write_file(folder / name, planar(number + 1, number), [1000 - number] * (number + 1))


@pytest.mark.parametrize("named", [False, True])
def test_images_in_the_order_of_the_files(tmp_path, named):
    folder = tmp_path / ("elsewhere" if named else "imagenet")
    write_imagenet32(folder)
    train, valid = imagenet32.open_imagenet32(tmp_path, str(folder) if named else "")
    assert (len(train), len(valid)) == (55, 11)
    assert train.spec == valid.spec == imagenet32.SPEC
    indices = np.array([54, 0, 2, 1, 45])  # the tenth file has the last ten, the ninth the nine before
    batch = train.read(indices)
    expected = [planar(10, 9)[9], planar(1, 0)[0], planar(2, 1)[1], planar(2, 1)[0], planar(10, 9)[0]]
    for image, row in zip(batch["image"], expected, strict=True):
        np.testing.assert_array_equal(image, row.reshape(3, 32, 32).transpose(1, 2, 0))
    assert batch["label"].tolist() == [990, 999, 998, 998, 990]
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(train.read(np.arange(55))["image"][indices], batch["image"])


def test_missing_files_are_named(tmp_path):
    write_imagenet32(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "val_data").unlink()
    with pytest.raises(DataError, match=r"imagenet lacks val_data: unpack .* all eleven"):
        imagenet32.open_imagenet32(tmp_path)
    with pytest.raises(DataError, match=r"nowhere lacks train_data_batch_1, .*val_data"):
        imagenet32.open_imagenet32(tmp_path, str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (planar(2), [0, 5], "has labels 0 to 5; expected 1 to 1000"),
        (planar(2), [1, 1001], "has labels 1 to 1001"),
        (planar(0), [], "has no images|expected"),
        (planar(2)[:, :12], [1, 2], r"holds images \[2, 12\]"),
        (planar(2), [[1], [2, 3]], "'labels' is damaged"),
        (planar(2).astype(np.float32), [1, 2], "'data' is"),
        (Payload(print, "x"), [1], "asks for .*print, which a file of ImageNet 32x32 does not need"),
    ],
)
def test_damaged_files(tmp_path, images, labels, message):
    write_imagenet32(tmp_path / "imagenet")
    write_file(tmp_path / "imagenet" / "train_data_batch_4", images, labels)
    with pytest.raises(DataError, match=message):
        imagenet32.open_imagenet32(tmp_path)


def test_a_file_that_is_far_too_large(tmp_path, monkeypatch):
    write_imagenet32(tmp_path / "imagenet")
    monkeypatch.setattr(imagenet32, "_LARGEST_FILE", 30_000)
    with pytest.raises(DataError, match="bytes, more than 30000: it is not a file of ImageNet 32x32"):
        imagenet32.open_imagenet32(tmp_path)


def test_without_files_tfds_is_asked(tmp_path, monkeypatch):
    with tfds.testing.mock_data(num_examples=3):
        builder = tfds.builder("imagenet_resized/32x32", data_dir=tmp_path)
        monkeypatch.setattr(tfds_module, "prepared_builder", lambda name, data_dir: builder)
        train, _ = imagenet32.open_imagenet32(tmp_path)
        assert train.spec == imagenet32.SPEC

    def refuse(name, data_dir):
        raise DataError(f"cannot prepare {name}")

    monkeypatch.setattr(tfds_module, "prepared_builder", refuse)
    message = r"cannot prepare imagenet_resized/32x32\nOr place .*train_data_batch_1 to 10 and val_data in .*/imagenet"
    with pytest.raises(DataError, match=message):
        imagenet32.open_imagenet32(tmp_path)
