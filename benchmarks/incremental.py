"""`python -m benchmarks.incremental --case=small`: PixelCNN++ images by cached features, and by a pass for each pixel.

Draws with random weights in one process, and prints one JSON line:

    cached_seconds  of all images, compiled, median
    naive_seconds   the median time of a pixel, times the pixels of an image
    ratio           naive / cached
    difference      largest one between pixels drawn by whole passes and those of the same images
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time

# Shape of the images, blocks, filters, components. "small" is that of the reference timing of the original.
CASES = {
    "small": ((16, 16, 3), 2, 40, 10),
    "mnist": ((28, 28, 1), 5, 40, 10),
    "cifar10": ((32, 32, 3), 5, 160, 10),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.incremental", description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=sorted(CASES), default="small")
    parser.add_argument("--batch", type=int, default=4, help="images drawn together")
    parser.add_argument("--repeats", type=int, default=3, help="samples timed, after one to compile")
    parser.add_argument("--passes", type=int, default=8, help="pixels that are drawn by whole passes, after one")
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    import tensorflow as tf

    from tfgen.likelihood import mixture_sampling
    from tfgen.randomness import Key
    from tfgen.systems.smoothing import naive
    from tfgen.systems.smoothing.incremental import IncrementalSampler
    from tfgen.systems.smoothing.pixelcnn import PixelCNN
    from tfgen.systems.smoothing.sampling import BISECTIONS

    (height, width, channels), blocks, filters, mixtures = CASES[options.case]
    network = PixelCNN(channels, filters, blocks, mixtures, seed=0)
    drawn = Key.create(0, "benchmark").uniform([options.batch, height, width, channels])
    numbers = (mixture_sampling.logit(mixture_sampling.open_interval(drawn)),)

    def draw(parameters, row, column, logits):
        return mixture_sampling.inverse_cdf(parameters, logits[:, row, column], False, BISECTIONS[channels])

    def timed(function, repeats: int) -> list[float]:
        """Seconds of each call after the first, which compiles."""
        seconds = []
        for index in range(repeats + 1):
            began = time.perf_counter()
            function(index).numpy()
            seconds.append(time.perf_counter() - began)
        return seconds[1:]

    sampler = IncrementalSampler(network)
    images = sampler.sample(height, width, options.batch, draw, numbers)
    cached = timed(lambda _: sampler.sample(height, width, options.batch, draw, numbers), options.repeats)
    step = tf.function(functools.partial(naive.pixel, network, draw=draw, numbers=numbers), autograph=False)
    row, first = height // 2, width // 2

    def naive_pixel(index: int) -> tf.Tensor:
        return step(images, tf.constant(row), tf.constant((first + index) % width))

    passes = timed(naive_pixel, options.passes)
    difference = max(float(tf.reduce_max(tf.abs(naive_pixel(index) - images))) for index in range(2))
    seconds, naive_seconds = statistics.median(cached), statistics.median(passes) * height * width
    line = {
        "case": options.case,
        "batch": options.batch,
        "cached_seconds": round(seconds, 3),
        "naive_seconds": round(naive_seconds, 1),
        "ratio": round(naive_seconds / seconds, 1),
        "difference": difference,
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
