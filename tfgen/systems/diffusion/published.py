"""Checkpoints of the original code of improved diffusion: files of one folder, with the same step N in their names.

| file                 | contents                                                                                   |
|----------------------|--------------------------------------------------------------------------------------------|
| `modelNNNNNN.pt`     | weights by name                                                                            |
| `ema_RATE_NNNNNN.pt` | averaged weights by name, one file for each rate                                           |
| `optNNNNNN.pt`       | AdamW moments by index, the order of `variables`; of a run in half precision one flat pair |

Kernels are stored [out, in, height, width], those of attention [out, in, 1], matrices [out, in]. Names are those of
our variables with dots for slashes, and "weight" for kernels, scales and rows.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfgen import torch_file, torch_weights
from tfgen.systems.diffusion.unet import UNet
from tfgen.torch_weights import CheckpointError, Values
from tfgen.training.optimizers import AdamW

Layout = Literal["convolution", "attention", "matrix", "same"]

_FLAGS = "--image_size, --num_channels, --num_res_blocks, --attention_resolutions, --learn_sigma and --class_cond"


@dataclasses.dataclass(frozen=True)
class Named(torch_weights.Named):
    """A variable of the network as the original's files know it, and how its values are laid out there."""

    layout: Layout


def variables(network: UNet) -> list[Named]:
    """Every variable of the network, in the order in which the original registers them (that of our own)."""
    named = []
    for variable in network.trainable_variables:
        path, _, kind = variable.name.removesuffix(":0").rpartition("/")
        layout: Layout = "same"
        if kind == "kernel":
            is_attention = path.endswith(("/qkv", "/proj_out"))
            layout = "convolution" if variable.shape.rank == 4 else "attention" if is_attention else "matrix"
        ending = "weight" if kind in ("kernel", "scale", "rows") else "bias"
        shape = to_original(np.broadcast_to(np.float32(0), variable.shape), layout).shape
        name = f"{path.replace('/', '.')}.{ending}"
        named.append(Named(name, variable, shape, functools.partial(to_ours, layout=layout), layout))
    return named


def to_ours(array: np.ndarray, layout: Layout) -> np.ndarray:
    """An array of the original's files as the network holds it."""
    if layout == "convolution":
        return array.transpose(2, 3, 1, 0)
    if layout == "attention":
        return array[:, :, 0].T
    return array.T if layout == "matrix" else array


def to_original(array: np.ndarray, layout: Layout) -> np.ndarray:
    """The inverse of `to_ours`."""
    if layout == "convolution":
        return array.transpose(3, 2, 0, 1)
    if layout == "attention":
        return array.T[:, :, np.newaxis]
    return array.T if layout == "matrix" else array


def load_arrays(
    network: UNet,
    arrays: Mapping[str, np.ndarray],
    targets: Sequence[tf.Variable] | None = None,
    where: str = "the given arrays",
) -> None:
    """Sets a network to named arrays of the original; all of its variables, or, on an error, none.

    Args:
      targets: one variable for each of the network's, to set instead: its averages.

    Raises:
      CheckpointError: see `torch_weights.matched`.
    """
    torch_weights.assign(_matched(network, arrays, network.trainable_variables if targets is None else targets, where))


def _matched(network: UNet, arrays: Mapping[str, np.ndarray], targets: Sequence[tf.Variable], where: str) -> Values:
    return torch_weights.matched(variables(network), arrays, targets, where, _FLAGS)


def read_weights(path: str) -> dict[str, np.ndarray]:
    """Arrays by name of a `model` or `ema` file. Nothing in the file is executed.

    Raises:
      torch_file.TorchFileError: not a readable file of tensors.
      OSError: no such file.
    """
    return torch_file.state_dict(path)


def read_optimizer(path: str, network: UNet, optimizer: Any) -> Values:
    """The moments and the number of updates of an `opt` file, and the variables of a built `AdamW` they belong to.

    Settings in the file that are not the optimizer's are logged; the optimizer keeps its own.

    Raises:
      CheckpointError: the file holds no AdamW state, or one of another network.
      torch_file.TorchFileError: not a readable file.
      OSError: no such file.
    """
    match torch_file.load(path):
        case {"state": dict(state), "param_groups": [dict(group)]}:
            pass
        case _:
            raise CheckpointError(f"{path} is no optimizer file: expected 'state' and 'param_groups' with one group")
    named = variables(network)
    if list(state) == [0] and len(named) > 1:
        state = _unflattened(path, state[0], named)
    values = torch_weights.adam_moments(path, state, named, optimizer, f"compare {_FLAGS}")
    _report_settings(path, group, optimizer)
    return values


