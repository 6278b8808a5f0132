import os

import numpy as np
import pytest
from PIL import Image

from tfgen.data import cifar_files
from tfgen.data.arrays import ArraySource
from tfgen.data.prepared_folder import open_image_folder


def labelled(count: int) -> ArraySource:
    random = np.random.RandomState(count)
    images = random.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return ArraySource(images, "cifar10", labels=random.permutation(count) % 10, num_classes=10)


def test_names_and_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_files, "_AT_ONCE", 7)
    source, seen = labelled(23), []
    cifar_files.write_split(source, tmp_path / "cifar_train", seen.append)
    assert seen == [7, 14, 21, 23]
    assert os.listdir(tmp_path) == ["cifar_train"]
    batch = source.read(np.arange(23))
    words = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for index, (image, label) in enumerate(zip(batch["image"], batch["label"], strict=True)):
        path = tmp_path / "cifar_train" / f"{words[label]}_{index:05}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    assert len(os.listdir(tmp_path / "cifar_train")) == 23


def test_the_folder_is_a_data_set_of_ten_classes(tmp_path):
    cifar_files.write_split(labelled(30), tmp_path / "cifar_train")
    source = open_image_folder(tmp_path / "cifar_train", 32, class_cond=True)
    assert source.class_names == tuple(sorted(cifar_files.CLASS_NAMES))


def test_an_interrupted_write_starts_afresh(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_files, "_AT_ONCE", 5)

    def interrupt(done):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cifar_files.write_split(labelled(23), tmp_path / "cifar_test", interrupt)
    assert os.listdir(tmp_path) == []
    (tmp_path / ".cifar_test.partial").mkdir()  # what a killed process leaves
    (tmp_path / ".cifar_test.partial" / "plane_99999.png").write_bytes(b"half")
    cifar_files.write_split(labelled(23), tmp_path / "cifar_test")
    assert os.listdir(tmp_path) == ["cifar_test"]
    assert len(os.listdir(tmp_path / "cifar_test")) == 23
