"""Data sets of improved diffusion: image folders with and without splits, labels numbered alike, bundled images."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.images import encode, pixels
from tests.systems.diffusion import small
from tfgen import settings
from tfgen.data import crops
from tfgen.data.errors import DataError
from tfgen.settings import SettingsError
from tfgen.systems.diffusion import data

TRAIN = [f"{name}_{number}.png" for name in ("cat", "dog", "eel") for number in range(4)]


def write(folder: pathlib.Path, names: list[str]) -> list[np.ndarray]:
    """Pictures of 9 x 13 pixels; returns their crops in the order of `names`."""
    pictures = [pixels(number, 9, 13) for number in range(len(names))]
    for name, picture in zip(names, pictures, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(picture))
    return [crops.prepare(Image.fromarray(picture), small.SIDE) for picture in pictures]


def opened(folder: pathlib.Path, **changes):
    config = small.config(**({"dataset": ""} | changes))
    splits = data.open_splits(config, str(folder))
    # What is known without data is what the data then are, but for the number of classes.
    assert data.known_spec(config).shape == splits.spec.shape
    config.validate(splits.spec)
    return splits


def everything(source) -> dict[str, np.ndarray]:
    return source.read(np.arange(len(source)))


def test_a_folder_without_splits_is_all_of_them(tmp_path):
    expected = write(tmp_path, TRAIN)
    splits = opened(tmp_path)
    assert splits.train is splits.valid is splits.test
    assert splits.spec == small.SPEC
    batch = everything(splits.train)
    assert batch.keys() == {"image"}
    np.testing.assert_array_equal(batch["image"], expected)


def test_sub_folders_are_splits(tmp_path):
    write(tmp_path, [f"{split}/{name}" for split in ("train", "valid", "test") for name in TRAIN[:3]])
    splits = opened(tmp_path)
    images = [everything(source)["image"] for source in (splits.train, splits.valid, splits.test)]
    assert [len(part) for part in images] == [3, 3, 3]
    assert len({part.tobytes() for part in images}) == 3


@pytest.mark.parametrize(
    ("present", "valid", "test"),
    [(["valid"], "valid", "valid"), (["test"], "test", "test"), ([], "train", "train")],
)
def test_splits_that_are_missing(tmp_path, present, valid, test):
    write(tmp_path, [f"{split}/{name}" for split in ("train", *present) for name in TRAIN])
    splits = opened(tmp_path)
    assert splits.train.name.endswith("train")
    assert splits.valid.name.endswith(valid)
    assert splits.test.name.endswith(test)


def test_labels_are_numbered_as_in_the_training_set(tmp_path):
    """Though the validation images lack a class, which alone would move the others' numbers."""
    write(tmp_path / "train", TRAIN)
    write(tmp_path / "valid", ["dog_9.png", "eel_8.png", "eel_9.png"])
    splits = opened(tmp_path, **small.OF_CLASSES)
    assert splits.spec == small.LABELLED
    np.testing.assert_array_equal(everything(splits.train)["label"], np.repeat([0, 1, 2], 4))
    np.testing.assert_array_equal(everything(splits.valid)["label"], [1, 2, 2])


def test_a_class_that_the_training_set_lacks(tmp_path):
    write(tmp_path / "train", TRAIN)
    write(tmp_path / "valid", ["emu_1.png", "cat_1.png", "cat_2.png"])
    with pytest.raises(DataError, match=r"valid has classes \['emu'\] that the training set does not have"):
        opened(tmp_path, **small.OF_CLASSES)


def test_more_classes_than_rows(tmp_path):
    write(tmp_path, TRAIN)
    with pytest.raises(SettingsError, match=r"has 3 classes \(cat, dog, eel .*set --num_classes=3"):
        opened(tmp_path, class_cond=True, num_classes=2)
    # More rows than classes are fine: the original always has 1000.
    assert opened(tmp_path, class_cond=True, num_classes=1000).spec.num_classes == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat_1.png", "cat_2.png"], "the file names tell one class: cat"),
        (["a.png", "b.png", "c.png"], "a class of its own for every file"),
        ([], "has no images"),
    ],
)
def test_names_that_tell_no_classes(tmp_path, names, message):
    write(tmp_path, names)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, **small.OF_CLASSES)


def test_no_folder(tmp_path):
    for name in ("missing", "missing.zip"):
        with pytest.raises(DataError, match=rf"no folder or \.zip archive .*{name}: .* --data_dir=FOLDER, or another"):
            opened(tmp_path / name)


def test_a_preset_that_names_its_data_takes_a_folder_where_asked(tmp_path):
    write(tmp_path, TRAIN)
    resolved = settings.parse(
        ["--system=diffusion", "--hps=cifar10", "--dataset=", f"--data_dir={tmp_path}", f"--run={tmp_path}/run"]
    )
    splits = data.open_splits(resolved.config, resolved.run.data_dir)
    resolved.config.validate(splits.spec)
    assert (splits.train.name, len(splits.train), splits.spec.shape) == (str(tmp_path), len(TRAIN), (32, 32, 3))


def test_a_zip_archive_is_one_set(tmp_path):
    expected = write(tmp_path / "pictures", [f"train/{name}" for name in TRAIN])
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "pictures")
    splits = opened(pathlib.Path(packed), **small.OF_CLASSES)
    assert splits.train is splits.valid is splits.test
    assert splits.spec == small.LABELLED
    np.testing.assert_array_equal(everything(splits.train)["image"], expected)


def test_palette_images_are_resized_as_the_original_does_or_as_colours(tmp_path):
    picture = Image.fromarray(pixels(1, 40, 40)).quantize(16)
    (tmp_path / "a.png").write_bytes(encode(picture))
    plain, converted = (opened(tmp_path, convert_first=first).train.read(np.array([0])) for first in (False, True))
    assert (plain["image"] != converted["image"]).any()
    np.testing.assert_array_equal(plain["image"][0], crops.prepare(picture, small.SIDE))


def test_digits_are_grey_in_three_channels():
    config = small.config(dataset="digits", class_cond=True, num_classes=10)
    splits = data.open_splits(config, "nowhere")
    assert splits.spec == data.known_spec(config)
    config.validate(splits.spec)
    batch = splits.train.read(np.arange(5))
    assert batch["label"].shape == (5,)
    np.testing.assert_array_equal(batch["image"], np.repeat(batch["image"][..., :1], 3, axis=-1))


def test_an_array_file_without_labels(tmp_path):
    np.save(tmp_path / "images.npy", small.images(50))
    config = small.config(dataset=str(tmp_path / "images.npy"), **small.OF_CLASSES)
    splits = data.open_splits(config, str(tmp_path))
    assert data.known_spec(config) is None
    with pytest.raises(SettingsError, match="have no labels"):
        config.validate(splits.spec)
