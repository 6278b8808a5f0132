"""ImageNet at 128x128: records of JPEG images, resized and cropped."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.data.images import encode, pixels, png_header
from tests.data.test_tfrecords import write_records
from tests.seeds import SEED
from tfgen.data import imagenet128
from tfgen.data.errors import DataError
from tfgen.data.image_codec import UnusableImageError

COUNTS = {"train-00001-of-00002": 3, "train-00000-of-00002": 2, "validation-00000-of-00001": 2}


def record(encoded: bytes, label: int | None) -> bytes:
    features = {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))}
    if label is not None:
        features["image/class/label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def jpeg(number: int) -> bytes:
    return encode(pixels(number, 20 + number, 30), "JPEG")


def write_imagenet128(folder: pathlib.Path) -> None:
    """Image i, counted over the files in the order of their names, has the label 1 + 100 i."""
    folder.mkdir(parents=True)
    number = 0
    for name in sorted(COUNTS):
        numbers = range(number, number + COUNTS[name])
        write_records(folder / name, [record(jpeg(i), 1 + 100 * i) for i in numbers])
        number += COUNTS[name]
    (folder / "index.json").write_text(json.dumps({"record_counts": COUNTS}))


@pytest.mark.parametrize("named", [False, True])
def test_records_in_the_order_of_the_names(tmp_path, named):
    folder = tmp_path / ("elsewhere" if named else "imagenet_big")
    write_imagenet128(folder)
    train, valid = imagenet128.open_imagenet128(tmp_path, str(folder) if named else "")
    assert (len(train), len(valid)) == (5, 2)
    assert train.spec == valid.spec == imagenet128.SPEC
    for source, numbers in ((train, [4, 0, 2]), (valid, [1])):
        batch = source.read(np.array(numbers))
        numbers = [number + (5 if source is valid else 0) for number in numbers]
        expected = [imagenet128.resized_crop(imagenet128.decoded(jpeg(number)), 128) for number in numbers]
        np.testing.assert_array_equal(batch["pixels"], expected)
        assert (batch["pixels"].dtype, batch["image"].dtype) == (np.float32, np.uint8)
        np.testing.assert_allclose(batch["image"], batch["pixels"], atol=0.5)
        assert batch["label"].tolist() == [100 * number for number in numbers]


@pytest.mark.parametrize(("height", "width"), [(40, 23), (23, 40), (7, 7), (16, 16), (17, 90), (1, 3)])
def test_resizing_is_that_of_tensorflow_1(height, width):
    image = np.random.RandomState(SEED).randint(0, 256, (height, width, 3)).astype(np.uint8)
    shorter = min(height, width)
    size = [-(-length * 16 // shorter) for length in (height, width)]
    whole = tf.compat.v1.image.resize_bilinear(image[np.newaxis].astype(np.float32), size)[0].numpy()
    top, left = (size[0] - 16) // 2, (size[1] - 16) // 2
    np.testing.assert_allclose(imagenet128.resized_crop(image, 16), whole[top : top + 16, left : left + 16], atol=1e-4)


def test_grey_images_become_colour():
    found = imagenet128.decoded(encode(pixels(1, 8, 9, channels=1), "JPEG"))
    assert found.shape == (8, 9, 3)
    np.testing.assert_array_equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (jpeg(0)[:-200], "truncated or damaged"),
        (b"no image", "not a JPEG, PNG image"),
        (png_header(6000, 6000), "too large: 6000x6000 pixels"),
    ],
)
def test_images_that_cannot_be_decoded(content, message):
    with pytest.raises(UnusableImageError, match=message):
        imagenet128.decoded(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (record(b"no image", 1), "not a JPEG, PNG image"),
        (record(jpeg(0), 0), "label 0, expected 1 to 1000"),
        (record(jpeg(0), 1001), "label 1001, expected 1 to 1000"),
        (record(jpeg(0), None), "expected one image/encoded and one image/class/label, found 1 and 0"),
        (b"\xff\xff\xff", "it is no tf.train.Example"),
    ],
)
def test_damaged_records_are_named(tmp_path, content, message):
    write_imagenet128(tmp_path / "imagenet_big")
    write_records(tmp_path / "imagenet_big" / "train-00000-of-00002", [record(jpeg(0), 1), content])
    train, _ = imagenet128.open_imagenet128(tmp_path)
    with pytest.raises(DataError, match=f"record 1 of .*train-00000-of-00002 cannot be used: .*{message}"):
        train.read(np.array([0, 1]))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"record_counts": ', "is damaged"),
        ("[]", 'expected {"record_counts"'),
        ('{"record_counts": {}}', 'expected {"record_counts"'),
        ('{"record_counts": {"train-0": "2"}}', "number of records of train-0, found '2'"),
        ('{"record_counts": {"train-0": -2}}', "number of records of train-0, found -2"),
        ('{"record_counts": {"../train-0": 2}}', r"names of files beside it, found '\.\./train-0'"),
        (
            '{"record_counts": {"train-00000-of-00002": 2}}',
            r"names no files validation\*; it names train-00000-of-00002",
        ),
        ('{"record_counts": {"train-9": 2, "validation-9": 1}}', "lacks train-9: place all 1 files"),
    ],
)
def test_damaged_index(tmp_path, index, message):
    write_imagenet128(tmp_path / "imagenet_big")
    (tmp_path / "imagenet_big" / "index.json").write_text(index)
    with pytest.raises(DataError, match=message):
        imagenet128.open_imagenet128(tmp_path)


def test_without_files_the_message_says_what_goes_where(tmp_path):
    with pytest.raises(DataError, match=r"no file .*imagenet_big/index.json: .* --imagenet_datadir=FOLDER"):
        imagenet128.open_imagenet128(tmp_path)
