"""From the words of a command line or flagfile to instances of settings classes, and the text of `--help`.

Conversion of values is absl's, on a private `FlagValues`: absl's process-wide flags are never touched, so that only
the flags of the chosen system exist, and two commands can be parsed in one process.
"""

from __future__ import annotations

import os
import pathlib
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

from absl import flags

from tfgen.flagfields import FlagField, SettingsError, check_values, did_you_mean, flag_fields


class Word(NamedTuple):
    """One argument, and where it was written: "" for the command line, else "file:line"."""

    text: str
    origin: str = ""

    @property
    def flag_name(self) -> str | None:
        """`name` of `--name` or `--name=value`; None for anything else."""
        return self.text.lstrip("-").partition("=")[0] if self.text.startswith("-") else None

    def error(self, message: str) -> SettingsError:
        return SettingsError(f"{self.origin}: {message}" if self.origin else message)


# Flagfiles ----------------------------------------------------------------------------------------------


def expand(arguments: Iterable[str]) -> list[Word]:
    """The words of a command line, with every `--flagfile=PATH` replaced by the words of that file."""
    return _expand([Word(argument) for argument in arguments], folder=None, including=())


def read_flagfile(path: str | os.PathLike) -> list[Word]:
    """The words of a flagfile: one flag a line, `#` starts a comment line.

    A `--flagfile=PATH` inside is relative to the file it stands in, or else to the working directory.

    Raises:
      SettingsError: for a missing file, a line that is no flag, or files that include each other.
    """
    return _read_flagfile(pathlib.Path(path), including=())


def _read_flagfile(path: pathlib.Path, including: tuple[pathlib.Path, ...]) -> list[Word]:
    if path.resolve() in including:
        raise SettingsError(f"flagfile {path} includes itself: {' -> '.join(map(str, [*including, path]))}")
    words = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith(("#", "//")):
            continue
        word = Word(text, f"{path}:{number}")
        if not text.startswith("-"):
            raise word.error(f"expected a line --name=value, found {text!r}")
        words.append(word)
    return _expand(words, path.parent, (*including, path.resolve()))


def _expand(words: Sequence[Word], folder: pathlib.Path | None, including: tuple[pathlib.Path, ...]) -> list[Word]:
    expanded = []
    remaining = iter(words)
    for word in remaining:
        if word.flag_name != "flagfile":
            expanded.append(word)
            continue
        name = _value_of(word, remaining)
        candidates = [pathlib.Path(name)] if folder is None else [folder / name, pathlib.Path(name)]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise word.error(f"flagfile not found: {' or '.join(str(path) for path in candidates)}")
        expanded.extend(_read_flagfile(found, including))
    return expanded


def _value_of(word: Word, following: Any) -> str:
    """The value of `--name=value`, or of `--name value`, which takes the next word."""
    _, equals, value = word.text.partition("=")
    if equals:
        return value
    next_word = next(following, None)
    if next_word is None:
        raise word.error(f"--{word.flag_name} lacks its value: type --{word.flag_name}=VALUE")
    return next_word.text


# Parsing ------------------------------------------------------------------------------------------------


def parse_words(words: Iterable[Word], *classes: type) -> list[Any]:
    """One instance of each settings class from its flags among `words`; later words win over earlier ones.

    Raises:
      SettingsError: for an unknown flag, a word that is no flag, or a value of the wrong type or range.
    """
    instances, rest = take_words(words, *classes)
    for word in rest:
        if word.flag_name is None:
            raise word.error(f"unexpected argument {word.text!r}: every setting is a flag, --name=value")
        known = [f"--{name}" for name in _spellings(_all_fields(classes))]
        raise word.error(f"unknown flag --{word.flag_name}.{did_you_mean('--' + word.flag_name, known)}")
    return instances


