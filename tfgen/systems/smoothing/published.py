"""Checkpoints of the original code of distribution smoothing: one `.pth` file, a list of

| index | contents                                                                                       |
|-------|------------------------------------------------------------------------------------------------|
| 0     | weights by name, each with the prefix "module."                                                 |
| 1     | state of Adam: moments by index, in the order of the variables                                 |
| 2     | state of the learning-rate schedule; its "last_epoch" is the number of updates                  |
| 3     | epoch, from 0                                                                                  |
| 4     | averaged weights by name, without the prefix, where the run kept an average                    |

Kernels are stored [out, in, height, width], those of transposed convolutions [in, out, height, width], matrices
[out, in], gains with axes of size 1 behind. Names are those of our variables with dots for slashes, and a module's
name before the last part.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfgen import torch_file, torch_weights
from tfgen.systems.smoothing.pixelcnn import PixelCNN
from tfgen.torch_weights import CheckpointError, Named
from tfgen.training.optimizers import AdamW

ADAM_EPSILON = 1e-8  # of the original, whose gradients are those of sums over a batch
_PARTS = {"bias": "bias", "g": "weight_g", "v": "weight_v"}
_PREFIX = "module."
_FLAGS = "--nr_resnet, --nr_filters, --nr_logistic_mix and the colours of --dataset"


def variables(network: PixelCNN) -> list[Named]:
    """Every variable of the network, in the order in which the original's optimizer numbers them (that of our own)."""
    named = []
    for variable in network.trainable_variables:
        path, _, part = variable.name.removesuffix(":0").rpartition("/")
        matrix = path.endswith(("nin_skip", "nin_out"))
        inner = "deconv" if path.startswith("upsize") else "lin_a" if matrix else "conv"
        name = f"{path.replace('/', '.')}.{inner}.{_PARTS[part]}"
        shape = tuple(variable.shape)
        if part == "v":
            axes = (1, 0) if matrix else (2, 3, 1, 0)
            stored = tuple(shape[axes.index(axis)] for axis in range(len(axes)))
            named.append(Named(name, variable, stored, functools.partial(np.transpose, axes=axes)))
        else:
            ones = () if part == "bias" else (1,) if matrix else (1, 1, 1)
            named.append(Named(name, variable, (*shape, *ones), lambda array: array.reshape(-1)))
    return named


def load_arrays(network: PixelCNN, arrays: Mapping[str, np.ndarray], where: str = "the given arrays") -> None:
    """Sets a network to named arrays of the original; all of its variables, or, on an error, none.

    Raises:
      CheckpointError: names that are missing or left over, or other shapes or types.
    """
    values = torch_weights.matched(variables(network), arrays, network.trainable_variables, where, _FLAGS)
    torch_weights.assign(values)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a `.pth` file holds.

    Attributes:
      weights: arrays by name.
      optimizer: the state of Adam, by index.
      updates: number of updates made.
      epoch: the one that ended last, from 0.
      averages: arrays by name, or None.
    """

    weights: dict[str, np.ndarray]
    optimizer: dict[Any, Any]
    updates: int
    epoch: int
    averages: dict[str, np.ndarray] | None


def read(path: str) -> Checkpoint:
    """Reads a file, of the zip or the older stream format. Nothing in it is executed.

    Raises:
      CheckpointError: it is no such list.
      torch_file.TorchFileError: not a readable file of tensors.
      OSError: no such file.
    """
    match torch_file.load(path):
        case [dict(weights), {"state": dict(moments)}, {"last_epoch": int(updates)}, int(epoch), *rest] if (
            len(rest) <= 1
        ):
            pass
        case other:
            found = f"a {type(other).__name__}" + (f" of {len(other)}" if hasattr(other, "__len__") else "")
            raise CheckpointError(
                f"{path} is no checkpoint of distribution smoothing: expected a list of weights, Adam state, schedule, "
                f"epoch and perhaps averaged weights, found {found}"
            )
    averages = rest[0] if rest else None
    for what, arrays in (("weights", weights), ("averaged weights", averages)):
        if arrays is not None and not (isinstance(arrays, dict) and all(map(_is_array, arrays.items()))):
            raise CheckpointError(f"{path}: the {what} are no tensors by name")
    plain = {name.removeprefix(_PREFIX): array for name, array in weights.items()}
    return Checkpoint(plain, moments, updates, epoch, averages)


def _is_array(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], np.ndarray)


def load_into(path: str, network: PixelCNN, averages: Sequence[tf.Variable] | None, optimizer: Any) -> int:
    """Sets a network, its averages and its optimizer to a file; returns the number of updates that it reached.

    Averages begin as the weights where the file has none.

    Args:
      averages: one variable for each of `network.trainable_variables`; None where the run keeps none.
      optimizer: a built `AdamW`.

    Raises:
      CheckpointError, torch_file.TorchFileError, OSError: the file is missing or damaged or does not fit. No variable
        has changed then.
    """
    found, named = read(path), variables(network)
    values = torch_weights.matched(named, found.weights, network.trainable_variables, path, _FLAGS)
    if averages is not None:
        stored = found.weights if found.averages is None else found.averages
        values += torch_weights.matched(named, stored, averages, f"{path}, averaged weights,", _FLAGS)
    elif found.averages is not None:
        logging.info("%s also has averaged weights; --ema would go on with them", path)
    values += _of_means(torch_weights.adam_moments(path, found.optimizer, named, optimizer, _FLAGS), optimizer)
    torch_weights.assign(values)  # only now that all fits
    return found.updates


def _of_means(values: torch_weights.Values, optimizer: AdamW) -> torch_weights.Values:
    """Moments of gradients of means over N images, from those of sums; epsilon / N is that of the optimizer."""
    scale = np.float32(optimizer.epsilon / ADAM_EPSILON)
    factors = {variable.ref(): scale for variable in optimizer.first_moments}
    factors |= {variable.ref(): scale * scale for variable in optimizer.second_moments}
    one = np.float32(1)
    return [
        (variable, value * factors.get(variable.ref(), one) if value.dtype == np.float32 else value)
        for variable, value in values
    ]
