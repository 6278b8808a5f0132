import dataclasses
import logging

import numpy as np
import pytest

from tests.data.images import encode, pixels, write_folder
from tests.data.test_cifar import write_cifar
from tfgen.data import cifar, tfds
from tfgen.data.errors import DataError, UnknownDatasetError
from tfgen.data.pipeline import EvaluationBatches, IndexStream
from tfgen.systems.vdvae import data


@dataclasses.dataclass
class Config:
    dataset: str
    data_root: str = "./"


def images(part) -> np.ndarray:
    return part.read(np.arange(len(part)))["image"]


def numbered(count: int, side: int) -> np.ndarray:
    """uint8 [count, side, side, 3]; image i holds i in its first three values, highest digit first."""
    stored = np.zeros((count, side, side, 3), np.uint8)
    index = np.arange(count)
    stored[:, 0, 0] = np.stack([index >> 16, index >> 8 & 255, index & 255], axis=-1)
    return stored


def numbers(part) -> np.ndarray:
    first = images(part)[:, 0, 0].astype(np.int64)
    return (first[:, 0] << 16) + (first[:, 1] << 8) + first[:, 2]


@pytest.fixture
def no_tfds(monkeypatch):
    def refuse(name, data_dir):
        raise DataError(f"cannot prepare {name}")

    monkeypatch.setattr(tfds, "prepared_builder", refuse)


# The original's data sets --------------------------------------------------------------------------------


def test_cifar10(tmp_path, caplog):
    write_cifar(tmp_path / cifar.ARCHIVE_FOLDER)
    with caplog.at_level(logging.WARNING, "tfgen"):
        splits = data.open_splits(Config("cifar10", str(tmp_path)), "elsewhere")
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [18, 2, 4]
    assert splits.spec == data.known_spec("cifar10")
    order = np.random.RandomState(11172018).permutation(20)
    stored = images(cifar.open_batches(tmp_path / cifar.ARCHIVE_FOLDER)[0])
    np.testing.assert_array_equal(images(splits.valid), stored[order[:2]])
    np.testing.assert_array_equal(images(splits.train), stored[order[2:]])
    assert "cifar10 train has 20 images; the published set has 50000" in caplog.text


@pytest.mark.parametrize(("name", "side"), [("imagenet32", 32), ("imagenet64", 64)])
def test_imagenet(tmp_path, caplog, name, side):
    np.save(tmp_path / f"{name}-train.npy", numbered(40, side))
    np.save(tmp_path / f"{name}-valid.npy", numbered(5, side))
    with caplog.at_level(logging.WARNING, "tfgen"):
        splits = data.open_splits(Config(name), str(tmp_path))
    order = np.random.RandomState(42).permutation(40)
    assert numbers(splits.train).tolist() == order[:-4].tolist()
    assert numbers(splits.valid).tolist() == order[-4:].tolist()
    assert numbers(splits.test).tolist() == list(range(5))
    assert f"{name}-train.npy has 40 images; the published set has 1281149" in caplog.text
    assert f"{name}-valid.npy has 5 images; the published set has 49999" in caplog.text


def test_published_number_of_images_holds_out_the_published_number():
    for name, count, valid_size in (
        ("cifar10", 50_000, 5_000),
        ("imagenet64", 5_001, 5_000),
        ("imagenet32", 1_281_149, 5_000),
        ("ffhq_256", 70_000, 7_000),
    ):
        train, valid = data.original_split(name, count)
        assert (len(train), len(valid)) == (count - valid_size, valid_size)
        assert len(np.union1d(train, valid)) == count


def test_ffhq_256(tmp_path):
    stored = np.lib.format.open_memmap(tmp_path / "ffhq-256.npy", "w+", np.uint8, (20, 256, 256, 3))
    stored[:, 0, 0, 2] = np.arange(20)
    stored.flush()
    splits = data.open_splits(Config("ffhq_256"), str(tmp_path))
    order = np.random.RandomState(5).permutation(20)
    assert numbers(splits.train).tolist() == order[:-2].tolist()
    assert numbers(splits.valid).tolist() == order[-2:].tolist()
    assert splits.test is splits.valid


