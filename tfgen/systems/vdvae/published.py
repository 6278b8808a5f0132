"""Checkpoints of the original VDVAE code: four files with a common stem.

| file             | contents                                                                                    |
|------------------|---------------------------------------------------------------------------------------------|
| `P-model.th`     | weights by name, every name prefixed "module."                                              |
| `P-model-ema.th` | averaged weights by name                                                                    |
| `P-opt.th`       | AdamW moments by index (the order of `variables`), the number of updates, the learning rate |
| `P-log.jsonl`    | one record a line; says which epoch and step were reached                                   |

Kernels are stored [out, in, height, width], initial states [1, channels, height, width].
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfgen import torch_file, torch_weights
from tfgen.systems.vdvae.network import VDVAE, Bottleneck, Convolution
from tfgen.torch_weights import CheckpointError, Values, shortened
from tfgen.training.optimizers import AdamW

Layout = Literal["kernel", "bias", "state", "gain"]

WEIGHTS, AVERAGES, OPTIMIZER, LOG = "-model.th", "-model-ema.th", "-opt.th", "-log.jsonl"
_MOST_STEPS = 2**53  # larger numbers are no counts, and a float64 does not hold them


@dataclasses.dataclass(frozen=True)
class Named:
    """A variable of the network and its name and layout in the original's files."""

    name: str
    variable: tf.Variable
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the original's files."""
        return to_original(np.empty(self.variable.shape), self.layout).shape


def variables(network: VDVAE) -> list[Named]:
    """Every variable of the network, in the order in which the original registers them."""
    named: list[Named] = []

    def convolution(name: str, layer: Convolution) -> None:
        named.append(Named(f"{name}.weight", layer.kernel, "kernel"))
        named.append(Named(f"{name}.bias", layer.bias, "bias"))

    def bottleneck(name: str, layer: Bottleneck) -> None:
        for part in ("c1", "c2", "c3", "c4"):
            convolution(f"{name}.{part}", getattr(layer, part))

    convolution("encoder.in_conv", network.stem)
    for index, block in enumerate(network.encoder_blocks):
        bottleneck(f"encoder.enc_blocks.{index}", block.inner)
    named.append(Named("decoder.gain", network.gain, "gain"))
    named.append(Named("decoder.bias", network.bias, "gain"))
    for index, layer in enumerate(network.decoder_blocks):
        name = f"decoder.dec_blocks.{index}"
        bottleneck(f"{name}.enc", layer.posterior)
        bottleneck(f"{name}.prior", layer.prior)
        convolution(f"{name}.z_proj", layer.projection)
        bottleneck(f"{name}.resnet", layer.residual)
    for index, state in enumerate(network.initial_states):
        named.append(Named(f"decoder.bias_xs.{index}", state, "state"))
    convolution("decoder.out_net.out_conv", network.head)
    return named


def to_ours(array: np.ndarray, layout: Layout) -> np.ndarray:
    """An array of the original's files as the network holds it."""
    if layout == "kernel":
        return array.transpose(2, 3, 1, 0)
    if layout == "state":
        return array.transpose(0, 2, 3, 1)
    return array.reshape(-1) if layout == "gain" else array


def to_original(array: np.ndarray, layout: Layout) -> np.ndarray:
    """The inverse of `to_ours`."""
    if layout == "kernel":
        return array.transpose(3, 2, 0, 1)
    if layout == "state":
        return array.transpose(0, 3, 1, 2)
    return array.reshape(1, -1, 1, 1) if layout == "gain" else array


def assign(network: VDVAE, arrays: Mapping[str, np.ndarray], targets: Sequence[tf.Variable], where: str) -> None:
    """Sets `targets` to named arrays of the original; all of them, or, on an error, none. See `matched`."""
    torch_weights.assign(matched(network, arrays, targets, where))


