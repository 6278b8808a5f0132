"""`python -m tfgen.train --hps=PRESET [--run=DIR] [--flag=value ...]`: trains a run, or goes on with it.

The same command resumes. Exit codes: 0 the run reached its last step; 75 it was interrupted (SIGTERM, Ctrl-C)
and saved on all ranks; 1 an error, with nothing lost that had been saved; 2 the command line is wrong.
"""

from __future__ import annotations

import dataclasses
import sys

from tfgen import settings as settings_module
from tfgen.settings import Settings


def main(argv: list[str] | None = None) -> int:
    from tfgen.console import reported_errors

    with reported_errors():
        settings = settings_module.parse(sys.argv[1:] if argv is None else argv)
        return run(settings)
    return 1


def run(settings: Settings) -> int:
    """Trains under parsed settings; returns the exit code."""
    from tfgen import distribute, runtime
    from tfgen.systems import load
    from tfgen.training import actions, loop
    from tfgen.training.run_folder import RunFolder

    ranks = distribute.connect()
    folder = RunFolder(settings.run_path)
    if ranks.is_first:
        print(f"run folder: {folder.path}", flush=True)
    runtime.configure(settings.run.deterministic)
    system_class = load(settings.system)
    runtime.set_precision(settings.run.precision, system_class.half_precision(settings.config), ranks.is_first)

    splits = system_class.open_data(settings.config, settings.run.data_dir)
    ranks.agree((splits.spec, len(splits.train), settings.to_flagfile()), "the data set or the settings")
    system = system_class(settings.config, splits.spec)
    if not folder.checkpoints().steps():
        system.check_training()
    recipe = system.recipe(splits.train.epoch_size, ranks.size)
    names = ("steps", "log_every", "eval_every", "save_every", "sample_every")
    overrides = {name: getattr(settings.run, name) for name in names} | {"sample_count": settings.run.sample_images}
    recipe = dataclasses.replace(recipe, **{name: value for name, value in overrides.items() if value is not None})

    if settings.run.print_params and ranks.is_first:
        print(runtime.parameter_table(system))
    if settings.run.dry_run:
        if ranks.is_first:
            print(settings.to_flagfile(), *settings.ignored(), sep="\n")
            print(runtime.summary(system, splits, recipe, ranks.size))
            print("dry run: nothing was written")
        return 0
    if ranks.is_first:
        folder.claim(settings)

    def make_actions(state, reporter):
        evaluation = actions.evaluation_action(system, splits, recipe, settings, ranks, folder, state, reporter)
        if not recipe.sample_count:
            return [evaluation]
        return [evaluation, actions.sample_action(system, splits, recipe, ranks, folder, state, reporter)]

    try:
        return loop.train(settings, system, splits, recipe, ranks, folder, make_actions)
    finally:
        folder.release()


if __name__ == "__main__":
    sys.exit(main())
