"""The instruction sets of the CPU kernels, and tests of each in a process of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import build
from tests.seeds import SEED

ISAS = ("portable", "avx2", "avx512", "avx512_bf16")  # each can do what those before it can


def check_in_own_process(kernels: ctypes.CDLL, library: Path, module: str, isa: str) -> None:
    """Runs `python -m MODULE LIBRARY ISA`: kernels choose once a process, so each set below the best needs its own."""
    if "TFGEN_CPU_ISA" in os.environ:
        pytest.skip("this is the process of one instruction set")
    best = kernels.tfgen_blocksparse_cpu_isa().decode()
    if ISAS.index(isa) > ISAS.index(best):
        pytest.skip(f"this machine runs {best} at most")
    environment = {**os.environ, "TFGEN_CPU_ISA": isa, "TFGEN_TEST_SEED": str(SEED)}
    command = [sys.executable, "-m", module, str(library), isa]
    done = subprocess.run(command, cwd=build.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
