"""Drawn sprites, and the archive of dSprites."""

from __future__ import annotations

import itertools
import math
import pathlib
import types

import numpy as np
import pytest

from tests.seeds import SEED
from tfgen.data import sprites
from tfgen.data.catalog import open_dataset
from tfgen.data.errors import DataError


def one(shape=1, scale=1.0, rotation=0.0, x=0.5, y=0.5, side=64) -> np.ndarray:
    """bool [side, side]."""
    return sprites.render(np.array([[1, shape, scale, rotation, x, y]]), side)[0, :, :, 0] > 0


def box(image: np.ndarray) -> list[int]:
    """First and last row, first and last column of what is white."""
    rows, columns = np.nonzero(image)
    return [int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())]


# Shapes ------------------------------------------------------------------------------------------------------


def test_square_and_ellipse_by_their_sizes():
    assert box(one()) == [21, 42, 21, 42]  # 64 * 0.25 * sqrt(1/2) = 11.3 to each side of the middle
    assert one().sum() == 22 * 22
    assert box(one(shape=2)) == [24, 39, 16, 47]
    assert one(shape=2, side=400).sum() / 400**2 == pytest.approx(math.pi * 0.25 * 0.125, rel=0.01)


def test_the_heart_points_down_and_is_symmetric():
    heart = one(shape=3)
    np.testing.assert_array_equal(heart, heart[:, ::-1])
    top, bottom, _, _ = box(heart)
    assert heart[top + 2].sum() > heart[bottom - 2].sum() > 0
    assert not heart[top, 31:33].any()  # the notch
    assert box(one(shape=3, side=401))[1] == pytest.approx(300, abs=1)  # the tip is on the circle
    area = 3.66 * (0.25 / 1.25) ** 2  # the curve encloses 3.66
    assert one(shape=3, side=400).sum() / 400**2 == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("shape", [1, 2, 3])
def test_a_quarter_turn_is_one_of_the_image(shape):
    np.testing.assert_array_equal(one(shape, rotation=math.pi / 2, side=63), np.rot90(one(shape, side=63)))
    assert not np.array_equal(one(shape, rotation=0.4), one(shape))


def test_places_and_sizes():
    assert box(one(x=0, y=1)) == [37, 58, 5, 26]  # right and down; centres at a quarter and three quarters
    assert one(scale=0.5, side=400).sum() == pytest.approx(one(side=400).sum() / 4, rel=0.05)


@pytest.mark.parametrize("side", [8, 64])
def test_nothing_is_cut_off_in_the_corners(side):
    """A corner is a whole number of pixels from the middle."""
    turned = [[1, shape, 1, turn, 0.5, 0.5] for shape in (1, 2, 3) for turn in np.linspace(0, 6, 9)]
    middle = sprites.render(np.array(turned), side)
    assert set(np.unique(middle)) == {0, 255}
    for x, y in itertools.product((0, 1), (0, 1)):
        found = sprites.render(np.array([[*row[:4], x, y] for row in turned]), side)
        shift = [(2 * y - 1) * side // 4, (2 * x - 1) * side // 4]
        np.testing.assert_array_equal(found, np.roll(middle, shift, (1, 2)))
        assert (found > 0).sum() == (middle > 0).sum() > 0


def test_latent_values_that_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"shape \[2, 5\], expected \[n, 6\]"):
        sprites.render(np.ones((2, 5)), 8)
    with pytest.raises(ValueError, match="shape 4 among the latent values, expected 1, 2 or 3"):
        sprites.render(np.array([[1, 4, 1, 0, 0, 0]]), 8)


def test_built_in_images_are_rows_of_dsprites():
    source = sprites.sprites()
    assert len(source) == 3 * 6 * 13 * 7 * 7 == len(np.unique(source.latents, axis=0))
    grids = (6, 0.5, 1.0), (40, 0, 2 * math.pi), (32, 0, 1), (32, 0, 1)
    for column, (count, low, high) in zip(source.latents.T[2:], grids, strict=True):
        steps = (column - low) / (high - low) * (count - 1)
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    chosen = np.array([0, 5000, len(source) - 1])
    batch = source.read(chosen)
    np.testing.assert_array_equal(batch["image"], sprites.render(source.latents[chosen], 32))
    np.testing.assert_allclose(batch["latents"], source.latents[chosen], rtol=1e-6)
    assert (batch["image"].dtype, batch["latents"].dtype) == (np.uint8, np.float32)


def test_built_in_images_by_name():
    splits = open_dataset("sprites", "nowhere")
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [9466, 1000, 1000]
    assert splits.spec == sprites.SPEC


# dSprites ----------------------------------------------------------------------------------------------------


