"""A recorded set of checkpoint files, read as a run reads them."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.diffusion.network import channels_first, channels_last, compare_stats, recorded_shape, summary, within
from tests.parity.harness import Case, checker
from tfgen import torch_file
from tfgen.systems.diffusion import published
from tfgen.systems.diffusion.unet import UNet
from tfgen.training.optimizers import AdamW

# Advised in the description of the recordings.
SUMMARY, OUTPUT_RELATIVE, OUTPUT_OF_LARGEST = 1e-6, 1e-4, 2e-5


@checker("diffusion", "checkpoint_expected*.npz")
def check(case: Case) -> None:
    settings = case.json("config")
    folder = case.path.parent / "checkpoint"
    files: list[str] = settings["files"]
    present = {path.name for path in folder.iterdir()}
    case.equal("config: files that are not there", len(set(files) - present), expected=0)
    model = next(name for name in files if re.fullmatch(r"model\d+\.pt", name))
    rates = [float(match[1]) for name in files if (match := re.fullmatch(r"ema_(.+)_\d+\.pt", name))]

    network = UNet(recorded_shape(settings["model"]), seed=0)
    variables = network.trainable_variables
    averages = {rate: [tf.Variable(tf.zeros_like(v)) for v in variables] for rate in rates}
    (group,) = case.json("param_groups")
    optimizer = AdamW(*group["betas"], group["eps"], group["weight_decay"])
    optimizer.build(variables)
    found = published.files_beside(str(folder / model), rates)
    step = published.load_into(found, network, averages, optimizer)
    case.equal("step in the names", step, expected=int(re.sub(r"\D", "", model)))
    case.close("opt_step", float(optimizer.updates), 0.0)
    recorded_group = torch_file.load(found.optimizer)["param_groups"][0]
    case.equal("param_groups: names", sorted(recorded_group), expected=sorted(group))
    for name in ("lr", "betas", "eps", "weight_decay", "params"):
        case.close(f"param_groups: {name}", recorded_group[name], 0.0, expected=group[name])

    for prefix, values in {
        "model": variables,
        "exp_avg": optimizer.first_moments,
        "exp_avg_sq": optimizer.second_moments,
        **({"ema": averages[rates[0]]} if rates else {}),
    }.items():
        check_tensors(case, network, prefix, values)
    check_outputs(case, network, "model")
    for rate in rates[:1]:
        for variable, average in zip(variables, averages[rate], strict=True):
            variable.assign(average)
        check_outputs(case, network, "ema")
    weights = published.read_weights(found.model)
    for name in files:
        if name.startswith("legacy_format"):
            check_legacy(case, name, published.read_weights(str(folder / name)), weights)


def check_tensors(case: Case, network: UNet, prefix: str, values: list[tf.Variable]) -> None:
    """Summaries of one value for each variable."""
    named = published.variables(network)
    names = [str(name) for name in case[f"{prefix}/names"]]
    case.equal(f"{prefix}/names", [item.name for item in named], expected=names)
    rows = zip(named, values, case[f"{prefix}/stats"], case[f"{prefix}/head"], strict=True)
    for item, value, recorded, recorded_head in rows:
        array = published.to_original(value.numpy(), item.layout)
        stats, head = summary(item.name, array)
        compare_stats(case, f"{prefix}/stats of {item.name}", stats, recorded, array.size, SUMMARY)
        case.close(f"{prefix}/head of {item.name}", head, 0.0, expected=recorded_head)


def check_outputs(case: Case, network: UNet, prefix: str) -> None:
    out = channels_first(network(tf.constant(channels_last(case["x"])), tf.constant(case["t"])))
    allowed = OUTPUT_OF_LARGEST * np.abs(case[f"{prefix}/out"]).max()
    within(case, f"{prefix}/out", out, OUTPUT_RELATIVE, allowed)


def check_legacy(case: Case, name: str, legacy: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> None:
    """The stream format holds the first tensors of the same weights."""
    case.equal(f"{name}: names", list(legacy), expected=list(weights)[: len(legacy)])
    for tensor, array in legacy.items():
        case.close(f"{name}: {tensor}", array, 0.0, expected=weights[tensor])
