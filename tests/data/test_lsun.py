import os
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from tests.data.images import BAD, damaged_inside, encode, pixels
from tfgen.data import lsun
from tfgen.data.errors import DataError, RejectedImagesError


def records(count: int, bad: dict[int, bytes] | None = None) -> tuple[list[tuple[bytes, bytes]], list[np.ndarray]]:
    """WebP records of many sizes, and their crops to 8 x 8."""
    stored, crops = [], []
    for number in range(count):
        picture = pixels(number, height=9 + number, width=14)
        content = (bad or {}).get(number, encode(picture, "WEBP", lossless=True))
        stored.append((b"key%d" % number, content))
        crops.append(lsun.prepare(Image.fromarray(picture), 8))
    return stored, crops


def read_all(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(Image.open(folder / name)) for name in sorted(os.listdir(folder))}


@pytest.mark.parametrize(("height", "width"), [(57, 40), (33, 71), (8, 8), (5, 6), (64, 20), (8, 9)])
def test_one_box_resize_and_the_middle(height, width):
    image = Image.fromarray(pixels(1, height, width))
    scale = 8 / min(height, width)
    whole = np.asarray(image.resize((round(scale * width), round(scale * height)), Image.Resampling.BOX))
    top, left = (whole.shape[0] - 8) // 2, (whole.shape[1] - 8) // 2
    np.testing.assert_array_equal(lsun.prepare(image, 8), whole[top : top + 8, left : left + 8])


def test_files_are_numbered_in_the_order_of_keys(tmp_path):
    stored, crops = records(5)
    seen = []
    assert lsun.write_folder(stored, tmp_path / "out", 8, "bedroom", on_progress=seen.append) == {}
    assert seen == [1, 2, 3, 4, 5]
    assert os.listdir(tmp_path) == ["out"]
    written = read_all(tmp_path / "out")
    assert list(written) == [f"bedroom_000000{number}.png" for number in range(5)]
    np.testing.assert_array_equal(list(written.values()), crops)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "zero bytes"),
        (BAD["text.png"][0], "not a PNG, JPEG, BMP, WEBP image"),
        (encode(Image.new("L", (9, 9))), "Pillow mode L, expected RGB"),
        (damaged_inside(1), "truncated or damaged"),
    ],
)
def test_records_that_cannot_be_used(tmp_path, content, reason):
    stored, crops = records(4, bad={1: content})
    with pytest.raises(RejectedImagesError, match=f"1 of the 4 records .* record key1: .*{reason}"):
        lsun.write_folder(stored, tmp_path / "out", 8, "x")
    assert not (tmp_path / "out").exists()
    rejects = lsun.write_folder(stored, tmp_path / "out", 8, "x", allow_rejects=True)
    assert list(rejects) == ["x_0000001.png"]
    assert reason in rejects["x_0000001.png"]
    written = read_all(tmp_path / "out")
    assert list(written) == ["x_0000000.png", "x_0000002.png", "x_0000003.png"]
    np.testing.assert_array_equal(list(written.values()), [crops[0], crops[2], crops[3]])


def test_an_interrupted_conversion_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(lsun, "_AT_ONCE", 1)
    stored, crops = records(6)

    def interrupt(done):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lsun.write_folder(stored, tmp_path / "out", 8, "x", on_progress=interrupt)
    partial = lsun.partial_folder(tmp_path / "out", 8, "x", 6)
    assert os.listdir(tmp_path) == [partial.name]
    (partial / "x_0000002.png").write_bytes(encode(crops[2])[:-5])  # cut short by a crash of the machine
    (partial / ".x_0000004.png").write_bytes(b"half")

    decoded = []
    prepare = lsun.prepare
    monkeypatch.setattr(lsun, "prepare", lambda image, size: decoded.append(image.height) or prepare(image, size))
    lsun.write_folder(stored, tmp_path / "out", 8, "x")
    assert sorted(decoded) == [11, 13, 14]
    assert os.listdir(tmp_path) == ["out"]
    written = read_all(tmp_path / "out")
    assert list(written) == [f"x_000000{number}.png" for number in range(6)]
    np.testing.assert_array_equal(list(written.values()), crops)


def test_another_size_does_not_go_on_with_it(tmp_path):
    out = tmp_path / "out"
    places = {
        lsun.partial_folder(out, 8, "x", 6),
        lsun.partial_folder(out, 9, "x", 6),
        lsun.partial_folder(out, 8, "y", 6),
    }
    assert len(places | {lsun.partial_folder(out, 8, "x", 7)}) == 4


def test_what_is_there_stays(tmp_path):
    stored, _ = records(1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="exists already and is not an empty folder"):
        lsun.write_folder(stored, tmp_path / "out", 8, "x")
    (tmp_path / "out" / "mine.txt").unlink()
    lsun.write_folder(stored, tmp_path / "out", 8, "x")
    assert os.listdir(tmp_path / "out") == ["x_0000000.png"]


def test_nothing_to_convert(tmp_path):
    with pytest.raises(DataError, match="no records"):
        lsun.write_folder([], tmp_path / "out", 8, "x")
    stored, _ = records(1, bad={0: b""})
    with pytest.raises(RejectedImagesError, match="none is left"):
        lsun.write_folder(stored, tmp_path / "out", 8, "x", allow_rejects=True)


# The database -------------------------------------------------------------------------------------------


def test_a_missing_package_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DataError, match="pip install lmdb"), lsun.open_records(tmp_path):
        pytest.fail("opened")


def test_a_real_database(tmp_path, capsys):
    lmdb = pytest.importorskip("lmdb")
    from tfgen.convert import main

    stored, crops = records(4)
    with lmdb.open(str(tmp_path / "db"), map_size=2**20) as database, database.begin(write=True) as transaction:
        for key, content in reversed(stored):
            transaction.put(key, content)
    assert main(["lsun", str(tmp_path / "db"), str(tmp_path / "out"), "--image_size=8"]) == 0
    printed = capsys.readouterr()
    assert "4 PNG files bedroom_IIIIIII.png of 8x8 pixels" in printed.out
    assert "convert: 4/4 (100%)" in printed.err
    np.testing.assert_array_equal(list(read_all(tmp_path / "out").values()), crops)


def test_folders_that_are_no_database(tmp_path):
    pytest.importorskip("lmdb")
    with (
        pytest.raises(DataError, match=r"no LMDB database in .*expected the unpacked folder"),
        lsun.open_records(tmp_path),
    ):
        pytest.fail("opened")
    (tmp_path / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(DataError, match="not an LMDB database, or damaged"), lsun.open_records(tmp_path):
        pytest.fail("opened")
