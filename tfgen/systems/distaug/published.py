"""Checkpoints of the original DistAug code: `.npz` files with one array for each variable of its graph.

| name                                    | contents                                                       |
|-----------------------------------------|----------------------------------------------------------------|
| `model/<variable>:0`                    | float32, a weight                                              |
| `model/<variable>/Ema/ema:0`            | float32, its average                                           |
| `model/<variable>/Adam:0`, `/Adam_1:0`  | first and second moment: float32, or words of `moments16` that |
|                                         | are typed as float16                                           |
| `adam_beta/beta1_power:0`, `beta2_power`| float32 [], powers of the next update                          |
| `global_step:0`                         | int64 [], updates made                                         |
| `num_epochs:0` and others               | see `COUNTERS`                                                 |
| `Entropy:0`                             | raw bits of the original's dropout generator                   |

The network's variables carry the same names without the leading "model/".
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfgen.files import atomic_path
from tfgen.systems.distaug.transformer import Transformer
from tfgen.training import moments16
from tfgen.training.optimizers import Adam

COUNTERS: Mapping[str, Any] = {  # with their initial values
    "num_epochs:0": np.int64(0),
    "num_examples_processed:0": np.int64(0),
    "curr_loss_scale:0": np.float32(2.0**16),
    "best_val_loss:0": np.float32(99999.0),
}
_STEP = "global_step:0"
_ENTROPY, _ENTROPY_WORDS = "Entropy:0", 80 * 3 * 1024
_POWERS = ("adam_beta/beta1_power:0", "adam_beta/beta2_power:0")
_MAX_BYTES = 2**34  # several times the largest published model with its averages and moments

# Settings that decide whether a variable exists, and what its shape is, by a pattern of its name.
_FLAGS_OF_EXISTENCE = {
    r"sos_token/sos:": "the use_... flags of the augmentations, use_unconditional_augmentation",
    r"sos_token/sos_rot": "use_rotation",
    r"sos_token/sos_c": "use_color",
    r"sos_token/sos_tr": "use_transposition",
    r"sos_token/sos_rev": "use_reverse",
    r"sos_token/sos_js": "use_jigsaw",
    r"sos_token/sos_aa": "rand_augment_conditioning",
    r"sos_token/sos_rd": "use_randomly_determined_order",
    r"sos_token/sos_data": "use_dataset_conditioning",
    r"lookahead_embedding": "randomly_determined_order_use_lookahead",
    r"model/h\d+/": "n_layer",
}
_FLAGS_OF_SHAPE = {
    r"sos_token/sos_js": "jigsaw_grid_size",
    r"sos_token/sos_rd": "randomly_determined_order_num_perms",
    r"pos_emb_[012]": "dataset, which gives the size of the images",
    r"[qk]_proj": "qk_ratio",
    r"mlp_proj[12]": "mlp_multiple",
}
_SLOTS = re.compile(r"/(Adam|Adam_1|Ema/ema):0$")


class CheckpointError(ValueError):
    """A file that is no checkpoint of the original code, or one of another network."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What `load_into` found.

    Attributes:
      step: updates made so far.
      ignored: names of the arrays that were not used.
    """

    step: int
    ignored: tuple[str, ...]


def published_name(variable: tf.Variable) -> str:
    """Name of a network variable in a checkpoint ("model/h0/q_proj/w:0")."""
    return f"model/{variable.name}"


def _slot_name(variable: tf.Variable, slot: str) -> str:
    return f"{published_name(variable).removesuffix(':0')}/{slot}:0"


def array_names(network: Transformer, averages: bool = True, moments: bool = True) -> list[str]:
    """Names of all arrays of a checkpoint of `network`, in the order of the original's variables."""
    variables = network.trainable_variables
    names = [_ENTROPY, _STEP, *COUNTERS, *map(published_name, variables)]
    if moments:
        names += _POWERS
        names += [_slot_name(variable, slot) for variable in variables for slot in ("Adam", "Adam_1")]
    if averages:
        names += [_slot_name(variable, "Ema/ema") for variable in variables]
    return names


