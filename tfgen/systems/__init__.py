"""The published systems, by name. Nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfgen.systems.base import System

NAMES = ("distaug", "smoothing", "vdvae", "diffusion", "ebm")


def load(name: str) -> type[System]:
    """The class of the system `name`. Imports TensorFlow."""
    from tfgen.systems.base import System

    module = importlib.import_module(f"tfgen.systems.{known(name)}.system")
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, System)]
    return next(found for found in classes if found is not System and found.name == name)


def load_config(name: str) -> type:
    """The settings class of the system `name`. Does not import TensorFlow."""
    return importlib.import_module(f"tfgen.systems.{known(name)}.config").Config


def known(name: str) -> str:
    """`name`, if a system is called so; raises `SettingsError` otherwise."""
    from tfgen.flagfields import SettingsError, did_you_mean

    if name not in NAMES:
        raise SettingsError(f"no system {name!r}; the systems are {', '.join(NAMES)}.{did_you_mean(name, NAMES)}")
    return name