def write_archive(path: pathlib.Path, images=None, values=None, **more) -> np.ndarray:
    """Every combination of some values at 64x64; what is given instead is written as it is. Returns the latents."""
    factors = ([1.0], [1.0, 2.0, 3.0], [0.5, 1.0], [0.0, 30 * math.pi / 39], [0.0, 16 / 31], [16 / 31, 1.0])
    table = np.array(list(itertools.product(*factors)))
    path.parent.mkdir(parents=True, exist_ok=True)
    images = (sprites.render(table, 64)[..., 0] > 0).astype(np.uint8) if images is None else images
    np.savez_compressed(path, imgs=images, latents_values=table if values is None else values, **more)
    return table


@pytest.mark.parametrize("place", ["", "dsprites", "dsprites-dataset", "named.npz"])
def test_the_archive(tmp_path, place, monkeypatch):
    monkeypatch.setattr(sprites, "_AT_ONCE", 7)
    named = place.endswith(".npz")
    path = tmp_path / place if named else tmp_path / place / sprites.ARCHIVE
    table = write_archive(path, metadata=np.array({"never": "loaded"}, object))
    source = sprites.open_dsprites(tmp_path, str(path) if named else "")
    assert len(source) == 48
    assert source.spec == sprites.ARCHIVE_SPEC
    batch = source.read(np.array([47, 3]))
    np.testing.assert_array_equal(batch["image"], sprites.render(table[[47, 3]], 64))
    np.testing.assert_allclose(batch["latents"], table[[47, 3]], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.full((48, 64, 64), 255, np.uint8)}, "imgs has the value 255; expected 0 and 1"),
        ({"images": np.zeros((48, 64, 64))}, r"imgs is float64 .*; expected uint8 \[N, side, side\]"),
        ({"images": np.zeros((48, 64, 32), np.uint8)}, r"imgs is uint8 \[48, 64, 32\]"),
        ({"images": np.zeros((0, 64, 64), np.uint8)}, "imgs declares .* bytes"),
        ({"images": np.asfortranarray(np.zeros((48, 64, 64), np.uint8))}, "imgs is uint8"),
        ({"images": np.array([{}])}, "imgs is object"),
        ({"values": np.zeros((47, 6))}, r"latents_values is float64 \[47, 6\]; expected floating point \[48, 6\]"),
        ({"values": np.zeros((48, 6), int)}, "latents_values is int64"),
    ],
)
def test_archives_of_other_contents(tmp_path, changes, message):
    write_archive(tmp_path / sprites.ARCHIVE, **changes)
    with pytest.raises(DataError, match=message):
        sprites.open_dsprites(tmp_path)


def test_damaged_archives(tmp_path):
    path = tmp_path / sprites.ARCHIVE
    with pytest.raises(DataError, match=r"no file .*x\.npz: expected dsprites_ndarray"):
        sprites.open_dsprites(tmp_path, str(tmp_path / "x.npz"))
    np.savez(path, imgs=np.zeros((1, 64, 64), np.uint8))
    with pytest.raises(DataError, match="has no array latents_values: it is not dsprites_ndarray"):
        sprites.open_dsprites(tmp_path)
    write_archive(path)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"is not an \.npz file, or damaged"):
        sprites.open_dsprites(tmp_path)
    content[300:340] = bytes(40)  # inside the images
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not an \.npz file, or damaged"):
        sprites.open_dsprites(tmp_path)


class Builder:
    """A prepared TFDS builder of five images: what `sprites` asks of one."""

    info = types.SimpleNamespace(full_name="dsprites/1")
    values = ("value_shape", "value_scale", "value_orientation", "value_x_position", "value_y_position")

    def __init__(self):
        self.table = np.random.RandomState(SEED).uniform(size=(5, 6)).astype(np.float32)
        self.images = np.random.RandomState(SEED).randint(0, 2, (5, 64, 64, 1)).astype(np.uint8)

    def as_data_source(self, split: str, decoders: dict | None = None) -> list[dict]:
        assert split == "train"
        assert decoders is None or list(decoders) == ["image"]
        images = self.images if decoders is None else [b"encoded"] * 5
        rows = [dict(zip(self.values, row[1:], strict=True)) for row in self.table]
        return [{"image": image, **row} for image, row in zip(images, rows, strict=True)]


def test_without_an_archive_tfds_is_asked(tmp_path, monkeypatch):
    asked, builder = [], Builder()
    monkeypatch.setattr(sprites, "replacing_builder", lambda *words: asked.append(words) or builder)
    source = sprites.open_dsprites(tmp_path)
    assert asked == [("dsprites", str(tmp_path), f"{sprites.ARCHIVE} in {tmp_path}, or --dsprites_path")]
    assert len(source) == 5
    batch = source.read(np.array([3, 1]))
    np.testing.assert_array_equal(batch["image"], 255 * builder.images[[3, 1]])
    np.testing.assert_array_equal(batch["latents"][:, 0], [1, 1])
    np.testing.assert_array_equal(batch["latents"][:, 1:], builder.table[[3, 1], 1:])
    np.testing.assert_array_equal(source.latents[[3, 1]], batch["latents"])
