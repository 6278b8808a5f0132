"""Words of a command line: spellings, flagfiles, values and complaints."""

from __future__ import annotations

import dataclasses

import pytest

from tfgen.commandline import expand, help_text, parse_words, read_flagfile, take_words
from tfgen.settings import SettingsError, check_values, flag


@dataclasses.dataclass(frozen=True)
class Options:
    width: int = flag(8, "Width.", minimum=1, maximum=64, group="Shape")
    rate: float = flag(0.5, "Rate.", minimum=0.0, below=1.0)
    limit: int | None = flag(None, "Limit.", minimum=1)
    name: str = flag("x", "Name.")
    kind: str = flag("small", "Kind.", choices=("small", "large"))
    fast: bool = flag(False, "Fast.")
    no_rounding: bool = flag(False, "Keep numbers as they are.")
    use_labels: bool = flag(True, "Labels.", negative="no_labels")
    old: int = flag(3, "Old.", unused="nobody reads it")

    def __post_init__(self):
        check_values(self)


def parse(*arguments: str) -> Options:
    (options,) = parse_words(expand(arguments), Options)
    return options


def test_defaults():
    assert parse() == Options()


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--width=16"], "width", 16),
        (["--width", "16"], "width", 16),
        (["-width=16"], "width", 16),
        (["--width=16", "--width=4"], "width", 4),
        (["--rate=1e-3"], "rate", 1e-3),
        (["--limit=5"], "limit", 5),
        (["--limit=5", "--limit=None"], "limit", None),
        (["--limit=5", "--limit=none"], "limit", None),
        (["--name=a=b,c"], "name", "a=b,c"),
        (["--name="], "name", ""),
        (["--name", "--width"], "name", "--width"),
        (["--fast"], "fast", True),
        (["--fast=True"], "fast", True),
        (["--fast", "--fast=false"], "fast", False),
        (["--fast", "True"], "fast", True),
        (["--use_labels", "False"], "use_labels", False),
        (["--use_labels", "no", "--nofast"], "use_labels", False),
        (["--fast=y"], "fast", True),
        (["--fast=Yes"], "fast", True),
        (["--use_labels=N"], "use_labels", False),
        (["--name", "true"], "name", "true"),
        (["--fast", "--nofast"], "fast", False),
        (["--fast", "--no_fast"], "fast", False),
        (["--no_rounding"], "no_rounding", True),
        (["--no_rounding", "--no_no_rounding"], "no_rounding", False),
        (["--no_labels"], "use_labels", False),
        (["--no_use_labels"], "use_labels", False),
    ],
)
def test_spellings(arguments, name, value):
    assert parse(*arguments) == dataclasses.replace(Options(), **{name: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--widht=16"], "unknown flag --widht. Did you mean --width"),
        (["--no_fats"], "unknown flag --no_fats. Did you mean --no_fast"),
        (["--width=0"], "--width=0: expected an integer of at least 1 and of at most 64"),
        (["--width=65"], "of at most 64"),
        (["--width=2.5"], "--width=2.5: expected an integer"),
        (["--width=None"], "expected an integer"),
        (["--rate=1"], "--rate=1.0: expected a number of at least 0 and below 1"),
        (["--rate=nan"], "--rate=nan: expected a number"),
        (["--rate=fast"], "--rate=fast: expected a number"),
        (["--limit=0"], "an integer of at least 1, or None"),
        (["--kind=medium"], "expected one of small, large"),
        (["--fast=maybe"], "--fast=maybe: expected true or false"),
        (["--no_fast=true"], "--no_fast takes no value"),
        (["--width"], "--width lacks its value"),
        (["16"], "unexpected argument '16'"),
        (["--flagfile=nowhere.flags"], "flagfile not found: nowhere.flags"),
        (["--name=a\nb"], "expected one line of text"),
    ],
)
def test_complaints(arguments, message):
    with pytest.raises(SettingsError, match=message.replace("(", r"\(")):
        parse(*arguments)


def test_take_words_leaves_the_words_of_others():
    (options,), rest = take_words(expand(["--other", "--width=2", "--more=1", "stray"]), Options)
    assert options.width == 2
    assert [word.text for word in rest] == ["--other", "--more=1", "stray"]


def test_two_classes_must_not_share_a_flag():
    @dataclasses.dataclass(frozen=True)
    class Other:
        width: int = flag(1, "Width.")

    with pytest.raises(TypeError, match="--width is defined twice"):
        parse_words([], Options, Other)


def test_flagfiles_include_relative_to_themselves_then_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "child.flags").write_text("# a child\n--flagfile=parent.flags\n\n--rate=0.25\n")
    (tmp_path / "deep" / "parent.flags").write_text("--width=2\n--rate=0.75\n--flagfile=root.flags\n")
    (tmp_path / "root.flags").write_text("// the root\n--name=root\n")
    monkeypatch.chdir(tmp_path)
    options = parse("--flagfile=deep/child.flags", "--width=3")
    assert (options.width, options.rate, options.name) == (3, 0.25, "root")
    assert parse("--width=3", "--flagfile=deep/child.flags").width == 2


def test_flagfiles_that_include_each_other(tmp_path):
    (tmp_path / "a.flags").write_text("--flagfile=b.flags\n")
    (tmp_path / "b.flags").write_text("--flagfile=a.flags\n")
    with pytest.raises(SettingsError, match=r"includes itself: .*a\.flags -> .*b\.flags -> .*a\.flags"):
        read_flagfile(tmp_path / "a.flags")


def test_the_same_parent_twice_is_no_cycle(tmp_path):
    (tmp_path / "a.flags").write_text("--flagfile=b.flags\n--flagfile=b.flags\n")
    (tmp_path / "b.flags").write_text("--width=5\n")
    assert len(read_flagfile(tmp_path / "a.flags")) == 2


@pytest.mark.parametrize("line", ["--widht=3", "--width=many", "width=3"])
def test_complaints_about_a_flagfile_name_file_and_line(tmp_path, line):
    path = tmp_path / "a.flags"
    path.write_text(f"# header\n{line}\n")
    with pytest.raises(SettingsError, match=r"a\.flags:2: "):
        parse(f"--flagfile={path}")


def test_help_names_everything():
    text = help_text("Options", Options)
    for field in dataclasses.fields(Options):
        assert field.name in text
    for part in ("Shape", "default: 8", "at most 64", "one of small, large", "No effect: nobody reads it"):
        assert part in text
