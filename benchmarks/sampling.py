"""`python -m benchmarks.sampling`: sampling with cached keys and values against computing them again at every step.

Draws a stretch late in the sequence both ways, in one process and with random weights, and prints one JSON line:
seconds per position of both (medians), their ratio, and whether both drew the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

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
    parser.add_argument(
        "--repeats", type=int, default=5, help="chunks drawn and timed with a cache, after one to warm up"
    )
    parser.add_argument("--steps", type=int, default=16, help="positions drawn and timed without a cache")
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    import tensorflow as tf

    from tfgen.randomness import Key
    from tfgen.systems.distaug import decode
    from tfgen.systems.distaug.transformer import Transformer

    # Spread-out logits: with those of a fresh network every draw would be the noise alone.
    network = Transformer(**SHAPES[options.preset], w_embd_std=0.5, qk_w=1.0, logits_w=4.0)
    key = Key.create(0, "benchmark")
    conditioning = tf.zeros([options.batch, 0], tf.int32)
    sampler = decode.Sampler(network)
    first = options.first or network.n_ctx * 94 // 100
    first -= first % sampler.chunk
    stretch = slice(first, first + options.steps)

    state = sampler.initial_state(options.batch)
    for position in range(0, first, sampler.chunk):
        state = sampler.run(position, state, key, conditioning, 1.0)
    prefix = state["tokens"][:, :first]

    def cached() -> tf.Tensor:
        return sampler.run(first, state, key, conditioning, 1.0)["tokens"][:, stretch]

    timings, cached_tokens = timed(cached, options.repeats)
    cached_seconds = statistics.median(timings) / min(sampler.chunk, network.n_ctx - first)

    step = decode.uncached_step(network)
    inputs = decode.layer_inputs(network, prefix, conditioning)
    previous, uncached_tokens, timings = prefix[:, -1], [], []
    for t in range(stretch.start, stretch.stop):
        begin = time.perf_counter()
        arguments = decode.step_arguments(t, key, conditioning, temperature=1.0)
        previous, inputs = step(*arguments, previous, inputs)
        uncached_tokens.append(previous.numpy())
        timings.append(time.perf_counter() - begin)
    uncached_seconds = statistics.median(timings[1:])  # the first call compiles

    print(
        json.dumps(
            {
                "benchmark": "sampling",
                "preset": options.preset,
                "batch": options.batch,
                "positions": [stretch.start, stretch.stop],
                "cached_seconds_per_position": round(cached_seconds, 6),
                "uncached_seconds_per_position": round(uncached_seconds, 6),
                "ratio": round(uncached_seconds / cached_seconds, 1),
                "tokens_agree": bool((cached_tokens.numpy() == tf.stack(uncached_tokens, axis=1).numpy()).all()),
            }
        )
    )
    return 0


def timed(call: Callable, repeats: int) -> tuple[list[float], object]:
    """Seconds of each of `repeats` calls, and the result; one call before them is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - begin)
    return seconds, result


if __name__ == "__main__":
    raise SystemExit(main())
