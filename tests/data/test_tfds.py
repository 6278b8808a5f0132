import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.images import pixels
from tfgen.data import tfds as tfds_module
from tfgen.data.catalog import open_dataset
from tfgen.data.errors import DataError, UnknownDatasetError
from tfgen.data.tfds import TfdsSource, open_tfds, prepared_builder

SIZES = {"train": 20, "test": 6}


class GeneratedPictures(tfds.core.GeneratorBasedBuilder):
    """PNG images whose first value is their number; the splits follow one another."""

    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES = {"1.2.0": "made for the tests"}  # noqa: RUF012

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(6, 5, 3), encoding_format="png"),
            "kind": tfds.features.ClassLabel(num_classes=3),
            "title": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        del manager
        return {"train": self._generate_examples(0, 20), "test": self._generate_examples(20, 26)}

    def _generate_examples(self, first, last):
        for number in range(first, last):
            yield number, {"picture": pixels(number), "kind": number % 3, "title": str(number)}


class TextOnly(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"text": "no picture"}


class SeveralSizes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(4):
            yield number, {"image": pixels(number, 6 + number, 5)}


class NeedsNetwork(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(6, 5, 3))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        raise ConnectionError("Failed to resolve 'example.org'")

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def test_every_generated_image_is_found_by_index(data_dir):
    splits = open_tfds("generated_pictures", data_dir)
    assert splits.spec.shape == (6, 5, 3)
    assert splits.spec.num_classes == 3
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [18, 2, 6]
    seen = []
    for part in (splits.train, splits.valid, splits.test):
        batch = part.read(np.arange(len(part)))
        for image, label in zip(batch["image"], batch["label"], strict=True):
            number = int(image[0, 0, 0])
            np.testing.assert_array_equal(image, pixels(number))
            assert label == number % 3
            seen.append(number)
    assert sorted(seen) == list(range(26))
    assert set(seen[-6:]) == set(range(20, 26))
    assert splits.train.read(np.array([3, 1]))["image"].dtype == np.uint8


def test_it_is_prepared_once(data_dir, monkeypatch):
    first = open_tfds("generated_pictures", data_dir).test.read(np.arange(6))
    monkeypatch.setattr(tfds_module, "_prepare", lambda *_: pytest.fail("prepared again"))
    again = open_tfds("generated_pictures:1.2.0", data_dir).test.read(np.arange(6))
    np.testing.assert_array_equal(first["image"], again["image"])


def test_slices(data_dir):
    builder = prepared_builder("generated_pictures", data_dir)
    whole, part = TfdsSource(builder, "train"), TfdsSource(builder, "train[25%:50%]")
    assert len(part) == 5
    np.testing.assert_array_equal(part.read(np.arange(5))["image"], whole.read(np.arange(5, 10))["image"])
    with pytest.raises(DataError, match=r"no split 'vaild'; it has .*train"):
        TfdsSource(builder, "vaild")


def test_unknown_names_get_a_suggestion(data_dir):
    with pytest.raises(UnknownDatasetError, match=r"no data set named 'cifar1O'; did you mean .*cifar10"):
        open_tfds("cifar1O", data_dir)
    with pytest.raises(
        UnknownDatasetError, match=r"'digit'; did you mean digits.* Expected digits, photos, sprites, the path"
    ):
        open_dataset("digit", data_dir)
    with pytest.raises(DataError, match="no_such_config"):
        open_tfds("downsampled_imagenet/no_such_config", data_dir)


def test_without_network_the_message_says_what_goes_where(data_dir):
    with pytest.raises(DataError, match=r"ConnectionError: Failed to resolve") as caught:
        open_tfds("needs_network", data_dir)
    message = str(caught.value)
    assert f"copy its folder tfds/needs_network into {data_dir}/tfds" in message
    assert f"{data_dir}/tfds/downloads/manual" in message


def test_data_that_cannot_be_used(data_dir):
    with pytest.raises(DataError, match="no image feature; its features are text"):
        open_tfds("text_only", data_dir)
    splits = open_tfds("several_sizes", data_dir)
    with pytest.raises(DataError, match="only data sets whose images all have one size"):
        splits.train.parent.read(np.arange(4))


def test_data_prepared_in_another_format_are_refused(tmp_path):
    tfds.builder("generated_pictures", data_dir=str(tmp_path / "tfds"), file_format="tfrecord").download_and_prepare()
    with pytest.raises(DataError, match="File format is already set"):
        open_tfds("generated_pictures", str(tmp_path))


@pytest.mark.parametrize(("name", "shape", "classes"), [("mnist", (28, 28, 1), 10), ("cifar10", (32, 32, 3), 10)])
def test_published_data_sets_with_mock_data(tmp_path, name, shape, classes):
    with tfds.testing.mock_data(num_examples=12):
        splits = open_dataset(name, str(tmp_path))
        assert splits.spec.shape == shape
        assert splits.spec.num_classes == classes
        batch = splits.train.read(np.arange(3))
        assert batch["image"].shape == (3, *shape)
        np.testing.assert_array_equal(batch["image"], splits.train.read(np.arange(3))["image"])
