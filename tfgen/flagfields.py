"""Dataclass fields that are also command-line flags: the leaf of `tfgen.settings`, which re-exports what others use.

A settings class is a frozen dataclass whose fields are made by `flag`. The annotation gives the type (`str`, `int`,
`float`, `bool`, or one of these `| None`); the metadata give help, range and choices.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
import zlib
from collections.abc import Collection, Iterable
from typing import Any


class SettingsError(ValueError):
    """A flag, preset or combination of settings that cannot be used; the text says what to type instead."""


@dataclasses.dataclass(frozen=True)
class FlagInfo:
    """What `flag` keeps of a field beside its default.

    Attributes:
      help: meaning and unit.
      minimum, maximum: inclusive range of a number; `above` and `below` exclude the bound itself.
      choices: the only values it may take.
      unused: why the value has no effect, for flags of the original code that never had any.
      group: heading printed by `--help` above this flag; the flags after it belong to the same group.
      negative: another spelling of `--noNAME`.
      stored: whether the run folder keeps it. Acts of one command (`--dry_run`) are not kept.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    unused: str | None = None
    group: str | None = None
    negative: str | None = None
    stored: bool = True


def flag(default: Any, help: str, **info: Any) -> Any:
    """A dataclass field that is also a flag. Keywords are the attributes of `FlagInfo`."""
    if "choices" in info:
        info["choices"] = tuple(info["choices"])
    return dataclasses.field(default=default, metadata={"flag": FlagInfo(help, **info)})


@dataclasses.dataclass(frozen=True)
class FlagField:
    """One flag of a settings class: its name, value type (`str`, `int`, `float` or `bool`) and what `flag` was told."""

    name: str
    type: type
    optional: bool
    default: Any
    info: FlagInfo

    def describe_range(self) -> str:
        """What values it takes, as a noun phrase: "an integer of at least 1"."""
        info = self.info
        if info.choices is not None:
            noun = "one of " + ", ".join(str(choice) for choice in info.choices)
        else:
            noun = {str: "one line of text", int: "an integer", float: "a number", bool: "true or false"}[self.type]
            bounds = (
                ("of at least", info.minimum),
                ("above", info.above),
                ("of at most", info.maximum),
                ("below", info.below),
            )
            limits = " and ".join(f"{word} {bound:.10g}" for word, bound in bounds if bound is not None)
            noun = f"{noun} {limits}".strip()
        return f"{noun}, or None" if self.optional else noun

    def allows(self, value: Any) -> bool:
        """Whether `value` has the type of this flag and lies in its range."""
        if value is None:
            return self.optional
        accepted = (int, float) if self.type is float else self.type
        fits = isinstance(value, accepted) and (self.type is bool or not isinstance(value, bool))
        if not fits:
            return False
        info = self.info
        if info.choices is not None:
            return value in info.choices
        if self.type is str:  # what a line of a flagfile can hold
            return value == value.strip() and len(value.splitlines()) <= 1
        return (
            not math.isnan(value)
            and (info.minimum is None or value >= info.minimum)
            and (info.maximum is None or value <= info.maximum)
            and (info.above is None or value > info.above)
            and (info.below is None or value < info.below)
        )


def flag_fields(settings_class: type) -> dict[str, FlagField]:
    """The flags of a settings class by name, in order of definition."""
    hints = typing.get_type_hints(settings_class)
    fields = {}
    for field in dataclasses.fields(settings_class):
        kinds = set(typing.get_args(hints[field.name])) or {hints[field.name]}
        optional = types.NoneType in kinds
        kinds.discard(types.NoneType)
        if len(kinds) != 1 or not kinds <= {str, int, float, bool} or "flag" not in field.metadata:
            raise TypeError(f"{settings_class.__name__}.{field.name} cannot be a flag: {hints[field.name]}")
        fields[field.name] = FlagField(field.name, kinds.pop(), optional, field.default, field.metadata["flag"])
    return fields


def check_values(settings: Any) -> None:
    """Raises `SettingsError` for the first field whose value has the wrong type or lies outside its range.

    Settings classes call it from `__post_init__`, so that it also guards values that come from Python code.
    """
    for name, field in flag_fields(type(settings)).items():
        value = getattr(settings, name)
        if not field.allows(value):
            raise SettingsError(f"--{name}={value}: expected {field.describe_range()}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that suggests the nearest known names, or nothing. Starts with a space."""
    close = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def changes_label(options: Any, leave_out: Collection[str] = ()) -> str:
    """The flags that are not at their defaults, as part of a file name: results of another kind go elsewhere."""
    changed = [
        f"-{field.name}-{value}"
        for field in dataclasses.fields(options)
        if field.name not in leave_out and (value := getattr(options, field.name)) != field.default
    ]
    label = re.sub(r"[^\w.,=+-]", "_", "".join(changed))
    return label if len(label) <= 80 else f"-{zlib.crc32(label.encode()):08x}"  # one number for each of 80 layers
