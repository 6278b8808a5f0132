"""Side jobs of the training loop: evaluation and sample grids."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from tfgen import evaluation
from tfgen.data.source import Splits
from tfgen.distribute import Ranks
from tfgen.randomness import Key
from tfgen.settings import Settings
from tfgen.systems.base import System
from tfgen.training.recipe import Recipe
from tfgen.training.reporter import Reporter
from tfgen.training.run_folder import RunFolder
from tfgen.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Action:
    """A side job of the loop, called with the number of steps taken, on all ranks together.

    Attributes:
      every: interval in steps; 0 for only at the end of the run.
      at_start: also before the first step of a process.
      run: the job.
      done: whether the job's result of a step was written, perhaps by an earlier process. First rank only.
    """

    every: int
    at_start: bool
    run: Callable[[int], None]
    done: Callable[[int], bool]

    def due(self, step: int, last: int) -> bool:
        return step == last or (self.every > 0 and step % self.every == 0)


def averaged_weights(state: TrainState) -> contextlib.AbstractContextManager:
    """Puts the first averaged weights into the network for a while; a no-op when there is no average."""
    return state.averages[0].swapped_in() if state.averages else contextlib.nullcontext()


def evaluation_action(
    system: System,
    splits: Splits,
    recipe: Recipe,
    settings: Settings,
    ranks: Ranks,
    run: RunFolder,
    state: TrainState,
    reporter: Reporter,
) -> Action:
    """Evaluates the averaged weights on `recipe.eval_split`."""
    source = getattr(splits, recipe.eval_split)

    def job(step: int) -> None:
        with averaged_weights(state):
            result = evaluation.evaluate(
                system,
                source,
                recipe.batch_size,
                ranks,
                system.default_evaluate_options(),
                run.path / "evaluation" / f"{recipe.eval_split}-step-{step:09d}",
                limit=settings.run.eval_images,
            )
        reporter.evaluated(recipe.eval_split, evaluation.numbers(result), step)

    return Action(
        recipe.eval_every,
        recipe.initial_evaluation,
        job,
        done=lambda step: reporter.has_evaluation(recipe.eval_split, step),
    )


def sample_action(
    system: System, splits: Splits, recipe: Recipe, ranks: Ranks, run: RunFolder, state: TrainState, reporter: Reporter
) -> Action:
    """Draws a grid from the raw and from the averaged weights, with the same random numbers every time.

    From the averaged weights (the raw ones where there are none) also come the system's own pictures.
    """
    key = Key.create(recipe.seed, "sample grid")
    source = getattr(splits, recipe.eval_split)
    shown = np.arange(min(recipe.picture_images, len(source)))

    def path(name: str, step: int) -> pathlib.Path:
        return run.samples / f"step-{step:09d}-{name}.png"

    def draw(name: str, step: int) -> None:
        options, count = system.default_sample_options(), recipe.sample_count
        wanted = system.images_wanted(0, count, options)
        if len(wanted):  # samples that are made from images: there may be few
            count = min(count, len(source))
            wanted = system.images_wanted(0, count, options)
        images = evaluation.sample(system, count, key, ranks, options, source=source)
        if ranks.is_first:
            originals = source.read(wanted)["image"] if len(wanted) else np.zeros((0, *system.spec.shape), np.uint8)
            grid = system.sample_grid(images, originals, options)
            reporter.picture(f"samples/{name}", grid, step, path(name, step))

    def draw_pictures(step: int) -> None:
        if ranks.is_first and len(shown):
            pictures = system.pictures(source.read(shown)["image"], key.fold("pictures"))
            for name, picture in pictures.items():
                reporter.picture(name, picture, step, path(name, step))

    def job(step: int) -> None:
        if state.averages:
            draw("raw", step)
            with averaged_weights(state):
                draw_pictures(step)
                draw("ema", step)
        else:
            draw_pictures(step)
            draw("raw", step)

    last_written = "ema" if state.averages else "raw"
    return Action(
        recipe.sample_every,
        recipe.initial_samples,
        job,
        done=lambda step: path(last_written, step).exists(),
    )
