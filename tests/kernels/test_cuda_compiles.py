from __future__ import annotations

import re
import subprocess

import pytest

from tests.gpu import build

# A thread has 255 registers, and fewer where many must fit; what overflows lives in the L1 cache.
MOST_SPILLED_BYTES = {
    "blocksparse": {"tensorcore": 16, "pipelined": 16, "fma": 256},
    "langevin": {"forward": 0, "backward": 0, "noise": 0, "draw": 0, "add_terms": 16, "add_pieces": 0},
}


def spills(log: str) -> dict[str, int]:
    """Bytes that each kernel of the output of `ptxas -v` stores to memory for want of registers, by mangled name."""
    found = re.findall(r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores", log, flags=re.DOTALL)
    return {name: int(count) for name, count in found}


@pytest.mark.skipif(build.nvcc() is None, reason="nvcc not found: the CUDA kernels are not compiled")
@pytest.mark.parametrize("architecture", build.ARCHITECTURES)
@pytest.mark.parametrize("name", build.NAMES)
def test_compiles_without_tensorflow_and_hardly_spills(name, architecture, tmp_path):
    options = "-c", "-Xptxas", "-v", "-Xcompiler", "-Wall,-Wextra,-Werror"
    words = build.command(name, build.nvcc(), (architecture,), *options)
    done = subprocess.run([*words, "-o", str(tmp_path / "o.o")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    by_kernel = spills(done.stdout + done.stderr)
    for family, most in MOST_SPILLED_BYTES[name].items():
        kernels = {kernel: count for kernel, count in by_kernel.items() if family in kernel}
        assert kernels, family
        assert {kernel: count for kernel, count in kernels.items() if count > most} == {}


def test_reads_spills_of_every_kernel():
    entry = "ptxas info : Compiling entry function '{}' for 'sm_90'\n  8 bytes stack frame, {} bytes spill stores\n"
    assert spills(entry.format("one", 0) + entry.format("two", 12)) == {"one": 0, "two": 12}
