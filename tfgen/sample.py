"""`python -m tfgen.sample --run=DIR --count=N`: draws samples; settings and weights come from the run.

Writes one PNG an image, a grid and an `.npz` (array `images`, uint8 [N, H, W, C], and `originals`, the images that the
samples were made from, where there are any) to a folder; some systems add the file of the original code, or
`tensors.npz` with what is behind the images. --gif shows how the samples came about.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import numpy as np

from tfgen.flagfields import changes_label
from tfgen.settings import SettingsError, flag, parse_for_run


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of the command; the system's `SampleOptions` are added to them."""

    run: str = flag("", "run folder")
    count: int = flag(16, "images to draw", minimum=1)
    seed: int = flag(0, "image i is a function of the seed and i")
    weights: str = flag("ema", "averaged or raw weights", choices=("ema", "raw"))
    ema_rate: float | None = flag(
        None, "which average, of a run with several; default: the first of its --ema_rate", minimum=0.0, below=1.0
    )
    checkpoint_step: int | None = flag(None, "step of the checkpoint; default: the newest", minimum=0)
    split: str = flag("valid", "images of samples that are made from images", choices=("train", "valid", "test"))
    data_dir: str | None = flag(None, "folder of the data sets; default: that of the run")
    gif: bool = flag(False, "also denoising.gif: the first samples while they are drawn, where the system shows them")
    out: str = flag("", "folder for the images; default: <run>/samples/step-<step>-<weights>-seed<seed>[-<flags>]")


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
    from tfgen.monitor.film import Film
    from tfgen.monitor.progress import Progress
    from tfgen.randomness import Key
    from tfgen.restore import restore

    ranks = distribute.connect()
    restored = restore(settings, options.run, options.weights, options.checkpoint_step, sampling, options.ema_rate)
    system = restored.system
    wanted = system.images_wanted(0, options.count, sampling)  # on all ranks, so that all of them refuse
    source = _source_of(wanted, restored, settings, options, sampling) if len(wanted) else None
    name = f"step-{restored.checkpoint.step:09d}-{restored.label}-seed{options.seed}{changes_label(sampling)}"
    if source is not None and options.split != "valid":
        name += f"-{options.split}"
    out = pathlib.Path(options.out) if options.out else pathlib.Path(options.run) / "samples" / name
    key = Key.create(options.seed, "sample")
    progress: Progress | None = None
    film = Film() if options.gif and ranks.is_first else None

    def callback(done: int, total: int, preview) -> None:
        nonlocal progress
        if progress is None:
            progress = Progress(total, 0, "sampling", enabled=ranks.is_first).__enter__()
        progress.update(done, {})
        if film is not None:
            film.add(preview)

    try:
        images = evaluation.sample(system, options.count, key, ranks, sampling, callback, source)
    finally:
        if progress is not None:
            progress.__exit__(None, None, None)
    if ranks.is_first:
        for index, image in enumerate(images):
            grids.save_png(out / f"{index:06d}.png", image)
        rows = {} if source is None else source.read(wanted)
        originals = rows.get("image", np.zeros((0, *system.spec.shape), np.uint8))
        grids.save_png(out / "grid.png", system.sample_grid(images, originals, sampling))
        arrays = {"images": images} | ({"originals": originals} if len(originals) else {})
        files = {"samples.npz": arrays, **system.sample_files(images, key, sampling, rows.get("label"))}
        if system.tensors:
            files["tensors.npz"] = system.tensors
        for file_name, contents in files.items():
            with atomic_path(out / file_name) as temporary:
                np.savez(temporary, **contents)
        if film is not None:
            film.save(out / "denoising.gif", system.name)
        print(f"{len(images)} images from the {restored.description}: {out}/ (grid.png, samples.npz)")
    return 0


def _source_of(wanted: np.ndarray, restored, settings, options: Options, sampling):
    """The split that has the images `wanted` (ascending indices)."""
    source = getattr(restored.open_data(settings, options.data_dir, sampling), options.split)
    if wanted[-1] >= len(source):
        raise SettingsError(
            f"--count={options.count}: these samples are made from the first {wanted[-1] + 1} images of {source.name}, "
            f"which has {len(source)}: lower --count, or choose another --split"
        )
    return source


if __name__ == "__main__":
    sys.exit(main())
