"""`python -m tfgen.convert WHAT ...`: from files that others made to those of this library.

    python -m tfgen.convert checkpoint FILE --hps=PRESET [--run=DIR]

A run from a checkpoint of the original code. It can be sampled, evaluated, exported, and trained further.

    python -m tfgen.convert images FOLDER OUT.npy [--size=HEIGHTxWIDTH] [--allow_rejects] [--overwrite]

One array, uint8 [N, H, W, 3], from the images in a folder (sub-folders included) or zip archive, sorted by path.
Palette and grey images become RGB without loss. Other files, and images of another size than most, are rejected and
listed; then nothing is written and the exit code is 1, unless --allow_rejects leaves them out. Nothing is resized.

    python -m tfgen.convert crops FOLDER OUT.npy --size=R [--labels] [--convert_first] [--allow_rejects] [--overwrite]

One array, uint8 [N, R, R, 3], from images of any sizes: the crops that improved diffusion trains on, in its order.
--labels writes the classes, the parts of the file names before the first underscore, to OUT_labels.npy as well.

    python -m tfgen.convert cifar10 OUT_FOLDER [--data_dir=DIR]

OUT_FOLDER/cifar_train and cifar_test with CIFAR-10 as PNG files CLASS_IIIII.png. A split whose folder is there already
is skipped. A conversion that was interrupted starts afresh.

    python -m tfgen.convert lsun LMDB_FOLDER OUT_FOLDER [--image_size=256] [--prefix=bedroom] [--allow_rejects]

PNG files PREFIX_IIIIIII.png from a database of LSUN, the shorter side resized to the size and the rest cropped. Needs
the package lmdb. A conversion that was interrupted goes on where it was; until then its files are in a hidden folder
beside OUT_FOLDER.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tfgen.convert_data import VERBS, Verb
from tfgen.flagfields import SettingsError


def main(argv: list[str] | None = None) -> int:
    from tfgen.commandline import help_text
    from tfgen.console import reported_errors
    from tfgen.settings import parse

    arguments = list(sys.argv[1:] if argv is None else argv)
    with reported_errors():
        if {"--help", "-h"} & set(arguments[:2]):
            print(__doc__)
            print("\n\n".join(help_text(f"flags of {name}", verb.options) for name, verb in VERBS.items()))
            return 0
        if arguments and arguments[0] in VERBS:
            verb = VERBS[arguments[0]]
            places, options = _places_and_options(arguments[0], verb, arguments[1:])
            return verb.convert(*places, options)
        if len(arguments) < 2 or arguments[0] != "checkpoint" or arguments[1].startswith("-"):
            usages = ["checkpoint FILE --hps=PRESET", *(verb.usage(name) for name, verb in VERBS.items())]
            expected = " or ".join(f"`{usage}`" for usage in usages)
            raise SettingsError(f"expected {expected}, found {' '.join(arguments) or 'nothing'}")
        return convert_checkpoint(arguments[1], parse(arguments[2:]))
    return 1


def _places_and_options(name: str, verb: Verb, arguments: Sequence[str]) -> tuple[list[str], Any]:
    from tfgen import commandline

    (options,), rest = commandline.take_words(commandline.expand(arguments), verb.options)
    places = [word.text for word in rest if word.flag_name is None]
    commandline.parse_words([word for word in rest if word.flag_name is not None], verb.options)  # none is known
    if len(places) != len(verb.places):
        raise SettingsError(f"expected `{verb.usage(name)}`, found {' '.join(places) or 'nothing'}")
    return places, options


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