def matched(network: VDVAE, arrays: Mapping[str, np.ndarray], targets: Sequence[tf.Variable], where: str) -> Values:
    """The named arrays of the original that belong to `targets`, as these hold them.

    Args:
      network: says names and layouts.
      arrays: float32, by original name without "module.".
      targets: one variable for each of `network.trainable_variables`: those variables, or their averages.
      where: what the arrays came from, for messages.

    Raises:
      CheckpointError: names that are missing or left over, or other shapes or types.
    """
    named = variables(network)
    missing = [item.name for item in named if item.name not in arrays]
    extra = sorted(set(arrays) - {item.name for item in named})
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"lacks {len(missing)} of {len(named)} tensors ({shortened(missing)})")
        if extra:
            parts.append(f"has {len(extra)} that this network has not ({shortened(extra)})")
        raise CheckpointError(f"{where} {' and '.join(parts)}: compare --enc_blocks, --dec_blocks and --no_bias_above")
    wrong = [
        f"{item.name} {list(arrays[item.name].shape)}, expected {list(item.shape)}"
        for item in named
        if arrays[item.name].shape != item.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{where} is of another network, {len(wrong)} shapes differ: {shortened(wrong)}; "
            "compare --width, --custom_width_str, --bottleneck_multiple, --zdim and --num_mixtures"
        )
    types = [item.name for item in named if arrays[item.name].dtype != np.float32]
    if types:
        raise CheckpointError(f"{where}: {types[0]} has type {arrays[types[0]].dtype}, expected float32")
    position = {variable.ref(): index for index, variable in enumerate(network.trainable_variables)}
    return [(targets[position[item.variable.ref()]], to_ours(arrays[item.name], item.layout)) for item in named]


def read_weights(path: str) -> dict[str, np.ndarray]:
    """Arrays by name of a `-model.th` or `-model-ema.th` file. Nothing in the file is executed.

    Raises:
      torch_file.TorchFileError: not a readable file of tensors.
    """
    return torch_file.state_dict(path, prefix="module.")


def read_optimizer(path: str, network: VDVAE, optimizer: Any, rate: tf.Variable | None = None) -> Values:
    """The moments and the number of updates of a `-opt.th` file, and the variables of a built `AdamW` they belong to.

    Args:
      rate: also takes the learning rate that was saved, float32 scalar.

    Raises:
      CheckpointError: the file holds no AdamW state, one of another network, or no possible number of updates or rate.
      torch_file.TorchFileError: not a readable file.
    """
    if not isinstance(optimizer, AdamW):
        raise CheckpointError(f"{path} holds AdamW moments, but the optimizer is {type(optimizer).__name__}")
    match torch_file.load(path):
        case {"state": dict(state), "param_groups": [{"step": step} as group, *_]}:
            updates = _count(step, f"{path}: 'step'")
        case _:
            raise CheckpointError(f"{path} is no optimizer file: expected 'state' and 'param_groups' with a 'step'")
    named = variables(network)
    if len(state) not in (0, len(named)):
        raise CheckpointError(
            f"{path} has moments of {len(state)} tensors, expected {len(named)}: is it of this network?"
        )
    values: Values = [(optimizer.updates, np.asarray(updates, np.int64))]
    if rate is not None:
        saved: Any = group.get("lr")
        if type(saved) not in (int, float) or not 0 <= saved <= np.finfo(np.float32).max:
            raise CheckpointError(
                f"{path}: 'lr' is {str(saved)[:40]}, expected the learning rate that was saved, at least 0: "
                "leave --restart_warmup or the optimizer file out"
            )
        values.append((rate, np.asarray(saved, np.float32)))
    position = {variable.ref(): index for index, variable in enumerate(network.trainable_variables)}
    for index, item in enumerate(named if state else ()):
        for key, moments in (("exp_avg", optimizer.first_moments), ("exp_avg_sq", optimizer.second_moments)):
            entry: Any = state.get(index)
            array: Any = entry.get(key) if isinstance(entry, dict) else None
            expected = f"float32 {list(item.shape)}"
            found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "nothing"
            if found != expected:
                raise CheckpointError(f"{path}: {key} of tensor {index} ({item.name}) is {found}, expected {expected}")
            values.append((moments[position[item.variable.ref()]], to_ours(array, item.layout)))
    return values


