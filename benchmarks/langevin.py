"""`python -m benchmarks.langevin [--shape=64,32,32,3]`: the fused Langevin step beside TensorFlow's operations.

One JSON line for each kind of step: milliseconds of a step, medians of forms run in turns, by the clock and of
processor time, and how many times as long the other forms take. A graph holds a chain of steps with the same gradient
at each, so that calling it costs nothing:

    fused          the compiled operation
    same_numbers   the same arithmetic in TensorFlow's operations, random words included
    tensorflow     the same with TensorFlow's own normal numbers (`tf.random.stateless_normal`)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import tensorflow as tf

from tfgen.ops import library
from tfgen.ops.langevin import langevin_step

ETA, SIGMA, CLIP = 10.0, 0.005, 0.01
STEPS = 16
# What a step clips, and whether the next step's noise follows.
KINDS = {"value_clip": ("value", True), "tensor_norm": ("tensor_norm", True), "last_step": ("value", False)}

Move = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, str, bool], tf.Tensor]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.langevin", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="64,32,32,3", help="sizes of the images, separated by commas")
    parser.add_argument("--threads", type=int, default=0, help="that share a step; 0: all processors")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(argv)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    compiled = library.load()
    if compiled is None:
        raise SystemExit(f"nothing to compare: the kernels are not built. To build them: {library.REBUILD}")
    shape = [int(size) for size in options.shape.split(",")]
    x, gradient = tf.random.uniform(shape), tf.random.normal(shape, stddev=CLIP)
    for kind, (clip_mode, emit_next) in KINDS.items():
        forms = {"fused": fused, "same_numbers": same_numbers, "tensorflow": own_numbers}
        calls = {name: chain(form, x, gradient, clip_mode, emit_next) for name, form in forms.items()}
        line: dict[str, object] = {"benchmark": "langevin", "kind": kind, "shape": shape, "threads": options.threads}
        line["instructions"] = compiled.instructions
        for clock, times in measured(calls, options.rounds).items():
            line |= {f"{name}_{clock}_ms": round(value, 3) for name, value in times.items()}
            line |= {f"{name}_{clock}_ratio": round(times[name] / times["fused"], 2) for name in list(forms)[1:]}
        print(json.dumps(line), flush=True)
    return 0


def fused(y: tf.Tensor, gradient: tf.Tensor, step: tf.Tensor, clip_mode: str, emit_next: bool) -> tf.Tensor:
    x_next, y_next = langevin_step(
        y, gradient, eta=ETA, sigma=SIGMA, seed=0, step=step, clip_mode=clip_mode, clip=CLIP, emit_next=emit_next
    )  # fmt: skip
    return y_next if emit_next else x_next


def same_numbers(*arguments) -> tf.Tensor:
    with library.plain_tensorflow():
        return fused(*arguments)


def own_numbers(y: tf.Tensor, gradient: tf.Tensor, step: tf.Tensor, clip_mode: str, emit_next: bool) -> tf.Tensor:
    by_value = clip_mode == "value"
    gradient = tf.clip_by_value(gradient, -CLIP, CLIP) if by_value else tf.clip_by_norm(gradient, CLIP)
    x_next = tf.clip_by_value(y - ETA * gradient, 0.0, 1.0)
    return x_next + SIGMA * tf.random.stateless_normal(y.shape, [0, step]) if emit_next else x_next


def chain(move: Move, x: tf.Tensor, gradient: tf.Tensor, clip_mode: str, emit_next: bool) -> Callable[[], tf.Tensor]:
    @tf.function(autograph=False)
    def call(y: tf.Tensor, gradient: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        for step in range(STEPS):
            y = move(y, gradient, first + step, clip_mode, emit_next)
        return y

    first = tf.constant(0)  # an argument: numbers of known steps would be drawn once, when the graph is built
    return lambda: call(x, gradient, first)


def measured(calls: dict[str, Callable], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of a step by clock and form; the first call of each, which traces, left out."""
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in calls} for clock in clocks}
    for index in range(rounds + 1):
        for name, call in calls.items():
            began = {clock: read() for clock, read in clocks.items()}
            call()
            for clock, read in clocks.items():
                if index:
                    times[clock][name].append(1000 * (read() - began[clock]) / STEPS)
    return {clock: {name: statistics.median(values) for name, values in of.items()} for clock, of in times.items()}


if __name__ == "__main__":
    raise SystemExit(main())
