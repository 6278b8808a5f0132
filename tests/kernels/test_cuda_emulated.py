"""The CUDA kernels of block-sparse attention on the CPU: launchers and device code, compiled as C++ against float64.

`cuda_emulation/` stands in for CUDA's headers and for the instructions of the kernels. It is exact about lanes,
barriers and asynchronous copies, and reports what would be a race on a device; it says nothing about speed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import re

import numpy as np
import pytest

from tests.kernels import build
from tests.kernels.attention import Result, block_lists
from tests.kernels.emulated import compile_emulated
from tests.kernels.test_blocksparse_cpu import DTYPES, Case, c_lists, check, pointer, random_inputs, random_keep
from tests.seeds import SEED

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

SHORT, LONG = 0, 2**31 - 1  # numbers of entries that make the launchers choose the kernels of short or long rows
GUARD = 64  # elements around each tensor, which no kernel may touch

CASES = {
    # 64 slots are 4 block rows with lists of their own; the last thread block is half empty.
    "blocks_of_16": Case(blocksize=16, blocks=10, per_head=True),
    "blocks_of_16_wide": Case(heads=1, blocksize=16, blocks=6, key_size=72, value_size=120),
    "blocks_of_32": Case(blocks=5, per_head=True),  # 2 block rows; a last one alone
    "blocks_of_32_strided": Case(blocks=4, batch=2, heads=1, stride=8, key_size=40, value_size=24),
    # 32 slots are a run of tokens at equal distances, or two.
    "runs_of_tokens": Case(batch=2, blocks=6, stride=6, per_head=True),
    "broken_runs_of_tokens": Case(blocks=6, stride=4),
    "runs_in_blocks_of_128": Case(blocksize=128, blocks=2, stride=4, partial=0.8),
    "blocks_of_64": Case(blocksize=64, blocks=3, heads=1, key_size=64, value_size=64),
    "blocks_of_64_wide_values": Case(blocksize=64, blocks=3, heads=1, key_size=64, value_size=128, stride=3),
    "blocks_of_128": Case(blocksize=128, blocks=2, heads=1, density=0.8, partial=0.7),  # a block is several steps
    "blocks_of_128_wide": Case(blocksize=128, blocks=2, heads=1, key_size=128, value_size=128, density=0.8),
    "many_steps": Case(heads=1, blocks=16, density=0.9, partial=0.2),
    "sparse": Case(heads=2, blocks=12, blocksize=16, density=0.1, per_head=True),
    "nothing_kept": Case(heads=1, density=0.0),
    "nothing_kept_wide": Case(heads=1, density=0.0, key_size=128, value_size=128),
    "one_block": Case(blocks=1, blocksize=16, density=1.0, partial=0.0, key_size=8, value_size=8),
    "large_logits": Case(heads=1, magnitude=3e3),
    "negative_scale": Case(magnitude=-3.0, partial=0.9),
    "scale_of_zero": Case(magnitude=0.0, partial=0.9),
}
LONG_ROW_KERNELS = {"pipelined forward", "pipelined query", "pipelined key"}
ODD_CASES = {
    "blocks_of_8": Case(blocksize=8, blocks=5, key_size=20, value_size=36),
    "odd_widths": Case(heads=1, blocks=2, key_size=17, value_size=33, stride=2),
    "widest": Case(heads=1, blocks=2, key_size=256, value_size=200),
}


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("emulated") / "blocksparse.so"
    loaded = compile_emulated("kernels/blocksparse/blocksparse.cu", library)
    for name, struct in (("forward", build.Forward), ("backward", build.Backward)):
        getattr(loaded, f"tfgen_blocksparse_{name}_cuda").argtypes = [ctypes.POINTER(struct), ctypes.c_void_p]
    return loaded


@pytest.fixture
def rng() -> np.random.Generator:
    print(f"TFGEN_TEST_SEED={SEED}")  # pytest shows it with a failure
    return np.random.default_rng(SEED)


class Guarded:
    """Copies of arrays, each between elements of NaN."""

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []

    def place(self, array: np.ndarray) -> np.ndarray:
        words = np.full(array.nbytes + 2 * GUARD * array.itemsize + 16, 0xFF, np.uint8)  # bytes 0xff are NaN
        start = -words.ctypes.data % 16  # rows of 16 bytes
        buffer = words[start : start + array.nbytes + 2 * GUARD * array.itemsize].view(array.dtype)
        buffer[GUARD:-GUARD] = array.reshape(-1)
        self._buffers.append(buffer)
        return buffer[GUARD:-GUARD].reshape(array.shape)

    def check(self) -> None:
        for buffer in self._buffers:
            ends = np.concatenate([buffer[:GUARD], buffer[-GUARD:]])
            assert (ends.view(np.uint8) == 0xFF).all(), "a kernel writes beyond a tensor"


def run(
    kernels: ctypes.CDLL, case: Case, inputs: list[np.ndarray], keep: np.ndarray, entries: int
) -> tuple[Result, set[str]]:
    """Results, and the kernels that gave them, as in "pipelined::forward"; `entries` chooses between kernels."""
    guarded = Guarded()
    q, k, v, dout = (guarded.place(x) for x in inputs)
    shape = build.Shape(
        case.batch, case.heads, case.length, case.key_size, case.value_size,
        case.blocksize, case.stride, DTYPES[case.dtype], case.scale,
    )  # fmt: skip
    lists = [block_lists(keep, case.blocksize), block_lists(keep.swapaxes(1, 2), case.blocksize)]
    rows, columns = (c_lists(x) for x in lists)
    rows.entries = columns.entries = entries
    # Results start as NaN: what a kernel leaves out shows.
    out, dq, dk, dv = (guarded.place(np.full_like(x, np.nan)) for x in (v, q, k, v))
    empty = np.full((case.batch, case.heads, case.length), np.nan, np.float32)
    lse, delta = guarded.place(empty), guarded.place(empty)
    forward = build.Forward(shape, rows, *(pointer(x) for x in (q, k, v, out, lse)))
    backward = build.Backward(shape, rows, columns, *(pointer(x) for x in (q, k, v, out, dout, lse, delta, dq, dk, dv)))
    for function, arguments in (
        (kernels.tfgen_blocksparse_forward_cuda, forward),
        (kernels.tfgen_blocksparse_backward_cuda, backward),
    ):
        code = function(arguments, None)
        assert code == 0, f"CUDA error {code}: {kernels.tfgen_emulated_error().decode()}"
    guarded.check()
    launched = kernels.tfgen_emulated_kernels().decode().splitlines()
    return Result(out, lse, dq, dk, dv), {kernel_of(name) for name in launched}


def kernel_of(mangled: str) -> str:
    """The family and the name of a kernel, as "fma forward"; of families with a launch for each pass of the gradient,
    "query" and "key" in place of the name."""
    found = re.match(r"_ZN5tfgen11blocksparse\d+([a-z]+?)\d+(forward|backward|query_backward|row_products)I", mangled)
    assert found, mangled
    family, name = found.groups()
    passes = re.search(r"Lb([01])EEEv", mangled)
    return f"{family} {('query', 'key')[int(passes[1])] if name == 'backward' and passes else name}"


def short_row_kernels(case: Case) -> set[str]:
    names = {"tensorcore forward", "tensorcore row_products"}
    if case.key_size > 64:  # what overflows the registers of the kernels of short rows
        return names | {"tensorcore query_backward", "pipelined key"}
    return names | {"tensorcore backward"}


def check_case(kernels, rng, case: Case, entries: int) -> set[str]:
    inputs, keep = random_inputs(case, rng), random_keep(case, rng)
    found, names = run(kernels, case, inputs, keep, entries)
    check(case, inputs, keep, found)
    return names


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_long_rows_against_float64(kernels, rng, name, dtype):
    case = dataclasses.replace(CASES[name], dtype=dtype)
    if case.key_size <= 32 and case.value_size <= 32:  # such heads have no kernels of long rows
        case = dataclasses.replace(case, key_size=40, value_size=48)
    assert check_case(kernels, rng, case, LONG) == LONG_ROW_KERNELS


def test_long_rows_of_narrow_heads(kernels, rng):
    case = Case(dtype="bfloat16")
    assert check_case(kernels, rng, case, LONG) == short_row_kernels(case)


@pytest.mark.parametrize("name", CASES)
def test_short_rows_against_float64(kernels, rng, name):
    case = dataclasses.replace(CASES[name], dtype=("bfloat16", "float16")[len(name) % 2])
    names = check_case(kernels, rng, case, SHORT)
    assert names == short_row_kernels(case)


@pytest.mark.parametrize("name", ODD_CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_shapes_against_float64(kernels, rng, name, dtype):
    names = check_case(kernels, rng, dataclasses.replace(ODD_CASES[name], dtype=dtype), LONG)
    assert names == {"fma forward", "fma query", "fma key"}


@pytest.mark.parametrize("name", ["blocks_of_64", "blocks_of_64_wide_values", "blocks_of_128_wide"])
def test_the_kernels_of_long_and_short_rows_agree(kernels, rng, name):
    # Both round weights to 16 bits and sum in float32: far closer to each other than to the truth.
    case = dataclasses.replace(CASES[name], dtype="float16")
    inputs, keep = random_inputs(case, rng), random_keep(case, rng)
    (long, _), (short, _) = (run(kernels, case, inputs, keep, entries) for entries in (LONG, SHORT))
    for field in dataclasses.fields(Result):
        one, other = (getattr(x, field.name).astype(np.float64) for x in (long, short))
        finite = np.isfinite(one)
        np.testing.assert_array_equal(np.isfinite(other), finite)
        error = np.abs(one[finite] - other[finite]).max()
        assert error <= 2**-9 * np.abs(one[finite]).max(), field.name


@pytest.mark.parametrize(("density", "short"), [(1.0, False), (0.4, True)])
def test_the_mean_length_of_rows_chooses_the_kernel(kernels, rng, density, short):
    # 256 slots a row
    case = Case(heads=1, blocks=16, blocksize=16, key_size=64, density=density, partial=0.0, dtype="bfloat16")
    inputs, keep = random_inputs(case, rng), random_keep(case, rng)
    _, names = run(kernels, case, inputs, keep, len(block_lists(keep, case.blocksize).columns))
    assert names == (short_row_kernels(case) if short else LONG_ROW_KERNELS)


def test_unsupported_shapes_are_errors(kernels):
    for change in ({"blocksize": 24, "length": 96}, {"key_size": 257}, {"value_size": 257}, {"stride": 5}):
        shape = build.Shape(1, 1, 64, 32, 32, 32, 1, build.FLOAT32, 1.0)
        for name, value in change.items():
            setattr(shape, name, value)
        assert kernels.tfgen_blocksparse_forward_cuda(build.Forward(shape), None) == 1
        assert kernels.tfgen_blocksparse_backward_cuda(build.Backward(shape), None) == 1


FAULTS = {  # in the order of `Fault` in broken.cu
    "none": None,
    "no_wait": "reads shared memory that a copy is on its way to",
    "no_barrier": "reads what another thread has written since the last barrier",
    "overwritten": "writes what another thread has read since the last barrier",
    "unwritten": "reads shared memory that nobody has written",
    "bank": "rows of a matrix in shared memory meet in a bank",
    "unaligned": "an address in shared memory that is not a multiple of its 16",
    "outside": "an address outside shared memory",
    "lanes": "some lanes of a warp do not reach ldmatrix",
    "barrier_of_some": "a barrier that some threads never reach",
    "left_behind": "a thread ends while its copies are on their way",
}


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("broken") / "broken.so"
    return compile_emulated("tests/kernels/cuda_emulation/broken.cu", library)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulation_finds_faults(broken, fault):
    source = Guarded().place(np.arange(64 * 64, dtype=np.uint16))
    target = np.zeros(32, np.uint32)
    number = list(FAULTS).index(fault)
    code = broken.launch_read_matrix(ctypes.c_void_p(pointer(source)), ctypes.c_void_p(pointer(target)), number)
    if FAULTS[fault] is None:
        assert code == 0, broken.tfgen_emulated_error()
        # Lane 4 r + i: elements 2 i and 2 i + 1 of row r.
        expected = source.reshape(64, 64)[:8, :8].ravel()
        np.testing.assert_array_equal(target.view(np.uint16), expected)
    else:
        assert code == 719
        assert FAULTS[fault] in broken.tfgen_emulated_error().decode()