def _count(value: Any, what: str) -> int:
    """A number of steps or epochs; raises `CheckpointError` for what is none, before anything is set to it."""
    if type(value) not in (int, float) or not 0 <= value < _MOST_STEPS or value % 1:
        raise CheckpointError(f"{what} is {str(value)[:40]}, expected a whole number from 0 to {_MOST_STEPS - 1}")
    return int(value)


@dataclasses.dataclass(frozen=True)
class LogPosition:
    """Where a log ends.

    Attributes:
      epoch, step: largest of its training records.
      best_elbo: least of its evaluation records, nats per dimension; infinity without any.
    """

    epoch: int
    step: int
    best_elbo: float


def read_log(path: str) -> LogPosition:
    """The position of a `-log.jsonl` file.

    Raises:
      CheckpointError: no such file, no training record, or a line that is no record or has no possible step.
    """
    if not pathlib.Path(path).is_file():
        raise CheckpointError(f"{path} does not exist; expected the -log.jsonl of a checkpoint of the original code")
    epoch, step, best = -1, -1, math.inf
    # What is not UTF-8 is no JSON either, and is found where it stands.
    for number, line in enumerate(pathlib.Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
            kind = record.get("type")
            if kind == "train_loss":
                where = f"{path}, line {number}"
                epoch = max(epoch, _count(record["epoch"], f"{where}: 'epoch'"))
                step = max(step, _count(record["step"], f"{where}: 'step'"))
            elif kind == "eval_loss":
                best = min(best, float(record["elbo"]))
        except CheckpointError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"{path}, line {number}: expected a JSON record of the log, found {error!r}"
            ) from error
    if step < 0:
        raise CheckpointError(f"{path} has no train_loss record, which would say at which step to start")
    return LogPosition(epoch, step, best)


@dataclasses.dataclass(frozen=True)
class Files:
    """The files to start from; "" for those that are not there. One of the first two is."""

    weights: str = ""
    averages: str = ""
    optimizer: str = ""
    log: str = ""


def files_beside(path: str) -> Files:
    """All files of the checkpoint that the weights at `path` (`P-model.th` or `P-model-ema.th`) belong to.

    Raises:
      CheckpointError: the name ends in neither.
    """
    for ending in (AVERAGES, WEIGHTS):
        if path.endswith(ending):
            stem = path.removesuffix(ending)
            found = [name if pathlib.Path(name).is_file() else "" for name in _names(stem)]
            # Averaged weights that are named by themselves are meant, also where raw ones lie beside them.
            return Files("", path) if ending == AVERAGES else Files(path, *found[1:])
    raise CheckpointError(f"{path}: expected a file whose name ends in {WEIGHTS} or {AVERAGES}")


def _names(stem: str) -> list[str]:
    return [stem + ending for ending in (WEIGHTS, AVERAGES, OPTIMIZER, LOG)]


def load_into(
    files: Files,
    network: VDVAE,
    averages: Sequence[tf.Variable],
    optimizer: Any,
    rate: tf.Variable | None = None,
) -> int:
    """Sets a network, its averages and its optimizer to published files; returns the step that they reached.

    Averages without a file of their own start as the weights; weights without a file as the averages (only averages
    were published of some models). Without a log the step is the optimizer's number of updates, or 0.

    Args:
      averages: one variable for each of `network.trainable_variables`.
      optimizer: a built `AdamW`.
      rate: takes the learning rate of the optimizer file, where there is one.

    Raises:
      CheckpointError, torch_file.TorchFileError: a file is damaged or does not fit. No variable has changed then.
    """
    position = read_log(files.log) if files.log else None
    weights = read_weights(files.weights or files.averages)
    averaged = read_weights(files.averages) if files.averages else weights
    values = matched(network, weights, network.trainable_variables, files.weights or files.averages)
    values += matched(network, averaged, averages, files.averages or files.weights)
    if files.optimizer:
        values += read_optimizer(files.optimizer, network, optimizer, rate)
    torch_weights.assign(values)  # only now that all files fit
    if position is not None:
        return position.step
    return int(optimizer.updates) if files.optimizer else 0
