"""Checkpoints that are either whole or not there.

A checkpoint is a folder `step-000012000/` with TensorFlow's checkpoint files, the run's `flags.txt` and a
`manifest.json` of sizes and checksums. It is written under another name, synced and renamed, so that a kill
at any moment leaves the folder as it was before. There is no pointer file: the newest folder whose manifest
holds is the one to resume from, and a damaged one is passed over with a message.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
import zlib

import tensorflow as tf

from tfgen.data.source import ImageSpec
from tfgen.files import sync_folder, write_text

_NAME = re.compile(r"step-(\d{9})")
_PARTIAL = ".partial-"
_WEIGHTS = "state"
_MANIFEST = "manifest.json"
_FLAGS = "flags.txt"
_RANKS = ".ranks-"  # folder of what other ranks have written for a checkpoint that is not there yet


class CheckpointError(ValueError):
    """A checkpoint cannot be used, or none of a run's checkpoints can."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint.

    Attributes:
      path: its folder.
      step: training step at which it was saved.
      spec: shape of the images the network models.
    """

    path: pathlib.Path
    step: int
    spec: ImageSpec

    @property
    def prefix(self) -> str:
        """What `tf.train.Checkpoint.restore` takes."""
        return str(self.path / _WEIGHTS)

    def rank_prefix(self, rank: int) -> str | None:
        """What `tf.train.Checkpoint.read` takes for what a rank other than the first has of its own, if it is there."""
        prefix = self.path / _rank_name(rank)
        return str(prefix) if prefix.with_name(f"{prefix.name}.index").exists() else None

    @property
    def flags(self) -> str:
        """The settings under which it was saved, as a flagfile."""
        return (self.path / _FLAGS).read_text(encoding="utf-8")


def _rank_name(rank: int) -> str:
    return f"rank-{rank:04d}"


def _checksum(path: pathlib.Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def verify(path: pathlib.Path) -> Checkpoint:
    """Checks every file of a checkpoint folder against its manifest.

    Raises:
      CheckpointError: names the first file that is missing, cut short or altered.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        step, spec, files = manifest["step"], ImageSpec(**manifest["image"]), manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: unreadable {_MANIFEST} ({error})") from error
    for name, recorded in files.items():
        try:
            size = (path / name).stat().st_size
            if size != recorded["bytes"]:
                raise CheckpointError(f"{path / name}: {recorded['bytes']} bytes were saved, {size} are there")
            if _checksum(path / name) != recorded["crc32"]:
                raise CheckpointError(f"{path / name}: contents differ from what was saved (checksum)")
        except OSError as error:
            raise CheckpointError(f"{path / name}: cannot be read ({error})") from error
    return Checkpoint(path, step, spec)


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: `<run>/checkpoints`; made when the first one is saved.
      keep_last: how many of the newest are kept.
      keep_every: those at multiples of this step are kept for ever; 0 for none.
    """

    def __init__(self, folder: pathlib.Path, keep_last: int = 3, keep_every: int = 0):
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every

    def steps(self) -> list[int]:
        """Steps that have a folder, damaged or not, in rising order."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def path(self, step: int) -> pathlib.Path:
        return self.folder / f"step-{step:09d}"

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None when none was ever saved.

        Raises:
          CheckpointError: there are checkpoints, and every one is damaged.
        """
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self._warned(verify(self.path(step)), damaged)
            except CheckpointError as error:
                damaged.append(str(error))
        if damaged:
            raise CheckpointError(
                f"none of the {len(damaged)} checkpoints in {self.folder} is usable: " + "; ".join(damaged) + ". "
                "Nothing was changed. Restore the folder from a copy, or start again at step 0 with "
                "--restart_from_scratch (the old checkpoints are then set aside, not deleted)."
            )
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of one step."""
        if step not in self.steps():
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder}; there are {self.steps()}")
        return verify(self.path(step))

    @staticmethod
    def _warned(found: Checkpoint, damaged: list[str]) -> Checkpoint:
        for reason in damaged:
            logging.warning("damaged checkpoint passed over: %s", reason)
        if damaged:
            logging.warning("going back to the checkpoint of step %d", found.step)
        return found

    def save_rank(self, step: int, rank: int, module: tf.Module) -> None:
        """Writes what a rank other than the first has of its own, for the checkpoint of `step` that is saved next.

        Raises:
          CheckpointError: it could not be written.
        """
        folder = self.folder / f"{_RANKS}{step:09d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tf.train.Checkpoint(module).write(str(folder / _rank_name(rank)))
        except (OSError, tf.errors.OpError) as error:
            raise CheckpointError(
                f"rank {rank} could not write its part of the checkpoint of step {step} to {folder}: {error}. With "
                "several machines the run folder must be on a disk that all of them share. Earlier checkpoints are "
                "intact."
            ) from error

    def save(self, step: int, state: tf.Module, spec: ImageSpec, flags: str) -> Checkpoint:
        """Saves the variables of `state` as the checkpoint of `step`, with what other ranks have written for it.

        Drops old checkpoints.

        Raises:
          CheckpointError: it could not be written; earlier checkpoints are as they were.
        """
        final, partial = self.path(step), self.folder / f"{_PARTIAL}{step:09d}"
        if final.exists():
            try:
                return verify(final)
            except CheckpointError as error:
                aside = self._unused_name(final.with_name(f"damaged-{final.name}"))
                logging.warning("%s; set aside as %s", error, aside.name)
                final.rename(aside)
        self.remove_partial()
        try:
            partial.mkdir(parents=True)
            tf.train.Checkpoint(state).write(str(partial / _WEIGHTS))
            of_ranks = self.folder / f"{_RANKS}{step:09d}"
            if of_ranks.is_dir():
                for entry in of_ranks.glob("rank-*.*"):
                    if entry.is_file():  # a killed write may have left a folder
                        entry.rename(partial / entry.name)
            write_text(partial / _FLAGS, flags)
            self._write_manifest(partial, step, spec)
            partial.rename(final)
            sync_folder(self.folder)
            self.remove_parts_of_ranks()
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            self.remove_parts_of_ranks()
            needed = sum(item.dtype.size * item.shape.num_elements() for item in state.variables)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}. It needs about "
                f"{needed / 1e6:.1f} MB, {shutil.disk_usage(self._existing_parent()).free / 1e6:.1f} "
                "MB are free. Earlier checkpoints are intact."
            ) from error
        self._drop_old()
        return Checkpoint(final, step, spec)

    def remove_partial(self) -> None:
        """Removes what a killed save left behind."""
        for entry in self.folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(entry)

    def remove_parts_of_ranks(self) -> None:
        """Removes what ranks have written for checkpoints that did not come about."""
        for entry in self.folder.glob(f"{_RANKS}*"):
            shutil.rmtree(entry, ignore_errors=True)

    def set_aside(self) -> pathlib.Path | None:
        """Renames the whole folder, so that a run can begin again at step 0 without losing anything."""
        if not self.folder.exists():
            return None
        aside = self._unused_name(self.folder.with_name(f"{self.folder.name}.old"))
        self.folder.rename(aside)
        return aside

    def _write_manifest(self, partial: pathlib.Path, step: int, spec: ImageSpec) -> None:
        files = {}
        for entry in sorted(partial.iterdir()):
            files[entry.name] = {"bytes": entry.stat().st_size, "crc32": _checksum(entry)}
            descriptor = os.open(entry, os.O_RDONLY)
            os.fsync(descriptor)  # TensorFlow's writer does not
            os.close(descriptor)
        manifest = {"step": step, "image": dataclasses.asdict(spec), "files": files}
        write_text(partial / _MANIFEST, json.dumps(manifest, indent=1))

    def _drop_old(self) -> None:
        steps = self.steps()
        for step in steps[: -self.keep_last]:
            if not (self.keep_every and step % self.keep_every == 0):
                # Renamed first: a kill during the removal must not leave a folder that looks like a damaged checkpoint.
                dropped = self.path(step).rename(self.folder / f"{_PARTIAL}{step:09d}")
                shutil.rmtree(dropped)

    @staticmethod
    def _unused_name(path: pathlib.Path) -> pathlib.Path:
        names = [path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000))]
        return next(name for name in names if not name.exists())

    def _existing_parent(self) -> pathlib.Path:
        return next(parent for parent in (self.folder, *self.folder.absolute().parents) if parent.exists())
