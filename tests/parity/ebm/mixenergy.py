"""Recorded scores of images and of their interpolations, and the area under the curve that the original printed."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.parity.ebm.described import described_network
from tests.parity.ebm.recorded import of_largest
from tests.parity.harness import Case, checker
from tfgen.metrics.auroc import auroc
from tfgen.systems.ebm.networks import OFF
from tfgen.systems.ebm.tasks.energies import scores
from tfgen.systems.ebm.tasks.other_images import interpolated

ENERGY = 1e-5
PRINTED = 1e-6
_OTHERS = ("svhnmix", "cifar100mix", "texturemix", "randommix")


@checker("ebm", "sandbox_mixenergy*.npz")
def check(case: Case) -> None:
    config = case.json("config")
    for name in _OTHERS:
        if config["flags"].get(name):
            raise ValueError(f"recorded against other images ({name}), which the recording does not have")
    network = described_network(case)
    data, size = case["mix/data"], config["batch"]
    positive, negative = [], []
    for first in range(0, size * config["batches"], size):
        images = data[first : first + size]
        # Each is a run of its own, which improves the vectors of the power iteration.
        for found, batch in ((positive, images), (negative, interpolated(images))):
            weights = network.normalized()
            found.append(
                scores(
                    lambda x, labels, weights=weights: network.energy(weights, x, labels, OFF),
                    tf.constant(batch),
                    network.shape.label_columns,
                )
            )
            network.store_vectors(weights)
    of_largest(case, "mix/pos", np.concatenate(positive), ENERGY)
    of_largest(case, "mix/neg", np.concatenate(negative), ENERGY)
    # Of the recorded scores, whose order rounding cannot change.
    printed = float(str(case["mix/printed"]).split()[-1])
    area = auroc(case["mix/pos"], case["mix/neg"])
    case.close("mix/printed", area, PRINTED, expected=printed)
    case.leave_unread("mix/X", "not among the images that were scored")
    case.leave_unread("mix/Y_GT", "scores take the lowest energy of all labels")
