"""The folder of a run: what lies where, and who may write into it."""

from __future__ import annotations

import fcntl
import logging
import os
import pathlib

from tfgen import settings as settings_module
from tfgen.files import write_text
from tfgen.settings import Settings
from tfgen.training.checkpoints import Checkpoints


class RunFolderError(ValueError):
    """The run folder cannot be used with these settings, or not now."""


class RunFolder:
    """`<run>/` with `flags.txt`, `checkpoints/`, `samples/`, `metrics.jsonl` and TensorBoard's event files.

    Args:
      path: the folder; made by `claim`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._lock: int | None = None

    @property
    def flags_path(self) -> pathlib.Path:
        return self.path / settings_module.FLAGS_FILE

    @property
    def samples(self) -> pathlib.Path:
        return self.path / "samples"

    @property
    def metrics_path(self) -> pathlib.Path:
        return self.path / "metrics.jsonl"

    @property
    def steps_path(self) -> pathlib.Path:
        """Metrics of every single step, of systems that ask for it."""
        return self.path / "steps.jsonl"

    def checkpoints(self, keep_last: int = 3, keep_every: int = 0) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", keep_last, keep_every)

    def claim(self, settings: Settings) -> None:
        """Makes the folder, keeps other trainers out until this process ends, and records the settings.

        Raises:
          RunFolderError: another process trains in it, or it belongs to a run with other settings.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(
                f"another process is training in {self.path}; wait for it, stop it, or choose another --run"
            ) from error
        except OSError as error:
            raise RunFolderError(
                f"cannot write to the run folder {self.path}: {error}; choose another --run"
            ) from error
        if self.flags_path.exists():
            self._compare(settings)
        write_text(self.flags_path, settings.to_flagfile())

    def _compare(self, settings: Settings) -> None:
        changes = settings_module.read_run(self.path).differences(settings)
        if not changes:
            return
        table = "\n".join(f"  --{name}: the run has {old!r}, now {new!r}" for name, old, new in changes)
        if settings.run.allow_changed_settings:
            logging.warning("settings of the run %s change:\n%s", self.path, table)
            return
        raise RunFolderError(
            f"{self.path} holds a run with other settings:\n{table}\n"
            f"Nothing was changed. To continue that run as it is: python -m tfgen.train --run={self.path}. "
            "To start another one: choose another --run. To continue with the new values: --allow_changed_settings."
        )

    def release(self) -> None:
        """Lets other trainers in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
