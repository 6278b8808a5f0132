"""Recorded Inception scores, Fréchet distances, and the sampling protocol with a sampler that stands in for chains."""

from __future__ import annotations

import random
import re

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case
from tfgen.metrics import inception
from tfgen.metrics.frechet import frechet_distance
from tfgen.systems.ebm import preprocess
from tfgen.systems.ebm.replay import Replayed
from tfgen.systems.ebm.tasks import protocol
from tfgen.systems.ebm.tasks.protocol import Group, Renewal, Schedule

SCORE = 1e-6  # rows are float32
DISTANCE = 1e-7
_CLASSES = 10


def check_scores(case: Case) -> None:
    for name in case.matching("is/splits*"):
        splits = int(name.removeprefix("is/splits"))
        case.close(name, inception.inception_score(case["is/preds"], splits), SCORE)


def check_distances(case: Case) -> None:
    for value, second in (("fid/value", "fid/act2"), ("fid/value13", "fid/act3_degenerate")):
        if value in case:
            case.close(value, frechet_distance(case["fid/act1"], case[second]), DISTANCE)


def check_protocol(case: Case) -> None:
    config = case.json("config")
    settings, seed = config["protocol"], config["seed"]
    count, *shape = (int(extent) for extent in case["protocol/n"])
    schedule = Schedule(protocol.GROUP, settings["batch_size"], int(2 * settings["repeat_scale"]), settings["nomix"])
    # The original computes in float64 up to the sampler.
    group = Group(schedule, shape, _CLASSES, tf.float64)
    draws = RecordedDraws(seed, settings["batch_size"], shape)
    move = stand_in(settings["standin"])
    members = settings["finals"]

    def fill(call: int) -> None:
        group.fill(draws, lambda images, labels: move(images, labels, call % members))

    def go_on(call: int, mixes: bool) -> None:
        group.go_on(draws, lambda images, labels: move(images, labels, call % members), mixes)

    groups = [protocol.run(group, fill, go_on).images.numpy() for _ in range(count // protocol.GROUP)]
    images = preprocess.sampled_bytes(np.concatenate(groups))
    case.equal("protocol/n", images.shape)
    case.equal("protocol/splits", inception.default_splits(len(images)))
    case.equal("protocol/pixel_00", images[: len(case["protocol/pixel_00"]), 0, 0])
    case.equal("protocol/per_image_sum", images.reshape(len(images), -1).sum(axis=1, dtype=np.int64))


def stand_in(text: str):
    """The sampler described as "0.9*x + 0.05*[model 1] + 0.01*class index"."""
    match = re.fullmatch(r"([\d.]+)\*x \+ ([\d.]+)\*\[model (\d+)\] \+ ([\d.]+)\*class index", text)
    assert match, f"a sampler described as {text!r}"
    kept, of_model, of_class = (float(match[number]) for number in (1, 2, 4))
    model = int(match[3])

    def move(images: tf.Tensor, labels: tf.Tensor, member: int) -> tf.Tensor:
        numbers = tf.cast(tf.argmax(labels, axis=1), images.dtype)
        return kept * images + of_model * (member == model) + of_class * numbers[:, None, None, None]

    return move


class RecordedDraws:
    """The draws of the original from NumPy's and Python's generators, seeded once."""

    def __init__(self, seed: int, batch_size: int, shape: list[int]):
        self._generator, self._rows = np.random.RandomState(seed), random.Random(seed)
        self._batch_size, self._shape = batch_size, (batch_size, *shape)

    def fresh(self) -> Replayed:
        images = self._generator.uniform(0, 1, self._shape)
        return Replayed(tf.constant(images), self._labels())

    def rows(self, length: tf.Tensor) -> tf.Tensor:
        last = int(length) - 1
        return tf.constant([self._rows.randint(0, last) for _ in range(self._batch_size)], tf.int64)

    def renewal(self) -> Renewal:
        keep_image, keep_label = (tf.constant(self._generator.uniform(0, 1, self._batch_size)) for _ in range(2))
        labels = self._labels()
        return Renewal(keep_image, keep_label, tf.constant(self._generator.uniform(0, 1, self._shape)), labels)

    def _labels(self) -> tf.Tensor:
        return tf.one_hot(self._generator.randint(0, _CLASSES, self._batch_size), _CLASSES)
