"""What a run says of itself: terminal, `metrics.jsonl`, TensorBoard, pictures. Silent on ranks other than the first."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfgen.monitor import grids
from tfgen.monitor.append_file import DiskFaults
from tfgen.monitor.metrics_log import MetricsLog
from tfgen.monitor.tensorboard import RunSummaries
from tfgen.monitor.window import Record, Statistic, summarize
from tfgen.settings import Settings
from tfgen.training.run_folder import RunFolder

_STATISTICS: dict[str, Statistic] = {"learning_rate": "newest", "loss_scale": "newest"}


class Reporter:
    """Collects the numbers of each step and writes them at the logging interval.

    Args:
      first: steps that were done before this process.
      enabled: False on ranks other than the first: every method is then a no-op.
      statistics: what is logged of a metric over the steps since the last record; the mean of those not named.
      stepwise: metrics of which every single step is recorded, in `steps.jsonl`.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        first: int,
        enabled: bool = True,
        statistics: Mapping[str, Statistic] | None = None,
        stepwise: Sequence[str] = (),
    ):
        self._statistics = {**_STATISTICS, **(statistics or {})}
        self._run, self._settings, self._first, self._enabled = run, settings, first, enabled
        self._metrics = MetricsLog(run.metrics_path, first + 1, enabled=enabled)
        self._stepwise = tuple(stepwise)
        self._steps = MetricsLog(run.steps_path, first + 1, enabled=enabled and bool(stepwise))
        self._summaries = RunSummaries(run.path, first + 1, enabled=enabled)
        self._faults = DiskFaults("sample grids")
        self._profile_steps = settings.run.profile_range
        self._profiling = False
        self._headline: dict[str, float] = {}
        self._results: dict[str, float] = {}
        self._picture: pathlib.Path | None = None
        self._clear()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiling:
            tf.profiler.experimental.stop()
        self._metrics.close()
        self._steps.close()
        self._summaries.close()

    def say(self, text: str) -> None:
        """Prints a line (or several) for the person at the terminal."""
        if self._enabled:
            print(text, flush=True)

    def settings(self) -> None:
        """The resolved settings, on the terminal and in TensorBoard."""
        self.say(self._settings.to_flagfile())
        for sentence in self._settings.ignored():
            self.say(sentence)
        self._summaries.settings(self._settings.as_dict())

    # Training numbers -----------------------------------------------------------------------------------

    @staticmethod
    def is_logged(step: int, every: int) -> bool:
        """Whether the numbers of `step` are recorded: powers of two up to 256, then every `every` steps."""
        return step % every == 0 or (step <= 256 and step & (step - 1) == 0)

    def add(self, step: int, outputs: dict[str, Any], images: int, wait_seconds: float) -> None:
        """Notes the outputs of the step that used `images` images and waited so long for them.

        Outputs of shape [2] are sum and number of a metric that only some samples have.
        """
        self._records.append(
            {
                name: (float(value[0]), float(value[1])) if np.ndim(value) else float(value)
                for name, value in outputs.items()
            }
        )
        self._steps.write(step, "train", {name: outputs[name] for name in self._stepwise})
        self._images += images
        self._wait += wait_seconds
        self._headline = {name: float(outputs[name]) for name in ("loss", "bits_per_dim") if name in outputs}

    def headline(self) -> dict[str, float]:
        """The newest values worth a place beside the progress bar."""
        return self._headline

    def log(self, step: int, skipped_steps: int, **extra: Any) -> None:
        """Records the steps since the last record, speeds, and `extra`."""
        seconds = time.monotonic() - self._since
        values = summarize(self._records, self._statistics)
        values.pop("skipped", None)
        values.pop("troubled_steps", None)
        values |= {
            "images_per_second": self._images / seconds,
            "data_wait_ms": 1000 * self._wait / len(self._records),
            "skipped_steps": skipped_steps,
        }
        values |= {name: float(value) for name, value in extra.items()}
        self._metrics.write(step, "train", values)
        self._summaries.scalars({f"train/{name}": value for name, value in values.items()}, step)
        self._clear()

    def _clear(self) -> None:
        self._records: list[Record] = []
        self._images, self._wait, self._since = 0, 0.0, time.monotonic()

    # Side jobs ------------------------------------------------------------------------------------------

    def evaluated(self, split: str, result: dict[str, float], step: int) -> None:
        """Records and prints the result of an evaluation."""
        self._metrics.write(step, split, result)
        self._summaries.scalars(
            {f"{split}/{name}": value for name, value in result.items() if name != "examples"}, step
        )
        shown = ", ".join(f"{name} {value:.4f}" for name, value in result.items() if name != "examples")
        self.say(f"step {step:,}: {split} ({result['examples']:,} images): {shown}")
        self._results = {f"{split} {name}": value for name, value in result.items() if name != "examples"}

    def has_evaluation(self, split: str, step: int) -> bool:
        """Whether an earlier process recorded the evaluation of this step."""
        if not self._run.metrics_path.exists():
            return False
        lines = self._run.metrics_path.read_text(encoding="utf-8").splitlines()
        records = (json.loads(line) for line in lines)
        return any(record["step"] == step and record["series"] == split for record in records)

    def picture(self, tag: str, image: np.ndarray, step: int, path: pathlib.Path) -> None:
        """Shows a uint8 [H, W, C] picture in TensorBoard and writes it as a PNG; a full disk costs the PNG only."""
        if not self._enabled:
            return
        self._summaries.image(tag, image, step)
        with self._faults.tolerated(path):
            grids.save_png(path, image)
            self._picture = path

    def profile(self, step: int) -> None:
        """Starts or stops the profiler before `step`, where `--profile_steps` says so."""
        if not self._enabled or self._profile_steps is None:
            return
        first, last = self._profile_steps
        if not self._profiling and first <= step < last:
            tf.profiler.experimental.start(str(self._run.path / "profile"))
            self._profiling = True
        elif self._profiling and step >= last:
            tf.profiler.experimental.stop()
            self._profiling = False
            self.say(f"profile of steps {first} to {last - 1} written to {self._run.path / 'profile'}")

    # The end --------------------------------------------------------------------------------------------

    def finish(self, step: int, last: int, interrupted: bool, notes: dict[str, float]) -> None:
        """Says where everything is and what to type next. `notes` are further numbers to print beside the results."""
        path, programs = self._run.path, program_prefix()
        if interrupted:
            self.say(
                f"interrupted at step {step:,} of {last:,}; saved. The same command goes on: "
                f"{programs}python -m tfgen.train --run={path}"
            )
            return
        lines = [f"done: {step:,} of {last:,} steps"]
        for name, value in {**self._results, **notes}.items():
            lines.append(f"  {name:<44} {value:.4f}")
        if self._picture:
            lines.append(f"samples:     {self._picture}")
        lines += [
            f"TensorBoard: {programs}tensorboard --logdir {path}",
            "next:",
            f"  {programs}python -m tfgen.sample --run={path} --count=64",
            f"  {programs}python -m tfgen.evaluate --run={path} --split=test",
            f"  {programs}python -m tfgen.train --run={path} --steps={2 * max(step, 1)}    # train longer",
            f"  {programs}python -m tfgen.export --run={path}",
        ]
        self.say("\n".join(lines))


def program_prefix() -> str:
    """What to type before `python`: the folder of this interpreter if it lies below the working directory, else ""."""
    folder = pathlib.Path(sys.executable).parent
    try:
        return f"{folder.relative_to(pathlib.Path.cwd())}/"
    except ValueError:
        return ""
