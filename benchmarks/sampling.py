"""`python -m benchmarks.sampling`: sampling with cached keys and values, and with computing them again at every step.

Draws a stretch late in the sequence in one process, with random weights. One JSON line a form: "compiled" and "plain"
read the caches by the compiled operation and in plain TensorFlow, chunk by chunk in turns; "uncached" has no caches.

    seconds_per_position    median over the chunks (uncached: over the positions)
    seconds_all_positions   the same times the positions of an image; with --whole the time of whole images, measured
    tokens_agree            whether the same tokens were drawn as by the first form
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

    from tfgen.randomness import Key
    from tfgen.systems.distaug.transformer import Transformer

SHAPES = {
    "c10_15m": {
        "height": 32, "width": 32, "channels": 3, "n_embd": 256, "n_head": 2, "n_layer": 32, "mlp_multiple": 2.0,
        "qk_ratio": 0.5, "attention_layers": ("bT", "b", "b", "b"), "local_attn_ctx": 96, "blocksize": 32,
    },
    "c10_15m_dense": {
        "height": 32, "width": 32, "channels": 3, "n_embd": 256, "n_head": 2, "n_layer": 32, "mlp_multiple": 2.0,
        "qk_ratio": 0.5, "attention_layers": ("a",),
    },
    "small": {
        "height": 8, "width": 8, "channels": 3, "n_embd": 32, "n_head": 2, "n_layer": 4, "mlp_multiple": 2.0,
        "qk_ratio": 0.5, "attention_layers": ("bT", "b"), "local_attn_ctx": 24,
    },
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(SHAPES), default="c10_15m", help="shape of the network")
    parser.add_argument("--batch", type=int, default=4, help="images drawn together")
    parser.add_argument("--first", type=int, help="position where timing begins; default: at 94 %% of all")
    parser.add_argument("--repeats", type=int, default=5, help="chunks timed with a cache, after one to warm up")
    parser.add_argument("--steps", type=int, default=16, help="positions timed without a cache; 0 for none")
    parser.add_argument("--whole", action="store_true", help="also draw whole images with each form that has a cache")
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    import tensorflow as tf

    from tfgen.ops import library
    from tfgen.randomness import Key
    from tfgen.systems.distaug import decode
    from tfgen.systems.distaug.transformer import Transformer

    # Spread-out logits: with those of a fresh network every draw would be the noise alone.
    network = Transformer(**SHAPES[options.preset], w_embd_std=0.5, qk_w=1.0, logits_w=4.0)
    key = Key.create(0, "benchmark")
    conditioning = tf.zeros([options.batch, 0], tf.int32)
    samplers = {"plain": decode.Sampler(network)}
    if library.load() is not None:
        samplers = {"compiled": decode.Sampler(network)} | samplers
    n_ctx, chunk = network.n_ctx, samplers["plain"].chunk
    first = n_ctx * 94 // 100 if options.first is None else options.first
    first -= first % chunk

    def run(form: str, position: int, state: dict) -> dict:
        """The first call of a form compiles it, and decides by what."""
        with library.plain_tensorflow() if form == "plain" else contextlib.nullcontext():
            state = samplers[form].run(position, state, key, conditioning, 1.0)
        state["tokens"].numpy()  # waits for the result
        return state

    def draw(form: str, stop: int) -> dict:
        state = samplers[form].initial_state(options.batch)
        for position in range(0, stop, chunk):
            state = run(form, position, state)
        return state

    def report(form: str, stop: int, seconds: list[float], tokens: np.ndarray, **more: float) -> None:
        per_position = statistics.median(seconds)
        case = {"benchmark": "sampling", "preset": options.preset, "batch": options.batch, "form": form}
        case |= {"positions": [first, stop], "seconds_per_position": round(per_position, 6)}
        case |= {"seconds_all_positions": round(per_position * n_ctx, 2)} | more
        agree = bool((expected[:, first:stop] == tokens[:, first:stop]).all())
        print(json.dumps(case | {"tokens_agree": agree}), flush=True)

    state = draw(next(iter(samplers)), first)
    stop = min(first + chunk, n_ctx)
    drawn = {form: run(form, first, state)["tokens"].numpy() for form in samplers}  # warms up
    timings: dict[str, list[float]] = {form: [] for form in samplers}
    for _ in range(options.repeats):
        for form in samplers:
            begin = time.perf_counter()
            run(form, first, state)
            timings[form].append((time.perf_counter() - begin) / (stop - first))
    expected = next(iter(drawn.values()))
    for form in samplers:
        more = {}
        if options.whole:
            begin = time.perf_counter()
            draw(form, n_ctx)
            more["seconds_all_positions"] = round(time.perf_counter() - begin, 2)
        report(form, stop, timings[form], drawn[form], **more)

    if options.steps:
        stop = min(first + options.steps, n_ctx)
        tokens, seconds = uncached(network, key, expected[:, :first], conditioning, stop)
        report("uncached", stop, seconds, tokens)
    return 0


def uncached(
    network: Transformer, key: Key, prefix: np.ndarray, conditioning: tf.Tensor, stop: int
) -> tuple[np.ndarray, list[float]]:
    """The tokens up to `stop`, those of the prefix included, and the seconds of each position drawn, but the first."""
    from tfgen.systems.distaug import decode

    step = decode.uncached_step(network)
    inputs = decode.layer_inputs(network, prefix, conditioning)
    tokens, seconds = list(prefix.T), []
    for t in range(len(tokens), stop):
        begin = time.perf_counter()
        previous = tokens[-1] if tokens else np.zeros([len(prefix)], np.int32)
        token, inputs = step(*decode.step_arguments(t, key, conditioning, temperature=1.0), previous, inputs)
        tokens.append(token.numpy())
        seconds.append(time.perf_counter() - begin)
    return np.stack(tokens, axis=1), seconds[1:] or seconds  # the first call compiles


if __name__ == "__main__":
    raise SystemExit(main())
