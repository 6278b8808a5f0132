"""`python -m tfgen.combine --run_size=DIR --run_shape=DIR ... [--task=NAME]`: images of several concepts at once.

Energy-based models of the size, shape, position and rotation of sprites, each a run of its own, together draw images
that have all of these (Du & Mordatch, arXiv:1903.08689, section 4.3). Two more tasks of the original are here:
labeldiscover finds sizes that images show, and gentest trains two networks on crosses of factors and tests them on the
rest. A network comes from a run of ours (--run_size=DIR) or from a checkpoint of the original code, which is
LOGDIR/EXP/model_N (--logdir, --exp_size, --resume_size). Where there is a run, concepts without one take part only if
their --exp or --resume flag says so; images and step size are those of the runs unless flags say otherwise.

    python -m tfgen.combine --run_shape=runs/shape --run_pos=runs/pos --shape=1 --x=0.2 --y=0.8
    python -m tfgen.combine --task=labeldiscover --run_size=runs/size
    python -m tfgen.combine --task=gentest --train --swish_act
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys

from tfgen import commandline
from tfgen.flagfields import SettingsError, check_values, did_you_mean, flag, flag_fields

TASKS = ("conceptcombine", "labeldiscover", "gentest")
# Concepts by the flag that has them take part, in the order in which they are visited.
_CONDITIONS = {"size": "cond_scale", "shape": "cond_shape", "pos": "cond_pos", "rot": "cond_rot"}
_STEP = 500.0
_NO_EFFECT = "the original does not read it either"


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of the command, those of the original with its names and defaults and our own."""

    task: str = flag("conceptcombine", "One of " + ", ".join(TASKS) + ".", group="Task")
    seed: int = flag(0, "Seed of all random numbers.")
    num_steps: int = flag(20, "Rounds or steps of a chain.", minimum=1)
    step_lr: float | None = flag(None, "Step size; default: that of the runs, without runs 500.", minimum=0.0)
    batch_size: int = flag(256, "Images of a pass.", minimum=1)
    advance_vectors: bool = flag(
        False, "Let every chain improve the power iteration of the spectral norms, as the original does."
    )

    cond_scale: bool = flag(True, "conceptcombine: the size takes part.", group="Concepts")
    cond_shape: bool = flag(True, "conceptcombine: the shape takes part.")
    cond_pos: bool = flag(True, "conceptcombine: the position takes part.")
    cond_rot: bool = flag(True, "conceptcombine: the rotation takes part.")
    combine: str = flag(
        "sequential",
        "Descend the energies one after the other, their sum, or (or) the energy of at least one being low.",
        choices=("sequential", "sum", "or"),
    )
    negate_size: bool = flag(False, "Another size than that of the label.")
    negate_shape: bool = flag(False, "Another shape than that of the label.")
    negate_pos: bool = flag(False, "Another position than that of the label.")
    negate_rot: bool = flag(False, "Another rotation than that of the label.")
    negation_strength: float = flag(0.5, "Factor of energies that are negated.", above=0.0)

    count: int = flag(10, "conceptcombine: images.", minimum=1, group="Labels")
    size: float | None = flag(None, "Size, in place of those of the data.", minimum=0.5, maximum=1.0)
    shape: int | None = flag(None, "Shape: 1 square, 2 ellipse, 3 heart.", minimum=1, maximum=3)
    x: float | None = flag(None, "Horizontal position.", minimum=0.0, maximum=1.0)
    y: float | None = flag(None, "Vertical position.", minimum=0.0, maximum=1.0)
    rotation: float | None = flag(None, "Rotation in radians.", minimum=0.0, maximum=2 * math.pi)

    run_size: str = flag("", "Run folder of the network of the size.", group="Networks: runs")
    run_shape: str = flag("", "Run folder of the network of the shape.")
    run_pos: str = flag("", "Run folder of the network of the position.")
    run_rot: str = flag("", "Run folder of the network of the rotation.")
    weights: str = flag("ema", "Averaged or raw weights.", choices=("ema", "raw"))

    logdir: str = flag("cachedir", "Root folder of checkpoints.", group="Networks: checkpoints of the original code")
    exp_size: str = flag("dsprites_2018_cond_size", "Folder below logdir: the size.")
    exp_shape: str = flag("dsprites_2018_cond_shape", "Folder below logdir: the shape.")
    exp_pos: str = flag("dsprites_2018_cond_pos_cert", "Folder below logdir: the position.")
    exp_rot: str = flag("dsprites_cond_rot_119_00", "Folder below logdir: the rotation.")
    resume_size: int = flag(169000, "Number of the checkpoint: the size.", minimum=0)
    resume_shape: int = flag(477000, "Number of the checkpoint: the shape.", minimum=0)
    resume_pos: int = flag(8000, "Number of the checkpoint: the position.", minimum=0)
    resume_rot: int = flag(690000, "Number of the checkpoint: the rotation.", minimum=0)
    num_filters: int = flag(64, "Unit of width.", minimum=1)
    swish_act: bool = flag(False, "Swish for the leaky rectifier, as in the published runs.")
    downsample: bool = flag(False, "Means of 2x2 in place of strides.")
    spec_norm: bool = flag(True, "Divide weights by their spectral norm.")
    spec_iter: int = flag(1, "Power iterations of an evaluation.", minimum=1)
    spec_norm_val: float = flag(1.0, "Spectral norm of the weights.", above=0.0)
    spec_eval: bool = flag(False, "Do not keep what the power iteration has improved, --advance_vectors or not.")
    cclass: bool = flag(True, "Condition on labels; without, nothing can be combined.")
    use_attention: bool = flag(False, "Attention.", unused="the network of sprites has none")
    proj_cclass: bool = flag(False, "Projection of labels.", unused=_NO_EFFECT)
    use_bias: bool = flag(True, "Biases.", unused=_NO_EFFECT)
    proposal_debug: bool = flag(False, "Log acceptance.", unused="there is no Hamiltonian Monte Carlo here")

    joint_shape: bool = flag(False, "gentest: position and shape.", group="gentest")
    joint_rot: bool = flag(False, "gentest: position and rotation.")
    train: bool = flag(False, "gentest: train two new networks first.")
    break_steps: int = flag(300, "gentest: updates of an epoch.", minimum=1)
    epoch_num: int = flag(1, "gentest: epochs.", minimum=1)
    lr: float = flag(1e-3, "gentest: learning rate.", minimum=0.0)
    frac: float = flag(0.0, "gentest: share of the other combinations that is learned.", minimum=0.0, below=1.0)
    replay_capacity: int = flag(10_000, "gentest: images in the replay buffer.", minimum=1)
    plot_curve: bool = flag(False, "Sweep of genbaseline.", unused="that task is not here")

    dataset: str = flag(
        "",
        "Images: dsprites, or sprites, drawn here; default: those of the runs, without runs dsprites.",
        group="Images and output",
    )
    dsprites_path: str = flag("", "The dSprites archive (.npz). Empty: looked for below --data_dir.")
    data_dir: str = flag("data", "Folder with the data sets' files.")
    data_workers: int = flag(4, "Processes of the loader.", unused=_NO_EFFECT)
    savedir: str = flag("cachedir", "Root folder of outputs.")
    out: str = flag("", "Picture (.png) of conceptcombine and gentest. Empty: savedir/EXP_EXP_joint/....png.")

    def __post_init__(self) -> None:
        check_values(self)
        if self.task == "genbaseline":
            raise SettingsError(
                f"--task=genbaseline trains a generator that was never published; the tasks here are {', '.join(TASKS)}"
            )
        if self.task not in TASKS:
            raise SettingsError(
                f"--task={self.task}: expected one of {', '.join(TASKS)}.{did_you_mean(self.task, TASKS)}"
            )
        if not self.cclass:
            raise SettingsError("--nocclass: networks without labels cannot be combined; leave it out")
        if self.out and not self.out.endswith(".png"):
            raise SettingsError(f"--out={self.out}: expected a name that ends in .png")
        self._check_gentest() if self.task == "gentest" else self._check_others()

    def _check_gentest(self) -> None:
        if self.joint_shape and self.joint_rot:
            raise SettingsError("--joint_shape and --joint_rot: choose one")
        if self.train and self.replay_capacity < self.batch_size:
            raise SettingsError(
                f"--replay_capacity={self.replay_capacity} is below --batch_size={self.batch_size}: every step puts a "
                "batch into the buffer"
            )
        for name in (*self.given, *self.negated):
            self._refuse(f"negate_{name}" if name in self.negated else name, "conceptcombine")

    def _check_others(self) -> None:
        for name in ("joint_shape", "joint_rot", "train"):
            if getattr(self, name):
                self._refuse(name, "gentest")
        if self.task == "labeldiscover":
            for name in (*self.given, *self.negated):
                self._refuse(f"negate_{name}" if name in self.negated else name, "conceptcombine")
            return
        if not self.concepts:
            raise SettingsError(f"no concept takes part: add one of --{', --'.join(_CONDITIONS.values())}")
        if len(self.negated) == len(self.concepts):
            raise SettingsError(f"all concepts are negated ({', '.join(self.negated)}): expected another beside them")
        for name in self.negated:
            if name not in self.concepts:
                raise SettingsError(f"--negate_{name}: that concept does not take part; add --{_CONDITIONS[name]}")
        for concept, names in _VALUES.items():
            for name in names:
                if name in self.given and concept not in self.concepts:
                    raise SettingsError(f"--{name}: that concept does not take part; add --{_CONDITIONS[concept]}")

    def _refuse(self, name: str, task: str) -> None:
        raise SettingsError(f"--{name} belongs to --task={task}, found --task={self.task}: leave it out")

    @property
    def step_size(self) -> float:
        """Of a chain, see `as_the_runs`."""
        return _STEP if self.step_lr is None else self.step_lr

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of those that take part in conceptcombine."""
        wanted = [name for name, condition in _CONDITIONS.items() if getattr(self, condition)]
        if any(self.run_of(name) for name in wanted):
            wanted = [name for name in wanted if self.run_of(name) or self._names_checkpoint(name)]
        return tuple(wanted)

    def _names_checkpoint(self, concept: str) -> bool:
        """Whether flags name a checkpoint of the original code for a concept."""
        fields = flag_fields(type(self))
        return any(getattr(self, name) != fields[name].default for name in (f"exp_{concept}", f"resume_{concept}"))

    @property
    def negated(self) -> tuple[str, ...]:
        return tuple(name for name in _CONDITIONS if getattr(self, f"negate_{name}"))

    @property
    def given(self) -> dict[str, float]:
        """Values that take the place of those of the data, by flag."""
        names = [name for names in _VALUES.values() for name in names]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def needs_data(self) -> bool:
        """Whether labels of conceptcombine are those of images."""
        return any(name not in self.given for concept in self.concepts for name in _VALUES[concept])

    @property
    def factor(self) -> str:
        """The concept that gentest pairs with the position."""
        return "shape" if self.joint_shape else "rot" if self.joint_rot else "size"

    @property
    def advances(self) -> bool:
        """Whether chains improve the vectors of the power iteration."""
        return self.advance_vectors and not self.spec_eval

    def run_of(self, concept: str) -> str:
        """The run folder of a concept's network; "" for a checkpoint of the original code."""
        return getattr(self, f"run_{concept}")

    def checkpoint_of(self, concept: str) -> str:
        """The original's checkpoint of a concept."""
        return f"{self.logdir}/{getattr(self, f'exp_{concept}')}/model_{getattr(self, f'resume_{concept}')}"

    def picture(self, name: str, first: str = "size", second: str = "shape") -> pathlib.Path:
        """Where the picture called `name` goes; the folder has the names of two concepts' runs."""
        if self.out:
            return pathlib.Path(self.out)
        names = [
            pathlib.Path(self.run_of(concept)).name or getattr(self, f"exp_{concept}") for concept in (first, second)
        ]
        return pathlib.Path(self.savedir) / f"{'_'.join(names)}_joint" / name


