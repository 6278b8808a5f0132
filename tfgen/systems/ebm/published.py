"""Checkpoints of the original code of energy-based models: files of TensorFlow 1 with the same stem `model_N`.

| name                               | contents                                                              |
|------------------------------------|-----------------------------------------------------------------------|
| `context_0/<layer>/<variable>`     | every variable, those without effect and the vectors `*_u` included   |
| `context_0/.../Adam`, `.../Adam_1` | first and second moment of the variables that have a gradient         |
| `beta1_power`, `beta2_power`       | powers of the next update                                             |

Names and layouts are those of our own variables. N is the number of updates made.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfgen.systems.ebm.networks import EnergyNetwork
from tfgen.training.clipped_adam import ClippedAdam

Values = list[tuple[tf.Variable, np.ndarray]]  # what variables are to be set to

_SCOPE = "context_0/"
_PARTS = (".index", ".meta", ".data-00000-of-00001")
_POWERS = ("beta1_power", "beta2_power")


class CheckpointError(ValueError):
    """Files that are no checkpoint of the original code, or one of another network."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What `load_into` found.

    Attributes:
      step: updates that the checkpoint had seen, as its name says; 0 for a name without a number.
      missing: variables that the checkpoint lacks or has in another shape; empty where it must fit.
      ignored: names in the checkpoint that were not used.
    """

    step: int
    missing: tuple[str, ...]
    ignored: tuple[str, ...]


def stem(path: str) -> str:
    """The common part of the files' names: `path` without the ending of one of them."""
    for part in _PARTS:
        path = path.removesuffix(part)
    return path


def step_of(path: str) -> int:
    """The number N of `model_N`; 0 where there is none."""
    found = re.search(r"model_([0-9]+)$", stem(path))
    return int(found[1]) if found else 0


