"""`python -m benchmarks.attention`: block-sparse attention, compiled and in plain TensorFlow, against masked dense one.

Prints one JSON line a case. All forms are timed in one process and in turns, so that a busy machine is busy for all of
them; times are medians in milliseconds, of the forward pass and of forward and backward together. `ratio` is how many
times faster the operation is than dense attention, `ratio_to_reference` than the plain-TensorFlow form of the pattern,
which for a random layout computes all pairs, too. Dense attention on 16-bit arguments runs in their dtype and, under
"dense_float32", in float32: `ratio` is to the faster. Bytes are those that any form must move (arguments and results),
floating point operations those of the kept blocks (2 products forward, 5 backward); both are given per second and as a
share of what this machine reaches in copying and in multiplying float32 matrices. `extra_memory_share` is the
operation's peak extra memory as a share of that of the thriftier dense form. Everything, which takes long:

    python -m benchmarks.attention --dtype all --memory
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

DTYPES = ("float32", "bfloat16", "float16")
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer: its shape, and a mode or else the density of a random layout of full blocks."""

    name: str
    batch: int
    heads: int
    key_size: int
    value_size: int
    length: int
    blocksize: int = 32
    mode: str = "random"
    window: int = 0
    density: float = 0.0


PUBLISHED = (
    Case("c10_150m b", 1, 16, 32, 32, 3072, mode="b", window=96),
    Case("c10_150m bT", 1, 16, 32, 32, 3072, mode="bT", window=96),
    Case("c10_15m b", 1, 2, 64, 128, 3072, mode="b", window=96),
    Case("c10_15m bT", 1, 2, 64, 128, 3072, mode="bT", window=96),
    Case("c10_15m_dense a", 1, 2, 64, 128, 3072, mode="a"),
    Case("i64 b", 1, 2, 32, 32, 12288, mode="b", window=128),
    Case("i64 bT", 1, 2, 32, 32, 12288, mode="bT", window=128),
)
SWEEP = tuple(Case(f"random {d:.0%}", 1, 2, 64, 64, 4096, density=d) for d in DENSITIES)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="", help="only those whose name contains this; default: all")
    parser.add_argument("--rounds", type=int, default=7, help="timings of every form, after one to warm up")
    parser.add_argument("--dtype", choices=(*DTYPES, "all"), default="float32")
    parser.add_argument("--memory", action="store_true", help="also the peak extra memory, in a process for each form")
    parser.add_argument("--memory_of", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    from tfgen.ops import library

    if library.load() is None:
        raise SystemExit(f"the kernels are not built, there is nothing to compare. To build them: {library.REBUILD}")
    if options.memory_of:
        (case,) = (case for case in (*PUBLISHED, *SWEEP) if case.name == options.cases)
        form = options.memory_of.removesuffix("_gradients")
        calls = calls_of(case, options.dtype, {form: forms_of(case, options.dtype)[0][form]})
        print(peak_of_first_call(calls[options.memory_of]))
        return 0
    ceilings = measured_ceilings()
    for dtype in DTYPES if options.dtype == "all" else (options.dtype,):
        for case in (*PUBLISHED, *SWEEP):
            if options.cases in case.name:
                print(json.dumps(measure(case, dtype, options.rounds, options.memory, ceilings)), flush=True)
    return 0


def features_of(case: Case) -> list[int]:
    """Features of q, k, v and the output."""
    return [case.heads * width for width in (case.key_size, case.key_size, case.value_size, case.value_size)]


def calls_of(case: Case, dtype: str, forms: dict[str, Callable]) -> dict[str, Callable[[], Any]]:
    """Each form's forward pass and, under its name with "_gradients", forward and backward; traced, not yet run."""
    import tensorflow as tf

    random = np.random.RandomState(0)
    shapes = [(case.batch, case.length, width) for width in features_of(case)]
    *tensors, weights = (tf.cast(random.standard_normal(shape), dtype) for shape in shapes)

    calls: dict[str, Callable[[], Any]] = {}
    for name, form in forms.items():
        calls[name] = forward(form, tensors)
        calls[f"{name}_gradients"] = forward_and_backward(form, tensors, weights)
    return calls


def measure(case: Case, dtype: str, rounds: int, memory: bool, ceilings: tuple[float, float]) -> dict[str, Any]:
    """The record of one case."""
    import tensorflow as tf

    from tfgen.ops import library

    forms, entries, size = forms_of(case, dtype)
    dense = [name for name in forms if name.startswith("dense")]
    seconds = timed(calls_of(case, dtype, forms), rounds)
    features = features_of(case)
    blocks, rows = (case.length // size) ** 2, case.batch * case.length
    work = 2 * case.batch * case.heads * entries * size * size  # of one product and one feature
    itemsize = tf.as_dtype(dtype).size
    forward_bytes = rows * (itemsize * sum(features) + 4 * case.heads)
    # Backward: q, k, v, out and dout are read with the log-sum-exp, dq, dk and dv are written.
    both_bytes = forward_bytes + rows * (itemsize * 2 * sum(features) + 4 * case.heads)
    forward_flops = work * (case.key_size + case.value_size)
    both_flops = forward_flops + work * (3 * case.key_size + 2 * case.value_size)
    record = {"benchmark": "attention", "dtype": dtype} | dataclasses.asdict(case)
    record |= {"blocksize": size, "blocks": entries, "density": round(entries / blocks, 4)}
    record["instructions"] = library.loaded().instructions
    for kind, suffix, count, flops in (
        ("forward", "", forward_bytes, forward_flops),
        ("forward_backward", "_gradients", both_bytes, both_flops),
    ):
        taken = seconds["operation" + suffix]
        record[kind] = {
            **{f"{name}_ms": round(1e3 * seconds[name + suffix], 3) for name in forms},
            "ratio": round(min(seconds[name + suffix] for name in dense) / taken, 2),
            "gbytes_per_s": round(count / taken / 1e9, 2),
            "share_of_copy": round(count / taken / ceilings[0], 3),
            "gflops_per_s": round(flops / taken / 1e9, 2),
            "share_of_sgemm": round(flops / taken / ceilings[1], 3),
        }
        if "reference" in forms:
            record[kind]["ratio_to_reference"] = round(seconds["reference" + suffix] / taken, 2)
        if memory:
            peaks = {name: peak_extra_memory(case, dtype, name + suffix) for name in forms}
            record[kind]["peak_extra_mib"] = {name: round(peak / 2**20, 1) for name, peak in peaks.items()}
            record[kind]["extra_memory_share"] = round(peaks["operation"] / min(peaks[name] for name in dense), 3)
    return record


def forms_of(case: Case, dtype: str) -> tuple[dict[str, Callable], int, int]:
    """The forms of one layer by name, its number of kept blocks (of a head), and their side."""
    import tensorflow as tf

    from tfgen.ops import blocksparse
    from tfgen.ops.block_lists import from_layout

    heads = case.heads

    def dense(mask: tf.Tensor) -> Callable:
        def split(x: tf.Tensor) -> tf.Tensor:
            return tf.transpose(tf.reshape(x, [case.batch, case.length, heads, -1]), [0, 2, 1, 3])  # [B, H, T, D]

        def form(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
            scores = tf.matmul(split(q) / math.sqrt(case.key_size), split(k), transpose_b=True)
            out = tf.matmul(tf.nn.softmax(tf.where(mask, scores, scores.dtype.min / 2)), split(v))
            return tf.reshape(tf.transpose(out, [0, 2, 1, 3]), [case.batch, case.length, -1])

        return form

    def in_float32(form: Callable) -> Callable:
        return lambda *tensors: tf.cast(form(*(tf.cast(x, tf.float32) for x in tensors)), dtype)

    def dense_forms(mask: tf.Tensor) -> dict[str, Callable]:
        forms = {"dense": dense(mask)}
        return forms if dtype == "float32" else forms | {"dense_float32": in_float32(dense(mask))}

    if case.mode == "random":
        blocks = case.length // case.blocksize
        others = (case.density * blocks - 1) / (blocks - 1)  # share of the blocks beside the diagonal
        layout = np.random.RandomState(1).rand(blocks, blocks) < others
        np.fill_diagonal(layout, True)  # no empty row
        lists = from_layout(layout, case.blocksize)
        return {
            "operation": lambda q, k, v: blocksparse.block_sparse_attention(q, k, v, lists, heads),
            "reference": lambda q, k, v: blocksparse.reference_block_sparse_attention(q, k, v, lists, heads),
            **dense_forms(tf.constant(lists.mask()[0])),
        }, lists.entries, case.blocksize  # fmt: skip

    pattern = blocksparse.Pattern(case.mode, case.length, case.window or case.length, case.blocksize).block_form()
    assert pattern is not None
    return {
        "operation": lambda q, k, v: blocksparse.attention(q, k, v, pattern, heads),
        "reference": lambda q, k, v: blocksparse.reference_attention(q, k, v, pattern, heads),
        **dense_forms(tf.constant(pattern.token_mask())),
    }, pattern.block_lists().entries, pattern.blocksize  # fmt: skip


def forward(form: Callable, tensors: list) -> Callable[[], Any]:
    import tensorflow as tf

    traced = tf.function(form)
    traced.get_concrete_function(*tensors)
    return lambda: traced(*tensors)


def forward_and_backward(form: Callable, tensors: list, weights: Any) -> Callable[[], Any]:
    import tensorflow as tf

    @tf.function
    def traced(*arguments: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            out = form(*arguments)
        return tape.gradient(out, arguments, output_gradients=weights)

    traced.get_concrete_function(*tensors)
    return lambda: traced(*tensors)


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call. Rounds go through all calls in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        finish(call)  # traces and warms up
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            finish(call)
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def finish(call: Callable[[], Any]) -> None:
    """Calls, and waits for the results."""
    results = call()
    for result in results if isinstance(results, (list, tuple)) else [results]:
        result.numpy()


def peak_extra_memory(case: Case, dtype: str, name: str) -> int:
    """Bytes that a process holds at most during its first call beyond those before it, in a process of its own.

    TensorFlow keeps what it once allocated, so a second call would seem to need nothing.
    """
    command = [sys.executable, "-m", __spec__.name, "--cases", case.name, "--dtype", dtype, "--memory_of", name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak_of_first_call(call: Callable[[], Any]) -> int:
    def status(field: str) -> int:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the memory held now becomes the highest so far
    before = status("VmRSS")
    finish(call)
    return status("VmHWM") - before


def measured_ceilings() -> tuple[float, float]:
    """Bytes per second read and written in copying, and FLOP/s of float32 matrix products, by TensorFlow's threads."""
    import tensorflow as tf

    large, matrix = tf.zeros([2**26]), tf.random.stateless_normal([2048, 2048], [0, 0])

    def best(call: Callable[[], tf.Tensor]) -> float:
        def durations() -> Iterator[float]:
            for _ in range(6):
                begin = time.perf_counter()
                call().numpy()
                yield time.perf_counter() - begin

        return min(durations())

    return 2 * large.shape[0] * 4 / best(lambda: large + 1.0), 2 * 2048**3 / best(lambda: matrix @ matrix)


if __name__ == "__main__":
    raise SystemExit(main())
