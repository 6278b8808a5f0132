"""Corners of textures."""

from __future__ import annotations

import types

import numpy as np
import pytest

from tests.data.images import BAD, encode, pixels
from tfgen.data import textures
from tfgen.data.errors import DataError, RejectedImagesError


def write_textures(folder) -> list[np.ndarray]:
    """Files in two classes; returns the pictures in the order of the paths."""
    pictures = [pixels(number, 33 + number, 40) for number in range(4)]
    for name, picture in zip(["a/z.png", "a-1/b.png", "b/10.png", "b/2.png"], pictures, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(picture))
    return [pictures[1], pictures[0], *pictures[2:]]  # "-" comes before "/"


@pytest.mark.parametrize("place", ["dtd/images", "dtd"])
def test_corners_of_each_file_twice(tmp_path, place):
    pictures = write_textures(tmp_path / place)
    source = textures.open_textures(tmp_path)
    assert len(source) == 8
    assert source.spec == textures.SPEC
    batch = source.read(np.array([7, 0, 4, 1]))
    assert set(batch) == {"image"}
    np.testing.assert_array_equal(batch["image"], [pictures[index][:32, :32] for index in (3, 0, 0, 1)])


def test_files_that_cannot_be_used(tmp_path):
    write_textures(tmp_path / "dtd" / "images")
    (tmp_path / "dtd" / "images" / "b" / "x.png").write_bytes(BAD["truncated.png"][0])
    with pytest.raises(RejectedImagesError, match=r"(?s)1 of the 5 files .*b/x.png: .*Unpack"):
        textures.open_textures(tmp_path)
    (tmp_path / "dtd" / "images" / "b" / "x.png").write_bytes(encode(pixels(1, 31, 50)))
    with pytest.raises(RejectedImagesError, match="31x50 pixels, expected at least 32x32"):
        textures.open_textures(tmp_path).read(np.array([4]))
    (tmp_path / "empty" / "dtd").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has no images: looked for \.png"):
        textures.open_textures(tmp_path / "empty")


def test_without_files_tfds_is_asked(tmp_path, monkeypatch):
    pictures = [pixels(number, 33 + number, 40) for number in range(6)]
    parts = {"train": pictures[:3], "validation": pictures[3:4], "test": pictures[4:]}
    builder = types.SimpleNamespace(
        info=types.SimpleNamespace(full_name="dtd/1"),
        as_data_source=lambda split: [{"image": picture} for picture in parts[split]],
    )
    asked = []
    monkeypatch.setattr(textures, "replacing_builder", lambda *words: asked.append(words) or builder)
    source = textures.open_textures(tmp_path)
    assert asked == [("dtd", str(tmp_path), f"the folder images of dtd in {tmp_path / 'dtd'}")]
    assert len(source) == 12
    found = source.read(np.array([11, 0, 3, 6, 10]))["image"]
    np.testing.assert_array_equal(found, [pictures[index][:32, :32] for index in (5, 0, 3, 0, 4)])
    pictures[5] = pixels(1, 20, 40)
    parts["test"] = pictures[4:]
    with pytest.raises(DataError, match="image 5 of dtd/1: 20x40 pixels"):
        textures.open_textures(tmp_path).read(np.array([11]))
