"""`python -m tfgen.export --run=DIR [--out=DIR]`: a SavedModel that plain TensorFlow loads and runs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import sys

from tfgen.settings import flag, parse_for_run


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of the command."""

    run: str = flag("", "run folder")
    out: str = flag("", "folder of the SavedModel; default: <run>/export/step-<step>-<weights>")
    weights: str = flag("ema", "averaged or raw weights", choices=("ema", "raw"))
    ema_rate: float | None = flag(
        None, "which average, of a run with several; default: the first of its --ema_rate", minimum=0.0, below=1.0
    )
    checkpoint_step: int | None = flag(None, "step of the checkpoint; default: the newest", minimum=0)


def main(argv: list[str] | None = None) -> int:
    from tfgen.console import reported_errors

    with reported_errors():
        settings, options, system_options = parse_for_run(
            sys.argv[1:] if argv is None else argv, Options, lambda system: system.export_options_class
        )
        return run(settings, options, system_options)
    return 1


def run(settings, options: Options, system_options) -> int:
    """Exports; returns the exit code."""
    import tensorflow as tf

    from tfgen.ops.library import plain_tensorflow
    from tfgen.restore import restore

    restored = restore(
        settings, options.run, options.weights, options.checkpoint_step, system_options, options.ema_rate
    )
    name = f"step-{restored.checkpoint.step:09d}-{restored.label}"
    out = pathlib.Path(options.out) if options.out else pathlib.Path(options.run) / "export" / name
    if out.exists():
        raise ValueError(f"{out} exists already: choose another --out, or remove it first")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)

    module = tf.Module()
    # The variables rather than the Keras model, whose own call functions would be traced and saved beside ours.
    systems = [restored.system, *restored.system.companions.values()]
    module.weights = [variable for system in systems for variable in system.network.variables]
    signatures = restored.system.signatures()
    for signature, function in signatures.items():
        setattr(module, signature, function)
    with plain_tensorflow():  # functions are traced here
        tf.saved_model.save(module, str(partial), signatures=signatures)
    (partial / "flags.txt").write_text(restored.checkpoint.flags, encoding="utf-8")
    (partial / "README.md").write_text(_card(settings, restored, signatures), encoding="utf-8")
    partial.rename(out)
    print(f"SavedModel of the {restored.description}: {out} (signatures: {', '.join(sorted(signatures))})")
    return 0


def _card(settings, restored, signatures) -> str:
    """The model card that lies beside the weights."""
    lines = [
        f"# {settings.system}: {restored.description}",
        "",
        f"Images: {restored.system.spec}. Settings: `flags.txt`.",
        "",
        "Load with `tf.saved_model.load(folder)`; the functions are in `.signatures`:",
        "",
    ]
    for name, function in sorted(signatures.items()):
        arguments = [spec for spec in function.input_signature if isinstance(spec, tf_type_spec())]
        shown = ", ".join(f"{spec.name}: {spec.dtype.name} {list(spec.shape)}" for spec in arguments)
        lines.append(f"- `{name}({shown})`")
    results = sorted((restored.checkpoint.path.parent.parent / "evaluation").glob("*.json"))
    lines += ["", "## Measured", ""]
    lines += [f"- `{json.dumps(json.loads(path.read_text()))}`" for path in results] or ["Nothing was evaluated yet."]
    return "\n".join(lines) + "\n"


def tf_type_spec():
    """`tf.TensorSpec`, imported late so that `--help` needs no TensorFlow."""
    import tensorflow as tf

    return tf.TensorSpec


if __name__ == "__main__":
    sys.exit(main())