def _unflattened(path: str, entry: Any, named: Sequence[Named]) -> dict[int, dict[str, Any]]:
    """The entries of all tensors of the single one that a run in half precision keeps, all tensors in a row."""
    sizes = [math.prod(item.shape) for item in named]
    parts = []
    for key in ("exp_avg", "exp_avg_sq"):
        array = torch_weights.moment(path, entry, key, "all tensors in a row", (sum(sizes),))
        parts.append(np.split(array, np.cumsum(sizes)[:-1]))
    return {
        index: {
            "step": entry.get("step"),
            "exp_avg": mean.reshape(item.shape),
            "exp_avg_sq": var.reshape(item.shape),
        }
        for index, (item, mean, var) in enumerate(zip(named, *parts, strict=True))
    }


def _report_settings(path: str, group: dict, optimizer: AdamW) -> None:
    ours = {
        "betas": [optimizer.beta1, optimizer.beta2],
        "eps": optimizer.epsilon,
        "weight_decay": optimizer.weight_decay,
    }
    for name, value in ours.items():
        found = group.get(name)
        found = list(found) if isinstance(found, tuple) else found
        if found is not None and found != value:
            logging.info("%s was written with %s %s; this run goes on with %s", path, name, found, value)


@dataclasses.dataclass(frozen=True)
class Files:
    """The files to start from; "" for those that are not there.

    Attributes:
      model: weights.
      averages: averaged weights by rate.
      optimizer: moments.
      step: that the names say; 0 where the files are not those of a run to go on with.
    """

    model: str
    averages: Mapping[float, str] = dataclasses.field(default_factory=dict)
    optimizer: str = ""
    step: int = 0


def step_of(path: str) -> int:
    """The number between the last "model" of a path and the dot that follows; 0 where there is none."""
    _, found, rest = path.rpartition("model")
    digits = rest.split(".")[0]
    return int(digits) if found and re.fullmatch(r"[0-9]+", digits) else 0


def files_beside(model_path: str, ema_rates: Sequence[float]) -> Files:
    """All files of the checkpoint that the weights at `model_path` belong to, as the original finds them.

    Averages and optimizer state are looked for in the same folder, by the step that the name of the weights says, if
    that is not 0. Those that are not there are logged.

    Args:
      ema_rates: of the averages that the run keeps.
    """
    step, folder = step_of(model_path), pathlib.Path(model_path).parent
    if not step:
        return Files(model_path, dict.fromkeys(ema_rates, ""))

    def present(name: str, otherwise: str) -> str:
        if (folder / name).is_file():
            return str(folder / name)
        logging.info("%s is not beside %s: %s", name, model_path, otherwise)
        return ""

    averages = {
        rate: present(f"ema_{float(rate)}_{step:06d}.pt", "this average begins as the weights") for rate in ema_rates
    }
    return Files(model_path, averages, present(f"opt{step:06d}.pt", "the optimizer begins anew"), step)


def load_into(
    files: Files, network: UNet, averages_by_rate: Mapping[float, Sequence[tf.Variable]], optimizer: Any
) -> int:
    """Sets a network, its averages and its optimizer to the original's files; returns the step that they reached.

    Averages without a file of their own begin as the weights; without an optimizer file nothing of it changes.

    Args:
      averages_by_rate: for each rate one variable for each of `network.trainable_variables`.
      optimizer: a built `AdamW`.

    Raises:
      CheckpointError, torch_file.TorchFileError, OSError: a file is missing or damaged or does not fit. No variable
        has changed then.
    """
    weights = read_weights(files.model)
    values = _matched(network, weights, network.trainable_variables, files.model)
    for rate, averages in averages_by_rate.items():
        path = files.averages.get(rate, "")
        values += _matched(network, read_weights(path) if path else weights, averages, path or files.model)
    if files.optimizer:
        values += read_optimizer(files.optimizer, network, optimizer)
    torch_weights.assign(values)  # only now that all files fit
    return files.step
