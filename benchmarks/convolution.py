"""`python -m benchmarks.convolution [--kernel=2x3] [--layers=32x64x64,...]`: compiled convolutions and TensorFlow's.

One JSON line for each layer SIDExINxOUT: milliseconds of processor time on one thread, medians of forms run in turns,
and how many times as long TensorFlow's takes. A graph holds eight convolutions, so that calling it costs nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import tensorflow as tf

from tfgen.ops import library
from tfgen.ops.convolution import causal_convolution_reference, convolution_3x3_reference

LAYERS = "32x64x64,32x128x64,32x24x24,16x128x128,16x256x128,16x24x24,8x256x128,8x24x24,4x256x128"
CAUSAL_LAYERS = "32x80x40,32x80x80,16x80x40,16x80x80,8x80x40,8x80x80,16x320x160,8x320x320"  # of PixelCNN++
COPIES = 8


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolution", description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", choices=["3x3", "2x3", "2x2"], default="3x3", help="2x3 and 2x2: the causal ones")
    parser.add_argument("--layers", help="side x inputs x outputs, separated by commas")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(argv)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    compiled = library.load()
    if compiled is None:
        raise SystemExit(f"nothing to compare: the kernels are not built. To build them: {library.REBUILD}")
    taps = tuple(map(int, options.kernel.split("x")))
    forms = {"compiled": compiled.operations.tfgen_convolution3x3, "tensorflow": convolution_3x3_reference}
    if taps != (3, 3):
        forms = {"compiled": compiled.operations.tfgen_causal_convolution, "tensorflow": causal_convolution_reference}
    for name in (options.layers or (LAYERS if taps == (3, 3) else CAUSAL_LAYERS)).split(","):
        side, inputs, outputs = map(int, name.split("x"))
        x = tf.random.normal([options.batch, side, side, inputs])
        # Of its own for each: gradients by kernels depend on images and upstream only, and equal ones would be shared.
        dys = tf.random.normal([COPIES, options.batch, side, side, outputs])
        kernels, bias = tf.random.normal([COPIES, *taps, inputs, outputs]), tf.zeros([outputs])
        calls = {
            f"{form}_{part}": graph(function, x, kernels, bias, dys)
            for part, graph in PARTS.items()
            for form, function in forms.items()
        }
        times = {key: statistics.median(values) for key, values in measured(calls, options.rounds).items()}
        times |= {f"ratio_{part}": times[f"tensorflow_{part}"] / times[f"compiled_{part}"] for part in PARTS}
        rounded = {key: round(value, 3) for key, value in times.items()}
        print(json.dumps({"layer": name, "kernel": options.kernel, "batch": options.batch, **rounded}), flush=True)
    return 0


def forward(function: Callable, x: tf.Tensor, kernels: tf.Tensor, bias: tf.Tensor, dys: tf.Tensor) -> Callable:
    """Results only."""
    return tf.function(lambda: [function(x, kernel, bias) for kernel in tf.unstack(kernels)], autograph=False)


def differentiated(pick: Callable[..., list[tf.Tensor]]) -> Callable[..., Callable]:
    """A graph of what `pick` takes of a result and the gradients by x, kernel and bias; the rest is not computed."""

    def graph(function: Callable, x: tf.Tensor, kernels: tf.Tensor, bias: tf.Tensor, dys: tf.Tensor) -> Callable:
        @tf.function(autograph=False)
        def call() -> list[tf.Tensor]:
            found = []
            for kernel, dy in zip(tf.unstack(kernels), tf.unstack(dys), strict=True):
                with tf.GradientTape() as tape:
                    tape.watch([x, kernel, bias])
                    y = function(x, kernel, bias)
                found += pick(y, *tape.gradient(y, [x, kernel, bias], output_gradients=dy))
            return found

        return call

    return graph


PARTS = {
    "forward": forward,
    "images_gradient": differentiated(lambda y, dx, dkernel, dbias: [dx]),
    "kernel_gradient": differentiated(lambda y, dx, dkernel, dbias: [dkernel]),
    "training": differentiated(lambda *found: list(found)),
}


def measured(calls: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of one convolution, for each call and round; the first of each call, which traces, left out."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if index:
                times[name].append(1000 * (time.process_time() - began) / COPIES)
    return times


if __name__ == "__main__":
    raise SystemExit(main())
