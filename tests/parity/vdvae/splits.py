"""Recorded splits of the data sets, and the shares of the ranks."""

from __future__ import annotations

import hashlib
import re

import numpy as np

from tests.parity.harness import Case, checker
from tfgen.data.pipeline import minibatches
from tfgen.systems.vdvae.data import original_split

_DATASETS = {"cifar10": "cifar10", "imagenet": "imagenet32", "ffhq256": "ffhq_256"}  # by the recorded name


@checker("vdvae", "splits*.npz")
def check(case: Case) -> None:
    case.json("config")  # says nothing that the arrays do not
    for name in case.matching("*_sha256"):
        check_split(case, name.removesuffix("_sha256"))
    for name in case.matching("distributed_sampler*"):
        check_shares(case, name)


def check_split(case: Case, name: str) -> None:
    digests = case.json(f"{name}_sha256")
    train, valid = original_split(_DATASETS[name.partition("_n")[0]], digests["n_train"] + digests["n_valid"])
    for part, indices in (("train", train), ("valid", valid)):
        head, tail = f"{name}_{part}_head", f"{name}_{part}_tail"
        case.equal(head, indices[: len(case[head])])
        case.equal(tail, indices[-len(case[tail]) :])
        case.equal(f"{name}_n_{part}", len(indices), expected=digests[f"n_{part}"])
        digest = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
        case.equal(f"{name}_sha256_{part}", digest, expected=digests[part])


def check_shares(case: Case, name: str) -> None:
    """Of one order, the ranks get the same images at the same step as here.

    The original pads the order with its own head to a multiple of the ranks, and rank r takes every ranks-th index
    from the r-th on; a global batch is then a run of the padded order, as it is of ours, dealt out differently within.
    The orders themselves come from another generator: each is put together from the shares of its ranks.
    """
    shares: dict[tuple[int, int, int], dict[int, list[int]]] = {}
    for key, indices in case.json(name).items():
        match = re.fullmatch(r"n(\d+)_world(\d+)_rank(\d+)_epoch(\d+)", key)
        assert match, f"{name} has a key {key!r} of unknown form"
        count, ranks, rank, epoch = map(int, match.groups())
        shares.setdefault((count, ranks, epoch), {})[rank] = indices
    for (count, ranks, epoch), by_rank in shares.items():
        title = f"{name} n{count} world{ranks} epoch{epoch}"
        recorded = np.array([by_rank[rank] for rank in range(ranks)])  # [ranks, images of a rank]
        padded = recorded.T.reshape(-1)
        order = padded[:count]
        case.equal(f"{title}: order", np.sort(order), expected=np.arange(count))
        case.equal(f"{title}: padding", padded, expected=np.resize(order, -(-count // ranks) * ranks))
        ours, theirs = [], []
        for batch_size in range(1, count // ranks + 1):
            batches = minibatches(order, batch_size, ranks)  # [steps, ranks, batch]
            steps = len(batches)
            same_steps = recorded[:, : steps * batch_size].reshape(ranks, steps, batch_size).transpose(1, 0, 2)
            ours.append(np.sort(batches.reshape(steps, -1)).ravel())
            theirs.append(np.sort(same_steps.reshape(steps, -1)).ravel())
        if ours:
            case.equal(f"{title}: global batches", np.concatenate(ours), expected=np.concatenate(theirs))