def read(path: str | os.PathLike, max_bytes: int = _MAX_BYTES) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, by name. Nothing in the file is executed.

    Raises:
      CheckpointError: not an `.npz` file, damaged, holding Python objects, or declaring more than `max_bytes`.
    """
    if not pathlib.Path(path).is_file():
        raise CheckpointError(f"{path} does not exist; expected an .npz checkpoint of the original code")
    name = None
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
        if declared > max_bytes:
            raise CheckpointError(f"{path} declares {declared} bytes of arrays, more than the {max_bytes} allowed")
        with np.load(path, allow_pickle=False) as file:
            arrays = {}
            for name in file.files:
                arrays[name] = file[name]
            return arrays
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
        where = f", array {name!r}" if name else ""
        raise CheckpointError(f"{path}{where} cannot be read as an .npz checkpoint: {error}") from error


def load_into(
    source: str | os.PathLike | Mapping[str, np.ndarray],
    network: Transformer,
    averages: Sequence[tf.Variable] | None = None,
    optimizer: Any = None,
) -> Loaded:
    """Sets a network, and where given its averages and optimizer, to what a checkpoint holds.

    Either all variables are set, or, on an error, none.

    Args:
      source: a path, or arrays by name as `read` gives them.
      network: takes the raw weights.
      averages: one variable for each of `network.trainable_variables`; take the averaged weights.
      optimizer: a built `Adam`; takes moments and powers. Its moments may be packed whether those of the file are or
        not.

    Returns:
      `Loaded`.

    Raises:
      CheckpointError: arrays are missing or have other shapes; the message lists them with the likely flags.
    """
    arrays, where = (source, "the checkpoint") if isinstance(source, Mapping) else (read(source), str(source))
    wanted = _wanted(network, averages, optimizer)
    missing = [name for name, _, _ in wanted if name not in arrays]
    if missing:
        raise CheckpointError(
            f"{where} lacks {len(missing)} of {len(wanted)} variables: {_shortened(missing)}; "
            f"likely flags: {'; '.join(_flags_of_existence(missing))}"
        )
    wrong = [(name, variable) for name, variable, _ in wanted if arrays[name].shape != tuple(variable.shape)]
    if wrong:
        shapes = [f"{name} {list(arrays[name].shape)}, expected {v.shape.as_list()}" for name, v in wrong]
        flags = _matching(_FLAGS_OF_SHAPE, [name for name, _ in wrong])
        raise CheckpointError(
            f"{where} is of another network, {len(wrong)} shapes differ: {_shortened(shapes)}; "
            f"likely flags: {'; '.join([*flags, 'n_embd'])}"
        )
    values = [_converted(name, arrays[name], variable, form) for name, variable, form in wanted]
    for (_, variable, _), value in zip(wanted, values, strict=True):
        variable.assign(value)
    used = {name for name, _, _ in wanted} | {_STEP}
    return Loaded(int(arrays.get(_STEP, 0)), tuple(name for name in arrays if name not in used))


def write(
    path: str | os.PathLike,
    network: Transformer,
    averages: Sequence[tf.Variable] | None = None,
    optimizer: Adam | None = None,
    step: int = 0,
    counters: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint that the original code and `load_into` can read, atomically.

    Args:
      path: ends in ".npz".
      network, averages, optimizer: as for `load_into`; packed moments are written as 16-bit words.
      step: updates made so far.
      counters: those of `COUNTERS` that no longer have their initial values.

    Raises:
      CheckpointError: an unknown counter.
    """
    unknown = set(counters or {}) - set(COUNTERS)
    if unknown:
        raise CheckpointError(f"unknown counters {sorted(unknown)}; a checkpoint has {', '.join(COUNTERS)}")
    # The original's dropout needs a state that is not all zeros; which one is immaterial.
    bits = np.random.RandomState(0).randint(0, 2**32, _ENTROPY_WORDS, np.uint32)
    arrays: dict[str, Any] = {_ENTROPY: bits.view(np.float32), _STEP: np.int64(step)}
    for name, initial in COUNTERS.items():
        arrays[name] = np.asarray((counters or {}).get(name, initial), initial.dtype)
    arrays |= {name: variable.numpy() for name, variable, _ in _wanted(network, averages, optimizer)}
    order = array_names(network, averages is not None, optimizer is not None)
    with atomic_path(path) as temporary:
        np.savez(temporary, **{name: arrays[name] for name in order})


def _wanted(
    network: Transformer, averages: Sequence[tf.Variable] | None, optimizer: Any
) -> list[tuple[str, tf.Variable, moments16.MomentFormat | None]]:
    """(name in the file, variable, the 16-bit format that its words have if there are words)."""
    variables = network.trainable_variables
    wanted: list[tuple[str, tf.Variable, moments16.MomentFormat | None]]
    wanted = [(published_name(variable), variable, None) for variable in variables]
    if averages is not None:
        pairs = zip(variables, averages, strict=True)
        wanted += [(_slot_name(variable, "Ema/ema"), average, None) for variable, average in pairs]
    if optimizer is not None:
        if not isinstance(optimizer, Adam):
            raise CheckpointError(
                f"checkpoints of the original code hold Adam moments, but the optimizer is {type(optimizer).__name__}: "
                "use --optimizer=bs_adam, or load the weights only"
            )
        powers = (optimizer.beta1_power, optimizer.beta2_power)
        wanted += [(name, power, None) for name, power in zip(_POWERS, powers, strict=True)]
        slots = zip(variables, optimizer.first_moments, optimizer.second_moments, strict=True)
        for variable, mean, variance in slots:
            wanted.append((_slot_name(variable, "Adam"), mean, moments16.MEAN))
            wanted.append((_slot_name(variable, "Adam_1"), variance, moments16.VARIANCE))
    return wanted


def _converted(name: str, array: np.ndarray, variable: tf.Variable, form: moments16.MomentFormat | None) -> np.ndarray:
    """`array` as `variable` holds it: float32, or packed words typed as float16."""
    if form is None or array.dtype not in (np.float16, np.uint16):
        if array.dtype != np.float32:
            raise CheckpointError(
                f"{name} has type {array.dtype}, expected float32{' or 16-bit words' if form else ''}"
            )
        if form is None or variable.dtype == tf.float32:
            return array
        return form.encode(array).view(np.float16)
    words = array.view(np.uint16)
    return form.decode(words) if variable.dtype == tf.float32 else words.view(np.float16)


def _matching(flags: Mapping[str, str], names: Sequence[str]) -> list[str]:
    return [flag for pattern, flag in flags.items() if any(re.search(pattern, name) for name in names)]


def _flags_of_existence(missing: Sequence[str]) -> list[str]:
    weights = [name for name in missing if not _SLOTS.search(name)]
    if any(name.startswith("model/") for name in weights):
        return _matching(_FLAGS_OF_EXISTENCE, weights)
    averages = [name for name in missing if name.endswith("/Ema/ema:0")]
    return ["disable_ema_vars"] * bool(averages) + ["optimizer"] * (len(averages) < len(missing))


def _shortened(items: Sequence[str]) -> str:
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")
