from __future__ import annotations

import gzip
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.test_idx import encode
from tfgen.data import mnist
from tfgen.data.errors import DataError

COUNTS = {"train": 12, "t10k": 4}


def images(prefix: str) -> np.ndarray:
    return np.random.RandomState(len(prefix)).randint(0, 256, (COUNTS[prefix], 28, 28)).astype(np.uint8)


def labels(prefix: str) -> np.ndarray:
    return (np.arange(COUNTS[prefix]) * 3 % 10).astype(np.uint8)


def write_mnist(folder: pathlib.Path, suffix: str = "", mark: str = "-") -> None:
    """The four files of few images, compressed where `suffix` is ".gz"."""
    folder.mkdir(parents=True)
    for prefix in COUNTS:
        for kind, array in (("images", images(prefix)), ("labels", labels(prefix))):
            content = gzip.compress(encode(array)) if suffix else encode(array)
            (folder / f"{prefix}-{kind}{mark}idx{array.ndim}-ubyte{suffix}").write_bytes(content)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "MNIST/raw"),
        ("mnist", "MNIST"),
        ("mnist", "mnist"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("fashion_mnist", "fashion_mnist"),
    ],
)
def test_images_in_the_order_of_the_files(tmp_path, name, place):
    write_mnist(tmp_path / place)
    train, test = mnist.open_mnist(tmp_path, name)
    for source, prefix in ((train, "train"), (test, "t10k")):
        batch = source.read(np.arange(len(source)))
        np.testing.assert_array_equal(batch["image"][..., 0], images(prefix))
        np.testing.assert_array_equal(batch["label"], labels(prefix))
        assert source.spec == mnist.SPEC
    assert train.name == f"{name} train"


@pytest.mark.parametrize(("suffix", "mark"), [(".gz", "-"), ("", "."), (".gz", ".")])
def test_spellings_of_the_names(tmp_path, suffix, mark):
    write_mnist(tmp_path / "mnist", suffix, mark)
    train, test = mnist.open_mnist(tmp_path)
    assert (len(train), len(test)) == (12, 4)


def test_one_is_not_taken_for_the_other(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw")
    assert mnist.find_folder(tmp_path, "mnist") == tmp_path / "MNIST" / "raw"
    assert mnist.find_folder(tmp_path, "fashion_mnist") is None


def test_a_missing_file_is_named(tmp_path):
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"lacks t10k-labels-idx1-ubyte, as \.gz or not: place all four"):
        mnist.open_mnist(tmp_path)


@pytest.mark.parametrize(
    ("file", "array", "found"),
    [
        ("train-images-idx3-ubyte", np.zeros((12, 28, 27)), r"images-idx3-ubyte holds \[12, 28, 27\]"),
        ("train-images-idx3-ubyte", np.zeros((0, 28, 28)), r"holds \[0, 28, 28\]"),
        ("t10k-labels-idx1-ubyte", np.zeros(5), r"labels-idx1-ubyte \[5\]; expected images"),
        ("t10k-labels-idx1-ubyte", np.array([0, 1, 2, 10]), "has the label 10; expected 0 to 9"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, file, array, found):
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / file).write_bytes(encode(array.astype(np.uint8)))
    with pytest.raises(DataError, match=found):
        mnist.open_mnist(tmp_path)


def test_without_files_tfds_is_asked(tmp_path, monkeypatch):
    from tfgen.data import tfds as tfds_module

    with tfds.testing.mock_data(num_examples=3):
        builder = tfds.builder("mnist", data_dir=tmp_path)
        monkeypatch.setattr(tfds_module, "prepared_builder", lambda name, data_dir: builder)
        train, _ = mnist.open_mnist(tmp_path)
        assert train.spec == mnist.SPEC

    def refuse(name, data_dir):
        raise DataError(f"cannot prepare {name}")

    monkeypatch.setattr(tfds_module, "prepared_builder", refuse)
    with pytest.raises(
        DataError, match=r"cannot prepare fashion_mnist\nOr place .*t10k-labels-idx1-ubyte.*FashionMNIST"
    ):
        mnist.open_mnist(tmp_path, "fashion_mnist")
