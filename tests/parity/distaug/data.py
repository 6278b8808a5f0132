"""Recorded draws of the data pipeline: CIFAR split, minibatches, mixing, layouts and the image grid."""

from __future__ import annotations

import hashlib
import math
import re

import numpy as np

from tests.parity.harness import Case, checker
from tfgen.data import cifar
from tfgen.data.arrays import ArraySource
from tfgen.data.pipeline import minibatches
from tfgen.monitor.grids import tile
from tfgen.systems.distaug.mixing import draw_mixture


@checker("distaug", "data_pipeline*.npz")
def check(case: Case) -> None:
    check_cifar_split(case)
    check_minibatches(case)
    check_mixing(case)
    check_layout(case)
    check_grid(case)


def check_cifar_split(case: Case) -> None:
    sizes = sorted(
        {int(name.split("/test_size")[1].split("/")[0]) for name in case.matching("cifar_split/test_size*/*")}
    )
    for size in sizes:
        train, valid = cifar.split(cifar.TRAIN_IMAGES, size)
        parts = {"train": train, "valid": valid}
        for name in case.matching(f"cifar_split/test_size{size}/*"):
            field = name.rpartition("/")[2]
            if match := re.fullmatch(r"(train|valid)_idx_(first|last)(\d+)", field):
                indices, count = parts[match[1]], int(match[3])
                case.equal(name, indices[:count] if match[2] == "first" else indices[-count:])
            elif match := re.fullmatch(r"sha256_(train|valid)_int32", field):
                case.equal(name, hashlib.sha256(parts[match[1]].astype("<i4").tobytes()).hexdigest())


def check_minibatches(case: Case) -> None:
    """The order of epoch e is a permutation by a generator seeded with e, or, for epoch 0, with the run's seed."""
    recorded = {}
    for name in case.matching("iter/size*_rank*_epoch*"):
        ranks, rank, epoch = map(int, re.fullmatch(r"iter/size(\d+)_rank(\d+)_epoch(\d+)", name).groups())
        recorded[name] = (ranks, rank, epoch, case[name])
    if not recorded:
        return
    seed = int(re.search(r"seed set to (\d+)", str(case["iter/note"]))[1])

    def order(count: int, epoch: int) -> np.ndarray:
        return np.random.RandomState(epoch or seed).permutation(count)

    def agrees(count: int) -> bool:
        return all(
            np.array_equal(minibatches(order(count, epoch), values.shape[1], ranks)[:, rank], values)
            for ranks, rank, epoch, values in recorded.values()
        )

    # The number of images is not in the file. It is bounded by the steps of each recording and by the largest index;
    # every candidate gives other permutations, so at most one can agree.
    least = max(int(values.max()) + 1 for *_, values in recorded.values())
    least = max(least, *(values.size * ranks for ranks, _, _, values in recorded.values()))
    most = min((len(values) + 1) * values.shape[1] * ranks - 1 for ranks, _, _, values in recorded.values())
    count = next((count for count in range(least, most + 1) if agrees(count)), least)
    for name, (ranks, rank, epoch, values) in recorded.items():
        case.equal(name, minibatches(order(count, epoch), values.shape[1], ranks)[:, rank])


def check_mixing(case: Case) -> None:
    for name in case.matching("mix*/draws"):
        config = case.json(name.replace("/draws", "/config"))
        steps = len(case[name])
        datasets, items = draw_mixture(
            np.full(steps, config["batch"]),
            [config["main"], config["aux"]],
            config["pmf"],
            np.random.RandomState(config["seed"]),
            [np.random.RandomState(config["seed"]) for _ in range(2)],
        )
        case.equal(name, (items + datasets * config["aux_offset"]).reshape(steps, config["batch"]))


def check_layout(case: Case) -> None:
    for name in case.matching("cifar_layout*/raw_planar"):
        planar = case[name]
        side = math.isqrt(planar.shape[1] // 3)
        source = ArraySource(planar, name, shape=(side, side, 3), layout="planar")
        images = source.read(np.arange(len(planar)))["image"]
        case.equal(name.replace("/raw_planar", "/tokens"), images.reshape(len(planar), -1))


def check_grid(case: Case) -> None:
    for name in case.matching("tile*/out_*"):
        images = case[name.rpartition("/")[0] + "/images"]
        rows, columns = map(int, re.search(r"/out_(\d+)x(\d+)", name).groups())
        border = (case[name].shape[0] - rows * images.shape[1]) // (rows + 1)
        case.equal(name, tile(images, rows, columns, border))