def take_words(words: Iterable[Word], *classes: type) -> tuple[list[Any], list[Word]]:
    """Like `parse_words`, but leaves words that are flags of no class: returns (instances, those words)."""
    fields = _all_fields(classes)
    spellings = _spellings(fields)
    values = flags.FlagValues()
    for field in fields.values():
        _define(field, values)
    rest = []
    remaining = iter(_with_boolean_values(words, fields))
    for word in remaining:
        if word.flag_name not in spellings:
            rest.append(word)
            continue
        name, negated = spellings[word.flag_name]
        if negated and "=" in word.text:
            raise word.error(f"--{word.flag_name} takes no value: type --{word.flag_name}, or --{name}=true")
        if negated:
            text = "false"
        elif fields[name].type is bool and "=" not in word.text:
            text = "true"
        else:
            text = _value_of(word, remaining)
        try:
            values[name].parse(text)
        except flags.IllegalFlagValueError:
            raise word.error(f"--{name}={text}: expected {fields[name].describe_range()}") from None
    values.mark_as_parsed()
    instances = []
    for settings_class in classes:
        instance = settings_class(**{name: values[name].value for name in flag_fields(settings_class)})
        check_values(instance)
        instances.append(instance)
    return instances, rest


def _with_boolean_values(words: Iterable[Word], fields: dict[str, FlagField]) -> list[Word]:
    """`--learn_sigma True` as `--learn_sigma=True`: the commands of some original codes have it so."""
    joined: list[Word] = []
    for word in words:
        flag_before = fields.get(joined[-1].flag_name or "") if joined and "=" not in joined[-1].text else None
        if flag_before is not None and flag_before.type is bool and word.text.lower() in _BooleanParser.words:
            joined[-1] = joined[-1]._replace(text=f"{joined[-1].text}={word.text}")
        else:
            joined.append(word)
    return joined


class _BooleanParser(flags.BooleanParser):
    """absl's words for true and false, and yes and no."""

    others: ClassVar = {"yes": "true", "y": "true", "no": "false", "n": "false"}
    words: ClassVar = frozenset({"true", "t", "1", "false", "f", "0", *others})

    def parse(self, argument: Any) -> Any:
        return super().parse(self.others.get(argument.lower(), argument) if isinstance(argument, str) else argument)


class _OptionalParser(flags.ArgumentParser):
    """Another parser's values, or None."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, argument: Any) -> Any:
        if argument is None or (isinstance(argument, str) and argument.lower() == "none"):
            return None
        return self._parser.parse(argument)


_PARSERS: dict[type, type[flags.ArgumentParser]] = {
    str: flags.ArgumentParser,
    int: flags.IntegerParser,
    float: flags.FloatParser,
    bool: _BooleanParser,
}


def _define(field: FlagField, values: flags.FlagValues) -> None:
    parser = _PARSERS[field.type]()
    if field.optional:
        parser = _OptionalParser(parser)
    flags.DEFINE(parser, field.name, field.default, field.info.help, flag_values=values)


def _all_fields(classes: Sequence[type]) -> dict[str, FlagField]:
    fields: dict[str, FlagField] = {}
    for settings_class in classes:
        for name, field in flag_fields(settings_class).items():
            if name in fields:
                raise TypeError(f"flag --{name} is defined twice, once by {settings_class.__name__}")
            fields[name] = field
    return fields


def _spellings(fields: dict[str, FlagField]) -> dict[str, tuple[str, bool]]:
    """What may stand between `--` and `=`: (name of the flag, whether this spelling means false)."""
    spellings = {}
    for name, field in fields.items():
        if field.type is bool:
            negatives = {f"no_{name}", f"no{name}"} | ({field.info.negative} if field.info.negative else set())
            spellings.update(dict.fromkeys(negatives, (name, True)))
    # Real names last: `no_vocab_rounding` is a flag of its own, not the negation of one.
    spellings.update({name: (name, False) for name in fields})
    return spellings


# Text ---------------------------------------------------------------------------------------------------


def to_line(name: str, value: Any) -> str:
    """The flagfile line that sets flag `name` to `value`."""
    return f"--{name}={value}"


def help_text(title: str, settings_class: type) -> str:
    """The flags of a settings class with defaults, meanings and ranges, under their group headings."""
    lines = [f"{title}:"]
    for field in flag_fields(settings_class).values():
        info = field.info
        if info.group:
            lines += ["", f"  {info.group}"]
        spelled = f"--[no_]{field.name}" if field.type is bool else f"--{field.name}"
        default = "''" if field.default == "" else field.default
        lines.append(f"    {spelled}  (default: {default})")
        # Of a flag that is on or off, or takes any text, the range says nothing new.
        open_ended = field.type is bool or (field.type is str and not info.choices)
        text = info.help if open_ended else f"{info.help} [{field.describe_range()}]"
        if info.unused:
            text += f" No effect: {info.unused}."
        lines += textwrap.wrap(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)
