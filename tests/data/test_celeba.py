from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from tests.data.images import encode, pixels
from tfgen.data import celeba
from tfgen.data.errors import DataError, RejectedImagesError
from tfgen.data.folder import open_files


def write_faces(folder, names, height=218, width=178):
    """Face i of `names`, smooth enough for JPEG to keep what tells it from others."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels(number, 4, 4)).resize((width, height), Image.Resampling.BICUBIC)
        (folder / name).write_bytes(encode(image, "JPEG" if name.endswith("jpg") else "PNG"))


def face(folder, name) -> np.ndarray:
    return celeba.prepare(Image.open(folder / name))


def test_preparation_by_its_definition():
    """A face of vertical stripes that are 140 / 32 wide, in the middle of another colour."""
    assert celeba.crop_box(178, 218) == (19, 39, 159, 179)
    assert celeba.crop_box(141, 143) == (0, 2, 140, 142)  # half to even
    image = np.zeros((218, 178, 3), np.uint8)
    image[39:179, 19:159] = 200
    np.testing.assert_array_equal(celeba.prepare(Image.fromarray(image)), np.full((32, 32, 3), 200))
    columns = np.broadcast_to(np.arange(178, dtype=np.uint8)[:, np.newaxis], (218, 178, 3))
    middles = 19 + (np.arange(32) + 0.5) * 140 / 32 - 0.5
    found = celeba.prepare(Image.fromarray(np.ascontiguousarray(columns)))
    np.testing.assert_allclose(found[5, 1:-1, 0], middles[1:-1], atol=0.6)


def test_files_are_in_the_order_of_torchvision(tmp_path):
    names = ["b/2.jpg", "a/z.jpg", "a/b/1.jpg", "a-1/3.jpg", "B/4.jpg", "b/10.PNG"]
    write_faces(tmp_path, names)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    faces = celeba.CelebAFaces(open_files(tmp_path))
    assert faces.names == ["B/4.jpg", "a/z.jpg", "a/b/1.jpg", "a-1/3.jpg", "b/10.PNG", "b/2.jpg"]
    batch = faces.read(np.array([1, 5]))
    assert set(batch) == {"image"}
    np.testing.assert_array_equal(batch["image"], [face(tmp_path, "a/z.jpg"), face(tmp_path, "b/2.jpg")])
    assert faces.spec.shape == batch["image"].shape[1:]


def test_split():
    order = np.random.RandomState(2020).permutation(37)
    train, test = celeba.split(37)
    np.testing.assert_array_equal(train, order[:25])
    np.testing.assert_array_equal(test, order[25:29])
    for count in (0, 1, 6):
        with pytest.raises(DataError, match=f"cannot split {count} image.*7 suffice"):
            celeba.split(count)
    assert list(map(len, celeba.split(7))) == [4, 1]


@pytest.mark.parametrize("place", ["celeba", "img_align_celeba", "."])
def test_the_folder_is_found_and_its_size_compared(tmp_path, place, caplog):
    names = [f"{number:06}.jpg" for number in range(10)]
    write_faces(tmp_path / place, names)
    with caplog.at_level(logging.WARNING, "tfgen"):
        train, test = celeba.open_celeba(tmp_path)
    order = np.random.RandomState(2020).permutation(10)
    expected = [face(tmp_path / place, names[index]) for index in order]
    np.testing.assert_array_equal(train.read(np.arange(7))["image"], expected[:7])
    np.testing.assert_array_equal(test.read(np.arange(1))["image"], expected[7:8])
    assert "has 10 images; CelebA has 202599" in caplog.text


def test_what_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere: CelebA is the images of --data_dir"):
        celeba.open_celeba(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no images: looked for \.png"):
        celeba.open_celeba(tmp_path)
    write_faces(tmp_path / "celeba", ["1.jpg"], height=139, width=178)
    with pytest.raises(RejectedImagesError, match="139x178 pixels, expected at least 140x140"):
        celeba.open_celeba(tmp_path)
