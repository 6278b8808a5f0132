import os
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.data.images import BAD, damaged_inside, encode, pixels, write_folder
from tfgen.data import conversion
from tfgen.data.arrays import open_array
from tfgen.data.conversion import rejects_table, take_inventory, write_array
from tfgen.data.errors import DataError, RejectedImagesError
from tfgen.data.folder import open_files


def convert(folder, out, **options) -> np.ndarray:
    write_array(take_inventory(open_files(folder)), out, **options)
    return np.load(out, mmap_mode="r", allow_pickle=False)


def test_images_are_sorted_by_path(tmp_path):
    stored = write_folder(tmp_path / "in", ["b/2.png", "b/10.png", "a.png", "c.PNG"])
    array = convert(tmp_path / "in", tmp_path / "out.npy")
    assert (array.dtype, array.shape) == (np.uint8, (4, 6, 5, 3))
    np.testing.assert_array_equal(array, np.stack(stored))
    assert open_array(tmp_path / "out.npy").spec.shape == (6, 5, 3)
    assert sorted(os.listdir(tmp_path)) == ["in", "out.npy"]


def test_zip_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for number in (3, 1, 2):
            archive.writestr(f"{number}.png", encode(pixels(number)))
    np.testing.assert_array_equal(
        convert(tmp_path / "in.zip", tmp_path / "out.npy"), np.stack([pixels(number) for number in (1, 2, 3)])
    )


def test_what_is_rgb_without_loss_is_converted(tmp_path):
    colours = Image.fromarray(pixels(1)).quantize(256, dither=Image.Dither.NONE)  # 30 pixels: every colour is kept
    pictures = {
        "1_palette.png": (colours, pixels(1)),
        "2_grey.png": (Image.fromarray(pixels(2, channels=1)[..., 0]), np.repeat(pixels(2, channels=1), 3, axis=-1)),
        "3_bits.png": (Image.fromarray(pixels(3)[..., 0] > 99), 255 * np.repeat(pixels(3)[..., :1] > 99, 3, axis=-1)),
        "4_lossless.webp": (Image.fromarray(pixels(4)), pixels(4)),
        "5.bmp": (Image.fromarray(pixels(5)), pixels(5)),
    }
    for name, (image, _) in pictures.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    np.testing.assert_array_equal(
        convert(tmp_path, tmp_path / "out.npy"), [expected for _, expected in pictures.values()]
    )


def test_every_bad_file_is_a_reject_with_its_reason(tmp_path):
    stored = write_folder(tmp_path / "in", ["1.png", "2.png"])
    for name, (content, _) in BAD.items():
        (tmp_path / "in" / name).write_bytes(content)
    inventory = take_inventory(open_files(tmp_path / "in"))
    assert inventory.names == ["1.png", "2.png"]
    assert inventory.rejects.keys() == BAD.keys()
    for name, (_, reason) in BAD.items():
        assert any(part in inventory.rejects[name] for part in reason.split("|")), name
    with pytest.raises(RejectedImagesError, match=f"{len(BAD)} of the {len(BAD) + 2} files .*was not written"):
        write_array(inventory, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()
    assert write_array(inventory, tmp_path / "out.npy", allow_rejects=True) == 2
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.stack(stored))


def test_damage_found_late_leaves_no_hole(tmp_path):
    stored = write_folder(tmp_path / "in", ["1.png", "3.png"])
    (tmp_path / "in" / "2.png").write_bytes(damaged_inside(2))
    inventory = take_inventory(open_files(tmp_path / "in"))
    assert not inventory.rejects
    with pytest.raises(RejectedImagesError, match="1 of the 3 files"):
        write_array(inventory, tmp_path / "out.npy")
    assert os.listdir(tmp_path) == ["in"]
    assert write_array(inventory, tmp_path / "out.npy", allow_rejects=True) == 2
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.stack(stored))
    assert "truncated or damaged" in inventory.rejects["2.png"]


def test_only_damaged_files(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(damaged_inside(1))
    with pytest.raises(RejectedImagesError, match="one size; none is left"):
        convert(tmp_path / "in", tmp_path / "out.npy", allow_rejects=True)
    assert os.listdir(tmp_path) == ["in"]


def test_size_is_that_of_most_or_as_told(tmp_path):
    write_folder(tmp_path, ["1.png"], height=9)
    write_folder(tmp_path, ["2.png", "3.png"])
    inventory = take_inventory(open_files(tmp_path))
    assert (inventory.height, inventory.width, inventory.names) == (6, 5, ["2.png", "3.png"])
    assert inventory.rejects == {"1.png": "9x5 pixels, expected 6x5"}
    inventory = take_inventory(open_files(tmp_path), (9, 5))
    assert (inventory.names, len(inventory.rejects)) == (["1.png"], 2)
    with pytest.raises(DataError, match=r"no image of 7x7 pixels; it has 6x5 \(2\), 9x5 \(1\)"):
        take_inventory(open_files(tmp_path), (7, 7))


def test_nothing_to_convert(tmp_path):
    with pytest.raises(DataError, match=r"is empty: looked for \.png"):
        take_inventory(open_files(tmp_path))
    (tmp_path / "notes.txt").write_text("remember the milk")
    with pytest.raises(DataError, match=r"no usable image among its 1 .*notes\.txt: not an image by its name"):
        take_inventory(open_files(tmp_path))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_folder(tmp_path / "in", ["1.png"])
    (tmp_path / "out.npy").write_bytes(b"old")
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=100))
    with pytest.raises(DataError, match="needs 218 bytes and its disk has 100"):
        convert(tmp_path / "in", tmp_path / "out.npy")
    assert (tmp_path / "out.npy").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["in", "out.npy"]


def test_header_has_one_length_for_all_counts():
    image = conversion.Header(1024, 1024, 3)
    assert {len(conversion._array_header(count, image)) for count in (0, 1, 10**9)} == {128}


def test_progress_counts_files(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_MOST_AT_ONCE", 2)
    monkeypatch.setattr(conversion, "_LEAST_AT_ONCE", 2)
    monkeypatch.setattr(conversion, "_BYTES_AT_ONCE", 1)
    stored = write_folder(tmp_path / "in", [f"{number}.png" for number in range(5)])
    seen = {"headers": [], "pixels": []}
    inventory = take_inventory(open_files(tmp_path / "in"), on_progress=seen["headers"].append)
    write_array(inventory, tmp_path / "out.npy", on_progress=seen["pixels"].append)
    assert seen == {"headers": [1, 2, 3, 4, 5], "pixels": [1, 2, 3, 4, 5]}
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.stack(stored))


def test_table_of_rejects():
    assert rejects_table({"b.png": "why", "long name.png": "other"}) == "  b.png          why\n  long name.png  other"
    lines = rejects_table({f"{number}.png": f"reason {number % 2}" for number in range(5)}, most=2).splitlines()
    assert lines[2:] == ["  and 3 more; by reason:", "          3  reason 0", "          2  reason 1"]