def read(path: str) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, by name.

    Args:
      path: `model_N`, or one of its files.

    Raises:
      CheckpointError: no such files, or damaged ones.
    """
    prefix = stem(path)
    if not pathlib.Path(f"{prefix}.index").is_file():
        near = sorted(file.name.removesuffix(".index") for file in pathlib.Path(prefix).parent.glob("model_*.index"))
        there = f"; there are {', '.join(near[:6])}" if near else ""
        raise CheckpointError(f"{prefix}.index does not exist; expected a checkpoint of the original code{there}")
    try:
        reader = tf.train.load_checkpoint(prefix)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, ValueError) as error:
        raise CheckpointError(f"{prefix} cannot be read as a checkpoint of TensorFlow: {error}") from error


def save(network: EnergyNetwork, path: str) -> None:
    """Writes the variables of a network, without those of an optimizer, as a checkpoint of the original code.

    Args:
      path: `model_N`; folders are made.
    """
    prefix = pathlib.Path(stem(path))
    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{_SCOPE}{name}" for name in network.by_name]
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[variable.read_value() for variable in network.by_name.values()],
    )


def load_into(
    source: str | Mapping[str, np.ndarray],
    network: EnergyNetwork,
    averages: Sequence[tf.Variable] = (),
    optimizer: Any = None,
    strict: bool = True,
) -> Loaded:
    """Sets a network, and where given its averages and optimizer, to what a checkpoint holds.

    Args:
      source: a path, or arrays by name as `read` gives them.
      averages: none, or one variable for each of `network.trainable_variables`; they begin as the weights.
      optimizer: a built `ClippedAdam`; takes moments and powers. Moments of variables without a gradient, which a
        checkpoint does not have, stay 0.
      strict: every variable must be there. Otherwise those that do not fit keep their values and are named in the
        result, as in the original.

    Raises:
      CheckpointError: a variable is missing or has another shape. No variable has changed then. The text says which
        flags the checkpoint looks like.
    """
    arrays, where = (source, "the checkpoint") if isinstance(source, Mapping) else (read(source), source)
    wanted = _wanted(network, averages, optimizer)
    missing = [name for name, _ in wanted if name not in arrays]
    wrong = [(n, v) for n, v in wanted if n in arrays and arrays[n].shape != tuple(v.shape)]
    types = [n for n, _ in wanted if n in arrays and arrays[n].dtype != np.float32]
    if types:
        raise CheckpointError(f"{where}: {types[0]} has type {arrays[types[0]].dtype}, expected float32")
    if strict and (missing or wrong):
        raise CheckpointError(_complaint(where, arrays, missing, wrong, len(wanted)))
    unfit = {*missing, *(name for name, _ in wrong)}
    for name, variable in wanted:
        if name not in unfit:
            variable.assign(arrays[name])
    used = {name for name, _ in wanted}
    step = 0 if isinstance(source, Mapping) else step_of(source)
    return Loaded(step, tuple(sorted(unfit)), tuple(name for name in arrays if name not in used))


def _wanted(network: EnergyNetwork, averages: Sequence[tf.Variable], optimizer: Any) -> list[tuple[str, tf.Variable]]:
    """(name in the file, variable)."""
    variables = network.by_name
    wanted = [(f"{_SCOPE}{name}", variable) for name, variable in variables.items()]
    if averages:
        of = {variable.ref(): f"{_SCOPE}{name}" for name, variable in variables.items()}
        pairs = zip(network.trainable_variables, averages, strict=True)
        wanted += [(of[variable.ref()], average) for variable, average in pairs]
    if optimizer is None:
        return wanted
    if not isinstance(optimizer, ClippedAdam):
        raise CheckpointError(
            f"checkpoints of the original code hold moments of its clipped Adam, but the optimizer is "
            f"{type(optimizer).__name__}: load the weights only"
        )
    wanted += zip(_POWERS, (optimizer.beta1_power, optimizer.beta2_power), strict=True)
    place = {variable.ref(): index for index, variable in enumerate(optimizer.targets)}
    for name, variable in network.trained.items():
        index = place[variable.ref()]
        wanted.append((f"{_SCOPE}{name}/Adam", optimizer.first_moments[index]))
        wanted.append((f"{_SCOPE}{name}/Adam_1", optimizer.second_moments[index]))
    return wanted


def _complaint(
    where: str, arrays: Mapping[str, np.ndarray], missing: list[str], wrong: list[tuple[str, tf.Variable]], total: int
) -> str:
    parts = []
    if missing:
        parts.append(f"lacks {len(missing)} of {total} variables ({_shortened(missing)})")
    if wrong:
        shapes = [f"{name} {list(arrays[name].shape)}, expected {variable.shape.as_list()}" for name, variable in wrong]
        parts.append(f"has {len(wrong)} of another shape ({_shortened(shapes)})")
    return f"{where} {' and '.join(parts)}; it looks like {likely_flags(arrays)}"


def likely_flags(arrays: Mapping[str, np.ndarray]) -> str:
    """The flags of the network that a checkpoint seems to be of, by its names and shapes."""
    shapes = {name.removeprefix(_SCOPE): array.shape for name, array in arrays.items() if name.startswith(_SCOPE)}
    if not shapes:
        return f"no checkpoint of the original code: nothing in it is named {_SCOPE}..."
    kind, example = _kind_of(shapes)
    if not kind or f"{example}/cweight" not in shapes:
        return "none of the published networks"
    filters = shapes[f"{example}/cweight"][-1]
    # MnistNet has no rows by label; a label of a single column has rows without an axis, like none.
    rows = shapes.get(f"{example}/gb", ())
    labels = f" --cclass ({rows[0]} label columns)" if len(rows) == 2 else ""
    width = "num_filters" if kind in ("MnistNet", "DspritesNet") else "filters"
    normalized = "" if f"{example}/c_u" in shapes else " --nospec_norm"
    return f"--network={kind} --{width}={filters}{labels}{normalized}"


def _kind_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str]:
    """Name of the network, and of a convolution whose outputs are its unit of width; "" where nothing fits."""
    marks = (  # in this order: what a network has and those below it have not
        ("res_10_res_c1/cweight", "ResNet128", "res_optim_res_c1"),
        ("res_8b_res_c1/cweight", "ResNet32Larger", "res_1_res_c1"),
        ("res_optim_res_adaptive/cweight", "ResNet32Wider", "res_1_res_c1"),
        ("res_8_res_c1/cweight", "ResNet32Large", "res_1_res_c1"),
        ("res_5_res_c1/cweight", "ResNet32", "res_1_res_c1"),
        ("c4/cweight", "DspritesNet", "c1"),
        ("c3/cweight", "MnistNet", "c1"),
    )
    return next(((kind, example) for mark, kind, example in marks if mark in shapes), ("", ""))


def _shortened(items: Sequence[str]) -> str:
    return ", ".join(items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")
