import concurrent.futures
import errno
import io
import logging
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.data.images import BAD, damaged_inside, encode, pixels, write_folder
from tfgen.data import reading
from tfgen.data.errors import DataError, RejectedImagesError, UnreadableFileError
from tfgen.data.folder import ImageFolder, open_files
from tfgen.data.image_files import FolderFiles


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(reading, "RETRY_DELAYS", (0, 0))


def open_folder(path, *arguments, **options) -> ImageFolder:
    return ImageFolder(open_files(path), *arguments, **options)


def zipped(path, target):
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(path.rglob("*")):
            archive.write(file, file.relative_to(path).as_posix())
    return target


@pytest.mark.parametrize("archive", [False, True])
def test_images_come_by_index_in_order_of_their_names(tmp_path, archive):
    names = [f"{name}.png" for name in ("b", "a", "x/c", "x/y/d")]
    pictures = write_folder(tmp_path / "data", names)
    path = zipped(tmp_path / "data", tmp_path / "data.zip") if archive else tmp_path / "data"
    source = open_folder(path)
    assert len(source) == 4
    assert source.spec.shape == (6, 5, 3)
    assert source.rejects == {}
    order = np.array([3, 0, 2, 2])
    np.testing.assert_array_equal(source.read(order)["image"], [pictures[index] for index in order])


def test_grey_images_stay_grey_and_become_colours_beside_colours(tmp_path):
    grey = pixels(1, channels=1)
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encode(grey))
    assert open_folder(tmp_path).spec.shape == (6, 5, 1)
    np.testing.assert_array_equal(open_folder(tmp_path).read(np.array([1]))["image"][0], grey)
    (tmp_path / "2.png").write_bytes(encode(pixels(2)))
    source = open_folder(tmp_path)
    assert source.spec.shape == (6, 5, 3)
    np.testing.assert_array_equal(source.read(np.array([0]))["image"][0], grey.repeat(3, axis=-1))


def test_formats(tmp_path):
    picture = pixels(7)
    (tmp_path / "a.bmp").write_bytes(encode(picture, "BMP"))
    (tmp_path / "b.webp").write_bytes(encode(picture, "WEBP", lossless=True))
    (tmp_path / "c.PNG").write_bytes(encode(Image.fromarray(picture).quantize(256)))
    (tmp_path / "d.jpeg").write_bytes(encode(np.full_like(picture, 90), "JPEG"))
    (tmp_path / "e.png").write_bytes(encode(picture) + b"trailing bytes are harmless")
    source = open_folder(tmp_path)
    images = source.read(np.arange(5))["image"]
    for exact in (0, 1, 2, 4):
        np.testing.assert_array_equal(images[exact], picture)
    np.testing.assert_allclose(images[3], 90, atol=1)


# Labels -------------------------------------------------------------------------------------------------


def test_labels_of_sub_folders(tmp_path):
    write_folder(tmp_path, ["dog/1.png", "cat/1.png", "cat/more/2.png", "emu/3.png"])
    source = open_folder(tmp_path)
    assert (source.label_rule, source.class_names) == ("folder", ("cat", "dog", "emu"))
    assert source.spec.num_classes == 3
    assert source.read(np.arange(4))["label"].tolist() == [0, 0, 1, 2]
    assert open_folder(tmp_path, labels="none").spec.num_classes is None


def test_labels_of_prefixes(tmp_path):
    write_folder(tmp_path, ["b_1.png", "a_1_x.png", "a_2.png", "b_9.png"])
    source = open_folder(tmp_path)
    assert (source.label_rule, source.class_names) == ("prefix", ("a", "b"))
    batch = source.read(np.array([3, 0]))
    assert batch["label"].tolist() == [1, 0]
    assert batch["label"].dtype == np.int32


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png"],
        ["img_1.png", "img_2.png"],  # one prefix is a habit, not a class
        ["a_1.png", "b_1.png", "c_1.png"],  # a prefix for each file is a name
        ["all/1.png", "all/2.png"],
    ],
)
def test_no_labels_are_made_up(tmp_path, names):
    write_folder(tmp_path, names)
    source = open_folder(tmp_path)
    assert source.class_names is None
    assert "label" not in source.read(np.array([0]))


def test_missing_and_unknown_classes(tmp_path):
    write_folder(tmp_path, ["cat/1.png", "2.png"])
    with pytest.raises(DataError, match=r"labels='folder', but 1 file\(s\) such as 2\.png have none"):
        open_folder(tmp_path, labels="folder")
    (tmp_path / "dog").mkdir()
    (tmp_path / "2.png").rename(tmp_path / "dog" / "2.png")
    with pytest.raises(DataError, match=r"classes \['cat'\] that the training set does not have"):
        open_folder(tmp_path, class_names=["dog"])


