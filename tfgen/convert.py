"""`python -m tfgen.convert WHAT ...`: from files that others made to those of this library.

    python -m tfgen.convert checkpoint FILE --hps=PRESET [--run=DIR]

A run from a checkpoint of the original code. It can be sampled, evaluated, exported, and trained further.

    python -m tfgen.convert images FOLDER OUT.npy [--size=HEIGHTxWIDTH] [--allow_rejects] [--overwrite]

One array, uint8 [N, H, W, 3], from the images in a folder (sub-folders included) or zip archive, sorted by path.
Palette and grey images become RGB without loss. Other files, and images of another size than most, are rejected and
listed; then nothing is written and the exit code is 1, unless --allow_rejects leaves them out. Nothing is resized.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from collections.abc import Sequence

from tfgen.flagfields import SettingsError, check_values, flag

_EXPECTED = "expected `checkpoint FILE --hps=PRESET` or `images FOLDER OUT.npy`"


@dataclasses.dataclass(frozen=True)
class ImagesOptions:
    """Flags of `tfgen.convert images`."""

    size: str = flag(
        "", "HEIGHTxWIDTH of the images, or one number for both; others are rejected. By default that of most of them."
    )
    allow_rejects: bool = flag(False, "Leave out files that cannot be used, and write the others.")
    overwrite: bool = flag(False, "Replace OUT.npy if it is there.")

    def __post_init__(self) -> None:
        check_values(self)
        _ = self.height_and_width

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """The size in pixels, or None for that of most images."""
        if not self.size:
            return None
        match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", self.size)
        if match is None:
            raise SettingsError(f"--size={self.size}: expected HEIGHTxWIDTH such as 64x64, or one number for both")
        return int(match[1]), int(match[2] or match[1])


def main(argv: list[str] | None = None) -> int:
    from tfgen.commandline import help_text
    from tfgen.console import reported_errors
    from tfgen.settings import parse

    arguments = list(sys.argv[1:] if argv is None else argv)
    with reported_errors():
        if {"--help", "-h"} & set(arguments[:2]):
            print(__doc__)
            print(help_text("flags of images", ImagesOptions))
            return 0
        if arguments[:1] == ["images"]:
            return convert_images(*_images_arguments(arguments[1:]))
        if len(arguments) < 2 or arguments[0] != "checkpoint" or arguments[1].startswith("-"):
            raise SettingsError(f"{_EXPECTED}, found {' '.join(arguments) or 'nothing'}")
        return convert_checkpoint(arguments[1], parse(arguments[2:]))
    return 1


def _images_arguments(arguments: Sequence[str]) -> tuple[str, str, ImagesOptions]:
    from tfgen import commandline

    (options,), rest = commandline.take_words(commandline.expand(arguments), ImagesOptions)
    places = [word.text for word in rest if word.flag_name is None]
    commandline.parse_words([word for word in rest if word.flag_name is not None], ImagesOptions)  # none is known
    if len(places) != 2:
        raise SettingsError(f"expected `images FOLDER OUT.npy`, found {' '.join(places) or 'neither'}")
    return places[0], places[1], options


def convert_images(source: str, out: str, options: ImagesOptions) -> int:
    """Writes the array file; returns the exit code. Raises `DataError` where that cannot be done."""
    from tfgen.data import conversion
    from tfgen.data.errors import DataError
    from tfgen.data.folder import open_files
    from tfgen.monitor.progress import Progress

    path = pathlib.Path(out)
    if path.suffix != ".npy":
        raise SettingsError(f"{out}: expected a name that ends in .npy")
    if path.is_dir():
        raise DataError(f"{out} is a folder: choose another name")
    if path.exists() and not options.overwrite:
        raise DataError(f"{out} exists already: choose another name, or replace it with --overwrite")
    files = open_files(source)
    with Progress(len(files.names), description="read headers", unit="files") as progress:
        inventory = conversion.take_inventory(files, options.height_and_width, progress.update)
    try:
        with Progress(len(inventory.names), description="convert", unit="images") as progress:
            count = conversion.write_array(inventory, path, options.allow_rejects, progress.update)
    finally:
        if inventory.rejects:
            print(f"rejected {len(inventory.rejects)} of {len(files.names)} files:")
            print(conversion.rejects_table(inventory.rejects), flush=True)
    print(f"{out}: uint8 [{count}, {inventory.height}, {inventory.width}, 3], sorted by path")
    return 0


def convert_checkpoint(path: str, settings) -> int:
    """Writes the run folder; returns the exit code."""
    from tfgen import runtime
    from tfgen.systems import load
    from tfgen.training.run_folder import RunFolder, RunFolderError
    from tfgen.training.state import TrainState

    system_class = load(settings.system)
    spec = system_class.image_spec(settings.config)
    if spec is None:
        spec = system_class.open_data(settings.config, settings.run.data_dir).spec
    runtime.set_precision("float32", half=False)
    system = system_class(settings.config, spec)
    state = TrainState(system, system.recipe(train_size=1_000_000, ranks=1))
    system.load_published(path, state)

    folder = RunFolder(settings.run_path)
    if folder.checkpoints().steps():
        raise RunFolderError(f"{folder.path} has checkpoints already: choose another --run")
    folder.claim(settings)
    checkpoint = folder.checkpoints().save(int(state.step), state, spec, settings.to_flagfile())
    folder.release()
    print(f"{path} is now the checkpoint of step {checkpoint.step:,} of the run {folder.path}")
    print(f"next: python -m tfgen.sample --run={folder.path} --count=16")
    return 0


if __name__ == "__main__":
    sys.exit(main())
