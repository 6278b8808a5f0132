"""What an installed tfgen contains and needs, seen from outside the checkout."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

PROJECT = pathlib.Path(__file__).resolve().parents[1]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def run(*command: str | os.PathLike, folder: pathlib.Path, path: pathlib.Path) -> str:
    """Output of a command in `folder` whose Python imports from `path` before anything else."""
    environment = os.environ | {"PYTHONPATH": str(path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A wheel, built from a copy of the sources so that nothing is left in the checkout."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, source)
    for name in ("tfgen", "flags"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", work)
    run(*PIP, "wheel", *options, source, folder=work, path=work)
    (path,) = work.glob("tfgen-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path) -> pathlib.Path:
    """The folder that an import path needs so that `import tfgen` finds the wheel's content."""
    target = wheel.parent / "installed"
    run(*PIP, "install", "--no-deps", "--no-index", "--target", target, wheel, folder=wheel.parent, path=wheel.parent)
    return target


def test_wheel_holds_the_package_and_every_preset_and_nothing_else(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "tfgen").rglob("*.py")}
    presets = {f"tfgen/{path.relative_to(PROJECT).as_posix()}" for path in (PROJECT / "flags").glob("*/*.flags")}
    assert presets
    assert packed == modules | presets


def test_installed_wheel_finds_its_own_presets(installed, tmp_path):
    program = "import tfgen, tfgen.presets; print(tfgen.__file__); print(tfgen.presets.folder())"
    package, presets = run(sys.executable, "-c", program, folder=tmp_path, path=installed).split()
    assert pathlib.Path(package).parent == installed / "tfgen"
    assert pathlib.Path(presets) == installed / "tfgen" / "flags"


def test_installed_wheel_lists_the_presets_of_the_checkout(installed, tmp_path):
    command = (sys.executable, "-m", "tfgen.train", "--list_hps")
    listing = run(*command, folder=tmp_path, path=installed)
    assert listing == run(*command, folder=tmp_path, path=PROJECT)
    assert "c10_small" in listing


def test_no_module_imports_horovod(tmp_path):
    program = """
import importlib, pkgutil, sys
import tfgen

names = [module.name for module in pkgutil.walk_packages(tfgen.__path__, "tfgen.")]
for name in names:
    importlib.import_module(name)
assert "tfgen.distribute" in names
assert "tfgen.systems.base" in names
print([name for name in sys.modules if name.partition(".")[0] == "horovod"])
"""
    assert run(sys.executable, "-c", program, folder=tmp_path, path=PROJECT).strip() == "[]"
