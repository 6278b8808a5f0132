"""Named arrays of PyTorch checkpoints to the variables of a network and the moments of its optimizer.

All or nothing: values are matched first and assigned only when everything fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfgen.training.optimizers import AdamW

Values = list[tuple[tf.Variable, np.ndarray]]  # what variables are to be set to


class CheckpointError(ValueError):
    """A file that is no checkpoint of the original code, or one of another network."""


@dataclasses.dataclass(frozen=True)
class Named:
    """A variable of the network as the original's files know it.

    Attributes:
      shape: in the files.
      to_ours: from an array of the files to one of the variable's shape.
    """

    name: str
    variable: tf.Variable
    shape: tuple[int, ...]
    to_ours: Callable[[np.ndarray], np.ndarray]


def matched(
    named: Sequence[Named], arrays: Mapping[str, np.ndarray], targets: Sequence[tf.Variable], where: str, flags: str
) -> Values:
    """The arrays that belong to `targets`, as these hold them.

    Args:
      arrays: float32, by the original's names.
      targets: one variable for each of `named`: its own, or its average.
      where: what the arrays came from, for messages.
      flags: those that decide the shape of the network, for messages.

    Raises:
      CheckpointError: names that are missing or left over, or other shapes or types.
    """
    known = {item.name for item in named}
    missing = [item.name for item in named if item.name not in arrays]
    extra = [name for name in arrays if name not in known]
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"lacks {len(missing)} of {len(named)} tensors ({shortened(missing)})")
        if extra:
            parts.append(f"has {len(extra)} that this network has not ({shortened(extra)})")
        raise CheckpointError(f"{where} {' and '.join(parts)}: compare {flags}")
    wrong = [
        f"{item.name} {list(arrays[item.name].shape)}, expected {list(item.shape)}"
        for item in named
        if arrays[item.name].shape != item.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{where} is of another network, {len(wrong)} shapes differ: {shortened(wrong)}; compare {flags}"
        )
    types = [item.name for item in named if arrays[item.name].dtype != np.float32]
    if types:
        raise CheckpointError(f"{where}: {types[0]} has type {arrays[types[0]].dtype}, expected float32")
    return [(target, item.to_ours(arrays[item.name])) for target, item in zip(targets, named, strict=True)]


def adam_moments(where: str, state: Any, named: Sequence[Named], optimizer: Any, flags: str) -> Values:
    """The moments and the number of updates of an Adam state, and the variables of a built `AdamW` they belong to.

    Args:
      state: the entry "state" of the optimizer's dictionary: by index, in the order of `named`.

    Raises:
      CheckpointError: it is no state of Adam, or one of another network.
    """
    if not isinstance(optimizer, AdamW):
        raise CheckpointError(f"{where} holds AdamW moments, but the optimizer is {type(optimizer).__name__}")
    if not isinstance(state, dict) or (state and sorted(state, key=str) != sorted(range(len(named)), key=str)):
        found = f"of {len(state)} tensors" if isinstance(state, dict) else "no moments"
        raise CheckpointError(f"{where} has moments {found}, expected {len(named)}: is it of this network? {flags}")
    updates = {_updates(where, index, entry) for index, entry in state.items()} or {0}  # none before the first update
    if len(updates) > 1:
        raise CheckpointError(f"{where}: expected one number of updates for all tensors, found {sorted(updates)}")
    values: Values = [(optimizer.updates, np.asarray(updates.pop(), np.int64))]
    for index, item in enumerate(named if state else ()):
        for key, moments in (("exp_avg", optimizer.first_moments), ("exp_avg_sq", optimizer.second_moments)):
            array = moment(where, state[index], key, f"tensor {index} ({item.name})", item.shape)
            values.append((moments[index], item.to_ours(array)))
    return values


def moment(where: str, entry: Any, key: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array of an entry of an Adam state, of the tensor `name`.

    Raises:
      CheckpointError: there is none, or one of another type or shape.
    """
    array: Any = entry.get(key) if isinstance(entry, dict) else None
    expected = f"float32 {list(shape)}"
    found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "nothing"
    if found != expected:
        raise CheckpointError(f"{where}: {key} of {name} is {found}, expected {expected}")
    return array


def assign(values: Values) -> None:
    """Sets the variables."""
    for variable, value in values:
        variable.assign(value)


def _updates(where: str, index: int, entry: Any) -> int:
    """Updates made: an integer in files of old versions of PyTorch, a float tensor in those of new ones."""
    step: Any = entry.get("step") if isinstance(entry, dict) else None
    if isinstance(step, np.ndarray) and step.size == 1:
        step = step.item()
    if type(step) not in (int, float) or not 0 <= step < 2**53 or step % 1:
        raise CheckpointError(f"{where}: step of tensor {index} is {step!r}, expected a whole number of updates")
    return int(step)


def shortened(items: Sequence[str]) -> str:
    """The first few of a list, and how many more there are."""
    return ", ".join(items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")
