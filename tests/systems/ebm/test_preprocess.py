"""Images as the networks see them, augmentation, and the images of dSprites that a run learns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tfgen.systems.ebm import preprocess, sprites

BYTES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("rescale", [1.0, 2.0])
def test_levels_fill_the_range(rescale):
    low, high = (preprocess.scaled(BYTES, "levels", np.full(256, u), rescale) for u in (0.0, 1.0))
    np.testing.assert_allclose(low, rescale * BYTES / 256, rtol=1e-6)
    np.testing.assert_allclose(high, rescale * (BYTES + 1.0) / 256, rtol=1e-6)
    np.testing.assert_allclose(preprocess.scaled(BYTES, "levels", None, rescale), BYTES / 256, rtol=1e-6)


def test_other_scalings():
    centred = preprocess.scaled(BYTES, preprocess.scaling_of("imagenet"), np.full(256, 0.75))
    np.testing.assert_allclose(centred, BYTES / 255 + 0.25 / 256, rtol=1e-5)
    sprite = np.array([0, 1], np.uint8)
    np.testing.assert_array_equal(preprocess.scaled(sprite, preprocess.scaling_of("dsprites"), None), [0, 1])
    assert preprocess.scaling_of("photos") == preprocess.scaling_of("mnist") == "levels"
    with pytest.raises(ValueError, match="rescale is 2, expected 1 for images that are scaled as centred"):
        preprocess.scaled(BYTES, "centred", None, 2.0)


def test_bytes_survive_the_way_there_and_back():
    np.testing.assert_array_equal(preprocess.sampled_bytes(preprocess.scaled(BYTES, "levels", None)), BYTES)
    np.testing.assert_array_equal(
        preprocess.logged_bytes(preprocess.scaled(BYTES, "levels", np.full(256, 0.5), 2.0), 2.0), BYTES
    )


def test_crops_are_parts_of_the_padded_image_and_half_are_mirrored():
    image = np.arange(1, 1 + 6 * 6 * 3, dtype=np.uint8).reshape(1, 6, 6, 3)
    crops = preprocess.cropped_and_mirrored(np.repeat(image, 400, axis=0), np.random.RandomState(0))
    padded = np.pad(image[0], ((4, 4), (4, 4), (0, 0)))
    windows = [padded[top : top + 6, left : left + 6] for top in range(9) for left in range(9)]
    plain = {window.tobytes() for window in windows}
    mirrored = {np.ascontiguousarray(window[:, ::-1]).tobytes() for window in windows}
    found = [crop.tobytes() for crop in crops]
    assert set(found) <= plain | mirrored
    assert sum(crop in mirrored for crop in found) / 400 == pytest.approx(0.5, abs=0.08)
    assert len(set(found)) > 130  # of 162


def test_squares_lie_anywhere_or_inside():
    generator = np.random.RandomState(0)
    boxes = [preprocess.cutout_box(generator, 12, 20, 6, inside, 1.0) for inside in (False, True) for _ in range(300)]
    sizes = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes]
    assert set(sizes[300:]) == {(6, 6)}
    assert min(min(size) for size in sizes[:300]) < 6
    assert {rows.start for rows, _ in boxes[300:]} == set(range(7))
    assert {columns.stop for _, columns in boxes[300:]} == set(range(6, 21))
    with pytest.raises(ValueError, match="a square of 30 pixels does not lie inside an image of 12x20"):
        preprocess.cutout_box(generator, 12, 20, 30, True, 1.0)


def test_cutout_blanks_its_share_of_the_images():
    images = np.ones([400, 8, 8, 3], np.uint8)
    cut = preprocess.with_cutout(images, np.random.RandomState(0), 4, True, 0.25)
    blank = (cut == 0).sum((1, 2, 3))
    assert set(blank) == {0, 48}
    assert np.mean(blank > 0) == pytest.approx(0.25, abs=0.06)
    assert images.all()


def test_blends():
    images = np.stack([np.zeros([2, 2]), np.ones([2, 2])]).astype(np.float32)
    blend = preprocess.mixed(images, np.array([0.25, 0.5]), np.array([1, 0]))
    np.testing.assert_allclose(blend[:, 0, 0], [0.75, 0.5])


def latents() -> np.ndarray:
    """Every combination of some values, as the archive has them."""
    scales, turns, places = [0.5, 1.0], [0.0, 30 * math.pi / 39], [0.0, 16 / 31, 1.0]
    rows = [[1, s, c, t, x, y] for s in (1, 2, 3) for c in scales for t in turns for x in places for y in places]
    return np.array(rows, np.float64)


@pytest.mark.parametrize(
    ("flag", "rows", "repeats", "columns"),
    [
        ("", 108, 1, 3),
        ("cond_size", 108, 1, 1),
        ("cond_rot", 108, 1, 2),
        ("dshape_only", 3, 10_000, 3),
        ("dpos_only", 9, 100, 2),
        ("dsize_only", 2, 10_000, 1),
        ("drot_only", 2, 100, 2),
    ],
)
def test_subsets_and_labels_of_sprites(flag, rows, repeats, columns):
    mode, values = sprites.mode(flag), latents()
    chosen = mode.rows(values)
    labels = mode.labels(values[chosen])
    assert (len(chosen), mode.repeats, labels.shape) == (rows, repeats, (rows, columns))
    assert len(np.unique(labels, axis=0)) == len(np.unique(mode.labels(values), axis=0))


def test_labels_of_sprites_by_value():
    row = np.array([[1, 2, 0.7, math.pi / 2, 0.25, 1.0]])
    expected = {"cond_shape": [0, 1, 0], "cond_size": [0.7], "cond_rot": [0, 1], "cond_pos": [0.25, 1.0]}
    for flag, label in (expected | {"dpos_only": [0.75, 1.5]}).items():
        np.testing.assert_allclose(sprites.mode(flag).labels(row)[0], label, atol=1e-12)


def test_restricted_sprites_keep_the_label():
    mode = sprites.mode("cond_pos", restricted=True)
    chosen = latents()[mode.rows(latents())]
    assert np.unique(chosen[:, [sprites.SHAPE, sprites.ROTATION]], axis=0).tolist() == [[1.0, 0.0]]
    assert mode.labels(chosen).shape == (18, 2)
