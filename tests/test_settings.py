"""Settings of a training command, and of the commands that work on a run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from tfgen import settings as settings_module
from tfgen import systems
from tfgen.settings import FLAGS_FILE, RunSettings, SettingsError, flag, parse, parse_for_run, read_run
from tfgen.systems.distaug.config import Config


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_run(path, *arguments):
    settings = parse([*arguments, f"--run={path}"])
    path.mkdir(parents=True)
    (path / FLAGS_FILE).write_text(settings.to_flagfile())
    return settings


def test_presets_compose_left_to_right_and_flags_win():
    assert parse(["--hps=good_base_sm,good_base_med"]).config.n_batch == 4
    assert parse(["--hps=good_base_med,good_base_sm"]).config.n_batch == 16
    assert parse(["--n_batch=7", "--hps=good_base_sm,good_base_med"]).config.n_batch == 7
    assert parse(["--hparam_sets", "good_base_sm, good_base_med"]).presets == ("good_base_sm", "good_base_med")


def test_a_flagfile_stands_where_it_is_named(tmp_path):
    (tmp_path / "mine.flags").write_text("--hps=demo\n--lr=0.5\n")
    assert parse(["--flagfile=mine.flags"]).config.lr == 0.5
    assert parse(["--lr=0.1", "--flagfile=mine.flags"]).config.lr == 0.5
    assert parse(["--flagfile=mine.flags", "--lr=0.1"]).config.lr == 0.1
    assert parse(["--flagfile=mine.flags"]).presets == ("demo",)


def test_system_comes_from_the_preset_or_the_flag():
    assert parse(["--hps=demo"]).system == "distaug"
    assert parse(["--system=distaug"]).config == Config()


def test_parsing_leaves_no_trace_behind():
    parse(["--hps=demo", "--lr=0.1"])
    assert parse(["--system=distaug"]).config == Config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"name a preset, --hps=PRESET .* --system=distaug"),
        (["--hps=dmeo"], r"no preset 'dmeo'\. Did you mean demo"),
        (["--hps=demo,c10_smal"], r"no preset 'c10_smal'\. Did you mean c10_small"),
        (["--system=distag"], r"no system 'distag'.*Did you mean distaug"),
        (["--system=distag", "--list_hps"], r"no system 'distag'"),
        (["--hps=demo", "--n_layers=3"], r"unknown flag --n_layers\. Did you mean --n_layer"),
        (["--hps=demo", "--n_layer=0"], r"--n_layer=0: expected an integer of at least 1"),
        (["--hps=demo", "--keep_last=0"], r"--keep_last=0: expected an integer of at least 1"),
        (["--hps=demo", "--precision=float64"], r"expected one of auto, float32, mixed_bfloat16, mixed_float16"),
        (["--hps=demo", "--profile_steps=15:10"], r"--profile_steps=15:10: expected FIRST:LAST"),
        (["--hps=demo", "--n_layer=3"], r"--n_layer=3 is no multiple of the 2 modes"),
        (["--hps=c10_150m_pgd1"], r"c10_150m_pgd1 cannot be used: .*linf_pgd_epsilon.*linf_pgd_n.*linf_pgd_a"),
        (["--hps=imagenet64-8gpu"], r"cannot be used: .*8192.*12288.*i64_150m_32gpu"),
        (["--hps=c10_15m", "--dataset=imagenet32cifar"], r"imagenet32cifar does not exist"),
    ],
)
def test_complaints(arguments, message):
    with pytest.raises(SettingsError, match=message):
        parse(arguments)


def test_run_folder():
    assert str(parse(["--hps=demo"]).run_path) == "runs/demo"
    assert str(parse(["--hps=good_base_sm,cifar10"]).run_path) == "runs/good_base_sm+cifar10"
    assert str(parse(["--system=distaug"]).run_path) == "runs/distaug"
    assert str(parse(["--hps=demo", "--run=here/x"]).run_path) == "here/x"
    assert str(parse(["--hps=demo", "--out_dir=out", "--desc=first"]).run_path) == "out/first"
    assert str(parse(["--hps=demo", "--out_dir=out", "--run=here"]).run_path) == "here"


def test_original_output_folder_follows_home(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(parse(["--hps=demo", "--desc=first"]).run_path) == "/somewhere/dist-aug/first"


def test_flagfile_reproduces_the_run(tmp_path):
    settings = parse(
        ["--hps=demo", "--lr=0.0001234", "--no_permute_embeddings", "--datapoints=10", "--steps=7", "--dry_run"]
    )
    text = settings.to_flagfile()
    (tmp_path / "copy.txt").write_text(text)
    again = parse(["--flagfile=copy.txt"])
    assert again.config == settings.config
    assert again.presets == ("demo",)
    assert again.run.steps == 7
    assert not again.run.dry_run  # an act of one command, not a setting of the run
    assert again.to_flagfile() == text
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    assert lines[1] == "--system=distaug"
    for field in dataclasses.fields(Config):
        assert sum(line.startswith(f"--{field.name}=") for line in lines) == 1


def test_read_run(tmp_path):
    made = make_run(tmp_path / "runs" / "a", "--hps=demo", "--n_batch=3")
    assert read_run(tmp_path / "runs" / "a") == made
    with pytest.raises(SettingsError, match=r"there is no such folder\. Did you mean .*runs/a"):
        read_run(tmp_path / "runs" / "aa")
    with pytest.raises(SettingsError, match=r"runs is not a run: it has no flags\.txt"):
        read_run(tmp_path / "runs")


def test_naming_only_the_run_starts_from_its_settings(tmp_path):
    make_run(tmp_path / "a", "--hps=demo", "--n_batch=3", "--keep_last=5")
    again = parse(["--run=a", "--steps=9"])
    assert (again.config.n_batch, again.run.keep_last, again.run.steps) == (3, 5, 9)
    assert again.presets == ("demo",)
    assert str(again.run_path) == "a"
    assert parse(["--run=a", "--lr=0.5"]).config == dataclasses.replace(again.config, lr=0.5)
    # A preset or a system says everything anew.
    assert parse(["--run=a", "--hps=demo"]).config.n_batch == parse(["--hps=demo"]).config.n_batch != 3
    assert parse(["--run=a", "--system=distaug"]).config == Config()


def test_differences():
    old, new = parse(["--hps=demo"]), parse(["--hps=demo", "--lr=0.5", "--activation=relu", "--steps=3"])
    assert old.differences(new) == [("lr", old.config.lr, 0.5)]
    assert old.differences(old) == []


def test_ignored_flags_are_named():
    assert parse(["--hps=c10_15m"]).ignored() == []
    sentences = parse(["--hps=c10_15m", "--activation=relu", "--preconv_w=1"]).ignored()
    assert len(sentences) == 2
    assert "--activation=relu is ignored: the activation is always" in sentences[0]


def test_as_dict_has_every_flag():
    values = parse(["--hps=demo"]).as_dict()
    assert values["n_embd"] == parse(["--hps=demo"]).config.n_embd
    assert values["keep_last"] == 3
    assert len(values) == len(dataclasses.fields(Config)) + len(dataclasses.fields(RunSettings))


@pytest.mark.parametrize("arguments", [["--help"], ["--hps=demo", "--help"], ["--list_hps"], ["--list_hps", "--hps=x"]])
def test_texts_that_end_the_command(arguments, capsys):
    with pytest.raises(SystemExit) as ending:
        parse(arguments)
    assert ending.value.code == 0
    text = capsys.readouterr().out
    assert ("n_embd" in text) == ("--hps=demo" in arguments)
    assert ("c10_small_rot" in text) == ("--list_hps" in arguments)


def test_nothing_here_needs_tensorflow():
    program = (
        "import sys\n"
        "from tfgen import settings\n"
        "settings.parse(['--hps=demo']).config.check()\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'keras')))\n"
    )
    root = settings_module.__file__.rsplit("/", 2)[0]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Commands on an existing run ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Own:
    run: str = flag("", "run folder")
    count: int = flag(16, "images", minimum=1)


@dataclasses.dataclass(frozen=True)
class OfSystem:
    temperature: float | None = flag(None, "temperature", minimum=0.0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load", lambda name: {"distaug": OfSystem}[name])
    make_run(tmp_path / "a", "--hps=demo")
    return str(tmp_path / "a")


def options_of(system):
    return system


def test_parse_for_run(run):
    settings, own, of_system = parse_for_run([f"--run={run}", "--count=3", "--temperature=0.5"], Own, options_of)
    assert settings.config.dataset == "digits"
    assert own == Own(run=run, count=3)
    assert of_system == OfSystem(0.5)
    assert parse_for_run(["--run", run], Own)[1:] == (Own(run=run), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cuont=3"], "unknown flag --cuont. Did you mean --count"),
        (["--count=0"], "--count=0: expected an integer of at least 1"),
        (["--n_layer=4"], "--n_layer belongs to the training and is read from"),
    ],
)
def test_parse_for_run_complaints(run, arguments, message):
    with pytest.raises(SettingsError, match=message):
        parse_for_run([f"--run={run}", *arguments], Own, options_of)


def test_parse_for_run_needs_a_run(tmp_path):
    with pytest.raises(SettingsError, match="name a run: "):
        parse_for_run(["--count=3"], Own, options_of)
    with pytest.raises(SettingsError, match="is not a run: there is no such folder"):
        parse_for_run([f"--run={tmp_path / 'b'}"], Own, options_of)


def test_parse_for_run_help(run, capsys):
    for arguments, named in ([["--help"], False], [["--help", f"--run={run}"], True]):
        with pytest.raises(SystemExit):
            parse_for_run(arguments, Own, options_of)
        text = capsys.readouterr().out
        assert "--count" in text
        assert ("--temperature" in text) == named
