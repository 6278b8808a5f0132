"""Chains of a Langevin sampler (Du & Mordatch, arXiv:1903.08689, equation 1), and what one step of them is made of.

One step adds noise, takes the energy's gradient where that leads, moves against it and clips to the range of images:

    y   = x + sigma n                     n standard normal
    g   = clip(d energy / d y)
    x'  = clip(y - eta g, low, high)

The arithmetic of x' and of the next step's noise is a `Moves` of its own, so that one fused operation can take the
place of the plain one below.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import tensorflow as tf

from tfgen.ops import langevin
from tfgen.ops.langevin import initial_noise, langevin_step
from tfgen.randomness import Key
from tfgen.systems.ebm import hmc

ClipMode = Literal["none", "li", "l2_tensor", "l2_sample"]
# As the fused operation calls them.
FUSED_MODES: Mapping[ClipMode, langevin.ClipMode] = {
    "none": "none",
    "li": "value",
    "l2_tensor": "tensor_norm",
    "l2_sample": "sample_norm",
}

# Energies [B, 1] of images in a step of the chain; the number of the step (int32 scalar) chooses a dropout mask.
StepEnergy = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Noise = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # standard normal, like the images (first argument), of a step


@dataclasses.dataclass(frozen=True)
class Chain:
    """Settings of a chain.

    Attributes:
      steps: updates, each with noise before it.
      step_size: eta, what a gradient is multiplied by. Unlike in Langevin dynamics it has no relation to the noise.
      noise: sigma, standard deviation of the noise of a step.
      low, high: range of the images.
      clip_mode: what `clip` limits: "li" each entry of a gradient, "l2_tensor" its norm over the whole batch (the
        original's "l2"), "l2_sample" its norm in each image; "none" nothing.
      clip: limit of the gradient.

    Raises:
      ValueError: no steps, or a clip that is not above 0.
    """

    steps: int
    step_size: float
    noise: float
    low: float = 0.0
    high: float = 1.0
    clip_mode: ClipMode = "none"
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a chain of {self.steps} steps, expected 1 or more")
        if self.clip_mode != "none" and self.clip <= 0:
            raise ValueError(f"clip {self.clip:g} of mode {self.clip_mode}, expected a limit above 0, or mode none")


class Moves(Protocol):
    """How the images of a chain move. Images are float32 [B, ...]; steps are counted from 0, int32 scalars."""

    def begin(self, x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """The images with the noise of `step`, that of the first one."""

    def move(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """From the noised images of `step` to those of the next."""

    def end(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """From the noised images of the last step to the result, which has no noise."""


def run_part(x: tf.Tensor, first: tf.Tensor, last: tf.Tensor, moves: Moves) -> tf.Tensor:
    """Images before step `first` to those after step `last` - 1: a part of a chain, whose steps are the chain's.

    The parts of a chain one after the other give what `run` gives. No gradient can go back.

    Args:
      x: float32 [B, ...].
      first, last: int32 scalars, `last` above `first`.
    """
    y = moves.begin(x, first)
    shape = y.shape

    def body(step: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return step + 1, tf.ensure_shape(moves.move(y, step), shape)

    _, y = tf.while_loop(lambda step, _: step < last - 1, body, (first, y), parallel_iterations=1)
    return moves.end(y, last - 1)


def run(x: tf.Tensor, steps: int, moves: Moves) -> tf.Tensor:
    """Images after all steps of a chain that begins at x, float32 [B, ...].

    They are a function of all that the moves read, and a gradient can go back through every step. Where it does, the
    features of all steps are kept.
    """
    # One loop of the graph, whatever the number of steps.
    last = steps - 1
    y = moves.begin(tf.convert_to_tensor(x), tf.constant(0))
    shape = y.shape

    def body(step: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return step + 1, tf.ensure_shape(moves.move(y, step), shape)

    _, y = tf.while_loop(
        lambda step, _: step < last, body, (tf.constant(0), y), parallel_iterations=1, maximum_iterations=last
    )
    return moves.end(y, tf.constant(last))


def clipped(gradient: tf.Tensor, mode: ClipMode, clip: float) -> tf.Tensor:
    """A gradient [B, ...] within its limit, see `Chain`.

    With the norms, a gradient of norm above `clip` is multiplied by clip / norm.
    """
    if mode == "none":
        return gradient
    if mode == "li":
        return tf.clip_by_value(gradient, -clip, clip)
    if mode not in ("l2_tensor", "l2_sample"):
        raise ValueError(f"clip mode {mode!r}, expected none, li, l2_tensor or l2_sample")
    axes = list(range(1 if mode == "l2_sample" else 0, gradient.shape.rank))
    square = tf.reduce_sum(tf.square(gradient), axis=axes, keepdims=True)
    # The root has no derivative at 0, where nothing is clipped anyway.
    norm = tf.sqrt(tf.where(square > 0.0, square, 1.0)) * tf.cast(square > 0.0, gradient.dtype)
    return gradient * clip / tf.maximum(norm, clip)


def energy_and_gradient(energy: StepEnergy, y: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Energies [B, 1] of images y [B, ...], and what `gradient_of` gives."""
    with tf.GradientTape() as tape:
        tape.watch(y)
        energies = energy(y, step)
        total = tf.reduce_sum(energies)
    return energies, tape.gradient(total, y)


def gradient_of(energy: StepEnergy, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """d (sum of energies) / d images, like y [B, ...]; itself a function that can be differentiated."""
    _, gradient = energy_and_gradient(energy, y, step)
    return gradient


class NoisedMoves(abc.ABC):
    """`Moves` that are made of noise and an update: all that a subclass gives is `end`."""

    def __init__(self, chain: Chain, noise: Noise):
        self._chain, self._noise = chain, noise

    def begin(self, x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return self._noised(x, step)

    def move(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return self._noised(self.end(y, step), step + 1)

    @abc.abstractmethod
    def end(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """See `Moves`."""

    def _noised(self, x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return x + self._chain.noise * self._noise(x, step)


class PlainMoves(NoisedMoves):
    """Langevin steps in plain TensorFlow operations.

    Args:
      energy: as the temperature has it.
      chain: settings.
      noise: draws the noise; see `drawn` and `given`.
    """

    def __init__(self, energy: StepEnergy, chain: Chain, noise: Noise):
        super().__init__(chain, noise)
        self._energy = energy

    def end(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        chain = self._chain
        gradient = clipped(gradient_of(self._energy, y, step), chain.clip_mode, chain.clip)
        return tf.clip_by_value(y - chain.step_size * gradient, chain.low, chain.high)


class FusedMoves:
    """Langevin steps whose arithmetic and noise are one operation, in one pass over the images; see `ops.langevin`.

    Args:
      energy: as the temperature has it.
      chain: settings.
      key: draws the noise, that of a sample at any batch size. Its numbers are others than those of `drawn`.
    """

    def __init__(self, energy: StepEnergy, chain: Chain, key: Key):
        self._energy, self._chain, self._key = energy, chain, key

    def begin(self, x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        first = elements_before(self._key, x)
        return initial_noise(x, sigma=self._chain.noise, seed=philox_seed(self._key), step=step, first_element=first)

    def move(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        _, following = self._step(y, step, emit_next=True)
        return following

    def end(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        x, _ = self._step(y, step, emit_next=False)
        return x

    def _step(self, y: tf.Tensor, step: tf.Tensor, emit_next: bool) -> tuple[tf.Tensor, tf.Tensor | None]:
        chain = self._chain
        return langevin_step(
            y,
            gradient_of(self._energy, y, step),
            eta=chain.step_size,
            sigma=chain.noise,
            seed=philox_seed(self._key),
            step=step,
            clip_mode=FUSED_MODES[chain.clip_mode],
            clip=chain.clip,
            lower=chain.low,
            upper=chain.high,
            emit_next=emit_next,
            first_element=elements_before(self._key, y),
        )


def philox_seed(key: Key) -> tf.Tensor:
    """The 64 bits of a key's seed, int64 scalar."""
    return tf.bitcast(key.seed, tf.int64)


def elements_before(key: Key, images: tf.Tensor) -> tf.Tensor:
    """How many elements the samples before these images [B, ...] have, int64 scalar."""
    return key.first_sample * images.shape[1:].num_elements()


class TransitionMoves(NoisedMoves):
    """Steps whose image comes from another sampler's transition (Hamiltonian Monte Carlo), with noise before each.

    Args:
      transition: images for the noised images of a step.
      chain: settings; of the gradient nothing is read.
      noise: draws the noise.
    """

    def __init__(self, transition: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], chain: Chain, noise: Noise):
        super().__init__(chain, noise)
        self._transition = transition

    def end(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(self._transition(y, step), self._chain.low, self._chain.high)


def hamiltonian(
    energy: StepEnergy, key: Key, step_size: float, leapfrogs: int
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The transition of Hamiltonian Monte Carlo, for `TransitionMoves`; see `hmc.transition`.

    Args:
      key: draws momenta and what is accepted.
    """

    def transition(y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return hmc.transition(
            lambda x: energy_and_gradient(energy, x, step),
            y,
            step_size=step_size,
            leapfrogs=leapfrogs,
            seed=philox_seed(key),
            step=step,
            first_sample=key.first_sample,
        ).position

    return transition


def drawn(key: Key) -> Noise:
    """Noise of a key, which is that of a sample at any batch size; see `Key`."""
    return lambda images, step: key.fold(step).normal([tf.shape(images)[0], *images.shape[1:]])


def given(normals: tf.Tensor) -> Noise:
    """Noise that was drawn before, [steps, B, ...]."""
    return lambda images, step: tf.cast(tf.gather(normals, step), images.dtype)
