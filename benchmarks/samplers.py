"""`python -m benchmarks.samplers --run=DIR`: how good and how fast each sampler of a trained diffusion run is.

Draws as many images with each sampler and number of steps, from the same random numbers. Prints one JSON line a case:
evaluations of the network, seconds, and the Fréchet distance of the samples' pixels (values in [0, 1]; grey images by
one channel) to those of the test and of the training images. The first lines say what real images get. With --out the
first samples of each case are drawn as pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time

CASES = (
    "ancestral:1000", "ancestral:250", "ancestral:50", "ancestral:20",
    "ddim:250", "ddim:50", "ddim:20", "ddim:10",
    "dpm_solver_pp_2m:50", "dpm_solver_pp_2m:20", "dpm_solver_pp_2m:10",
    "heun:25", "heun:10",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.samplers", description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--count", type=int, default=1000, help="images of each case")
    parser.add_argument("--batch", type=int, default=250, help="images drawn together")
    parser.add_argument("--cases", nargs="+", default=CASES, help="SAMPLER:STEPS ...")
    parser.add_argument("--out", default="", help="folder for pictures")
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    import numpy as np

    from tfgen.metrics.frechet import frechet_distance
    from tfgen.monitor import grids
    from tfgen.randomness import Key
    from tfgen.restore import restore
    from tfgen.settings import read_run
    from tfgen.systems.diffusion.samplers import SAMPLERS
    from tfgen.systems.diffusion.sampling import SampleOptions

    settings = read_run(options.run)
    restored = restore(settings, options.run)
    system, splits = restored.system, restored.open_data(settings)

    def features(images: np.ndarray) -> np.ndarray:
        grey = bool((images == images[..., :1]).all())
        chosen = images[..., :1] if grey else images
        return chosen.reshape(len(images), -1) / 255.0

    def pixels(source, count: int) -> np.ndarray:
        return source.read(np.arange(min(count, len(source))))["image"]

    train, test = pixels(splits.train, 10_000), pixels(splits.test, 10_000)
    is_grey = bool((train == train[..., :1]).all())
    vectors = {name: features(images) for name, images in (("train", train), ("test", test))}
    half = len(train) // 2
    real = {
        "sampler": "training images",
        "to_test": round(frechet_distance(vectors["train"], vectors["test"]), 4),
        "halves_to_each_other": round(frechet_distance(vectors["train"][:half], vectors["train"][half:]), 4),
        "train": len(train),
        "test": len(test),
    }
    print(json.dumps(real), flush=True)
    for case in options.cases:
        name, _, steps = case.partition(":")
        if name not in SAMPLERS or not steps.isdigit():
            parser.error(f"--cases {case}: expected SAMPLER:STEPS with a sampler of {', '.join(SAMPLERS)}")
        sampling = SampleOptions(sampler=name, steps=int(steps), sample_batch=options.batch)
        key = Key.create(0, "benchmark of samplers")
        system.sample(
            min(options.batch, options.count), key, SampleOptions(sampler="ddim", steps=2, sample_batch=options.batch)
        )
        began = time.perf_counter()
        images = system.sample(options.count, key, sampling)
        seconds = time.perf_counter() - began
        # A grey data set is learned in colour: the mean of the three channels stands for the grey level.
        drawn = images.mean(axis=-1, keepdims=True) if is_grey else images
        found = drawn.reshape(len(drawn), -1) / 255.0
        line = {
            "sampler": name,
            "steps": int(steps),
            "evaluations": SAMPLERS[name].evaluations(int(steps)),
            "to_test": round(frechet_distance(found, vectors["test"]), 4),
            "to_train": round(frechet_distance(found, vectors["train"]), 4),
            "images": len(images),
            "seconds": round(seconds, 2),
        }
        print(json.dumps(line), flush=True)
        if options.out:
            path = pathlib.Path(options.out) / f"{name}-{steps}.png"
            grids.save_png(path, grids.display_grid(images[:64]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