def test_array_files_are_mapped_not_loaded(tmp_path):
    """A sparse file of 13 GB opens at once, and a batch of it is read."""
    with open(tmp_path / "ffhq-256.npy", "wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|u1", "fortran_order": False, "shape": (70_000, 256, 256, 3)}
        )
        stream.truncate(stream.tell() + 70_000 * 256 * 256 * 3)
    splits = data.open_splits(Config("ffhq_256"), str(tmp_path))
    assert (len(splits.train), len(splits.valid)) == (63_000, 7_000)
    assert splits.train.read(np.array([0, 62_999]))["image"].shape == (2, 256, 256, 3)


@pytest.mark.parametrize("inside", ["ffhq1024", ""])
def test_ffhq_1024_in_either_place(tmp_path, monkeypatch, inside):
    monkeypatch.setitem(data._KNOWN_SPECS, "ffhq_1024", data.ImageSpec(6, 6, 3))
    train = write_folder(tmp_path / inside / "train", ["0/00002.png", "0/00000.png", "1/00001.png"], width=6)
    valid = write_folder(tmp_path / inside / "valid", ["0/65000.png"], width=6)
    splits = data.open_splits(Config("ffhq_1024"), str(tmp_path))
    np.testing.assert_array_equal(images(splits.train), np.stack(train))
    np.testing.assert_array_equal(images(splits.valid), np.stack(valid))
    assert splits.test is splits.valid
    assert splits.spec.num_classes is None


def test_no_global_generator_is_touched(tmp_path):
    np.save(tmp_path / "imagenet32-train.npy", numbered(40, 32))
    np.save(tmp_path / "imagenet32-valid.npy", numbered(5, 32))
    before = np.random.get_state()
    data.open_splits(Config("imagenet32"), str(tmp_path))
    after = np.random.get_state()
    assert before[2] == after[2]
    np.testing.assert_array_equal(before[1], after[1])


def test_small_evaluation_set_is_read_whole(tmp_path):
    np.save(tmp_path / "imagenet32-train.npy", numbered(40, 32))
    np.save(tmp_path / "imagenet32-valid.npy", numbered(5, 32))
    splits = data.open_splits(Config("imagenet32"), str(tmp_path))
    assert [len(batch["image"]) for batch in EvaluationBatches(splits.valid, batch_size=16)] == [4]
    assert [len(batch["image"]) for batch in EvaluationBatches(splits.test, batch_size=2)] == [2, 2, 1]


# Other data sets -----------------------------------------------------------------------------------------


def test_digits_are_grey_in_three_channels():
    splits = data.open_splits(Config("digits"), "unused")
    assert splits.spec == data.known_spec("digits")
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [1497, 150, 150]
    batch = splits.train.read(np.array([3, 1]))
    assert batch["label"].shape == (2,)
    grey = data.builtin.digits().train.read(np.array([3, 1]))["image"]
    np.testing.assert_array_equal(batch["image"], np.concatenate([grey] * 3, axis=-1))
    assert IndexStream(splits.train, batch_size=32, ranks=1, seed=0).steps_per_epoch == 1497 // 32


def test_photos_and_array_files(tmp_path):
    assert data.known_spec("photos") == data.open_splits(Config("photos"), "unused").spec
    np.save(tmp_path / "mine.npy", numbered(30, 8))
    splits = data.open_splits(Config(str(tmp_path / "mine.npy")), "unused")
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [24, 3, 3]
    assert data.known_spec(str(tmp_path / "mine.npy")) is None


def test_a_changed_data_root_wins_over_data_dir(tmp_path):
    for place, count in (("root", 20), ("dir", 30)):
        (tmp_path / place).mkdir()
        np.save(tmp_path / place / "imagenet32-train.npy", numbered(count, 32))
        np.save(tmp_path / place / "imagenet32-valid.npy", numbered(2, 32))
    for data_root, count in ((str(tmp_path / "root"), 20), ("./", 30), (".", 30), ("", 30)):
        splits = data.open_splits(Config("imagenet32", data_root), str(tmp_path / "dir"))
        assert len(splits.train) + len(splits.valid) == count


# Bad input -----------------------------------------------------------------------------------------------


