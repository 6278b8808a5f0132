"""Recorded flags and presets: defaults, the values each preset resolves to, and parameter counts."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from tests.parity.harness import Case, checker
from tfgen import presets
from tfgen.commandline import parse_words
from tfgen.data.source import ImageSpec
from tfgen.settings import RunSettings
from tfgen.systems.distaug.config import Config, parameter_count

NOT_RECORDED = {"out_dir"}  # its default depends on the home folder
DEFAULTS = {
    **dataclasses.asdict(Config()),
    "hparam_sets": "",  # here it chooses what to parse, before any other flag exists
    "print_params": RunSettings().print_params,
}


def lines(values: dict[str, Any]) -> list[str]:
    """Sorted "name=value" texts. The recordings do not tell 1 from 1.0."""
    plain = {name: float(value) if type(value) is int else value for name, value in values.items()}
    return sorted(f"{name}={json.dumps(value)}" for name, value in plain.items())


def resolve(names: list[str]) -> Config:
    """The settings that presets give on their own, refused ones included."""
    words = [word for name in names for word in presets.find("distaug", name).words()]
    config, _ = parse_words(words, Config, RunSettings)
    return config


@checker("distaug", "presets*.json")
def check_presets(case: Case) -> None:
    defaults, recorded = case["defaults"], case["presets"]
    case.equal("defaults: names", sorted(set(DEFAULTS) - NOT_RECORDED), expected=sorted(defaults))
    known = {name: value for name, value in DEFAULTS.items() if name in defaults}
    case.equal("defaults: values", lines(known), expected=lines(defaults))

    for combined, preset in recorded.items():
        names = combined.split(",")
        config = resolve(names)
        resolved = {name: value for name, value in (DEFAULTS | dataclasses.asdict(config)).items() if name in defaults}
        wanted = defaults | {name: value for name, value in preset["values"].items() if name not in preset["broken"]}
        case.equal(f"{combined}: values", lines(resolved), expected=lines(wanted))

        # Keys that are no flags cannot stand in a flagfile; the refusal of the preset names them instead.
        refusals = " ".join(presets.find("distaug", name).refused for name in names)
        refused_keys = set(re.findall(r"\b(\w+)=", refusals)) - set(DEFAULTS)
        case.equal(f"{combined}: keys that break it", sorted(refused_keys), expected=sorted(preset["broken"]))

        side = 64 if config.dataset == "imagenet64" else 32
        count = preset["trainable_parameters"]
        case.equal(f"{combined}: parameters", parameter_count(config, ImageSpec(side, side, 3)), expected=count)
        if len(names) == 1:
            case.equal(f"{combined}: header", presets.find("distaug", combined).parameters, expected=count)
        rows = sum(config.conditioning_types.values()) or 1
        case.equal(f"{combined}: conditioning rows", rows, expected=preset["n_conditioning_rows"])
