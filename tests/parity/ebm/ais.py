"""Recorded annealed importance sampling: energies of images, every transition forward and back, printed results."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.ebm.described import described_network
from tests.parity.ebm.recorded import of_largest
from tests.parity.harness import Case, checker
from tfgen.systems.ebm.config import Config
from tfgen.systems.ebm.networks import OFF
from tfgen.systems.ebm.tasks import partition
from tfgen.systems.ebm.tasks.classes import Energy

ENERGY, POSITION, SCHEDULE = 1e-5, 1e-5, 1e-12
# The original adds the wall to both energies before it takes their difference: some units of its last place.
WALL = 4 * 2.0**-23
PRINTED = 1e-5
_NUMBERS = re.compile(r"(-?[\d.]+(?:e-?\d+)?) (-?[\d.]+(?:e-?\d+)?)\s*$")


@checker("ebm", "ais_*.npz")
def check(case: Case) -> None:
    config = case.json("config")
    network = described_network(case)
    classes = network.shape.label_columns
    high = float(config.get("rescale", config.get("flags", {}).get("rescale", 1)))

    def run_energy() -> Energy:
        """The energy in a run of its own, which improves the vectors of the power iteration."""
        weights = network.normalized()
        network.store_vectors(weights)
        return lambda x, labels: config["temperature"] * network.energy(weights, x, labels, OFF)

    size, positive = config["batch"], []
    for index in range(len(case.matching("pos_neg_energy/*"))):
        images = tf.constant(case["data"][index * size : (index + 1) * size])
        energies = run_energy()(images, partition.first_class(len(images), classes))
        of_largest(case, f"pos_neg_energy/{index}", -energies, ENERGY)
        positive.append(-energies.numpy())

    first_step_size = partition.default_step_size(Config(dataset=config["dataset"], rescale=high), _channels(case))
    forward, backward = partition.schedule(config["pdist"], first_step_size)
    log_weights = []
    x = tf.constant(case["step0/x_in"])
    for number, step in enumerate([*forward, *backward]):
        at = f"step{number}/"
        case.close(f"{at}alpha_prev_new_lr", step, SCHEDULE)
        case.close(f"{at}x_in", x, POSITION)
        x = tf.constant(case[f"{at}x_in"])
        result = partition.transition(
            run_energy(),
            partition.first_class(len(x), classes),
            x,
            step,
            high,
            seed=0,
            number=0,
            momentum=tf.constant(case[f"{at}v0_normal"], tf.float32),
            uniform=tf.constant(case[f"{at}accept_u"]),
            leapfrogs=config["hmc_leapfrogs"],
        )
        tolerance = ENERGY * float(np.abs(positive).max()) + WALL * float(wall(x, high))
        case.close(f"{at}logw", result.log_weight, tolerance)
        log_weights.append(result.log_weight.numpy().astype(np.float64))
        x = result.position
        if f"{at}x_out" in case:
            case.close(f"{at}x_out", x, POSITION)
    turn = len(forward)
    # Without the volume of the range, which the original leaves out.
    found = partition.summary(np.sum(log_weights[:turn], axis=0), np.sum(log_weights[turn:], axis=0), log_volume=0.0)
    check_printed(case, np.concatenate(positive), found)


def wall(x: tf.Tensor, high: float) -> tf.Tensor:
    """The largest energy of the wall around the range of images."""
    energies, _ = partition.bridge(lambda x, _: tf.zeros([len(x), 1]), None, tf.constant(0.0), high)(x)
    return tf.reduce_max(energies)


def _channels(case: Case) -> int:
    shape = case["data"].shape
    return shape[3] if len(shape) == 4 else 1


def check_printed(case: Case, positive: np.ndarray, found: dict[str, float]) -> None:
    printed = str(case["printed"])
    pairs = {
        "Positive sample": (positive.mean(), positive.std()),
        "lower value": (found["lower_value"], found["lower_value_sd"]),
        "upper value": (found["upper_value"], found["upper_value_sd"]),
    }
    for words, actual in pairs.items():
        (line,) = (line for line in printed.splitlines() if words in line)
        numbers = _NUMBERS.search(line)
        if numbers is None:
            raise ValueError(f"no mean and deviation in {line!r}")
        expected = [float(number) for number in numbers.groups()]
        case.close(f"printed: {words}", actual, PRINTED * max(abs(positive).max(), 1.0), expected=expected)
