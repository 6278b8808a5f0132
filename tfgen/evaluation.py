"""Evaluation and sampling spread over ranks; used by the training loop and by the commands."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfgen.data.errors import DataError
from tfgen.data.pipeline import EvaluationBatches
from tfgen.data.source import Source
from tfgen.distribute import Ranks
from tfgen.randomness import Key
from tfgen.systems.base import SampleCallback, System


def evaluate(
    system: System,
    source: Source,
    batch_size: int,
    ranks: Ranks,
    options: Any,
    folder: pathlib.Path,
    limit: int | None = None,
) -> Mapping[str, float | np.ndarray]:
    """The system's metrics over `source`: means over all images, each counted once, on any number of ranks.

    Numbers, and float32 arrays where the system gives arrays.

    Args:
      batch_size: images per rank and forward pass.
      limit: evaluate this many images at most, the first ones.

    Raises:
      DataError: there is no image.
    """
    batches = EvaluationBatches(source, batch_size, ranks.rank, ranks.size, limit)
    if not batches.count:
        asked = "" if limit is None else f", of which {limit} were asked for"
        raise DataError(f"nothing to evaluate: {source.name} has {len(source)} images{asked}; expected at least 1")
    result = dict(system.evaluate(batches, options, folder))
    examples = result.pop("examples")
    # float64 on the wire: a float32 sum over many images would lose digits that bits per dimension are quoted to.
    arrays = [np.asarray(value, np.float64) for value in result.values()]
    weighted = np.concatenate([[examples], *(array.ravel() * examples for array in arrays)])
    total = ranks.sum(tf.constant(weighted)).numpy()
    means: dict[str, float | np.ndarray] = {}
    place = 1
    for name, array in zip(result, arrays, strict=True):
        mean = total[place : place + array.size].reshape(array.shape) / total[0]
        means[name] = mean.astype(np.float32) if mean.ndim else float(mean)
        place += array.size
    return {**system.evaluation_result(means), "examples": int(total[0])}


def numbers(result: Mapping[str, float | np.ndarray]) -> dict[str, float]:
    """The metrics of `evaluate` that are numbers."""
    return {name: value for name, value in result.items() if not isinstance(value, np.ndarray)}


def sample(
    system: System,
    count: int,
    key: Key,
    ranks: Ranks,
    options: Any,
    callback: SampleCallback | None = None,
    source: Source | None = None,
) -> np.ndarray:
    """uint8 [count, H, W, C] on every rank: each rank draws a share; image i is the same for any number of ranks.

    `system.tensors` then has those of all ranks, see `System.sample_tensors`.

    Args:
      source: has the images that the samples are made from, where `options` ask for such samples.
    """
    share = math.ceil(count / ranks.size)
    first = min(ranks.rank * share, count)
    own = min(share, count - first)
    if own:
        wanted = system.images_wanted(first, own, options)
        rows = source.read(wanted) if source is not None and len(wanted) else {}
        images = system.sample(own, key.skip(first), options, callback, rows.get("image"), rows.get("label"))
    else:
        images = np.zeros((0, *system.sample_shape(options)), np.uint8)
    system.tensors = {
        name: ranks.gather(system.tensors[name] if own else np.zeros((0, *shape), np.float32))
        for name, shape in system.sample_tensors(options).items()
    }
    return ranks.gather(images)
