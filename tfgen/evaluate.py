"""`python -m tfgen.evaluate --run=DIR [--split=test]`: nats and bits per dimension of a trained run, or its energies.

Some systems have other evaluations, --task=NAME; `python -m tfgen.evaluate --run=DIR --help` lists them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import sys

from tfgen.flagfields import changes_label
from tfgen.settings import SettingsError, flag, parse_for_run


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of the command; the system's `EvaluateOptions` are added to them."""

    run: str = flag("", "run folder")
    split: str = flag("valid", "which images", choices=("train", "valid", "test"))
    images: int | None = flag(None, "only the first ones; default: the whole split", minimum=1)
    batch_size: int | None = flag(None, "images per forward pass; default: that of the training", minimum=1)
    weights: str = flag("ema", "averaged or raw weights", choices=("ema", "raw"))
    ema_rate: float | None = flag(
        None, "which average, of a run with several; default: the first of its --ema_rate", minimum=0.0, below=1.0
    )
    checkpoint_step: int | None = flag(None, "step of the checkpoint; default: the newest", minimum=0)
    baseline: bool = flag(False, "also the bits per dimension of a per-pixel histogram of the training images")
    data_dir: str | None = flag(None, "folder of the data sets; default: that of the run")


def main(argv: list[str] | None = None) -> int:
    from tfgen.console import reported_errors

    with reported_errors():
        settings, options, evaluation_options = parse_for_run(
            sys.argv[1:] if argv is None else argv, Options, lambda system: system.evaluate_options_class
        )
        return run(settings, options, evaluation_options)
    return 1


def run(settings, options: Options, evaluation_options) -> int:
    """Evaluates and prints; returns the exit code."""
    import numpy as np

    from tfgen import distribute, evaluation
    from tfgen.files import atomic_path, write_text
    from tfgen.likelihood.histogram import baseline_bits_per_dim
    from tfgen.restore import restore

    ranks = distribute.connect()
    task = getattr(evaluation_options, "task", "")
    if task and ranks.size > 1:
        raise SettingsError(f"--task={task} runs in a single process, found {ranks.size} ranks: leave horovodrun out")
    restored = restore(
        settings, options.run, options.weights, options.checkpoint_step, evaluation_options, options.ema_rate
    )
    splits = restored.open_data(settings, options.data_dir, evaluation_options)
    source = getattr(splits, options.split)
    name = f"{options.split}-step-{restored.checkpoint.step:09d}-{restored.label}"
    folder = pathlib.Path(options.run) / "evaluation"
    batch_size = options.batch_size or restored.system.recipe(splits.train.epoch_size, ranks.size).batch_size
    if task:
        changed = changes_label(evaluation_options, leave_out=("task",)) + changes_label(
            options, leave_out=("run", "split", "weights", "ema_rate", "checkpoint_step", "data_dir")
        )
        data_dir = settings.run.data_dir if options.data_dir is None else options.data_dir
        place = folder / f"{task}-{name}{changed}"
        return run_task(task, restored, splits, options, evaluation_options, place, batch_size, data_dir)
    result = dict(
        evaluation.evaluate(
            restored.system, source, batch_size, ranks, evaluation_options, folder / name, limit=options.images
        )
    )
    if options.baseline:
        result |= {"histogram_bits_per_dim": baseline_bits_per_dim(splits.train, source, options.images)}
    if ranks.is_first:
        for metric in result.keys() - evaluation.numbers(result).keys():
            with atomic_path(folder / name / f"{metric}.npz") as temporary:
                np.savez(temporary, result[metric])
            print(f"written to {folder / name / metric}.npz")
        metrics = evaluation.numbers(result)
        record = {
            "split": options.split,
            "source": source.name,
            "weights": restored.label,
            "step": restored.checkpoint.step,
            **metrics,
        }
        print(f"{source.name}, {metrics['examples']:,} images, {restored.description}:")
        for metric, value in metrics.items():
            if metric != "examples":
                print(f"  {metric:<28} {value:.4f}")
        path = folder / f"{name}.json"
        write_text(path, json.dumps(record, indent=1) + "\n")
        print(f"written to {path}")
    return 0


def run_task(
    task: str,
    restored,
    splits,
    options: Options,
    evaluation_options,
    folder: pathlib.Path,
    batch_size: int,
    data_dir: str,
) -> int:
    """Runs one of the system's other evaluations and prints its results; returns the exit code.

    Results go to a folder of their own for every choice of flags; those of the same flags are replaced.
    """
    import numpy as np

    from tfgen.data.source import Subset
    from tfgen.files import write_text
    from tfgen.randomness import Key
    from tfgen.systems.base import TaskRun

    source = getattr(splits, options.split)
    if options.images is not None and options.images < len(source):
        source = Subset(source, np.arange(options.images), f"the first {options.images} images of {source.name}")
    folder.mkdir(parents=True, exist_ok=True)
    key = Key.create(evaluation_options.seed, task)
    run = pathlib.Path(options.run)
    step, kind = restored.checkpoint.step, restored.weights
    job = TaskRun(
        source, splits, data_dir, folder, run, batch_size, key, step=step, weights=kind, images=options.images
    )
    result = restored.system.run_task(task, evaluation_options, job)
    print(f"{task}, {source.name}, {restored.description}:")
    for metric, value in result.items():
        print(f"  {metric:<28} {value:.4f}" if isinstance(value, float) else f"  {metric:<28} {value}")
    record = {
        "task": task,
        "source": source.name,
        "weights": restored.label,
        "step": restored.checkpoint.step,
        "batch_size": batch_size,
        "images": options.images,
        "data_dir": data_dir,
        "flags": dataclasses.asdict(evaluation_options),
        # JSON has no NaN.
        **{
            metric: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for metric, value in result.items()
        },
    }
    write_text(folder / "result.json", json.dumps(record, indent=1) + "\n")
    print(f"written to {folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
