"""`python -m tfgen.convert checkpoint FILE --hps=PRESET [--run=DIR]`: a run from a checkpoint of the original code.

The run can be sampled, evaluated, exported, and trained further.
"""

from __future__ import annotations

import sys

VERBS = ("checkpoint",)


def main(argv: list[str] | None = None) -> int:
    from tfgen.console import reported_errors
    from tfgen.settings import SettingsError, parse

    arguments = list(sys.argv[1:] if argv is None else argv)
    with reported_errors():
        if arguments[:1] in (["--help"], ["-h"]):
            print(__doc__)
            return 0
        if len(arguments) < 2 or arguments[0] not in VERBS or arguments[1].startswith("-"):
            raise SettingsError(f"expected `checkpoint FILE --hps=PRESET`, found {' '.join(arguments) or 'nothing'}")
        return convert_checkpoint(arguments[1], parse(arguments[2:]))
    return 1


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
