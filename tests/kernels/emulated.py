"""Compiles CUDA launchers and kernels as C++ for the CPU, with `cuda_emulation/` in place of CUDA's headers."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

from tests.kernels import build

EMULATION = Path(__file__).parent / "cuda_emulation"
# Fibers leave by longjmp what they entered by setcontext, which hardened builds of the C library forbid.
FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas")


def compile_emulated(source: str, library: Path) -> ctypes.CDLL:
    command = [build.compiler(), *FLAGS, f"-I{EMULATION}", "-I.", "-x", "c++", source, "-o", str(library), "-ldl"]
    done = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.tfgen_emulated_error.restype = loaded.tfgen_emulated_kernels.restype = ctypes.c_char_p
    return loaded
