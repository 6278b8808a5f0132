"""The replay buffer against a list, and where chains begin."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfgen.randomness import Key
from tfgen.systems.ebm import replay
from tfgen.systems.ebm.replay import ReplayBuffer

KEY = Key.create(0, "replay")


def numbers(first: int, count: int) -> tf.Tensor:
    return tf.range(first, first + count, dtype=tf.float32)


def contents(buffer: ReplayBuffer) -> list[float]:
    return buffer.images.numpy()[: int(buffer.length)].tolist()


class OriginalList:
    """The original's buffer as its description has it, with Python's slices."""

    def __init__(self, capacity: int):
        self.capacity, self.cursor, self.items = capacity, 0, []

    def add(self, new: list[float]) -> None:
        if self.cursor >= len(self.items):
            self.items += new
        elif self.cursor + len(new) < self.capacity:
            self.items[self.cursor : self.cursor + len(new)] = new
        else:
            first = self.capacity - self.cursor
            self.items[self.cursor :] = new[:first]
            self.items[: len(new) - first] = new[first:]
        self.cursor = (self.cursor + len(new)) % self.capacity


@pytest.mark.parametrize(("capacity", "batch"), [(10, 4), (12, 4), (7, 3), (5, 5), (9, 1)])
def test_contents(capacity, batch):
    """Of both forms, inside a function of the graph."""
    ring = ReplayBuffer(capacity, batch, [], tf.float32)
    truncating = ReplayBuffer(capacity, batch, [], tf.float32, truncates=True)
    original = OriginalList(capacity)
    add = tf.function(lambda images: (ring.add(images), truncating.add(images)))
    for first in range(0, 12 * batch, batch):
        add(numbers(first, batch))
        original.add(numbers(first, batch).numpy().tolist())
        assert (contents(truncating), int(truncating.cursor)) == (original.items, original.cursor)
        newest = list(range(max(0, first + batch - capacity), first + batch))
        assert sorted(contents(ring)) == newest
    assert int(ring.length) == capacity


def test_a_batch_that_is_not_taken_changes_nothing():
    buffer = ReplayBuffer(6, 2, [], tf.float32, label_columns=1)
    for first in (0, 2, 4, 6):
        buffer.add(numbers(first, 2), numbers(first, 2)[:, None])
    before = [variable.numpy() for variable in buffer.variables]
    nan = tf.fill([2], np.nan)
    buffer.add(nan, nan[:, None], take=tf.constant(False))
    for old, variable in zip(before, buffer.variables, strict=True):
        np.testing.assert_array_equal(old, variable)
    buffer.add(numbers(8, 2), numbers(8, 2)[:, None], take=tf.constant(True))
    assert sorted(contents(buffer)) == [4, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(buffer.labels[:, 0], buffer.images)


def test_bytes_and_back():
    images = tf.constant([-0.5, 0.0, 0.5, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(replay.to_bytes(images, 2.0), [0, 0, 63, 127, 255, 255])
    low, high = (replay.from_bytes(tf.constant([0, 255], tf.uint8), tf.fill([2], u), 2.0) for u in (0.0, 1.0))
    np.testing.assert_allclose(low, [0.0, 2 * 255 / 256])
    np.testing.assert_allclose(high, [2 / 256, 2.0])


def filled(dtype=tf.float32, label_columns: int = 0) -> ReplayBuffer:
    """Twenty images of 2x2, image i of value i / 20, or byte 10 i."""
    buffer = ReplayBuffer(20, 4, [2, 2, 1], dtype, label_columns=label_columns)
    for first in range(0, 20, 4):
        values = tf.reshape(numbers(first, 4), [4, 1, 1, 1])
        values = values / 20 if dtype == tf.float32 else 10 * values
        labels = tf.one_hot(tf.ones(4, tf.int32), label_columns) if label_columns else None
        buffer.add(tf.cast(tf.broadcast_to(values, [4, 2, 2, 1]), dtype), labels)
    return buffer


def test_most_chains_go_on_and_some_begin_anew():
    buffer, count = filled(), 2000
    fresh = -tf.ones([count, 2, 2, 1])
    images, labels = tf.function(lambda: buffer.starts(fresh, None, KEY, high=1.0, restart=0.1))()
    begun = images[:, 0, 0, 0] < 0
    assert np.mean(begun) == pytest.approx(0.1, abs=0.02)
    assert labels is None
    rows, counts = np.unique(np.round(images[:, 0, 0, 0] * 20), return_counts=True)
    assert rows.tolist() == [-20, *range(20)]
    assert counts[1:].min() > 55  # of 90 expected


def test_chains_of_bytes_have_noise_within_the_level():
    buffer = filled(tf.uint8)
    images, _ = buffer.starts(-tf.ones([50, 2, 2, 1]), None, KEY, high=2.0, restart=0.0)
    levels = images.numpy() * 256 / 2
    np.testing.assert_array_equal(np.floor(levels - 1e-3 * (levels % 1 > 0.5)) % 10, 0)
    assert len(np.unique(levels)) > 100


def test_all_chains_begin_anew_until_there_is_more_than_a_batch():
    buffer = ReplayBuffer(20, 4, [1], tf.float32)
    fresh = tf.constant([[-1.0], [-2.0]])
    for batches in range(3):
        images, _ = buffer.starts(fresh, None, KEY, high=1.0, restart=0.0)
        assert np.array_equal(images, fresh) == (batches < 2)
        buffer.add(tf.ones([4, 1]))


def test_a_start_does_not_depend_on_the_batch():
    buffer = filled(tf.uint8)
    fresh = -tf.ones([6, 2, 2, 1])
    whole, _ = buffer.starts(fresh, None, KEY, high=1.0, restart=0.3)
    rest, _ = buffer.starts(fresh[2:], None, KEY.skip(2), high=1.0, restart=0.3)
    np.testing.assert_array_equal(rest, whole[2:])


@pytest.mark.parametrize("kept", [False, True])
def test_labels_go_with_images_where_they_are_kept(kept):
    buffer = filled(label_columns=3 if kept else 0)
    fresh, labels = -tf.ones([200, 2, 2, 1]), tf.one_hot(tf.fill([200], 2), 3)
    images, found = buffer.starts(fresh, labels, KEY, high=1.0, restart=0.2)
    anew = images.numpy()[:, 0, 0, 0] < 0
    np.testing.assert_array_equal(np.argmax(found, axis=1), np.where(anew | (not kept), 2, 1))


def test_of_rows_that_are_named_twice_the_last_counts():
    buffer = ReplayBuffer(5, 5, [], tf.float32)
    buffer.add(numbers(0, 5))
    tf.function(buffer.replace)(tf.constant([3, 0, 3, 3], tf.int64), tf.constant([-1.0, -2.0, -3.0, -4.0]))
    assert contents(buffer) == [-2, 1, 2, -4, 4]


def test_a_checkpoint_holds_all_of_it(tmp_path):
    buffer, other = filled(label_columns=2), ReplayBuffer(20, 4, [2, 2, 1], tf.float32, label_columns=2)
    path = tf.train.Checkpoint(buffer).write(str(tmp_path / "state"))
    tf.train.Checkpoint(other).read(path).assert_consumed()
    assert len(buffer.variables) == 4
    for variable, restored in zip(buffer.variables, other.variables, strict=True):
        np.testing.assert_array_equal(variable, restored)


def test_what_is_refused():
    with pytest.raises(ValueError, match="a buffer of 3 images cannot take batches of 4"):
        ReplayBuffer(3, 4, [1])
    buffer = ReplayBuffer(8, 4, [1], label_columns=2)
    with pytest.raises(ValueError, match="4 images of float32, expected 4 of uint8"):
        buffer.add(tf.zeros([4, 1]))
    with pytest.raises(ValueError, match="3 images of uint8, expected 4"):
        buffer.add(tf.zeros([3, 1], tf.uint8))
    with pytest.raises(ValueError, match="keeps labels with its images"):
        buffer.add(tf.zeros([4, 1], tf.uint8))
