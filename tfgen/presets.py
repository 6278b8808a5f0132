"""Presets: flagfiles under flags/<system>/, whose header comments say what each is.

A header is a first line that describes the preset, then `# key: value` lines:

    # CIFAR-10, 15 million parameters, conditioned on rotation.
    # source: Jun et al. 2020, original preset c10_15m_rot
    # parameters: 14,911,744
    # hardware: 1 GPU
    # expected: the metric it should reach, where one is known
    # refused: why it cannot be chosen (it may still be a parent of others)
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence

from tfgen import systems
from tfgen.commandline import Word, read_flagfile
from tfgen.flagfields import SettingsError, did_you_mean

_PACKAGE = pathlib.Path(__file__).resolve().parent
_KEYS = ("source", "parameters", "hardware", "weights", "expected", "refused")


@dataclasses.dataclass(frozen=True)
class Preset:
    """One preset, as its header tells it; "" and None for what the header does not say.

    Attributes:
      parameters: number of trainable parameters.
      weights: published checkpoint of the original code that fits it.
      expected: metric it should reach.
      refused: why it cannot be trained.
    """

    name: str
    path: pathlib.Path
    description: str
    source: str = ""
    parameters: int | None = None
    hardware: str = ""
    weights: str = ""
    expected: str = ""
    refused: str = ""

    def words(self) -> list[Word]:
        """Its flags, those of its parents first."""
        return read_flagfile(self.path)


def folder() -> pathlib.Path:
    """The folder with one sub-folder of presets a system: the checkout's, or else the one packed into the wheel."""
    checkout = _PACKAGE.parent / "flags"
    return checkout if any((checkout / name).is_dir() for name in systems.NAMES) else _PACKAGE / "flags"


def names(system: str) -> list[str]:
    """Names of the presets of `system`, sorted."""
    return sorted(path.stem for path in (folder() / system).glob("*.flags"))


def find(system: str, name: str) -> Preset:
    """The preset `name` of `system`.

    Raises:
      SettingsError: if there is none; suggests the nearest names.
    """
    if name not in names(system):
        raise SettingsError(
            f"system {system} has no preset {name!r}.{did_you_mean(name, names(system))} --list_hps lists all presets"
        )
    path = folder() / system / f"{name}.flags"
    return _read_header(name, path)


def system_of(name: str) -> str:
    """The system that has a preset called `name`.

    Raises:
      SettingsError: if no system has it, or several have.
    """
    owners = [system for system in systems.NAMES if name in names(system)]
    if not owners:
        known = [preset for system in systems.NAMES for preset in names(system)]
        raise SettingsError(f"no preset {name!r}.{did_you_mean(name, known)} --list_hps lists all presets")
    if len(owners) > 1:
        raise SettingsError(f"several systems have a preset {name!r}: add one of --system={' --system='.join(owners)}")
    return owners[0]


def words_of(system: str, chosen: Sequence[str]) -> list[Word]:
    """The flags of the chosen presets, left to right.

    Raises:
      SettingsError: for an unknown preset, or one that is refused.
    """
    words: list[Word] = []
    for name in chosen:
        preset = find(system, name)
        if preset.refused:
            raise SettingsError(f"preset {name} cannot be used: {preset.refused}")
        words += preset.words()
    return words


def listing(chosen_systems: Iterable[str]) -> str:
    """The text of `--list_hps`: a line for each preset."""
    lines = []
    for system in chosen_systems:
        presets = [find(system, name) for name in names(system)]
        width = max((len(preset.name) for preset in presets), default=0)
        lines.append(f"Presets of {system} (name, trainable parameters, description):")
        for preset in presets:
            count = "" if preset.parameters is None else f"{preset.parameters:,}"
            text = f"REFUSED: {preset.refused}" if preset.refused else preset.description
            lines.append(f"  {preset.name:<{width}}  {count:>13}  {text}")
    return "\n".join(lines)


def _read_header(name: str, path: pathlib.Path) -> Preset:
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# ").rstrip())
    if not comments:
        raise SettingsError(f"preset file {path} does not start with a line '# what it is'")
    header: dict[str, str] = {}
    for comment in comments[1:]:
        match = re.fullmatch(r"(\w+): (.+)", comment)
        if match is None or match[1] not in _KEYS or match[1] in header:
            raise SettingsError(
                f"preset file {path}: header line {comment!r} is not '# KEY: text' with a new KEY of {_KEYS}"
            )
        header[match[1]] = match[2]
    count = header.pop("parameters", None)
    parameters = None if count is None else int(count.replace(",", ""))
    return Preset(name, path, comments[0], parameters=parameters, **header)
