"""Compiles kernels for the tests and describes their C structs to ctypes. Needs a C++ compiler, not TensorFlow."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CPU_SOURCES = (
    *(
        f"kernels/blocksparse/blocksparse_cpu{suffix}.cc"
        for suffix in ("", "_portable", "_avx2", "_avx512", "_avx512_bf16")
    ),
    *(
        f"kernels/{name}/{name}_cpu{suffix}.cc"
        for name in ("concat_elu", "gelu", "group_norm", "langevin", "winograd")
        for suffix in ("", "_portable", "_avx2", "_avx512")
    ),
)
TEST_SOURCES = ("tests/kernels/pairs.cc",)
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror")
EXTRA_FLAGS = "TFGEN_KERNEL_CXXFLAGS"  # environment variable, such as "-g -fsanitize=address,undefined"

FLOAT32, BFLOAT16, FLOAT16 = range(3)  # TfgenDtype


def compiler() -> str | None:
    """Path of the C++ compiler: $CXX or g++; None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def compile_cpu_kernels(folder: Path) -> Path:
    """Compiles the CPU kernels, as many files at a time as there are processors, and links them.

    Returns:
      The shared library, in `folder`.

    Raises:
      RuntimeError: with the compiler's words, if a file does not compile.
    """
    command = [compiler() or "g++", *FLAGS, *shlex.split(os.environ.get(EXTRA_FLAGS, ""))]
    objects = {source: str(folder / (Path(source).stem + ".o")) for source in (*CPU_SOURCES, *TEST_SOURCES)}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda source: _run([*command, "-I.", "-c", source, "-o", objects[source]]), objects))
    library = folder / "libtfgen_cpu.so"
    _run([*command, "-shared", *objects.values(), "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")


class Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "length", "key_size", "value_size")),
        *((name, ctypes.c_int32) for name in ("blocksize", "stride", "dtype")),
        ("scale", ctypes.c_float),
    )


class Lists(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("layouts", "entries")),
        *((name, ctypes.c_void_p) for name in ("offsets", "columns", "masks", "mask_bits")),
    )


class Forward(ctypes.Structure):
    _fields_ = (
        ("shape", Shape),
        ("rows", Lists),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "lse")),
    )


class Backward(ctypes.Structure):
    _fields_ = (
        ("shape", Shape),
        ("rows", Lists),
        ("columns", Lists),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "dout", "lse", "delta", "dq", "dk", "dv")),
    )


class Decode(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "slots", "key_size", "value_size")),
        *((name, ctypes.c_int64) for name in ("visible", "earlier")),
        ("dtype", ctypes.c_int32),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("q", "keys", "values", "earlier_keys", "earlier_values", "out")),
    )


class GroupNormShape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "pixels", "channels", "groups", "gain_rows", "offset_rows")),
        *((name, ctypes.c_int32) for name in ("dtype", "silu", "threads")),
        ("epsilon", ctypes.c_float),
    )


class GroupNormForward(ctypes.Structure):
    _fields_ = (
        ("shape", GroupNormShape),
        *((name, ctypes.c_void_p) for name in ("x", "gain", "offset", "y", "mean", "inverse", "scratch")),
    )


class GroupNormBackward(ctypes.Structure):
    _fields_ = (
        ("shape", GroupNormShape),
        *((name, ctypes.c_void_p) for name in ("x", "dy", "gain", "offset", "mean", "inverse")),
        *((name, ctypes.c_void_p) for name in ("dx", "dgain", "doffset", "scratch")),
    )


class Random(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("seed", "first_element")),
        *((name, ctypes.c_uint32) for name in ("step", "stream")),
    )


class LangevinMask(ctypes.Structure):
    _fields_ = (("values", ctypes.c_void_p), ("rows", ctypes.c_int64))


class LangevinStep(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("samples", "size")),
        *((name, ctypes.c_int32) for name in ("clip_mode", "projection", "gradient_first")),
        *((name, ctypes.c_float) for name in ("eta", "sigma", "lower", "upper", "clip", "radius")),
        ("random", Random),
        *((name, ctypes.c_void_p) for name in ("x", "g", "anchor")),
        ("mask", LangevinMask),
        *((name, ctypes.c_void_p) for name in ("gradient_norms", "displacement_norms")),
    )


class LangevinForward(ctypes.Structure):
    _fields_ = (("step", LangevinStep), *((name, ctypes.c_void_p) for name in ("x_next", "y_next", "scratch")))


class LangevinBackward(ctypes.Structure):
    _fields_ = (
        ("step", LangevinStep),
        *((name, ctypes.c_void_p) for name in ("dx_next", "dy_next", "dx", "dg", "scratch")),
    )


class LangevinNoise(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("samples", "size")),
        ("sigma", ctypes.c_float),
        ("random", Random),
        ("x", ctypes.c_void_p),
        ("mask", LangevinMask),
        ("y", ctypes.c_void_p),
    )


