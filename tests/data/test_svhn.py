"""House numbers from MATLAB files."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds

from tests.seeds import SEED
from tfgen.data import svhn
from tfgen.data import tfds as tfds_module
from tfgen.data.errors import DataError

IMAGES = np.random.RandomState(SEED).randint(0, 256, (5, 32, 32, 3)).astype(np.uint8)


def write_svhn(path, images=IMAGES, labels=(1, 2, 9, 10, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(
        path, {"X": images.transpose(1, 2, 3, 0), "y": np.array(labels)[:, np.newaxis]}, do_compression=True
    )


@pytest.mark.parametrize("place", ["svhn/train_32x32.mat", "train_32x32.mat"])
def test_images_and_digits(tmp_path, place):
    write_svhn(tmp_path / place)
    source = svhn.open_svhn(tmp_path, "train")
    assert (len(source), source.spec) == (5, svhn.SPEC)
    batch = source.read(np.array([3, 0]))
    np.testing.assert_array_equal(batch["image"], IMAGES[[3, 0]])
    assert batch["label"].tolist() == [0, 1]  # ten is zero


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES[:, :16]}, r"X is uint8 \[16, 32, 3, 5\], expected uint8"),
        ({"images": IMAGES / 255}, r"X is double \[32, 32, 3, 5\]"),
        ({"labels": [1, 2, 3, 4]}, r"expected labels y \[5, 1\]"),
        ({"labels": [0, 1, 2, 3, 4]}, "labels 0 to 4; expected 1 to 10"),
    ],
)
def test_other_contents(tmp_path, changes, message):
    write_svhn(tmp_path / "test_32x32.mat", **changes)
    with pytest.raises(DataError, match=message):
        svhn.open_svhn(tmp_path, "test")


def test_damaged_files(tmp_path):
    path = tmp_path / "test_32x32.mat"
    write_svhn(path)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:2000])
    with pytest.raises(DataError, match=r"labels y .*, found nothing"):
        svhn.open_svhn(tmp_path, "test")
    content[1000:1040] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no MATLAB file, or damaged"):
        svhn.open_svhn(tmp_path, "test")
    path.write_bytes(b"no MATLAB file")
    with pytest.raises(DataError, match="is no MATLAB file, or damaged"):
        svhn.open_svhn(tmp_path, "test")


def test_without_files_tfds_is_asked(tmp_path, monkeypatch):
    with tfds.testing.mock_data(num_examples=3):
        builder = tfds.builder("svhn_cropped", data_dir=tmp_path)
        monkeypatch.setattr(tfds_module, "prepared_builder", lambda name, data_dir: builder)
        source = svhn.open_svhn(tmp_path, "train")
        assert source.spec == svhn.SPEC
        assert source.name.endswith("train")

    def refuse(name, data_dir):
        raise DataError(f"cannot prepare {name}")

    monkeypatch.setattr(tfds_module, "prepared_builder", refuse)
    with pytest.raises(DataError, match=r"cannot prepare svhn_cropped\nOr place .*svhn/train_32x32.mat or"):
        svhn.open_svhn(tmp_path, "train")
