import concurrent.futures
import logging
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.data.images import damaged_inside, encode, pixels
from tfgen.data import crops, image_codec, reading
from tfgen.data.errors import DataError, RejectedImagesError, UnreadableFileError
from tfgen.data.pipeline import IndexStream
from tfgen.data.prepared_folder import open_image_folder

SIZE = 6


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(reading, "RETRY_DELAYS", (0, 0))


def write(root: pathlib.Path, names: list[str]) -> list[np.ndarray]:
    """Pictures of many sizes; returns their crops in the order of `names`, uint8 [SIZE, SIZE, 3]."""
    prepared = []
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture = pixels(number, height=5 + number % 7, width=5 + number % 11)
        (root / name).write_bytes(encode(picture))
        prepared.append(crops.prepare(Image.fromarray(picture), SIZE))
    return prepared


def many(count: int = 100) -> list[str]:
    return [f"{'cat' if number % 2 else 'dog'}_{number:03}.png" for number in range(count)]


@pytest.mark.parametrize("archive", [False, True])
def test_crops_by_index_in_listing_order(tmp_path, archive):
    names = ["b.png", "c/a.png", "c/b.PNG", "c-1.png"]
    expected = write(tmp_path / "data", names)
    path = tmp_path / "data"
    if archive:
        path = tmp_path / "data.zip"
        with zipfile.ZipFile(path, "w") as target:
            for name in reversed(names):
                target.write(tmp_path / "data" / name, name)
    source = open_image_folder(path, SIZE)
    assert source.names == names
    assert (len(source), source.spec.shape, source.spec.num_classes) == (4, (SIZE, SIZE, 3), None)
    order = np.array([3, 0, 2, 2])
    batch = source.read(order)
    assert batch.keys() == {"image"}
    assert batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["image"], [expected[index] for index in order])


def test_conversion_to_rgb_first(tmp_path):
    image = Image.fromarray(pixels(1, 40, 40)).quantize(16)
    image.save(tmp_path / "a.png")
    for convert_first in (False, True):
        source = open_image_folder(tmp_path, SIZE, convert_first=convert_first)
        expected = crops.prepare(image.convert("RGB") if convert_first else image, SIZE)
        np.testing.assert_array_equal(source.read(np.array([0]))["image"][0], expected)


def test_opening_decodes_nothing(tmp_path, monkeypatch):
    write(tmp_path, many())
    monkeypatch.setattr(image_codec, "load_pixels", lambda image: pytest.fail("decoded"))
    assert len(open_image_folder(tmp_path, SIZE)) == 100


def test_reading_from_many_threads(tmp_path):
    expected = np.stack(write(tmp_path, many(40)))
    source = open_image_folder(tmp_path, SIZE)
    by_name = expected[np.argsort(many(40))]
    orders = [np.random.RandomState(seed).permutation(40) for seed in range(12)]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for order, batch in zip(orders, threads.map(source.read, orders), strict=True):
            np.testing.assert_array_equal(batch["image"], by_name[order])


# Labels -------------------------------------------------------------------------------------------------


def test_labels(tmp_path):
    write(tmp_path, ["b_1.png", "x/a_1_2.png", "x/Z_3.png", "y/b_4.png"])
    source = open_image_folder(tmp_path, SIZE, class_cond=True, max_classes=3)
    assert (source.class_names, source.spec.num_classes) == (("Z", "a", "b"), 3)
    batch = source.read(np.array([3, 0, 1, 2]))
    assert batch["label"].tolist() == [2, 2, 0, 1]
    assert batch["label"].dtype == np.int32


def test_a_file_without_underscore_is_a_class_of_its_own(tmp_path):
    write(tmp_path, ["a_1.png", "a_2.png", "dog.png"])
    assert open_image_folder(tmp_path, SIZE, class_cond=True).class_names == ("a", "dog.png")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["img_1.png", "img_2.png"], "tell one class: img. The part before the first underscore names the class"),
        (["1.png", "2.png", "3_a.png"], "tell a class of its own for every file: 1.png, 2.png, 3. The part"),
        (["cat_1.png"], "tell one class: cat"),
    ],
)
def test_names_that_tell_no_classes(tmp_path, names, expected):
    write(tmp_path, names)
    with pytest.raises(DataError, match=expected):
        open_image_folder(tmp_path, SIZE, class_cond=True)
    assert open_image_folder(tmp_path, SIZE).spec.num_classes is None
    known = [name.partition("_")[0] for name in [*names, "other_1.png"]]
    assert open_image_folder(tmp_path, SIZE, class_cond=True, class_names=known).spec.num_classes == len(known)


