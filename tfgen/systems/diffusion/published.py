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
import logging
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfgen import torch_file
from tfgen.systems.diffusion.unet import UNet
from tfgen.training.optimizers import AdamW

Layout = Literal["convolution", "attention", "matrix", "same"]
Values = list[tuple[tf.Variable, np.ndarray]]  # what variables are to be set to

_FLAGS = "--image_size, --num_channels, --num_res_blocks, --attention_resolutions, --learn_sigma and --class_cond"


class CheckpointError(ValueError):
    """A file that is no checkpoint of the original code, or one of another network."""


@dataclasses.dataclass(frozen=True)
class Named:
    """A variable of the network and its name and layout in the original's files."""

    name: str
    variable: tf.Variable
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the original's files."""
        return to_original(np.broadcast_to(np.float32(0), self.variable.shape), self.layout).shape


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
        named.append(Named(f"{path.replace('/', '.')}.{ending}", variable, layout))
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
      CheckpointError: see `matched`.
    """
    _set(matched(network, arrays, network.trainable_variables if targets is None else targets, where))


def matched(network: UNet, arrays: Mapping[str, np.ndarray], targets: Sequence[tf.Variable], where: str) -> Values:
    """The named arrays of the original that belong to `targets`, as these hold them.

    Args:
      network: says names and layouts.
      arrays: float32, by original name.
      targets: one variable for each of `network.trainable_variables`: those variables, or their averages.
      where: what the arrays came from, for messages.

    Raises:
      CheckpointError: names that are missing or left over, or other shapes or types.
    """
    named = variables(network)
    missing = [item.name for item in named if item.name not in arrays]
    known = {item.name for item in named}
    extra = [name for name in arrays if name not in known]
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"lacks {len(missing)} of {len(named)} tensors ({_shortened(missing)})")
        if extra:
            parts.append(f"has {len(extra)} that this network has not ({_shortened(extra)})")
        raise CheckpointError(f"{where} {' and '.join(parts)}: compare {_FLAGS}")
    wrong = [
        f"{item.name} {list(arrays[item.name].shape)}, expected {list(item.shape)}"
        for item in named
        if arrays[item.name].shape != item.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{where} is of another network, {len(wrong)} shapes differ: {_shortened(wrong)}; compare {_FLAGS}"
        )
    types = [item.name for item in named if arrays[item.name].dtype != np.float32]
    if types:
        raise CheckpointError(f"{where}: {types[0]} has type {arrays[types[0]].dtype}, expected float32")
    return [(target, to_ours(arrays[item.name], item.layout)) for target, item in zip(targets, named, strict=True)]


def _set(values: Values) -> None:
    for variable, value in values:
        variable.assign(value)


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
    if not isinstance(optimizer, AdamW):
        raise CheckpointError(f"{path} holds AdamW moments, but the optimizer is {type(optimizer).__name__}")
    match torch_file.load(path):
        case {"state": dict(state), "param_groups": [dict(group)]}:
            pass
        case _:
            raise CheckpointError(f"{path} is no optimizer file: expected 'state' and 'param_groups' with one group")
    named = variables(network)
    sizes = [math.prod(item.shape) for item in named]
    _report_settings(path, group, optimizer)
    if not state:  # saved before the first update
        return [(optimizer.updates, np.asarray(0, np.int64))]
    flat = list(state) == [0] and len(named) > 1
    if not flat and sorted(state, key=str) != sorted(range(len(named)), key=str):
        raise CheckpointError(
            f"{path} has moments of {len(state)} tensors, expected {len(named)}, or one flat one of a run in half "
            f"precision: is it of this network? compare {_FLAGS}"
        )
    shapes = {0: ("all tensors in a row", (sum(sizes),))} if flat else {
        index: (item.name, item.shape) for index, item in enumerate(named)
    }  # fmt: skip
    updates = {_updates(path, index, state[index]) for index in shapes}
    if len(updates) > 1:
        raise CheckpointError(f"{path}: expected one number of updates for all tensors, found {sorted(updates)}")
    values: Values = [(optimizer.updates, np.asarray(updates.pop(), np.int64))]
    for key, moments in (("exp_avg", optimizer.first_moments), ("exp_avg_sq", optimizer.second_moments)):
        arrays = [
            _moment(path, state[index], key, f"tensor {index} ({name})", s) for index, (name, s) in shapes.items()
        ]
        if flat:
            parts = np.split(arrays[0], np.cumsum(sizes)[:-1])
            arrays = [part.reshape(item.shape) for part, item in zip(parts, named, strict=True)]
        for variable, array, item in zip(moments, arrays, named, strict=True):
            values.append((variable, to_ours(array, item.layout)))
    return values


def _updates(path: str, index: int, entry: Any) -> int:
    """Updates made: an integer in files of old versions of PyTorch, a float tensor in those of new ones."""
    step = entry.get("step") if isinstance(entry, dict) else None
    if isinstance(step, np.ndarray) and step.size == 1:
        step = step.item()
    if isinstance(step, bool) or not isinstance(step, (int, float)) or step != int(step) or step < 0:
        raise CheckpointError(f"{path}: step of tensor {index} is {step!r}, expected a whole number of updates")
    return int(step)


def _moment(path: str, entry: Any, key: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = entry.get(key) if isinstance(entry, dict) else None
    expected = f"float32 {list(shape)}"
    found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "nothing"
    if found != expected:
        raise CheckpointError(f"{path}: {key} of {name} is {found}, expected {expected}")
    return array


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
    values = matched(network, weights, network.trainable_variables, files.model)
    for rate, averages in averages_by_rate.items():
        path = files.averages.get(rate, "")
        values += matched(network, read_weights(path) if path else weights, averages, path or files.model)
    if files.optimizer:
        values += read_optimizer(files.optimizer, network, optimizer)
    _set(values)  # only now that all files fit
    return files.step


def _shortened(items: Sequence[str]) -> str:
    return ", ".join(items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")
