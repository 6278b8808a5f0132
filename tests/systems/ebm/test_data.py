"""Data sets by the original's names, and those out of distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.data.images import write_folder
from tests.data.test_cifar import write_cifar, write_cifar100
from tests.data.test_imagenet32 import write_imagenet32
from tests.data.test_imagenet128 import write_imagenet128
from tests.data.test_mnist import write_mnist
from tests.data.test_sprites import write_archive
from tests.data.test_svhn import write_svhn
from tests.data.test_textures import write_textures
from tfgen.data import cifar, textures
from tfgen.data.errors import DataError, UnknownDatasetError
from tfgen.data.source import ImageSpec
from tfgen.data.sprites import ARCHIVE
from tfgen.systems.ebm import data, prepare
from tfgen.systems.ebm.config import Config


@pytest.mark.parametrize(
    ("name", "write", "settings", "counts"),
    [
        ("mnist", lambda folder: write_mnist(folder / "MNIST" / "raw"), {}, (12, 4)),
        ("cifar10", lambda folder: write_cifar(folder / "cifar10"), {}, (20, 4)),
        ("imagenet", lambda folder: write_imagenet32(folder / "imagenet"), {}, (55, 11)),
        ("imagenet", lambda folder: write_imagenet32(folder / "x"), {"imagenet_path": "x"}, (55, 11)),
        ("imagenetfull", lambda folder: write_imagenet128(folder / "imagenet_big"), {}, (5, 2)),
        ("imagenetfull", lambda folder: write_imagenet128(folder / "x"), {"imagenet_datadir": "x"}, (5, 2)),
        ("dsprites", lambda folder: write_archive(folder / ARCHIVE), {}, (48, 48)),
        ("dsprites", lambda folder: write_archive(folder / "x.npz"), {"dsprites_path": "x.npz"}, (48, 48)),
    ],
)
def test_the_original_s_data_sets(tmp_path, name, write, settings, counts):
    write(tmp_path)
    config = Config(dataset=name, **{flag: str(tmp_path / path) for flag, path in settings.items()})
    splits = data.open_splits(config, str(tmp_path / "nowhere" if settings else tmp_path))
    assert (len(splits.train), len(splits.test)) == counts
    assert splits.valid is splits.test
    assert splits.spec == data.known_spec(config)
    assert splits.train.read(np.array([0]))["image"].shape == (1, *splits.spec.shape)


@pytest.mark.parametrize("name", ["digits", "photos", "sprites"])
def test_data_sets_that_come_with_the_library(name):
    assert data.open_splits(Config(dataset=name), "nowhere").spec == data.known_spec(Config(dataset=name))


def test_paths_and_names_of_nothing(tmp_path):
    write_folder(tmp_path / "pictures", [f"{number}.png" for number in range(20)], height=8, width=8)
    config = Config(dataset=str(tmp_path / "pictures"))
    assert data.known_spec(config) is None
    assert data.open_splits(config, "nowhere").spec.shape == (8, 8, 3)
    with pytest.raises(UnknownDatasetError, match="no data set named 'cifar11'"):
        data.open_splits(Config(dataset="cifar11"), str(tmp_path))


def test_missing_files_are_not_replaced(tmp_path):
    with pytest.raises(DataError, match=r"no file .*x\.npz"):
        data.open_splits(Config(dataset="dsprites", dsprites_path=str(tmp_path / "x.npz")), str(tmp_path))
    with pytest.raises(DataError, match="lacks train_data_batch_1"):
        data.open_splits(Config(dataset="imagenet", imagenet_path=str(tmp_path)), str(tmp_path))


# Epochs ------------------------------------------------------------------------------------------------------


def test_the_first_image_makes_up_whole_epochs(tmp_path):
    write_cifar(tmp_path / "cifar10")
    splits = data.open_splits(Config(dataset="cifar10", single=True), str(tmp_path))
    whole = data.open_splits(Config(dataset="cifar10"), str(tmp_path))
    assert (len(splits.train), splits.train.epoch_size, len(splits.test)) == (1, 20, 4)
    order = splits.train.epoch_order(np.random.RandomState(0))
    assert order.tolist() == [0] * 20
    batch = splits.train.read(order[:3])
    np.testing.assert_array_equal(batch["image"], np.repeat(whole.train.read(np.array([0]))["image"], 3, axis=0))


@pytest.mark.parametrize(
    ("flag", "rows", "epoch", "fixed"),
    [
        ("dshape_only", 3, 30_000, {2: 0.5, 3: 30 * math.pi / 39, 4: 16 / 31, 5: 16 / 31}),
        ("dpos_only", 49, 4_900, {1: 1, 2: 0.5, 3: 30 * math.pi / 39}),
        ("dsize_only", 6, 60_000, {1: 1, 3: 30 * math.pi / 39, 4: 16 / 31, 5: 16 / 31}),
        ("drot_only", 13, 1_300, {1: 1, 2: 0.5, 4: 16 / 31, 5: 16 / 31}),
        ("dsprites_restrict", 294, 294, {1: 1, 3: 0}),
        ("cond_rot", 11_466, 11_466, {}),
    ],
)
def test_subsets_of_sprites(flag, rows, epoch, fixed):
    config = Config(dataset="sprites", cclass=True, **{flag: True})
    config.check()
    train = data.open_splits(config, "nowhere").train
    assert (len(train), train.epoch_size) == (rows, epoch)
    assert set(np.bincount(train.epoch_order(np.random.RandomState(0)))) == {epoch // rows}
    batch = train.read(np.arange(rows))
    for column in range(6):
        assert (len(np.unique(batch["latents"][:, column])) == 1) == (column in {0, *fixed})
    for column, value in fixed.items():
        np.testing.assert_allclose(batch["latents"][:, column], value, rtol=1e-6)
    some = batch["image"][:: max(rows // 50, 1)]
    assert len({image.tobytes() for image in some}) > 0.9 * len(some)
    assert prepare.labels_of(batch, config, train.spec).shape == (rows, config.label_columns())


def test_subsets_that_are_empty(tmp_path):
    table = write_archive(tmp_path / ARCHIVE)
    table[:, 3] += 0.1
    write_archive(tmp_path / ARCHIVE, values=table)
    for flag, values in (
        ("dpos_only", "shape 1 and scale 0.5 and rotation 2.417"),
        ("dsprites_restrict", "shape 1 and"),
    ):
        with pytest.raises(DataError, match=f"--{flag}: dsprites has no image of {values}"):
            data.open_splits(Config(dataset="dsprites", **{flag: True}), str(tmp_path))


# Out of distribution -----------------------------------------------------------------------------------------


def test_other_images(tmp_path):
    write_svhn(tmp_path / "svhn" / "train_32x32.mat")
    write_cifar100(tmp_path / "cifar-100-python" / "test", np.zeros((3, 3072), np.uint8), [0, 1, 2])
    write_textures(tmp_path / "dtd" / "images")
    write_cifar(tmp_path / "cifar10")
    colour = ImageSpec(*cifar.SHAPE, num_classes=10)
    specs = {"svhn": (5, colour), "cifar100": (3, ImageSpec(32, 32, 3, 100)), "textures": (8, textures.SPEC)}
    for name, expected in (specs | {"cifar10": (4, colour), "digits": (150, ImageSpec(8, 8, 1, 10))}).items():
        source = data.open_other(name, str(tmp_path))
        assert (len(source), source.spec) == expected
    with pytest.raises(UnknownDatasetError, match="no data set named 'texture'"):
        data.open_other("texture", str(tmp_path))
