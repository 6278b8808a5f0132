"""What the checkers of several recordings share: the recorded network, its variables, errors of a vector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.parity.ebm import formula
from tests.parity.harness import Case
from tfgen.systems.ebm.architecture import NetworkShape
from tfgen.systems.ebm.catalog import network_shape
from tfgen.systems.ebm.networks import EnergyNetwork

# Label columns of DspritesNet by flag; what conditions the network wins over the subset it was trained on.
_DSPRITES_COLUMNS = {
    "dshape_only": 3,
    "dpos_only": 2,
    "dsize_only": 1,
    "drot_only": 2,
    "cond_size": 1,
    "cond_shape": 3,
    "cond_pos": 2,
    "cond_rot": 2,
}


def recorded_shape(kind: str, settings: Mapping[str, Any], filters: int, dropout: bool = False) -> NetworkShape:
    """The network that recorded flags and arguments describe.

    Args:
      settings: flags of the original and, winning over them, arguments of the network's class.
    """
    return network_shape(
        kind,
        filters,
        label_columns=_label_columns(kind, settings),
        swish=settings.get("swish_act", False),
        spec_norm=settings.get("spec_norm", True),
        spec_iterations=settings.get("spec_iter", 1),
        spec_target=settings.get("spec_norm_val", 1.0),
        use_attention=settings.get("use_attention", False),
        dropout=dropout,
        downsample=settings.get("downsample", False),
    )


def _label_columns(kind: str, settings: Mapping[str, Any]) -> int:
    if not settings.get("cclass", False) or kind == "MnistNet":
        return 0
    if kind == "DspritesNet":
        chosen = [columns for flag, columns in _DSPRITES_COLUMNS.items() if settings.get(flag)]
        return chosen[-1] if chosen else 3
    if kind == "ResNet128" or (kind == "ResNet32Wider" and settings["dataset"] == "imagenet"):
        return 1000
    return 10


def load(network: EnergyNetwork, case: Case, seed: int, zero_scale: float, prefix: str = "var/") -> None:
    """Sets a network to the stored variables of a recording, or to the formula where only their names are stored."""
    if "var_names" in case:
        names = [str(name) for name in case["var_names"]]
        shapes = {name: json.loads(str(text)) for name, text in zip(names, case["var_shapes"], strict=True)}
        arrays = {name: formula.variable(name, shape, seed, zero_scale) for name, shape in shapes.items()}
    else:
        arrays = case.under(prefix)
        names = list(arrays)
    own = {variable.name.removesuffix(":0"): variable for variable in network.all_variables}
    case.equal("names of the variables, in order", list(own), expected=names)
    for name, variable in own.items():
        variable.assign(arrays[name])


def relative_norm(
    case: Case, name: str, actual: Any, tolerance: float, *, scale: float | None = None, kinks: bool = False
) -> None:
    """Norm of the difference over the norm of what was recorded.

    Args:
      scale: takes the place of that norm.
      kinks: the gradient of a network with leaky rectifiers. A feature that is 0 up to rounding may get the other
        slope, which shows in all pixels that it sees: 1 in 100 entries may differ by more, as long as the whole is
        within 100 tolerances.
    """
    wanted, got = np.asarray(case[name], np.float64), np.asarray(actual, np.float64)
    if got.shape != wanted.shape:
        case.equal(f"{name}: shape", list(got.shape), expected=list(wanted.shape))
        return
    if scale is None:
        scale = float(np.linalg.norm(wanted)) or 1.0
    difference = np.sort(np.abs(got - wanted), axis=None) / scale
    if kinks:
        case.close(f"{name}: relative norm with kinks", np.linalg.norm(difference), 100.0 * tolerance, expected=0.0)
        difference = difference[: difference.size - difference.size // 100]
    case.close(f"{name}: relative norm", np.linalg.norm(difference), tolerance, expected=0.0)


def of_largest(case: Case, name: str, actual: Any, tolerance: float) -> None:
    """Largest difference over the largest magnitude that was recorded: single energies may be near 0."""
    case.close(name, actual, tolerance * float(np.abs(case[name]).max()))


def vectors(case: Case, prefix: str, network: EnergyNetwork) -> None:
    """Vectors of the power iteration after a run, those that no energy depends on included: they stay as they were."""
    recorded = case.under(prefix)
    kept = {f"context_0/{v.name}": network.by_name[v.name] for v in network.shape.variables() if not v.trainable}
    case.equal(f"{prefix}: names", sorted(kept), expected=sorted(recorded))
    for name, expected in recorded.items():
        # Those of weights near zero are tiny.
        scale = float(np.abs(expected).max()) * 10.0 if "_res_c2/" in name else 1.0
        case.close(f"{prefix}{name}", kept[name], 1e-4 * scale)
