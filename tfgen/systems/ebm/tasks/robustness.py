"""Classification by energies, and how well it withstands attacks (Du & Mordatch, arXiv:1903.08689, section 4.3).

The class of an image is that of the lowest energy. An attack moves the image within a small ball so that the
cross-entropy rises; before it is classified the image may be refined by a chain for each class, within a small box.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen.files import atomic_path
from tfgen.ops.langevin import langevin_step
from tfgen.ops.philox import Stream, philox_uniform
from tfgen.randomness import Key, host_generator
from tfgen.settings import SettingsError
from tfgen.systems.base import TaskRun
from tfgen.systems.ebm import sampler
from tfgen.systems.ebm.objective import with_every_class
from tfgen.systems.ebm.prepare import levels_of
from tfgen.systems.ebm.sampler import Chain, Noise, NoisedMoves, StepEnergy
from tfgen.systems.ebm.tasks import supervised
from tfgen.systems.ebm.tasks.classes import (
    Energy,
    class_count,
    class_energies,
    energy_of,
    own_images,
    whole_batches,
)
from tfgen.systems.ebm.tasks.options import EvaluateOptions

if TYPE_CHECKING:
    from tfgen.systems.ebm.system import EnergyBasedModel

_LEVEL = 1 / 255
_STEP = 2 * _LEVEL  # of an attack
_STEPS, _STEP_SIZE, _NOISE = 20, 10.0, 0.005  # of a refinement, where no flag says otherwise
_ORIGINAL_LARGEST, _ORIGINAL_EUCLIDEAN = 8, 40  # budgets of the original, whatever its flags say
_EUCLIDEAN = 2  # --lnorm
_GRIDS = {-1: range(0, 31), _EUCLIDEAN: range(0, 96, 5)}  # budgets of --labelgrid


@dataclasses.dataclass(frozen=True)
class Attack:
    """Projected gradient ascent on the cross-entropy (Madry et al., arXiv:1706.06083), by the signs of the gradient.

    Attributes:
      steps: of 2/255 in every entry.
      euclidean: the ball is one of the Euclidean norm; otherwise of the largest entry.
      budget: radius of the ball, in 1/255.
      start: how far the random start may be from the image in an entry, in 1/255.
      original: random starts are whole multiples of 1/255, a Euclidean ball has its centre at the image before the step
        and not at the image that is attacked, and values may leave [0, 1].
    """

    steps: int
    euclidean: bool
    budget: float
    start: float
    original: bool = False

    def offsets(self, key: Key, images: tf.Tensor) -> tf.Tensor:
        """A random start less the images, in 1/255, float32 like images [B, ...]."""
        entries = images.shape[1:].num_elements()
        seed = tf.bitcast(key.seed, tf.int64)
        uniform = philox_uniform(
            tf.shape(images), seed, 0, Stream.ATTACK_START, key.first_sample * tf.constant(entries, tf.int64)
        )
        uniform = tf.ensure_shape(uniform, images.shape)
        if not self.original:
            return self.start * (2.0 * uniform - 1.0)
        # A product of float32 numbers may round up to the number of levels.
        levels = 2.0 * self.start + 1.0
        return tf.minimum(tf.floor(levels * uniform), levels - 1.0) - self.start

    def begin(self, images: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
        """Where the attack on images [B, ...] begins, within the ball; in the original anywhere. Offsets in 1/255."""
        start = images + offsets / 255.0
        # A step along no gradient is a projection.
        return start if self.original else self.move(start, tf.zeros_like(images), images, images)

    def move(self, x: tf.Tensor, gradient: tf.Tensor, images: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        """One step from x, all [B, ...].

        Args:
          gradient: of the cross-entropy at x.
          images: those that are attacked.
          before: x, but in the first step the images, without the random start.
        """
        centre = before if self.original and self.euclidean else images
        if self.budget == 0:
            return centre
        moved, _ = langevin_step(
            x,
            -tf.sign(gradient),
            eta=_STEP,
            sigma=0.0,
            seed=0,
            step=0,
            projection="ball" if self.euclidean else "box",
            anchor=centre,
            radius=self.budget * _LEVEL,
        )
        return moved if self.original else tf.clip_by_value(moved, 0.0, 1.0)


def logits_and_gradient(energy: Energy, x: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Logits [B, K] = -E(x, k), and the gradient of the summed cross-entropy by x [B, ...].

    Args:
      labels: one-hot, float32 [B, K].
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        logits = -class_energies(energy, x, labels.shape[1])
        loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
    return logits, tape.gradient(loss, x)


def attacked(energy: Energy, images: tf.Tensor, labels: tf.Tensor, attack: Attack, offsets: tf.Tensor) -> tf.Tensor:
    """Images [B, ...] after all steps of an attack; with no steps the images as they are.

    Args:
      labels: one-hot, float32 [B, K].
      offsets: of the random start, in 1/255, [B, ...]; see `Attack.offsets`.
    """
    if not attack.steps:
        return images

    def body(step: tf.Tensor, x: tf.Tensor, before: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        _, gradient = logits_and_gradient(energy, x, labels)
        # Only the first step has a random start between where the one before it ends and where it begins.
        moved = tf.ensure_shape(attack.move(x, gradient, images, before), images.shape)
        return step + 1, moved, moved

    start = tf.constant(0), tf.ensure_shape(attack.begin(images, offsets), images.shape), images
    _, x, _ = tf.while_loop(lambda step, *_: step < attack.steps, body, start, parallel_iterations=1)
    return x


# Refinement ------------------------------------------------------------------------------------------------


class BoxMoves(NoisedMoves):
    """Langevin steps that stay within a box around other images.

    Args:
      energy: of the step.
      chain: settings; its range clips after the box.
      noise: draws the noise.
      centre: of the boxes, float32 [B, ...].
      radius: half the side of a box, more than 0.
    """

    def __init__(self, energy: StepEnergy, chain: Chain, noise: Noise, centre: tf.Tensor, radius: float):
        super().__init__(chain, noise)
        self._energy, self._centre, self._radius = energy, centre, radius

    def end(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        chain = self._chain
        x, _ = langevin_step(
            y,
            sampler.clipped(sampler.gradient_of(self._energy, y, step), chain.clip_mode, chain.clip),
            eta=chain.step_size,
            sigma=chain.noise,
            seed=0,
            step=0,
            projection="box",
            anchor=self._centre,
            radius=self._radius,
        )
        return x if math.isinf(chain.high) else tf.clip_by_value(x, chain.low, chain.high)


@dataclasses.dataclass(frozen=True)
class Refinement:
    """Chains that lower the energy of an image with each class before it is classified.

    Attributes:
      chain: settings.
      budget: an entry stays within this many 1/255 of the image.
    """

    chain: Chain
    budget: float


def refined(energy: Energy, images: tf.Tensor, classes: int, refinement: Refinement, noise: Noise) -> tf.Tensor:
    """The ends [B K, ...] of chains from images [B, ...] with each class, classes running fastest.

    Args:
      noise: like [B K, ...] images.
    """
    x, labels = with_every_class(images, classes)
    if refinement.budget == 0:
        return x
    x = tf.ensure_shape(x, [None, *images.shape[1:]])
    moves = box_moves(energy, x, labels, refinement, noise)
    return sampler.run(x, refinement.chain.steps, moves)


def box_moves(energy: Energy, centres: tf.Tensor, labels: tf.Tensor, refinement: Refinement, noise: Noise) -> BoxMoves:
    """The moves of `refined`, around centres [N, ...] with labels [N, K]."""

    def of_step(x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        del step
        return energy(x, labels)

    return BoxMoves(of_step, refinement.chain, noise, centres, refinement.budget * _LEVEL)


def logits_of(energy: Energy, chains: tf.Tensor, classes: int) -> tf.Tensor:
    """Logits [B, K] of what `refined` gives, [B K, ...]."""
    count = tf.shape(chains)[0] // classes
    return -tf.reshape(energy(chains, tf.tile(tf.eye(classes), [count, 1])), [-1, classes])


def correct(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """bool [B], where the largest of the logits [B, K] is that of the one-hot label [B, K]."""
    return tf.argmax(logits, axis=1) == tf.argmax(labels, axis=1)


# Tasks -----------------------------------------------------------------------------------------------------


def label(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """Accuracy on attacked and refined images; --pgd=0 is without attack.

    With --labelgrid that of every budget of the norm, in rising order also written as result_<lnorm>_<run>.npy.
    """
    _check(system, "label")
    if not options.labelgrid:
        budget = _own_budget(options)
        return _accuracy(system, options, job, _attack(options, budget), _refinement(options, budget))
    if not options.pgd:
        raise SettingsError("--labelgrid compares budgets of attacks: say how many steps they have, --pgd=20")
    results: dict[str, float] = {}
    for budget in _GRIDS[options.lnorm]:
        found = _accuracy(system, options, job, _attack(options, budget), _refinement(options, budget))
        results[f"accuracy_{budget}"] = found["accuracy"]
    with atomic_path(job.folder / f"result_{options.lnorm}_{job.run.resolve().name}.npy") as temporary:
        np.save(temporary, np.array(list(results.values())))
    return results | {"images": found["images"]}


def labelfinetune(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """Accuracy of the network after an epoch of training as a classifier, without refinement.

    With --train it is trained first, and written to <run>/model_supervised; otherwise it is read from there. The run's
    own checkpoints stay as they are.
    """
    _check(system, "labelfinetune")
    results: dict[str, float] = {}
    if options.train:
        results = supervised.train(system, job.splits.train, job.batch_size, options.seed)
        supervised.save(system, job.run)
    else:
        supervised.restore(system, job.run)
    return results | _accuracy(system, options, job, _attack(options, _own_budget(options)), None)


def _check(system: EnergyBasedModel, task: str) -> None:
    if not class_count(system, task):
        raise SettingsError(f"--task={task} chooses among classes, and this run has none: train one with --cclass")


def _own_budget(options: EvaluateOptions) -> float:
    euclidean = options.lnorm == _EUCLIDEAN
    if options.original_attack and options.task == "label":
        return _ORIGINAL_EUCLIDEAN if euclidean else _ORIGINAL_LARGEST
    return options.l2val if euclidean else options.lival


def _attack(options: EvaluateOptions, budget: float) -> Attack:
    euclidean = options.lnorm == _EUCLIDEAN
    if options.original_attack:
        return Attack(options.pgd, euclidean, budget, start=_ORIGINAL_LARGEST, original=True)
    return Attack(options.pgd, euclidean, budget, start=options.lival if euclidean else budget)


def _refinement(options: EvaluateOptions, budget: float) -> Refinement:
    """The box is the budget in the largest entry: that of an attack in this norm, else --lival."""
    low, high = (-math.inf, math.inf) if options.original_attack else (0.0, 1.0)
    chain = Chain(
        steps=_STEPS if options.num_steps is None else options.num_steps,
        step_size=_STEP_SIZE if options.step_lr is None else options.step_lr,
        noise=_NOISE if options.noise_scale is None else options.noise_scale,
        low=low,
        high=high,
        clip_mode="li" if options.proj_norm else "none",
        clip=options.proj_norm or 0.0,
    )
    if options.original_attack:
        return Refinement(chain, _ORIGINAL_LARGEST)
    return Refinement(chain, options.lival if options.lnorm == _EUCLIDEAN else budget)


def _accuracy(
    system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun, attack: Attack, refinement: Refinement | None
) -> dict[str, float]:
    """The share of images that are classified right, and how many there were."""
    source = own_images(system, options, job)
    hits = _hits_function(system, options, job.key, attack, refinement)
    order = host_generator(options.seed, "images to classify").permutation(len(source))
    found: list[tf.Tensor] = []
    first = 0
    for batch in whole_batches(source, job.batch_size, order):
        images, labels = tf.constant(system.scaled(levels_of(batch))), tf.constant(system.labels_of(batch))
        found.append(hits(images, labels, tf.constant(first, tf.int64)))
        first += len(images)
    results = np.concatenate([part.numpy() for part in found])
    return {"accuracy": float(results.mean()), "images": len(results)}


def _hits_function(
    system: EnergyBasedModel, options: EvaluateOptions, key: Key, attack: Attack, refinement: Refinement | None
) -> Callable[..., tf.Tensor]:
    """bool [B] of images, labels and the number of the first image: the whole evaluation of a batch, compiled."""
    classes = system.label_columns

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *system.spec.shape], tf.float32),
            tf.TensorSpec([None, classes], tf.float32),
            tf.TensorSpec([], tf.int64),
        ],
        autograph=False,
    )
    def hits(images: tf.Tensor, labels: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        energy = energy_of(system, options.advance_vectors)
        offsets = attack.offsets(key.fold("attack").skip(first), images)
        images = attacked(energy, images, labels, attack, offsets)
        if refinement is None:
            return correct(-class_energies(energy, images, classes), labels)
        noise = sampler.drawn(key.fold("refinement").skip(first * classes))
        return correct(logits_of(energy, refined(energy, images, classes, refinement, noise), classes), labels)

    # One graph for each attack is meant: TensorFlow warns of many graphs of a function that it compiles by itself.
    return hits.get_concrete_function()
