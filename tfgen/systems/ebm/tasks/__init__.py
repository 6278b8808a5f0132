"""The evaluations of Du & Mordatch, arXiv:1903.08689, by their names in the original's programs.

A task is a function (system, options, job) -> results by name, which writes pictures and arrays to `job.folder`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from tfgen.systems.base import TaskRun

Task = Callable[[Any, Any, TaskRun], dict[str, float]]

# The module of each; the function has the name of the task.
MODULES: Mapping[str, str] = {
    "energyeval": "energies",
    "mixenergy": "energies",
    "label": "robustness",
    "labelfinetune": "robustness",
    "ais": "partition",
    "crossclass": "restoration",
    "cycleclass": "restoration",
    "democlass": "restoration",
    "anticorrupt": "restoration",
    "boxcorrupt": "restoration",
    "nearestneighbor": "restoration",
    "latent": "directions",
    "geninception": "generation",
    "imagenetdemo": "generation",
}
NAMES = tuple(MODULES)


def load(name: str) -> Task:
    """The task called `name`, one of `NAMES`."""
    module = importlib.import_module(f"tfgen.systems.ebm.tasks.{MODULES[name]}")
    return getattr(module, name)
