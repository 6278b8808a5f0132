import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from tfgen.data import builtin


def test_digits_hold_every_image_once():
    splits = builtin.digits()
    parts = [part.read(np.arange(len(part))) for part in (splits.train, splits.valid, splits.test)]
    assert [len(part["image"]) for part in parts] == [1497, 150, 150]
    assert splits.spec == builtin.DIGITS_SPEC
    images = np.concatenate([part["image"] for part in parts]).reshape(1797, -1)
    original = np.rint(load_digits().images * 255 / 16).astype(np.uint8).reshape(1797, -1)
    np.testing.assert_array_equal(np.sort(images.view("V64"), axis=0), np.sort(original.view("V64"), axis=0))
    assert sorted(set(np.concatenate([part["label"] for part in parts]).tolist())) == list(range(10))
    assert images.max() == 255
    assert images.min() == 0


def test_digits_are_the_same_every_time():
    first, second = builtin.digits().test.read(np.arange(150)), builtin.digits().test.read(np.arange(150))
    np.testing.assert_array_equal(first["image"], second["image"])
    np.testing.assert_array_equal(first["label"], second["label"])


def test_photo_crops_are_cut_where_their_origins_say():
    splits = builtin.photos()
    photographs = load_sample_images().images
    assert splits.spec == builtin.PHOTOS_SPEC
    for part in (splits.train, splits.valid, splits.test):
        indices = np.array([0, len(part) // 2, len(part) - 1])
        images = part.read(indices)["image"]
        assert images.dtype == np.uint8
        for image, (photograph, row, column) in zip(images, part.origins[indices], strict=True):
            np.testing.assert_array_equal(image, photographs[photograph][row : row + 32, column : column + 32])


def test_no_pixel_is_shared_between_photo_splits_nor_between_held_out_crops():
    splits = builtin.photos()
    covered = {}
    for name in ("train", "valid", "test"):
        part = getattr(splits, name)
        covered[name] = np.zeros((2, 427, 640), int)
        for photograph, row, column in part.origins:
            covered[name][photograph, row : row + 32, column : column + 32] += 1
    assert covered["valid"].max() == 1
    assert covered["test"].max() == 1
    assert covered["train"].max() > 1
    used = sum((pixels > 0).astype(int) for pixels in covered.values())
    assert used.max() == 1
