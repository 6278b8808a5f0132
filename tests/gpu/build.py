"""Compiles the CUDA sources with nvcc, without TensorFlow."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
NAMES = ("blocksparse", "langevin")  # each has kernels/NAME/NAME.cu
ARCHITECTURES = ("80", "90")  # A100; H100 and H200


def nvcc() -> str | None:
    """The compiler: of $CUDA_HOME, on the path, or in the usual folder."""
    folders = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates = [os.path.join(folder, "bin", "nvcc") for folder in folders if folder]
    return next((found for found in map(shutil.which, [*candidates[:-1], "nvcc", candidates[-1]]) if found), None)


def command(name: str, compiler: str, architectures: tuple[str, ...], *options: str) -> list[str]:
    """The command that compiles kernels/NAME/NAME.cu for these architectures, but for -o."""
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    return [
        compiler,
        "-O3",
        "-std=c++17",
        "-Xcompiler",
        "-fPIC",
        f"-I{ROOT}",
        *targets,
        *options,
        str(KERNELS / name / f"{name}.cu"),
    ]


@functools.cache
def library(name: str = "blocksparse") -> pathlib.Path:
    """The shared library of kernels/NAME for the card of this machine, compiled once for each state of the sources.

    Raises:
      RuntimeError: if nvcc is missing or fails, with what it printed.
    """
    import torch

    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("nvcc not found: install the CUDA toolkit, or set CUDA_HOME to its folder")
    major, minor = torch.cuda.get_device_capability()
    paths = [path for folder in ("common", name) for path in sorted((KERNELS / folder).glob("*.*h"))]
    sources = b"".join(path.read_bytes() for path in [*paths, KERNELS / name / f"{name}.cu"])
    digest = hashlib.sha256(sources).hexdigest()[:16]
    target = ROOT / "build" / "gpu" / f"{name}-sm{major}{minor}-{digest}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = pathlib.Path(folder) / target.name
            words = [*command(name, compiler, (f"{major}{minor}",), "-shared"), "-o", str(built)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
            built.rename(target)  # whole or not at all, whoever else builds
    return target


def reason_to_skip() -> str | None:
    """Why the launchers cannot run on this machine, or None."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: the launchers are tested with its tensors"
    import torch

    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the kernels need a card of compute capability 8.0 (A100) or later"
    if nvcc() is None:
        return "nvcc not found: install the CUDA toolkit, or set CUDA_HOME to its folder"
    return None
