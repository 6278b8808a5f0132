"""Images, starts of chains and labels of a step."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.seeds import SEED
from tfgen.data.source import ImageSpec
from tfgen.randomness import StepDraws
from tfgen.systems.ebm.config import Config
from tfgen.systems.ebm.prepare import labels_of, prepared

SPEC = ImageSpec(12, 12, 3, 7)
EVERYTHING = {"dataset": "x.npz", "cclass": True, "augment": True, "cutout": True, "cutout_mask_size": 3}


def raw(count: int = 4, spec: ImageSpec = SPEC) -> dict[str, np.ndarray]:
    random = np.random.RandomState(SEED)
    images = random.randint(0, 256, (count, *spec.shape)).astype(np.uint8)
    return {"image": images, "label": random.randint(0, 7, count).astype(np.int32)}


def draws(batch_size: int = 4, step: int = 3, rank: int = 0, ranks: int = 1, seed: int = 0) -> StepDraws:
    return StepDraws(seed, step, rank, ranks, batch_size)


@pytest.mark.parametrize("mixup", [False, True])
def test_any_number_of_ranks_makes_the_same_batch(mixup):
    """But for blends, whose second image is one of the rank's own."""
    config, batch = Config(**EVERYTHING, mixup=mixup), raw(6)
    whole = prepared(batch, draws(6), config, SPEC)
    parts = []
    for rank in range(3):
        own = {name: values[2 * rank : 2 * rank + 2] for name, values in batch.items()}
        parts.append(prepared(own, draws(2, rank=rank, ranks=3), config, SPEC))
    names = ("start", "label") if mixup else ("start", "label", "image")
    for name in names:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_noise_differs_between_rows_steps_and_seeds():
    batch = {"image": np.repeat(raw(1)["image"], 4, axis=0)}
    config = Config(dataset="x.npz")
    results = [prepared(batch, item, config, SPEC) for item in (draws(), draws(step=4), draws(seed=1), draws())]
    for name in ("image", "start"):
        rows = np.concatenate([result[name] for result in results[:3]])
        assert len(np.unique(rows.reshape(12, -1), axis=0)) == 12
        np.testing.assert_array_equal(results[3][name], results[0][name])
        assert rows.dtype == np.float32
    assert "label" not in results[0]


@pytest.mark.parametrize("rescale", [1.0, 2.0])
def test_levels_and_uniform_starts(rescale):
    batch = raw(64)
    found = prepared(batch, draws(64), Config(dataset="x.npz", rescale=rescale), SPEC)
    noise = found["image"] / rescale * 256 - batch["image"]
    assert noise.min() > -1e-3
    assert noise.max() < 1 + 1e-3
    assert noise.mean() == pytest.approx(0.5, abs=0.02)
    start = found["start"] / rescale
    assert start.min() >= 0
    assert start.max() < 1
    assert start.mean() == pytest.approx(0.5, abs=0.02)
    assert start.std() == pytest.approx(math.sqrt(1 / 12), abs=0.01)
    assert abs(np.corrcoef(start.ravel(), noise.ravel())[0, 1]) < 0.02


def test_starts_at_images():
    batch = raw(64)
    found = prepared(batch, draws(64), Config(dataset="x.npz", datasource="default"), SPEC)
    noise = (found["start"] - found["image"]) / 0.3
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)


def test_centred_images():
    batch = raw(64)
    found = prepared(batch, draws(64), Config(dataset="imagenet"), SPEC)["image"]
    noise = (found - batch["image"] / 255) * 512
    assert noise.min() < -0.98
    assert noise.max() > 0.98
    assert np.abs(noise).max() < 1.001


def test_images_that_were_not_rounded():
    """Of 128x128 images the levels before rounding are learned."""
    levels = np.random.RandomState(SEED).uniform(0, 255, (4, *SPEC.shape)).astype(np.float32)
    batch = {"image": np.rint(levels).astype(np.uint8), "pixels": levels, "label": np.arange(4)}
    config = Config(dataset="imagenetfull", cclass=True)
    found = prepared(batch, draws(), config, SPEC)["image"]
    noise = found * 256 - levels
    assert noise.min() > -1e-3
    assert noise.max() < 1 + 1e-3
    assert noise.mean() == pytest.approx(0.5, abs=0.05)