def test_grey_and_oblong_images_are_refused(tmp_path):
    np.save(tmp_path / "grey.npy", np.zeros((30, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"grey.npy .* has images of 8x8x1, .*VDVAE needs 3 channels .*tfgen.convert"):
        data.open_splits(Config(str(tmp_path / "grey.npy")), "unused")
    write_folder(tmp_path / "grey", [f"{number}.png" for number in range(9)], height=8, width=8, channels=1)
    with pytest.raises(DataError, match="VDVAE needs 3 channels"):
        data.open_splits(Config(str(tmp_path / "grey")), "unused")
    np.save(tmp_path / "oblong.npy", np.zeros((30, 8, 6, 3), np.uint8))
    with pytest.raises(DataError, match="8x6x3, no labels; VDVAE needs square ones"):
        data.open_splits(Config(str(tmp_path / "oblong.npy")), "unused")


@pytest.mark.usefixtures("no_tfds")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", r"cannot prepare cifar10\nOr place .*batches of cifar-10-python.tar.gz in .*cifar-10-batches-py"),
        ("imagenet32", r"cannot prepare .*\nOr place .*imagenet32-train.npy and .*imagenet32-valid.npy"),
        ("ffhq_256", r"no file ffhq-256.npy in .*\(--data_root\).*tfgen.convert images"),
        ("ffhq_1024", r"no folders train and valid .*ffhq1024 or .*\(--data_root\).*64999.png"),
    ],
)
def test_missing_files_say_where_they_were_looked_for(tmp_path, name, expected):
    with pytest.raises(DataError, match=expected):
        data.open_splits(Config(name, str(tmp_path)), "unused")
    with pytest.raises(DataError, match=expected.replace("data_root", "data_dir")):
        data.open_splits(Config(name), str(tmp_path))


def test_one_missing_part(tmp_path):
    np.save(tmp_path / "imagenet64-train.npy", numbered(40, 64))
    with pytest.raises(DataError, match=r"no file imagenet64-valid.npy in"):
        data.open_splits(Config("imagenet64"), str(tmp_path))
    write_folder(tmp_path / "ffhq1024" / "train", ["0/1.png"])
    with pytest.raises(DataError, match="no folders train and valid"):
        data.open_splits(Config("ffhq_1024"), str(tmp_path))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.zeros((9, 64, 64, 3), np.uint8), r"images of 64x64x3, no labels; those of imagenet32 are 32x32x3"),
        (np.zeros((9, 3072), np.uint8), "flat rows of 3072 values.*order of channels"),
        (np.zeros((9, 3, 32, 32), np.uint8), r"transpose\(0, 2, 3, 1\)"),
        (np.zeros((9, 32, 32, 3), np.float32), "expected uint8"),
        (np.zeros((0, 32, 32, 3), np.uint8), "non-empty"),
        (np.zeros((1, 32, 32, 3), np.uint8), "1 image.* expected at least 2"),
    ],
)
def test_array_files_of_another_kind(tmp_path, stored, expected):
    np.save(tmp_path / "imagenet32-train.npy", stored)
    np.save(tmp_path / "imagenet32-valid.npy", numbered(2, 32))
    with pytest.raises(DataError, match=expected):
        data.open_splits(Config("imagenet32"), str(tmp_path))


def test_empty_and_oversized_ffhq_1024(tmp_path):
    for part in ("train", "valid"):
        (tmp_path / part / "0").mkdir(parents=True)
    with pytest.raises(DataError, match="is empty"):
        data.open_splits(Config("ffhq_1024"), str(tmp_path))
    for part in ("train", "valid"):
        (tmp_path / part / "0" / "1.png").write_bytes(encode(pixels(1, 8, 8)))
    with pytest.raises(DataError, match="images of 8x8x3, no labels; those of ffhq_1024 are 1024x1024x3"):
        data.open_splits(Config("ffhq_1024"), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "meant"), [("ffhq256", "ffhq_256"), ("ImageNet-64", "imagenet64"), ("CIFAR10", "cifar10")]
)
def test_other_spellings_are_named(name, meant):
    with pytest.raises(UnknownDatasetError, match=f"no data set named '{name}': type --dataset={meant}"):
        data.open_splits(Config(name), "unused")
