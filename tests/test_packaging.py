"""What an installed tfgen contains and needs, seen from outside the checkout."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
import tensorflow as tf

PROJECT = pathlib.Path(__file__).resolve().parents[1]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def run(*command: str | os.PathLike, folder: pathlib.Path, path: pathlib.Path, **variables: str) -> str:
    """Output of a command in `folder` whose Python imports from `path` before anything else."""
    environment = os.environ | {"PYTHONPATH": str(path), "TF_CPP_MIN_LOG_LEVEL": "3"} | variables
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
    for name in ("tfgen", "flags", "kernels"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", work)
    # nvcc takes minutes, and optimising the kernels most of one: the tests of the kernels have those of the checkout.
    quick = {"TFGEN_CUDA": "0", "TFGEN_KERNEL_CXXFLAGS": "-O0"}
    run(*PIP, "wheel", *options, source, folder=work, path=work, **quick)
    (path,) = work.glob("tfgen-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path) -> pathlib.Path:
    """The folder that an import path needs so that `import tfgen` finds the wheel's content."""
    target = wheel.parent / "installed"
    run(*PIP, "install", "--no-deps", "--no-index", "--target", target, wheel, folder=wheel.parent, path=wheel.parent)
    return target


def kernels() -> set[str]:
    """The library that a build here leaves in the package."""
    return {f"tfgen/_kernels_tf{tf.__version__}.so"} if shutil.which("g++") or shutil.which("c++") else set()


def test_wheel_holds_the_package_and_every_preset_and_nothing_else(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "tfgen").rglob("*.py")}
    presets = {f"tfgen/{path.relative_to(PROJECT).as_posix()}" for path in (PROJECT / "flags").glob("*/*.flags")}
    assert presets
    assert packed == modules | presets | kernels()


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


ATTENTION = """
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
import tensorflow as tf
from tfgen.ops import blocksparse, library
print(library.__file__)
print(library.load() is not None)
tensor = tf.ones([1, 32, 8])
print(float(tf.reduce_sum(blocksparse.attention(tensor, tensor, tensor, blocksparse.Pattern("a", 32, 8, 8), 2))))
"""


def test_installed_wheel_computes_attention_with_its_kernels(installed, tmp_path):
    module, compiled, total = run(sys.executable, "-c", ATTENTION, folder=tmp_path, path=installed).split()
    assert pathlib.Path(module).parents[1] == installed / "tfgen"
    assert compiled == str(bool(kernels()))
    assert float(total) == pytest.approx(32 * 8)


@pytest.mark.parametrize("found", ["", "_kernels_tf2.14.0.so"])
def test_without_kernels_for_this_tensorflow_it_says_so_and_computes(found, tmp_path):
    shutil.copytree(PROJECT / "tfgen", tmp_path / "tfgen", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    if found:
        (tmp_path / "tfgen" / found).write_bytes(b"a library that must not be opened")
    command = (sys.executable, "-c", "import sys; sys.stderr = sys.stdout\n" + ATTENTION)
    lines = run(*command, folder=tmp_path, path=tmp_path).splitlines()
    (warning,) = (line for line in lines if line.startswith("compiled kernels: "))
    assert (f"found {found}, built for another TensorFlow" if found else "not built") in warning
    assert "pip install --no-build-isolation -e ." in warning
    assert lines[-2:] == ["False", "256.0"]


def test_without_a_compiler_the_wheel_is_pure(tmp_path):
    source = tmp_path / "source"
    for name in ("tfgen", "flags", "kernels"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, source)
    command = (sys.executable, "setup.py", "bdist_wheel")
    done = subprocess.run(
        command, cwd=source, env=os.environ | {"CXX": "no-such-compiler"}, capture_output=True, text=True, check=True
    )
    assert "no compiled kernels, everything runs in plain TensorFlow: there is no C++ compiler" in done.stderr
    (path,) = (source / "dist").glob("tfgen-*-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(path).namelist() if name.endswith(".so")]


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
