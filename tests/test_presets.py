"""Preset files: headers, parameter counts, look-up in a checkout and in a wheel."""

from __future__ import annotations

import json
import pathlib

import pytest

from tfgen import presets, systems
from tfgen.commandline import parse_words
from tfgen.data.source import ImageSpec
from tfgen.settings import RunSettings, SettingsError
from tfgen.systems.distaug.config import Config, parameter_count

SPECS = {"imagenet64": ImageSpec(64, 64, 3), "digits": ImageSpec(8, 8, 1, 10)}  # all others: 32x32x3
ALL = presets.names("distaug")
FRAGMENTS = {"good_base_sm", "good_base_med", "good_base_lg", "sample-during-eval-8gpu"}


def resolve(name: str) -> Config:
    config, _ = parse_words(presets.find("distaug", name).words(), Config, RunSettings)
    return config


@pytest.mark.parametrize("name", ALL)
def test_header_states_the_parameter_count(name):
    preset, config = presets.find("distaug", name), resolve(name)
    assert preset.description.endswith(".")
    assert preset.source
    assert preset.parameters == parameter_count(config, SPECS.get(config.dataset, ImageSpec(32, 32, 3)))


def test_headers_agree_with_the_recorded_counts():
    path = pathlib.Path(__file__).parent / "golden" / "distaug" / "presets.json"
    recorded = {
        name: preset["trainable_parameters"] for name, preset in json.loads(path.read_text())["presets"].items()
    }
    assert len(recorded) == 69
    assert {name: presets.find("distaug", name).parameters for name in recorded} == recorded


@pytest.mark.parametrize("name", ALL)
def test_a_preset_is_valid_or_refused_or_a_fragment(name):
    preset, config = presets.find("distaug", name), resolve(name)
    try:
        config.validate(SPECS.get(config.dataset, ImageSpec(32, 32, 3)))
    except SettingsError:
        assert preset.refused or name in FRAGMENTS
    else:
        assert name not in FRAGMENTS
        assert not preset.refused or "linf_pgd" in preset.refused


def test_every_alias_of_the_original_scripts_resolves_to_its_twin():
    aliases = [name for name in ALL if name.startswith("c10_small")]
    assert len(aliases) == 14
    for alias in aliases:
        twin = alias.replace("c10_small", "c10_15m")
        assert resolve(alias) == resolve(twin)
        assert presets.find("distaug", alias).weights == presets.find("distaug", twin).weights


def test_listing_has_every_preset_with_its_count_or_refusal():
    lines = presets.listing(systems.NAMES).splitlines()
    assert len(lines) == sum(len(presets.names(name)) for name in systems.NAMES) + len(systems.NAMES)
    assert any("c10_15m_rot " in line and "14,911,744" in line for line in lines)
    assert any("c10_150m_pgd1 " in line and "REFUSED" in line for line in lines)


def test_presets_of_a_wheel_are_found(tmp_path, monkeypatch):
    package = tmp_path / "tfgen"
    (package / "flags" / "distaug").mkdir(parents=True)
    (package / "flags" / "distaug" / "packed.flags").write_text("# Packed.\n--n_layer=2\n")
    monkeypatch.setattr(presets, "_PACKAGE", package)
    assert presets.names("distaug") == ["packed"]
    # A checkout's presets win over packed ones; a folder `flags` that holds no system is somebody else's.
    (tmp_path / "flags").mkdir()
    assert presets.names("distaug") == ["packed"]
    (tmp_path / "flags" / "distaug").mkdir()
    (tmp_path / "flags" / "distaug" / "fresh.flags").write_text("# Fresh.\n--n_layer=3\n")
    assert presets.names("distaug") == ["fresh"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--n_layer=2\n", "does not start with a line"),
        ("# What.\n# autor: me\n", "header line 'autor: me' is not"),
        ("# What.\n# source: a\n# source: b\n", "with a new KEY"),
    ],
)
def test_bad_header(tmp_path, monkeypatch, text, message):
    folder = tmp_path / "flags" / "distaug"
    folder.mkdir(parents=True)
    (folder / "bad.flags").write_text(text)
    monkeypatch.setattr(presets, "_PACKAGE", tmp_path / "tfgen")
    with pytest.raises(SettingsError, match=message):
        presets.find("distaug", "bad")


def test_a_preset_of_two_systems_needs_the_system_named(tmp_path, monkeypatch):
    for system in ("distaug", "other"):
        folder = tmp_path / "flags" / system
        folder.mkdir(parents=True)
        (folder / "same.flags").write_text("# Same.\n")
    monkeypatch.setattr(presets, "_PACKAGE", tmp_path / "tfgen")
    monkeypatch.setattr(systems, "NAMES", ("distaug", "other"))
    with pytest.raises(SettingsError, match="several systems have a preset 'same'"):
        presets.system_of("same")