# Flags of the values of each concept.
_VALUES = {"size": ("size",), "shape": ("shape",), "pos": ("x", "y"), "rot": ("rotation",)}


@dataclasses.dataclass(frozen=True)
class _Help:
    help: bool = flag(False, "Print this text and exit.")


def main(argv: list[str] | None = None) -> int:
    from tfgen.console import reported_errors

    with reported_errors():
        words = commandline.expand(sys.argv[1:] if argv is None else argv)
        (wanted,), words = commandline.take_words(words, _Help)
        if wanted.help:
            print(f"{__doc__}\n{commandline.help_text('Flags', Options)}")
            return 0
        (options,) = commandline.parse_words(words, Options)
        return run(options)
    return 1


def run(options: Options) -> int:
    """Runs the task and prints what came of it; returns the exit code."""
    from tfgen import runtime
    from tfgen.systems.ebm import concept_tasks

    runtime.set_precision("float32", half=False)
    for name, field in flag_fields(Options).items():
        if field.info.unused and getattr(options, name) != field.default:
            print(f"--{name}={getattr(options, name)} is ignored: {field.info.unused}")
    for line in concept_tasks.TASKS[options.task](as_the_runs(options)):
        print(line)
    return 0


def as_the_runs(options: Options) -> Options:
    """The options, images and step size filled in where no flag gives them.

    Raises:
      SettingsError: the runs differ in one of them.
    """
    from tfgen.settings import read_run

    folders = [options.run_of(name) for name in _CONDITIONS if options.run_of(name)]
    configs = [settings.config for settings in map(read_run, folders) if settings.system == "ebm"]
    filled = {}
    for name, default in (("dataset", "dsprites"), ("step_lr", _STEP)):
        if getattr(options, name) not in ("", None):
            continue
        found = sorted({getattr(config, name) for config in configs}) or [default]
        if len(found) > 1:
            shown = ", ".join(map(str, found))
            raise SettingsError(f"the runs were trained with different --{name} ({shown}): say which to use, --{name}=")
        filled[name] = found[0]
    return dataclasses.replace(options, **filled)


if __name__ == "__main__":
    sys.exit(main())
