import zipfile

import numpy as np
import pytest

from tests.data.images import encode, pixels, write_folder
from tfgen.data import tfds
from tfgen.data.catalog import is_path, open_dataset
from tfgen.data.errors import DataError, UnknownDatasetError


def test_builtin_names(tmp_path):
    assert open_dataset("digits", str(tmp_path)).spec.shape == (8, 8, 1)
    assert open_dataset("photos", str(tmp_path)).spec.shape == (32, 32, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_array_files_are_split(tmp_path, suffix):
    images = np.stack([pixels(number) for number in range(30)])
    path = tmp_path / f"images{suffix}"
    np.save(path, images) if suffix == ".npy" else np.savez(path, images=images)
    splits = open_dataset(str(path), str(tmp_path))
    parts = [part.read(np.arange(len(part)))["image"] for part in (splits.train, splits.valid, splits.test)]
    assert [len(part) for part in parts] == [24, 3, 3]
    assert sorted(int(image[0, 0, 0]) for part in parts for image in part) == list(range(30))


def test_folder_with_splits_and_labels(tmp_path):
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        write_folder(tmp_path / split, [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(count)])
    splits = open_dataset(str(tmp_path), "unused")
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [12, 4, 6]
    assert splits.spec.num_classes == 2
    assert splits.valid.read(np.arange(4))["label"].tolist() == [0, 0, 1, 1]


def test_validation_classes_are_numbered_as_in_training(tmp_path):
    write_folder(tmp_path / "train", [f"{kind}/{number}.png" for kind in ("ant", "bee", "cow") for number in range(2)])
    write_folder(tmp_path / "valid", ["cow/1.png", "bee/1.png"])
    splits = open_dataset(str(tmp_path), "unused")
    assert splits.valid.read(np.arange(2))["label"].tolist() == [1, 2]
    assert splits.valid.spec.num_classes == 3
    assert splits.test is splits.valid


def test_held_out_images_of_another_size_are_refused(tmp_path):
    write_folder(tmp_path / "train", ["1.png", "2.png"])
    write_folder(tmp_path / "valid", ["1.png"], height=9)
    with pytest.raises(DataError, match=r"9x5x3, no labels, .*train of 6x5x3"):
        open_dataset(str(tmp_path), "unused")


def test_zip_of_images(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for number in range(10):
            archive.writestr(f"{number}.png", encode(pixels(number)))
    splits = open_dataset(str(tmp_path / "images.zip"), "unused")
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [8, 1, 1]


def test_what_counts_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "folder").mkdir(parents=True)
    for name in ("x.npy", "a/x.npz", "x.zip", "./mnist", "/data", "~/data", "..", "some/folder"):
        assert is_path(name), name
    for name in ("mnist", "some", "downsampled_imagenet/32x32", "mnist:3.0.1"):
        assert not is_path(name), name


def test_a_bare_folder_name_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()

    def unknown(name, data_dir):
        raise UnknownDatasetError(name)

    monkeypatch.setattr(tfds, "open_tfds", unknown)
    with pytest.raises(UnknownDatasetError, match=r"for the folder pictures of this directory type \./pictures"):
        open_dataset("pictures", "unused")


def test_missing_paths(tmp_path):
    for name in ("absent.npy", "absent.zip", "absent"):
        with pytest.raises(DataError, match="no file"):
            open_dataset(str(tmp_path / name), "unused")
