import dataclasses
import logging

import numpy as np
import pytest

from tests.data.test_cifar import planar, write_cifar
from tfgen.data import tfds
from tfgen.data.errors import DataError
from tfgen.systems.distaug import data
from tfgen.systems.distaug.config import Config


def config(**settings) -> Config:
    return dataclasses.replace(Config(), **settings)


def images(part) -> np.ndarray:
    return part.read(np.arange(len(part)))["image"]


def from_planar(rows: np.ndarray) -> np.ndarray:
    side = round((rows.shape[1] // 3) ** 0.5)
    return rows.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


@pytest.fixture
def no_tfds(monkeypatch):
    def refuse(name, data_dir):
        raise DataError(f"cannot prepare {name}")

    monkeypatch.setattr(tfds, "prepared_builder", refuse)


def test_cifar_is_split_as_the_original_does(tmp_path):
    write_cifar(tmp_path / "cifar10")
    splits = data.open_splits(config(dataset="cifar10", test_size=6, datapoints=9), str(tmp_path))
    stored = from_planar(np.concatenate([planar(4, number) for number in range(5)]))
    order = np.random.RandomState(11172018).permutation(20)
    np.testing.assert_array_equal(images(splits.valid), stored[order[:6]])
    np.testing.assert_array_equal(images(splits.train), stored[order[6:15]])
    np.testing.assert_array_equal(images(splits.test), from_planar(planar(4, 5)))
    assert splits.spec == data.known_spec("cifar10")


def test_cifar_default_validation_size_needs_enough_images(tmp_path):
    write_cifar(tmp_path / "cifar10")
    with pytest.raises(DataError, match="--test_size=5000: expected 1 to 19 of the 20"):
        data.open_splits(config(dataset="cifar10"), str(tmp_path))


def test_split_of_the_published_models():
    train, valid = data.split_cifar(50_000, 2_000, 48_000)
    assert (len(train), len(valid)) == (48_000, 2_000)
    assert valid[:4].tolist() == [38899, 48321, 12222, 16844]
    assert train[:4].tolist() == [38375, 21667, 23622, 31132]
    np.testing.assert_array_equal(data.split_cifar(50_000, 2_000, 100)[0], train[:100])


@pytest.mark.parametrize(("valid_size", "datapoints"), [(0, None), (20, None), (25, None), (5, 16), (5, 0)])
def test_impossible_splits(valid_size, datapoints):
    with pytest.raises(DataError, match=r"--(test_size|datapoints)=\d+: expected 1 to"):
        data.split_cifar(20, valid_size, datapoints)


@pytest.mark.parametrize(("name", "side", "layout"), [("imagenet32", 32, "planar"), ("imagenet64", 64, "interleaved")])
def test_imagenet_files(tmp_path, monkeypatch, name, side, layout):
    random = np.random.RandomState(0)
    pictures = {part: random.randint(0, 256, (n, side, side, 3), np.uint8) for part, n in (("train", 30), ("valid", 4))}
    for part, stored in pictures.items():
        rows = stored.transpose(0, 3, 1, 2) if layout == "planar" else stored
        np.save(tmp_path / f"{name}-{part}.npy", rows.reshape(len(rows), -1))
    splits = data.open_splits(config(dataset=name), str(tmp_path))
    np.testing.assert_array_equal(images(splits.train), pictures["train"][:27])
    np.testing.assert_array_equal(images(splits.valid), pictures["train"][27:])
    np.testing.assert_array_equal(images(splits.test), pictures["valid"])
    # With the original's number of rows, here made small, the boundary is where the original has it.
    monkeypatch.setitem(data._IMAGENET, name, (side, layout, 25))
    splits = data.open_splits(config(dataset=name), str(tmp_path))
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [25, 5, 4]


def test_imagenet_boundaries_of_the_original():
    assert data._IMAGENET["imagenet32"] == (32, "planar", 1_281_167 - 10_000)
    assert data._IMAGENET["imagenet64"] == (64, "interleaved", 1_231_149)


def test_imagenet_needs_both_files_of_the_right_size(tmp_path):
    np.save(tmp_path / "imagenet32-train.npy", np.zeros((5, 3072), np.uint8))
    with pytest.raises(DataError, match=r"no file .*imagenet32-valid\.npy"):
        data.open_splits(config(dataset="imagenet32"), str(tmp_path))
    np.save(tmp_path / "imagenet32-valid.npy", np.zeros((5, 3000), np.uint8))
    with pytest.raises(DataError, match="rows of 3000 values"):
        data.open_splits(config(dataset="imagenet32"), str(tmp_path))


@pytest.mark.usefixtures("no_tfds")
@pytest.mark.parametrize(
    ("name", "place"), [("cifar10", "batches of cifar-10-python.tar.gz in"), ("imagenet64", "imagenet64-train.npy and")]
)
def test_without_any_data_both_ways_to_get_them_are_named(tmp_path, name, place):
    with pytest.raises(DataError, match=f"cannot prepare .*\nOr place the original's own files: .*{place}"):
        data.open_splits(config(dataset=name), str(tmp_path))


def test_cifar_from_tfds_warns_that_the_order_differs(tmp_path, caplog):
    import tensorflow_datasets

    with tensorflow_datasets.testing.mock_data(num_examples=30), caplog.at_level(logging.WARNING, "tfgen"):
        splits = data.open_splits(config(dataset="cifar10", test_size=5), str(tmp_path))
        assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [25, 5, 30]
        assert splits.spec == data.known_spec("cifar10")
        assert images(splits.valid).shape == (5, 32, 32, 3)
    assert "order is not that of the original batches" in caplog.text


def test_other_names_go_to_the_catalog(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "tfgen"):
        splits = data.open_splits(config(dataset="digits", datapoints=7), str(tmp_path))
    assert len(splits.train) == 1497
    assert "concern cifar10 only" in caplog.text
    assert data.known_spec("digits") == splits.spec
    assert data.known_spec("photos") == data.open_splits(config(dataset="photos"), str(tmp_path)).spec
    assert data.known_spec("mnist") is None


def test_auxiliary_data_are_mixed_into_training_only(tmp_path):
    write_cifar(tmp_path / "cifar10")
    settings = config(
        dataset="cifar10",
        test_size=4,
        auxiliary_dataset="photos",
        auxiliary_dataset_fraction=0.25,
        auxiliary_dataset_subset_size=100,
    )
    splits = data.open_splits(settings, str(tmp_path))
    assert (len(splits.train), splits.train.epoch_size) == (116, 16)
    assert splits.train.read(np.array([15, 16]))["dataset"].tolist() == [0, 1]
    assert len(splits.valid) == 4
    assert "dataset" not in splits.valid.read(np.array([0]))
    with pytest.raises(DataError, match="cannot mix images"):
        data.open_splits(dataclasses.replace(settings, auxiliary_dataset="digits"), str(tmp_path))
