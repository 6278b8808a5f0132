import numpy as np
import pytest

from tests.data.images import pixels
from tfgen.data.arrays import ArraySource
from tfgen.data.channels import GreyAsRgb
from tfgen.data.errors import DataError
from tfgen.data.source import ImageSpec


def test_the_channel_is_repeated_and_the_labels_stay():
    grey = np.stack([pixels(number, channels=1) for number in range(4)])
    source = GreyAsRgb(ArraySource(grey, "grey", labels=np.array([2, 0, 1, 1])))
    assert source.spec == ImageSpec(6, 5, 3, num_classes=3)
    batch = source.read(np.array([3, 0]))
    assert batch["image"].shape == (2, 6, 5, 3)
    for channel in range(3):
        np.testing.assert_array_equal(batch["image"][..., channel], grey[[3, 0]][..., 0])
    assert batch["label"].tolist() == [1, 2]


def test_the_order_is_that_of_the_grey_images():
    class Ordered(ArraySource):
        @property
        def epoch_size(self):
            return 2

        def epoch_order(self, generator):
            return np.array([1, 0])

    source = GreyAsRgb(Ordered(np.stack([pixels(number, channels=1) for number in range(4)]), "grey"))
    assert (len(source), source.epoch_size) == (4, 2)
    assert source.epoch_order(np.random.RandomState(0)).tolist() == [1, 0]


def test_colours_are_refused():
    with pytest.raises(DataError, match="6x5x3, no labels; expected one channel"):
        GreyAsRgb(ArraySource(pixels(0)[None], "colours"))
