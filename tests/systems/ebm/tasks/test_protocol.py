"""The sampling protocol with given draws: what is filled, drawn, renewed and written back."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfgen.settings import SettingsError
from tfgen.systems.ebm.replay import Replayed
from tfgen.systems.ebm.tasks import protocol
from tfgen.systems.ebm.tasks.protocol import Group, Renewal, Schedule


class Given:
    """Images of levels 100, 101, ... and class 0 at the beginning; renewals of level 500 and class 1."""

    def __init__(self, rows: list[int], keep_image=(0.5, 0.5), keep_label=(0.5, 0.5)):
        self._rows, self._keeps, self._begun = rows, (keep_image, keep_label), 0

    def fresh(self) -> Replayed:
        self._begun += 2
        return Replayed(flat([98.0 + self._begun, 99.0 + self._begun]), tf.constant([[1.0, 0.0]] * 2))

    def rows(self, length: tf.Tensor) -> tf.Tensor:
        self.length = int(length)
        return tf.constant(self._rows, tf.int64)

    def renewal(self) -> Renewal:
        keep_image, keep_label = (tf.constant(values) for values in self._keeps)
        return Renewal(keep_image, keep_label, flat([500.0, 501.0]), tf.constant([[0.0, 1.0]] * 2))


def flat(levels: list[float]) -> tf.Tensor:
    return tf.tile(tf.reshape(tf.constant(levels), [-1, 1, 1, 1]), [1, 2, 2, 1])


def run(schedule: Schedule, draws: Given) -> tuple[np.ndarray, np.ndarray]:
    """Levels and classes of the group; every call adds 0.25."""
    group = Group(schedule, (2, 2, 1), 2)

    def move(images: tf.Tensor, labels: tf.Tensor | None) -> tf.Tensor:
        assert labels is not None
        return images + 0.25

    for _ in range(2):  # a group begins anew
        draws._begun = 0
        found = protocol.run(
            group, lambda call: group.fill(draws, move), lambda call, mixes: group.go_on(draws, move, mixes)
        )
    return found.images.numpy()[:, 0, 0, 0], found.labels.numpy().argmax(axis=1)


def test_a_group_is_filled():
    draws = Given([0, 1])
    levels, classes = run(Schedule(group=3, batch_size=2, calls=2, nomix=0), draws)
    np.testing.assert_array_equal(levels, [100.25, 101.25, 102.25])
    assert not classes.any()


def test_chains_go_on_out_of_the_whole_buffer():
    draws = Given([3, 1])
    levels, _ = run(Schedule(group=3, batch_size=2, calls=3, nomix=3), draws)
    assert draws.length == 4  # the second batch exceeds the group by one image
    np.testing.assert_array_equal(levels, [100.25, 101.5, 102.25])


def test_the_last_end_of_an_image_counts():
    levels, classes = run(Schedule(4, 2, 3, 0), Given([2, 2], keep_image=(0.5, 0.99), keep_label=(0.9, 0.89)))
    np.testing.assert_array_equal(levels, [100.25, 101.25, 501.25, 103.25])
    np.testing.assert_array_equal(classes, [0, 0, 0, 0])
    levels, classes = run(Schedule(4, 2, 3, 0), Given([2, 2], keep_image=(0.99, 0.98), keep_label=(0.89, 0.9)))
    np.testing.assert_array_equal(levels, [100.25, 101.25, 102.5, 103.25])
    np.testing.assert_array_equal(classes, [0, 0, 1, 0])


def test_nothing_begins_anew_in_the_last_calls():
    draws = Given([0, 1], keep_image=(1.0, 1.0), keep_label=(1.0, 1.0))
    levels, classes = run(Schedule(2, 2, calls=4, nomix=3), draws)
    np.testing.assert_array_equal(levels, [101.0, 102.0])
    assert not classes.any()
    levels, classes = run(Schedule(2, 2, calls=4, nomix=1), draws)
    np.testing.assert_array_equal(levels, [500.5, 501.5])
    assert classes.all()


def test_calls_that_do_not_fill_a_group():
    with pytest.raises(SettingsError, match=r"19 calls of 50 images do not fill .* expected --repeat_scale=10 or more"):
        Schedule(group=1000, batch_size=50, calls=19, nomix=0)
