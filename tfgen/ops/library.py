"""The compiled kernels: found and loaded when first needed, or known to be absent.

`setup.py` builds them into the package as `_kernels_tf<version>.so`, named for the TensorFlow they were compiled
against, whose binary interface changes from version to version: a library of another version is never opened. Without a
usable library every operation runs its pure-TensorFlow form; one line in the log says so and why.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

PACKAGE = pathlib.Path(__file__).parents[1]  # unresolved: Bazel puts its library beside links to the sources
PURE_VARIABLE = "TFGEN_PURE_TF"
REBUILD = "pip install --no-build-isolation -e . (or make venv)"

_plain = contextvars.ContextVar("plain_tensorflow", default=False)


@dataclasses.dataclass(frozen=True)
class Library:
    """A loaded library.

    Attributes:
      operations: module with one function for each operation.
      instructions: what the CPU kernels use on this machine: "avx512_bf16", "avx512", "avx2" or "portable".
      cuda: there are kernels for GPUs in it.
    """

    operations: Any
    instructions: str
    cuda: bool


@contextlib.contextmanager
def plain_tensorflow() -> Iterator[None]:
    """Within it, operations are built from TensorFlow's own: for exports, XLA, and machines without our library.

    What counts is when a `tf.function` is traced, not when it runs.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def load() -> Library | None:
    """The compiled operations; None where the pure-TensorFlow forms are to be used."""
    if _plain.get():
        log_once(logging.INFO, "compiled kernels: not used in what is built within plain_tensorflow()")
        return None
    if os.environ.get(PURE_VARIABLE, "") not in ("", "0"):
        log_once(logging.INFO, f"compiled kernels: not used, since {PURE_VARIABLE} is set")
        return None
    return _load(PACKAGE)


def loaded() -> Library:
    """The library of an operation that is already in a graph, whatever is asked for by now: gradients need it."""
    library = _load(PACKAGE)
    if library is None:
        raise RuntimeError(f"this graph needs tfgen's compiled kernels, which are not here. To build them: {REBUILD}")
    return library


@functools.cache
def gpu_visible() -> bool:
    """Whether TensorFlow computes on a GPU. Operations that exist for the CPU alone are TensorFlow's then."""
    return bool(tf.config.list_logical_devices("GPU"))


@functools.cache
def log_once(level: int, message: str) -> None:
    """Logs a message the first time only."""
    logging.log(level, "%s", message)


@functools.cache
def _load(folder: pathlib.Path) -> Library | None:
    expected = folder / f"_kernels_tf{tf.__version__}.so"
    if not expected.exists():
        others = ", ".join(path.name for path in sorted(folder.glob("_kernels_tf*.so")))
        found = f"found {others}, built for another TensorFlow" if others else "not built"
        logging.warning(
            "compiled kernels: %s; computing in plain TensorFlow %s, which is slower. To build them: %s",
            found, tf.__version__, REBUILD,
        )  # fmt: skip
        return None
    try:
        operations = tf.load_op_library(str(expected))
    except (tf.errors.OpError, OSError) as error:
        logging.warning(
            "compiled kernels: %s does not load (%s); computing in plain TensorFlow, which is slower. To rebuild: %s",
            expected.name, error, REBUILD,
        )  # fmt: skip
        return None
    symbols = ctypes.CDLL(str(expected))
    symbols.tfgen_blocksparse_cpu_isa.restype = ctypes.c_char_p
    instructions = symbols.tfgen_blocksparse_cpu_isa().decode()
    library = Library(operations, instructions, cuda=hasattr(symbols, "tfgen_blocksparse_forward_cuda"))
    devices = f"CPU ({instructions}) and GPU" if library.cuda else f"CPU ({instructions})"
    logging.info("compiled kernels: %s for %s", expected.name, devices)
    return library