def test_augmentation_comes_before_the_noise():
    """Black from outside and from squares is noisy black; the rest are the image's own pixels."""
    batch = {"image": np.full((40, *SPEC.shape), 128, np.uint8)}
    plain = prepared(batch, draws(40), Config(dataset="x.npz"), SPEC)["image"]
    crops = prepared(batch, draws(40), Config(dataset="x.npz", augment=True), SPEC)["image"]
    both = Config(dataset="x.npz", augment=True, cutout=True, cutout_mask_size=5, cutout_inside=True)
    cut = prepared(batch, draws(40), both, SPEC)["image"]
    for images in (plain, crops, cut):
        assert set(np.unique(np.floor(images * 256))) <= {0, 128}
    black = [(images[..., 0] < 0.25).sum((1, 2)) for images in (plain, crops, cut)]
    assert black[0].max() == 0
    assert black[1].mean() == pytest.approx(144 - (12 - 20 / 9) ** 2, rel=0.25)
    assert (black[2] - black[1]).max() == 25
    assert (black[2] >= np.maximum(black[1], 25)).all()


def test_blends_are_of_two_images_and_labels_stay():
    batch = {"image": np.repeat(np.eye(6, dtype=np.uint8)[:, :, np.newaxis, np.newaxis] * 255, 4, axis=2)}
    batch["label"] = np.arange(6)
    spec = ImageSpec(6, 4, 1, 7)  # image i is white in row i only
    config = Config(dataset="x.npz", cclass=True, mixup=True)
    found = prepared(batch, draws(6), config, spec)
    white = np.rint(found["image"].mean((2, 3)) * 100) / 100  # [image, row]
    assert ((white > 0.02).sum(1) <= 2).all()
    np.testing.assert_allclose(white.sum(1), 1, atol=0.06)
    assert np.ptp(np.diag(white)) > 0.1
    assert (np.diag(white) < 0.95).any()
    np.testing.assert_array_equal(found["label"], np.eye(7)[:6])
    later = prepared(batch, draws(6, step=4), config, spec)["image"]
    assert not np.allclose(later, found["image"], atol=0.02)


# Labels ------------------------------------------------------------------------------------------------------


def test_one_hot_classes():
    found = labels_of({"label": np.array([3, 0])}, Config(dataset="x.npz", cclass=True), SPEC)
    np.testing.assert_array_equal(found, np.eye(7)[[3, 0]])
    assert found.dtype == np.float32
    assert labels_of({"label": np.array([3, 0])}, Config(dataset="x.npz"), SPEC) is None


@pytest.mark.parametrize("dataset", ["dsprites", "sprites"])
@pytest.mark.parametrize(
    ("flag", "label"),
    [
        ("cond_shape", [0, 1, 0]),
        ("cond_size", [0.7]),
        ("cond_pos", [0.25, 1.0]),
        ("cond_rot", [0, 1]),
        ("dpos_only", [0.75, 1.5]),
        ("", [0, 1, 0]),
    ],
)
def test_sprites(dataset, flag, label):
    spec = ImageSpec(8, 8, 1)
    images = np.random.RandomState(SEED).randint(0, 2, (50, 8, 8, 1)).astype(np.uint8)
    latents = np.tile(np.array([[1, 2, 0.7, math.pi / 2, 0.25, 1.0]], np.float32), (50, 1))
    config = Config(dataset=dataset, cclass=True, datasource="default", **({flag: True} if flag else {}))
    for factor in (1, 255):
        found = prepared({"image": factor * images, "latents": latents}, draws(50), config, spec)
        np.testing.assert_array_equal(found["image"], images)
        np.testing.assert_allclose(found["label"], np.tile(label, (50, 1)), atol=1e-6)
    assert found["start"].mean() == pytest.approx(0.5, abs=0.05)
    assert found["start"].std() == pytest.approx(0.5, abs=0.05)
