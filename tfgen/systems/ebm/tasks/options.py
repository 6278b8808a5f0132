"""Flags of the evaluations, with the names and defaults of the original's programs ebm_sandbox, test_inception and ais.

What describes the network (cclass, wider_model ...) is read from the run.
"""

from __future__ import annotations

import dataclasses

from tfgen.settings import SettingsError, check_values, flag
from tfgen.systems.ebm import tasks


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Flags that `tfgen.evaluate` has for energy-based models. None leaves the choice to the task."""

    task: str = flag(
        "", "Evaluation; empty for the energy of the images of a split.", choices=("", *tasks.NAMES), group="Task"
    )
    seed: int = flag(0, "Seed of the task's random numbers.", minimum=0)
    advance_vectors: bool = flag(
        False, "Let every evaluation improve the power iteration of the spectral norms, as the original does."
    )

    num_steps: int | None = flag(None, "Steps of a chain; default 20.", minimum=1, group="Chains")
    step_lr: float | None = flag(None, "Step size; default 10, imagenetdemo 180.", minimum=0.0)
    proj_norm: float | None = flag(
        None, "Limit of each entry of a gradient, 0 for none; default 0, geninception 0.05.", minimum=0.0
    )
    noise_scale: float | None = flag(None, "Standard deviation of the noise of a step; default 0.005.", minimum=0.0)

    svhnmix: bool = flag(False, "mixenergy: against SVHN.", group="Other images")
    cifar100mix: bool = flag(False, "mixenergy: against CIFAR-100.")
    texturemix: bool = flag(False, "mixenergy: against the Describable Textures.")
    randommix: bool = flag(False, "mixenergy: against normal noise of mean and standard deviation 0.5.")
    uniformmix: bool = flag(False, "mixenergy: against uniform noise.")
    constantmix: bool = flag(False, "mixenergy: against images of one random colour each.")
    mix: str = flag("", "mixenergy: against any data set, cut to size; a name or path as for --dataset.")
    original_scaling: bool = flag(
        False,
        "Other images as the original has them: scaled otherwise than the run's own, and of SVHN those to train on.",
    )
    svhn: bool = flag(False, "Images of SVHN in place of those of the run.")

    lnorm: int = flag(
        -1, "label: attacks in the largest (-1) or the Euclidean (2) norm.", choices=(-1, 2), group="Robustness"
    )
    pgd: int = flag(0, "label: steps of an attack.", minimum=0)
    lival: float = flag(8.0, "Budget of attacks in the largest norm, in 1/255.", minimum=0.0)
    l2val: float = flag(40.0, "Budget of attacks in the Euclidean norm, in 1/255.", minimum=0.0)
    labelgrid: bool = flag(False, "label: for all budgets, 0 to 30 or (Euclidean) 0 to 95.")
    original_attack: bool = flag(
        False, "Attack as the original: budgets 8 and 40 whatever the flags say, and balls that move with the image."
    )
    train: bool = flag(True, "labelfinetune: train first.")

    hessian: bool = flag(
        True,
        "latent: eigenvectors of the energy, for which 64x64 images want a GPU; otherwise singular vectors of the "
        "hidden layer.",
    )

    im_number: int = flag(50_000, "geninception: images.", minimum=1, group="Generation")
    ensemble: int = flag(1, "geninception: newest checkpoints that take turns (the original: 10).", minimum=1)
    repeat_scale: float = flag(100.0, "geninception: half the number of chains of a group of 1000 images.", above=0.0)
    nomix: int = flag(10, "geninception: last chains of a group without new beginnings.", minimum=0)
    idx: int = flag(0, "geninception: number of the picture.", minimum=0)
    inception_path: str = flag("", "geninception: the frozen Inception graph of 2015-12-05, for score and distance.")

    pdist: int = flag(10, "ais: intermediate distributions.", minimum=1, group="Partition function")
    temperature: float = flag(1.0, "ais: factor of the energy.", above=0.0)
    ais_batch: int = flag(16, "ais: chains.", minimum=1)
    alr: float | None = flag(
        None, "ais: step size; default 0.0065 (MNIST, grey images) or 0.0045 (0.0085 for rescale 8).", above=0.0
    )

    def __post_init__(self) -> None:
        check_values(self)
        chosen = [name for name in MIXES if getattr(self, name)]
        if len(chosen) > 1:
            raise SettingsError(f"--{chosen[0]} and --{chosen[1]}: choose one")
        if self.advance_vectors and not self.task:
            raise SettingsError("--advance_vectors belongs to a task: add --task=NAME, or leave it out")
        if self.svhn and self.task not in _OF_IMAGES:
            raise SettingsError(
                f"--svhn puts images in the place of the run's, of which --task={self.task!r} makes no use; the tasks "
                f"that do are {', '.join(_OF_IMAGES)}"
            )
        if chosen and self.task != "mixenergy":
            raise SettingsError(f"--{chosen[0]} says what --task=mixenergy compares with: found --task={self.task!r}")


_OF_IMAGES = (
    "energyeval", "mixenergy", "label", "labelfinetune", "crossclass", "cycleclass", "anticorrupt", "boxcorrupt",
    "nearestneighbor", "latent",
)  # fmt: skip
MIXES = ("svhnmix", "cifar100mix", "texturemix", "randommix", "uniformmix", "constantmix", "mix")
