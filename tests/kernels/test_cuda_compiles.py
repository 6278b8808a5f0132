from __future__ import annotations

import re
import subprocess

import pytest

from tests.gpu import build

# The widest kernels hold more sums than a thread has registers (255); what overflows lives in the L1 cache.
MOST_SPILLED_BYTES = 512


def spills(log: str) -> dict[str, int]:
    """Bytes that each kernel of the output of `ptxas -v` stores to memory for want of registers, by mangled name."""
    found = re.findall(r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores", log, flags=re.DOTALL)
    return {name: int(count) for name, count in found}


@pytest.mark.skipif(build.nvcc() is None, reason="nvcc not found: the CUDA kernels are not compiled")
@pytest.mark.parametrize("architecture", build.ARCHITECTURES)
def test_compiles_without_tensorflow_and_hardly_spills(architecture, tmp_path):
    words = build.command(build.nvcc(), (architecture,), "-c", "-Xptxas", "-v", "-Xcompiler", "-Wall,-Wextra,-Werror")
    done = subprocess.run([*words, "-o", str(tmp_path / "o.o")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    by_kernel = spills(done.stdout + done.stderr)
    families = {family: [name for name in by_kernel if family in name] for family in ("tensorcore", "fma")}
    assert all(families.values()), families
    assert {name: count for name, count in by_kernel.items() if count > MOST_SPILLED_BYTES} == {}


def test_reads_spills_of_every_kernel():
    entry = "ptxas info : Compiling entry function '{}' for 'sm_90'\n  8 bytes stack frame, {} bytes spill stores\n"
    assert spills(entry.format("one", 0) + entry.format("two", 12)) == {"one": 0, "two": 12}
