"""Settings of a run: presets and flags in, one immutable `Settings` out, and back to a flagfile that reproduces it.

A system describes its flags as a frozen dataclass made with `flag`; the trainer's own are `RunSettings`. Nothing
here imports TensorFlow, so `--help`, `--list_hps` and every complaint about a flag come at once.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tfgen import __version__, commandline, presets, systems
from tfgen.commandline import Word
from tfgen.flagfields import FlagInfo, SettingsError, check_values, did_you_mean, flag, flag_fields

if TYPE_CHECKING:
    from tfgen.systems.base import System

__all__ = [
    "FLAGS_FILE",
    "FlagInfo",
    "RunSettings",
    "Settings",
    "SettingsError",
    "check_values",
    "flag",
    "parse",
    "parse_for_run",
    "read_run",
]

FLAGS_FILE = "flags.txt"  # in every run folder
_PLACES = (("out_dir", "desc"), ("logdir", "exp"))  # flags of the original scripts that say where a run goes


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The trainer's own flags, the same for every system. None leaves the choice to the system's recipe."""

    run: str = flag(
        "",
        "Run folder. Default: runs/PRESET, or out_dir/desc or logdir/exp of a system where these are given.",
        group="Where things are",
        stored=False,  # the file that keeps the others lies in that folder
    )
    data_dir: str = flag("data", "Folder with the data sets' files.")

    steps: int | None = flag(None, "Updates after which the run ends.", minimum=1, group="Length and precision")
    precision: str = flag(
        "auto",
        "Compute type; auto follows the system's half-precision flag on a GPU and is float32 elsewhere.",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    grad_accumulation: int = flag(
        1, "Parts of a rank's batch that are computed one after the other: less memory, same update.", minimum=1
    )
    deterministic: bool = flag(True, "Use operations that give the same bits each time.")
    max_skipped_steps: int = flag(50, "Updates in a row skipped for NaN or infinity that stop the run.", minimum=1)

    log_every: int | None = flag(None, "Updates between log records.", minimum=1, group="Intervals")
    eval_every: int | None = flag(None, "Updates between evaluations; 0 for only at the end.", minimum=0)
    eval_images: int | None = flag(
        None, "Images of one evaluation, from the first; None for the whole split.", minimum=1
    )
    baseline: bool = flag(False, "At the end also print the bits per dimension of a per-pixel histogram.")
    sample_every: int | None = flag(None, "Updates between sample grids; 0 for only at the end.", minimum=0)
    sample_images: int | None = flag(
        None, "Images of one sample grid; None for the system's own number, 0 for no grids and no pictures.", minimum=0
    )
    save_every: int | None = flag(None, "Updates between checkpoints; 0 for only at the end.", minimum=0)
    save_minutes: float = flag(10.0, "Minutes between checkpoints, beside those of save_every.", above=0.0)
    keep_last: int = flag(3, "Newest checkpoints kept.", minimum=1)
    keep_every: int = flag(0, "Checkpoints at multiples of this many updates are kept for ever; 0 for none.", minimum=0)
    profile_steps: str = flag("", "Updates to profile for TensorBoard, FIRST:LAST such as 10:15.")

    restart_from_scratch: bool = flag(
        False,
        "Begin again at step 0 although the run folder has checkpoints.",
        group="For this command only",
        stored=False,
    )
    allow_changed_settings: bool = flag(
        False, "Resume although the settings differ from those of the run folder.", stored=False
    )
    dry_run: bool = flag(False, "Print the settings and exit.", stored=False)
    print_params: bool = flag(False, "Log each trainable variable.", stored=False)

    def __post_init__(self) -> None:
        check_values(self)
        _ = self.profile_range

    @property
    def profile_range(self) -> tuple[int, int] | None:
        """First and last update to profile."""
        if not self.profile_steps:
            return None
        match = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
        if match is None or int(match[1]) >= int(match[2]):
            raise SettingsError(f"--profile_steps={self.profile_steps}: expected FIRST:LAST, such as 10:15")
        return int(match[1]), int(match[2])


@dataclasses.dataclass(frozen=True)
class _Selection:
    """Flags that decide which other flags there are."""

    system: str = flag("", "Published system: " + ", ".join(systems.NAMES) + ". Needed only where no preset is named.")
    hps: str = flag("", "Presets, a comma list applied left to right; any other flag wins over them.")
    hparam_sets: str = flag("", "Same as hps.")
    flagfile: str = flag("", "File of flags, one a line, that stand where it is named.")
    presets_used: str = flag("", "Names of the presets behind a run folder's flags.txt; has no effect.")
    list_hps: bool = flag(False, "List the presets and exit.")
    help: bool = flag(False, "Print this text and exit.")


@dataclasses.dataclass(frozen=True)
class _RunChoice:
    """The flag that chooses an existing run."""

    run: str = flag("", "Run folder.")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes:
      system: name of the system.
      presets: names of the presets it was made from, left to right.
      config: instance of the system's settings class.
      run: the trainer's own settings.
    """

    system: str
    presets: tuple[str, ...]
    config: Any
    run: RunSettings

    @property
    def run_path(self) -> pathlib.Path:
        """The run folder: `--run`; else the original's place, if the system has flags for it and one was changed
        (out_dir/desc or logdir/exp); else runs/PRESET.
        """
        if self.run.run:
            return pathlib.Path(self.run.run)
        fields = flag_fields(type(self.config))
        for place in _PLACES:
            if fields.keys() >= set(place) and any(getattr(self.config, n) != fields[n].default for n in place):
                root, name = (getattr(self.config, n) for n in place)
                return pathlib.Path(os.path.expandvars(os.path.expanduser(root))) / name
        return pathlib.Path("runs") / ("+".join(self.presets) or self.system)

    def as_dict(self) -> dict[str, Any]:
        """Every setting by flag name: those of the system, then the trainer's."""
        return dataclasses.asdict(self.config) | dataclasses.asdict(self.run)

    def to_flagfile(self) -> str:
        """The text of `flags.txt`: every flag of the system, and the trainer's where they are not at their default."""
        lines = [f"# Written by tfgen {__version__}; --flagfile=THIS_FILE reproduces the run."]
        lines.append(commandline.to_line("system", self.system))
        if self.presets:
            lines.append(commandline.to_line("presets_used", ",".join(self.presets)))
        lines += [commandline.to_line(name, getattr(self.config, name)) for name in flag_fields(type(self.config))]
        for name, field in flag_fields(RunSettings).items():
            value = getattr(self.run, name)
            if field.info.stored and value != field.default:
                lines.append(commandline.to_line(name, value))
        return "\n".join(lines) + "\n"

    def differences(self, other: Settings) -> list[tuple[str, Any, Any]]:
        """(flag, value here, value in `other`) for every flag of the system that differs and has an effect."""
        if self.system != other.system:
            return [("system", self.system, other.system)]
        pairs = [
            (name, getattr(self.config, name), getattr(other.config, name))
            for name, field in flag_fields(type(self.config)).items()
            if not field.info.unused
        ]
        return [(name, old, new) for name, old, new in pairs if old != new]

    def ignored(self) -> list[str]:
        """A sentence for every flag that was changed although it has no effect."""
        return [
            f"--{name}={getattr(self.config, name)} is ignored: {field.info.unused}"
            for name, field in flag_fields(type(self.config)).items()
            if field.info.unused and getattr(self.config, name) != field.default
        ]


def parse(argv: Sequence[str]) -> Settings:
    """Settings of a training command.

    Presets come first, left to right; then the other arguments, flagfiles where they stand, later ones winning. The
    system is that of `--system`, or else the one that has the first preset. Where only `--run=DIR` names an existing
    run, its settings are the start and the other arguments change them. `--help` and `--list_hps` print and exit.

    Args:
      argv: arguments without the program's name.

    Raises:
      SettingsError: for anything unknown, out of range or contradictory.
    """
    words = commandline.expand(argv)
    (chosen,), words = commandline.take_words(words, _Selection)
    if chosen.system:
        systems.known(chosen.system)
    if chosen.list_hps:
        print(presets.listing([chosen.system] if chosen.system else systems.NAMES))
        raise SystemExit(0)
    if not (chosen.system or chosen.hps or chosen.hparam_sets or chosen.help):
        stored = _stored_words(words)
        (chosen,), words = commandline.take_words([*stored, *words], _Selection)
    names = tuple(name.strip() for name in (chosen.hps or chosen.hparam_sets).split(",") if name.strip())
    system = chosen.system or (presets.system_of(names[0]) if names else "")
    if chosen.help:
        print(_train_help(system))
        raise SystemExit(0)
    if not system:
        raise SettingsError(
            "name a preset, --hps=PRESET (--list_hps lists them), or a system: "
            + ", ".join(f"--system={name}" for name in systems.NAMES)
        )
    config_class = systems.load_config(system)
    words = [*presets.words_of(system, names), *words]
    config, run = commandline.parse_words(words, config_class, RunSettings)
    if hasattr(config, "check"):
        config.check()
    used = names or tuple(name for name in chosen.presets_used.split(",") if name)
    return Settings(system, used, config, run)


def _stored_words(words: Sequence[Word]) -> list[Word]:
    """The flags of the run that `--run` names; none if there is no such run yet."""
    (choice,), _ = commandline.take_words(words, _RunChoice)
    path = pathlib.Path(choice.run) / FLAGS_FILE
    return commandline.read_flagfile(path) if choice.run and path.is_file() else []


def read_run(run_dir: str | os.PathLike) -> Settings:
    """Settings of an existing run.

    Raises:
      SettingsError: if the folder is missing, or is not the folder of a run.
    """
    run_dir = pathlib.Path(run_dir)
    if not (run_dir / FLAGS_FILE).is_file():
        what = f"it has no {FLAGS_FILE}" if run_dir.is_dir() else "there is no such folder"
        runs = [str(path.parent) for path in run_dir.parent.glob(f"*/{FLAGS_FILE}")]
        near = did_you_mean(str(run_dir), runs)
        raise SettingsError(f"{run_dir} is not a run: {what}.{near} `python -m tfgen.train --hps=PRESET` makes one")
    return parse([f"--run={run_dir}"])


def parse_for_run(
    argv: Sequence[str], options_class: type, options_class_of: Callable[[type[System]], type] | None = None
) -> tuple[Settings, Any, Any]:
    """Arguments of a command that works on an existing run.

    Args:
      argv: arguments without the program's name.
      options_class: settings class of the command's own flags; one of them is `run`, the folder.
      options_class_of: gives the settings class of the flags that the run's system adds.

    Returns:
      The settings of the run, an instance of `options_class`, and one of the system's class (None without one).

    Raises:
      SettingsError: if there is no such run, or for a bad option.
    """
    usage = f"python -m tfgen.{pathlib.Path(sys.argv[0]).stem} --run=DIR [--flag=value ...]"
    (chosen, choice), words = commandline.take_words(commandline.expand(argv), _Selection, _RunChoice)
    if chosen.help and not choice.run:
        print(f"{usage}\n\n{commandline.help_text('Flags', options_class)}")
        if options_class_of:
            print("\n--run=DIR --help lists the flags of the run's system as well.")
        raise SystemExit(0)
    if not choice.run:
        raise SettingsError(f"name a run: {usage}")
    settings = read_run(choice.run)
    classes = [options_class]
    if options_class_of:
        classes.append(options_class_of(systems.load(settings.system)))
    if chosen.help:
        titles = ("Flags", f"Flags of the system {settings.system}")[: len(classes)]
        parts = [commandline.help_text(title, part) for title, part in zip(titles, classes, strict=True)]
        print("\n\n".join([usage, *parts]))
        raise SystemExit(0)
    words = [Word(commandline.to_line("run", choice.run)), *words]
    options, rest = commandline.take_words(words, *classes)
    for word in rest:
        if word.flag_name in flag_fields(type(settings.config)):
            raise word.error(f"--{word.flag_name} belongs to the training and is read from {choice.run}: leave it out")
    commandline.parse_words(rest, *classes)  # complains about what is left
    return settings, options[0], options[1] if options_class_of else None


def _train_help(system: str) -> str:
    parts = [
        "python -m tfgen.train --hps=PRESET[,PRESET ...] [--run=DIR] [--flag=value ...]\n\n"
        "Trains a published system. Typing the same command again resumes the run.",
        commandline.help_text("Choosing what to train", _Selection),
        commandline.help_text("Flags of the trainer", RunSettings),
    ]
    if system:
        parts.append(commandline.help_text(f"Flags of the system {system}", systems.load_config(system)))
    else:
        parts.append("--system=NAME --help lists the flags of a system as well.")
    return "\n\n".join(parts)