def test_more_classes_than_the_network_has(tmp_path):
    write(tmp_path, [f"{kind}_{number}.png" for kind in "abc" for number in range(2)])
    assert open_image_folder(tmp_path, SIZE, class_cond=True, max_classes=3).spec.num_classes == 3
    with pytest.raises(DataError, match=r"has 3 classes, a, b, c \.\.\.; the network has 2: give it as many"):
        open_image_folder(tmp_path, SIZE, class_cond=True, max_classes=2)
    assert open_image_folder(tmp_path, SIZE, max_classes=2).spec.num_classes is None


def test_classes_of_the_training_set(tmp_path):
    write(tmp_path, ["b_1.png", "c_1.png", "c_2.png"])
    source = open_image_folder(tmp_path, SIZE, class_cond=True, class_names=("a", "b", "c"))
    assert source.read(np.arange(3))["label"].tolist() == [1, 2, 2]
    with pytest.raises(DataError, match=r"classes \['c'\] that the training set does not have"):
        open_image_folder(tmp_path, SIZE, class_cond=True, class_names=("a", "b"))


# Rejects ------------------------------------------------------------------------------------------------


def test_one_bad_file_in_a_hundred_is_left_out_and_changes_no_class(tmp_path, caplog):
    expected = write(tmp_path, many())
    (tmp_path / "aardvark_1.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "tfgen"):
        source = open_image_folder(tmp_path, SIZE, class_cond=True)
    assert source.rejects == {"aardvark_1.png": "zero bytes"}
    assert len(caplog.records) == 1
    assert len(source) == 100
    assert source.class_names == ("aardvark", "cat", "dog")
    batch = source.read(np.arange(100))
    assert batch["label"].tolist() == [1] * 50 + [2] * 50
    np.testing.assert_array_equal(batch["image"], [*expected[1::2], *expected[::2]])


def test_more_than_one_in_a_hundred_stops(tmp_path):
    write(tmp_path, many(150))
    for name in ("x.png", "y.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(RejectedImagesError) as caught:
        open_image_folder(tmp_path, SIZE)
    for part in ("2 of the 152 files", "1.3 %", "x.png: zero bytes", "Convert these files to 8-bit images (PNG, JPEG"):
        assert part in str(caught.value)


def test_damage_found_while_reading_is_replaced_with_its_label(tmp_path, caplog):
    expected = write(tmp_path, many())
    (tmp_path / "cat_099.png").write_bytes(damaged_inside(1))
    source = open_image_folder(tmp_path, SIZE, class_cond=True)
    assert source.rejects == {}
    for _ in range(2):
        batch = source.read(np.array([48, 49]))
        assert batch["label"].tolist() == [0, 1]
        np.testing.assert_array_equal(batch["image"], [expected[97], expected[0]])
    assert list(source.rejects) == ["cat_099.png"]
    assert caplog.text.count("is left out") == 1
    assert len(source) == 100


def test_no_images(tmp_path):
    (tmp_path / "notes.txt").write_text("remember the milk")
    with pytest.raises(DataError, match=r"has no images: looked for \.jpg, \.jpeg, \.png, \.gif files"):
        open_image_folder(tmp_path, SIZE)
    with pytest.raises(DataError, match="no folder"):
        open_image_folder(tmp_path / "absent", SIZE)
    with pytest.raises(DataError, match="no image folder was given"):
        open_image_folder("", SIZE)


def test_fewer_images_than_a_batch(tmp_path):
    write(tmp_path, many(3))
    with pytest.raises(DataError, match=r"3 image\(s\) do not fill one batch of 4"):
        IndexStream(open_image_folder(tmp_path, SIZE), batch_size=2, ranks=2, seed=0)


def test_a_folder_removed_during_a_run(tmp_path):
    write(tmp_path, many(3))
    source = open_image_folder(tmp_path, SIZE)
    (tmp_path / "dog_000.png").unlink()
    with pytest.raises(UnreadableFileError, match="Check that the disk is mounted"):
        source.read(np.array([1]))