# Rejects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BAD))
@pytest.mark.parametrize("archive", [False, True])
def test_one_bad_file_in_a_hundred_is_named_once_and_left_out(tmp_path, caplog, name, archive):
    content, reason = BAD[name]
    data = tmp_path / "data"
    pictures = write_folder(data, [f"{number:03}.png" for number in range(100)])
    (data / name).write_bytes(content)
    path = zipped(data, tmp_path / "data.zip") if archive else data
    tracemalloc.start()
    with caplog.at_level(logging.WARNING, "tfgen"):
        source = open_folder(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20
    assert list(source.rejects) == [name]
    assert re.search(reason, source.rejects[name])
    assert len(caplog.records) == 1
    assert name in caplog.text
    np.testing.assert_array_equal(source.read(np.arange(100))["image"], pictures)


def test_more_than_one_in_a_hundred_stops(tmp_path):
    write_folder(tmp_path, [f"{number:03}.png" for number in range(150)])
    for name in ("zero.png", "cmyk.jpg"):
        (tmp_path / name).write_bytes(BAD[name][0])
    with pytest.raises(RejectedImagesError) as caught:
        open_folder(tmp_path)
    message = str(caught.value)
    for part in ("2 of the 152 files", "1.3 %", "zero.png: zero bytes", "cmyk.jpg: CMYK", "Convert these files"):
        assert part in message


def test_damage_found_while_reading_is_replaced_by_the_next_good_image(tmp_path, caplog):
    pictures = write_folder(tmp_path, [f"{number:03}.png" for number in range(200)])
    (tmp_path / "010.png").write_bytes(damaged_inside(10))
    (tmp_path / "199.png").write_bytes(damaged_inside(199))
    source = open_folder(tmp_path)
    assert source.rejects == {}
    with caplog.at_level(logging.WARNING, "tfgen"):
        for _ in range(2):
            images = source.read(np.array([9, 10, 11, 199]))["image"]
            np.testing.assert_array_equal(images, [pictures[9], pictures[11], pictures[11], pictures[0]])
    assert sorted(source.rejects) == ["010.png", "199.png"]
    assert len(caplog.records) == 2


def test_replacement_takes_the_label_of_the_image_shown(tmp_path):
    write_folder(tmp_path, [f"{kind}/{number:03}.png" for kind in ("a", "b") for number in range(60)])
    (tmp_path / "a" / "059.png").write_bytes(damaged_inside(1))
    assert open_folder(tmp_path).read(np.array([58, 59]))["label"].tolist() == [0, 1]


def test_too_much_damage_found_while_reading_stops(tmp_path):
    write_folder(tmp_path, [f"{number:03}.png" for number in range(100)])
    for number in (3, 50):
        (tmp_path / f"{number:03}.png").write_bytes(damaged_inside(number))
    source = open_folder(tmp_path)
    source.read(np.array([3]))
    with pytest.raises(RejectedImagesError, match=r"2 of the 100 files"):
        source.read(np.array([50]))


def test_empty_and_missing_folders(tmp_path):
    (tmp_path / ".hidden.png").write_bytes(encode(pixels(1)))
    with pytest.raises(DataError, match=r"is empty: looked for \.png, \.jpg, .* sub-folders included"):
        open_folder(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        open_folder(tmp_path / "absent")


def test_several_sizes_are_listed(tmp_path):
    write_folder(tmp_path, ["a.png", "b.png"])
    (tmp_path / "c.png").write_bytes(encode(pixels(1, 9, 4)))
    with pytest.raises(DataError, match=r"2 different sizes .*6x5 \(2\), 9x4 \(1\); for example c\.png"):
        open_folder(tmp_path)


# The disk -----------------------------------------------------------------------------------------------


class FlakyFiles(FolderFiles):
    """Refuses to open files `failures` times."""

    failures = 0

    def open(self, name):
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EIO, "Input/output error", name)
        return super().open(name)


def test_a_refused_read_is_tried_again(tmp_path):
    pictures = write_folder(tmp_path, ["a.png", "b.png"])
    files = FlakyFiles(tmp_path)
    source = ImageFolder(files)
    files.failures = 2
    np.testing.assert_array_equal(source.read(np.array([1]))["image"][0], pictures[1])
    files.failures = 3
    with pytest.raises(UnreadableFileError, match=r"cannot read b\.png .* after 3 attempts: .*Input/output error"):
        source.read(np.array([1]))
    assert source.rejects == {}


def test_a_folder_removed_during_a_run(tmp_path):
    write_folder(tmp_path, ["a.png", "b.png"])
    source = open_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnreadableFileError, match="Check that the disk is mounted"):
        source.read(np.array([0]))


def test_an_error_in_the_middle_of_a_file_is_the_disks_fault(tmp_path):
    class Broken(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.ESTALE, "Stale file handle")

    class BrokenFiles(FolderFiles):
        def open(self, name):
            return Broken()

    write_folder(tmp_path, ["a.png"])
    with pytest.raises(UnreadableFileError, match="Stale file handle"):
        ImageFolder(BrokenFiles(tmp_path))


@pytest.mark.parametrize("archive", [False, True])
def test_reading_from_many_threads(tmp_path, archive):
    pictures = np.stack(write_folder(tmp_path / "data", [f"{number:02}.png" for number in range(20)]))
    source = open_folder(zipped(tmp_path / "data", tmp_path / "d.zip") if archive else tmp_path / "data")
    orders = [np.random.RandomState(seed).permutation(20) for seed in range(16)]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for order, batch in zip(orders, threads.map(source.read, orders), strict=True):
            np.testing.assert_array_equal(batch["image"], pictures[order])