class RandomDraw(ctypes.Structure):
    _fields_ = (
        ("random", Random),
        ("count", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("out", ctypes.c_void_p),
    )


class WinogradShape(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("batch", "height", "width", "inputs", "outputs", "kernel_height", "kernel_width")
    )


class WinogradConvolution(ctypes.Structure):
    _fields_ = (
        ("shape", WinogradShape),
        *((name, ctypes.c_void_p) for name in ("x", "kernel", "bias", "y")),
        ("reversed", ctypes.c_int32),
        ("enlarged", ctypes.c_int32),
    )


class WinogradKernelGradient(ctypes.Structure):
    _fields_ = (
        ("shape", WinogradShape),
        *((name, ctypes.c_void_p) for name in ("x", "dy")),
        ("chunk_tiles", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("scratch", "dkernel")),
    )


def load_cpu_kernels(library: Path) -> ctypes.CDLL:
    """The library with the signatures of its functions set."""
    loaded = ctypes.CDLL(str(library))
    loaded.tfgen_blocksparse_units.argtypes = [ctypes.POINTER(Shape)]
    loaded.tfgen_blocksparse_units.restype = ctypes.c_int64
    loaded.tfgen_blocksparse_group_blocks.argtypes = [ctypes.POINTER(Shape), ctypes.POINTER(Lists)]
    loaded.tfgen_blocksparse_group_blocks.restype = ctypes.c_int64
    loaded.tfgen_blocksparse_cpu_isa.restype = ctypes.c_char_p
    for name, struct in (
        ("forward", Forward),
        ("backward_query", Backward),
        ("backward_key", Backward),
        ("backward_group", Backward),
        ("decode", Decode),
    ):
        function = getattr(loaded, f"tfgen_blocksparse_{name}_cpu")
        function.argtypes = [ctypes.POINTER(struct), ctypes.c_int64, ctypes.c_int64]
        function.restype = None
    loaded.tfgen_test_forward_pairs.argtypes = loaded.tfgen_blocksparse_forward_cpu.argtypes
    loaded.tfgen_test_forward_pairs.restype = None
    for name, pointers in (("forward", 2), ("backward", 3)):
        function = getattr(loaded, f"tfgen_gelu_{name}_cpu")
        function.argtypes = [*[ctypes.c_void_p] * pointers, ctypes.c_int64]
        function.restype = None
        function = getattr(loaded, f"tfgen_concat_elu_{name}_cpu")
        function.argtypes = [*[ctypes.c_void_p] * pointers, ctypes.c_int64, ctypes.c_int64]
        function.restype = None
    for name in ("units", "scratch"):
        function = getattr(loaded, f"tfgen_group_norm_{name}")
        function.argtypes, function.restype = [ctypes.POINTER(GroupNormShape)], ctypes.c_int64
    for name, struct in (("forward", GroupNormForward), ("backward", GroupNormBackward)):
        function = getattr(loaded, f"tfgen_group_norm_{name}_cpu")
        function.argtypes, function.restype = [ctypes.POINTER(struct), ctypes.c_int64, ctypes.c_int64], None
    set_langevin_signatures(loaded)
    shape, gradient, size, array = (
        ctypes.POINTER(WinogradShape),
        ctypes.POINTER(WinogradKernelGradient),
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    for name, arguments, result in (
        ("tiles", [shape], size),
        ("kernel_size", [shape], size),
        ("kernel_units", [shape], size),
        ("chunk_tiles", [shape, size], size),
        ("scratch_size", [shape, size], size),
        ("product_units", [shape], size),
        ("transform_kernel_cpu", [shape, array, ctypes.c_int32, array, size, size], None),
        ("convolve_cpu", [ctypes.POINTER(WinogradConvolution), size, size], None),
        ("by_kernel", [shape, size], ctypes.c_int32),
        ("convolve_by_kernel_cpu", [ctypes.POINTER(WinogradConvolution), size, size], None),
        ("transform_tiles_cpu", [gradient, size, size, size], None),
        ("add_products_cpu", [gradient, size, size, size, size], None),
        ("finish_cpu", [gradient, size, size], None),
    ):
        function = getattr(loaded, f"tfgen_winograd_{name}")
        function.argtypes, function.restype = arguments, result
    return loaded


def set_langevin_signatures(loaded: ctypes.CDLL) -> None:
    size, phase, step = ctypes.c_int64, ctypes.c_int32, ctypes.POINTER(LangevinStep)
    for name, arguments, result in (
        ("langevin_units", [step, phase, ctypes.c_int32], size),
        ("langevin_scratch", [step], size),
        ("langevin_element_units", [size], size),
        ("langevin_forward_cpu", [ctypes.POINTER(LangevinForward), phase, size, size], None),
        ("langevin_backward_cpu", [ctypes.POINTER(LangevinBackward), phase, size, size], None),
        ("langevin_noise_cpu", [ctypes.POINTER(LangevinNoise), size, size], None),
        ("random_cpu", [ctypes.POINTER(RandomDraw), size, size], None),
    ):
        function = getattr(loaded, f"tfgen_{name}")
        function.argtypes, function.restype = arguments, result
