"""Recorded pictures of the image tasks, made with a sampler that stands in for chains."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.parity.ebm import formula
from tests.parity.harness import Case, checker
from tfgen.systems.ebm.tasks import restoration
from tfgen.systems.ebm.tasks.calls import Call

ERROR = 1e-9
_CHANNELS = 3
_PERIOD = 251  # of the factors in a digest


class Inputs:
    """What the original was given: images, starts and labels; its generator is seeded before each task.

    The sizes are those of the recorded pictures.
    """

    def __init__(self, case: Case):
        config = case.json("config")
        self.seed, self.call = config["seed"], stand_in(config["standin"])
        count, side, self.classes = sizes(case)
        shape = (count, side, side, _CHANNELS)
        self.images, self.starts = (formula.picture(name, shape, self.seed) for name in ("P", "C"))
        self.labels = np.eye(self.classes, dtype=np.float32)[np.arange(count) % self.classes]

    def generator(self) -> np.random.RandomState:
        return np.random.RandomState(self.seed)


def sizes(case: Case) -> tuple[int, int, int]:
    """Number of images, their side, and classes, as the recorded pictures have them."""
    count, side, classes = 100, 32, 10
    if "democlass/digest" in case:
        height, width, *_ = (int(number) for number in case["democlass/digest"])
        side = width // (restoration.PER_CLASS * restoration.CLASSES_ACROSS)
        classes = restoration.CLASSES_ACROSS * (height // side)
    if "boxcorrupt/train" in case:
        count = len(case["boxcorrupt/train"])
    return count, side, classes


def stand_in(text: str) -> Call:
    """The sampler described as "x -> 0.9*x + 0.01*class; even rows += 0.02". It keeps the type of the images."""
    match = re.fullmatch(r"x -> ([\d.]+)\*x \+ ([\d.]+)\*class; even rows \+= ([\d.]+)", text)
    assert match, f"a sampler described as {text!r}"
    kept, of_class, of_even = (float(number) for number in match.groups())

    def call(images: np.ndarray, labels: np.ndarray | None, number: int) -> np.ndarray:
        del number
        assert labels is not None
        moved = kept * images + of_class * labels.argmax(axis=1)[:, None, None, None]
        moved[:, ::2] += of_even
        return moved.astype(images.dtype)

    return call


@checker("ebm", "sandbox_panels*.npz")
def check(case: Case) -> None:
    inputs = Inputs(case)
    for name in case.matching("*/digest"):
        task = name.removesuffix("/digest")
        picture = PICTURES[task](inputs)
        case.equal(f"{task}/rows0_64", picture[: len(case[f"{task}/rows0_64"])])
        case.equal(name, digest(picture))
        case.equal(f"{task}/file", f"{task}.png")
    if "boxcorrupt/train" in case:
        check_box(case, inputs)


def crossclass(inputs: Inputs) -> np.ndarray:
    return restoration.crossed(inputs.images, inputs.labels, inputs.call)


def cycleclass(inputs: Inputs) -> np.ndarray:
    return restoration.cycled(inputs.starts, inputs.images, inputs.labels, inputs.call)


def democlass(inputs: Inputs) -> np.ndarray:
    shape = (restoration.PER_CLASS * inputs.classes, *inputs.images.shape[1:])
    starts = inputs.generator().uniform(0, 1, shape)
    return restoration.class_samples(starts, np.eye(inputs.classes), inputs.call)


def anticorrupt(inputs: Inputs) -> np.ndarray:
    # The original corrupts in float64.
    images = inputs.images.astype(np.float64)
    uniforms = inputs.generator().uniform(0, 1, images.shape[:3])
    return restoration.undotted(images, inputs.labels, uniforms, inputs.call)


PICTURES: dict[str, Callable[[Inputs], np.ndarray]] = {
    "crossclass": crossclass,
    "cycleclass": cycleclass,
    "democlass": democlass,
    "anticorrupt": anticorrupt,
}


def check_box(case: Case, inputs: Inputs) -> None:
    """Errors of both splits, which have the same images, and the lines that the original prints of them."""
    generator, printed = inputs.generator(), str(case["boxcorrupt/printed"]).splitlines()
    images = inputs.images.astype(np.float64)
    for split, line in zip(("train", "test"), printed, strict=True):
        uniforms = generator.uniform(0, 1, restoration.boxed_shape(images.shape))
        errors = restoration.box_errors(images, inputs.labels, uniforms, inputs.call)
        case.close(f"boxcorrupt/{split}", errors, ERROR)
        found = restoration.summary(errors, split)
        case.equal(f"boxcorrupt/printed: words about {split}", words(found), expected=words(line))
        case.close(f"boxcorrupt/printed: {split}", numbers(found), ERROR, expected=numbers(line))


def digest(picture: np.ndarray) -> list[int]:
    """Height, width, sum of the bytes, and the sum in which each has a factor."""
    values: Any = picture.reshape(-1).astype(np.int64)
    return [*picture.shape[:2], int(values.sum()), int((values * (np.arange(values.size) % _PERIOD)).sum())]


_NUMBER = r"\d+\.\d+(?:e-?\d+)?"


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(_NUMBER, text)]


def words(text: str) -> str:
    return re.sub(_NUMBER, "N", text)
