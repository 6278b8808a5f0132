from __future__ import annotations

import math

import numpy as np
import pytest

from tfgen.data.source import ImageSpec, Source
from tfgen.likelihood.histogram import SMOOTHING, PixelHistogram, baseline_bits_per_dim


def noise(count: int, seed: int, high: int = 256) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, high, (count, 3, 2, 3)).astype(np.uint8)


class Stored(Source):
    name = "stored"

    def __init__(self, images: np.ndarray):
        self.images, self.spec = images, ImageSpec(*images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": self.images[indices]}


def test_agrees_with_the_definition():
    train, test = noise(50, 0, 20), noise(30, 1, 20)
    score = PixelHistogram().fit(train).evaluate(test)

    def bits(smoothing: float) -> float:
        total = 0.0
        for position in np.ndindex(train.shape[1:]):
            column = train[:, *position]
            for value in test[:, *position]:
                total -= math.log2((np.sum(column == value) + smoothing) / (len(column) + 256 * smoothing))
        return total / test.size

    assert score.bits_per_dim == pytest.approx(bits(score.smoothing), rel=1e-12)
    assert score.bits_per_dim == pytest.approx(min(map(bits, (*SMOOTHING[::4], score.smoothing))), rel=1e-12)
    assert score.images == 30


def test_known_values():
    levels = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    assert PixelHistogram().fit(levels).bits_per_dim(levels) == pytest.approx(8.0, rel=1e-9)
    halves = np.array([10, 200], np.uint8).reshape(2, 1, 1, 1).repeat(1000, axis=0)
    assert PixelHistogram().fit(halves).bits_per_dim(halves) == pytest.approx(1.0, abs=1e-4)


def test_positions_are_independent():
    images = np.zeros((1000, 1, 2, 1), np.uint8)
    images[::2, 0, 1] = 255
    assert PixelHistogram().fit(images).bits_per_dim(images) == pytest.approx(0.5, abs=1e-4)


def test_smoothing_suits_the_images():
    few, many = noise(20, 0), noise(5000, 1, 4)
    assert PixelHistogram().fit(few).evaluate(noise(200, 2)).smoothing == SMOOTHING[-1]
    assert PixelHistogram().fit(many).evaluate(many).smoothing == SMOOTHING[0]


def test_every_way_to_hand_over_images_counts_the_same():
    train, test = noise(2500, 0, 9), noise(100, 1, 9)  # more than one read of the source
    expected = PixelHistogram().fit(train).evaluate(test)
    batches = [train[:0], train[:700], train[700:]]
    assert PixelHistogram().fit(iter(batches)).evaluate([test]) == expected
    assert PixelHistogram().fit({"image": batch} for batch in batches).evaluate(Stored(test)) == expected
    assert PixelHistogram().fit(Stored(train)).evaluate(test) == expected


@pytest.mark.parametrize(("limit", "count"), [(None, 100), (30, 30), (100, 100), (500, 100)])
def test_the_baseline_scores_the_first_images(limit, count):
    train, test = noise(500, 0, 9), noise(100, 1, 9)
    expected = PixelHistogram().fit(train).bits_per_dim(test[:count])
    assert baseline_bits_per_dim(Stored(train), Stored(test), limit) == expected


def test_fitting_again_forgets():
    histogram = PixelHistogram().fit(noise(500, 0)).fit(np.zeros((500, 3, 2, 3), np.uint8))
    assert histogram.bits_per_dim(np.zeros((1, 3, 2, 3), np.uint8)) < 0.01


def test_what_cannot_be_counted():
    with pytest.raises(ValueError, match="call fit"):
        PixelHistogram().evaluate(noise(1, 0))
    with pytest.raises(ValueError, match="found float64"):
        PixelHistogram().fit(noise(1, 0) / 255.0)
    with pytest.raises(ValueError, match="found none"):
        PixelHistogram().fit(noise(0, 0))
    with pytest.raises(ValueError, match=r"\[3, 2, 3\] and then \[2, 2, 3\]"):
        PixelHistogram().fit([noise(1, 0), noise(1, 0)[:, :2]])
    with pytest.raises(ValueError, match=r"\[3, 2, 3\], found \[2, 2, 3\]"):
        PixelHistogram().fit(noise(1, 0)).evaluate(noise(1, 0)[:, :2])
