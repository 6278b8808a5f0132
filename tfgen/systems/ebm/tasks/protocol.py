"""The sampling protocol behind Inception scores and Fréchet distances (Du & Mordatch, arXiv:1903.08689, section 4.1).

Images come in groups. A group is a buffer that chains fill from noise; then chains go on from images drawn out of it,
of which a few begin anew and some change their label, and their ends take the place of where they began. In the last
calls of a group nothing begins anew. What draws the random numbers, and what moves the images, is the caller's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf

from tfgen.settings import SettingsError
from tfgen.systems.ebm.replay import ReplayBuffer, Replayed

GROUP = 1000
_KEEPS_IMAGE, _KEEPS_LABEL = 0.99, 0.9  # shares of the images drawn out of the buffer

# Images [B, H, W, C] after a call of the sampler, from images and labels [B, K] or None.
Move = Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The calls of a group.

    Attributes:
      group: images of a group.
      batch_size: images of a call, at most `group`.
      calls: of a group.
      nomix: the last calls, in which nothing begins anew.

    Raises:
      SettingsError: calls that do not fill the group.
    """

    group: int
    batch_size: int
    calls: int
    nomix: int

    def __post_init__(self) -> None:
        if self.calls < self.fills:
            raise SettingsError(
                f"{self.calls} calls of {self.batch_size} images do not fill a group of {self.group} images: expected "
                f"--repeat_scale={self.fills / 2:g} or more, or a larger --batch_size"
            )

    @property
    def fills(self) -> int:
        """The first calls, whose images fill the group."""
        return -(-self.group // self.batch_size)

    def mixes(self, call: int) -> bool:
        """Whether images and labels begin anew in a call."""
        return call < self.calls - self.nomix


class Renewal(NamedTuple):
    """What may take the place of images out of the buffer.

    Attributes:
      keep_image, keep_label: uniform numbers in [0, 1), [B]; those below 0.99 and 0.9 keep.
      images, labels: [B, H, W, C], and [B, K] or None.
    """

    keep_image: tf.Tensor
    keep_label: tf.Tensor
    images: tf.Tensor
    labels: tf.Tensor | None


class Draws(Protocol):
    """The random numbers of a call."""

    def fresh(self) -> Replayed:
        """Images [B, H, W, C] in [0, 1) and labels [B, K] or None, of chains that begin."""

    def rows(self, length: tf.Tensor) -> tf.Tensor:
        """Rows of the buffer below `length` (int64 scalar), with replacement: int64 [B]."""

    def renewal(self) -> Renewal:
        """What may take the place of images out of the buffer."""


def renewed(stored: Replayed, renewal: Renewal) -> Replayed:
    """Images and labels out of the buffer, some of them replaced."""
    keeps = renewal.keep_image < _KEEPS_IMAGE
    images = tf.where(tf.reshape(keeps, [-1, 1, 1, 1]), stored.images, renewal.images)
    if stored.labels is None or renewal.labels is None:
        return Replayed(images, stored.labels)
    return Replayed(images, tf.where((renewal.keep_label < _KEEPS_LABEL)[:, tf.newaxis], stored.labels, renewal.labels))


class Group:
    """The images of a group. The methods work inside a `tf.function`.

    Args:
      schedule: its calls.
      image_shape: of one image, [H, W, C].
      label_columns: of the labels; 0 for an unconditional network.
      dtype: of the images.
    """

    def __init__(
        self, schedule: Schedule, image_shape: Sequence[int], label_columns: int, dtype: tf.DType = tf.float32
    ):
        self.schedule = schedule
        # As the original's list the buffer may grow beyond the group by less than a batch.
        self._buffer = ReplayBuffer(
            schedule.group, schedule.batch_size, image_shape, dtype, label_columns, truncates=True
        )

    def clear(self) -> None:
        """Begins a new group."""
        self._buffer.length.assign(0)
        self._buffer.cursor.assign(0)

    def fill(self, draws: Draws, move: Move) -> None:
        """A call from noise, whose images are added."""
        begin = draws.fresh()
        self._buffer.add(move(begin.images, begin.labels), begin.labels)

    def go_on(self, draws: Draws, move: Move, mixes: bool) -> None:
        """A call from images of the group. Of an image that is drawn twice the last end counts."""
        rows = draws.rows(self._buffer.length)
        begin = self._buffer.at(rows)
        if mixes:
            begin = renewed(begin, draws.renewal())
        self._buffer.replace(rows, move(begin.images, begin.labels), begin.labels)

    def contents(self) -> Replayed:
        """The images of the group, [group, H, W, C], and their labels."""
        count = self.schedule.group
        labels = self._buffer.labels
        return Replayed(self._buffer.images[:count], None if labels is None else labels[:count])


def run(group: Group, fill: Callable[[int], None], go_on: Callable[[int, bool], None]) -> Replayed:
    """All calls of a group.

    Args:
      fill: does `Group.fill` for the call of a number.
      go_on: does `Group.go_on` for the call of a number.

    Returns:
      `Group.contents`.
    """
    group.clear()
    for call in range(group.schedule.calls):
        if call < group.schedule.fills:
            fill(call)
        else:
            go_on(call, group.schedule.mixes(call))
    return group.contents()
