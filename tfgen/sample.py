"""`python -m tfgen.sample --run=DIR --count=N`: draws samples; settings and weights come from the run.

Writes one PNG an image, a grid and an `.npz` (array `images`, uint8 [N, H, W, C]) to a new folder.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import numpy as np

from tfgen.settings import flag, parse_for_run


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of the command; the system's `SampleOptions` are added to them."""

    run: str = flag("", "run folder")
    count: int = flag(16, "images to draw", minimum=1)
    seed: int = flag(0, "image i is a function of the seed and i")
    weights: str = flag("ema", "averaged or raw weights", choices=("ema", "raw"))
    checkpoint_step: int | None = flag(None, "step of the checkpoint; default: the newest", minimum=0)
    out: str = flag("", "folder for the images; default: <run>/samples/step-<step>-<weights>-seed<seed>")


def main(argv: list[str] | None = None) -> int:
    from tfgen.console import reported_errors

    with reported_errors():
        settings, options, sampling = parse_for_run(
            sys.argv[1:] if argv is None else argv, Options, lambda system: system.sample_options_class
        )
        return run(settings, options, sampling)
    return 1


def run(settings, options: Options, sampling) -> int:
    """Draws and writes; returns the exit code."""
    from tfgen import distribute, evaluation
    from tfgen.files import atomic_path
    from tfgen.monitor import grids
    from tfgen.monitor.progress import Progress
    from tfgen.randomness import Key
    from tfgen.restore import restore

    ranks = distribute.connect()
    restored = restore(settings, options.run, options.weights, options.checkpoint_step)
    name = f"step-{restored.checkpoint.step:09d}-{restored.weights}-seed{options.seed}"
    out = pathlib.Path(options.out) if options.out else pathlib.Path(options.run) / "samples" / name
    progress: Progress | None = None

    def callback(done: int, total: int, preview: object) -> None:
        del preview
        nonlocal progress
        if progress is None:
            progress = Progress(total, 0, "sampling", enabled=ranks.is_first).__enter__()
        progress.update(done, {})

    try:
        images = evaluation.sample(
            restored.system, options.count, Key.create(options.seed, "sample"), ranks, sampling, callback
        )
    finally:
        if progress is not None:
            progress.__exit__(None, None, None)
    if ranks.is_first:
        for index, image in enumerate(images):
            grids.save_png(out / f"{index:06d}.png", image)
        grids.save_png(out / "grid.png", grids.display_grid(images))
        with atomic_path(out / "samples.npz") as temporary:
            np.savez(temporary, images=images)
        print(f"{len(images)} images from the {restored.description}: {out}/ (grid.png, samples.npz)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
