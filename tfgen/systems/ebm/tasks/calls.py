"""Calls of the sampler, which the evaluations are made of: a number of Langevin steps from given images.

Images are in [0, 1] here. The chains of a run with --rescale R go from 0 to R; its step size and noise grow alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen.data.pipeline import filled_up
from tfgen.ops.langevin import initial_noise, langevin_step
from tfgen.randomness import Key
from tfgen.settings import SettingsError
from tfgen.systems.ebm import sampler
from tfgen.systems.ebm.sampler import Chain, StepEnergy
from tfgen.systems.ebm.sampling import factor_labels
from tfgen.systems.ebm.tasks.options import EvaluateOptions

if TYPE_CHECKING:
    from tfgen.systems.ebm.system import EnergyBasedModel

# Images [B, H, W, C] after a call from images [B, H, W, C] with labels [B, K] or None; the calls of a task are counted.
Call = Callable[[np.ndarray, np.ndarray | None, int], np.ndarray]

STEPS, STEP_SIZE, NOISE = 20, 10.0, 0.005  # of the original's programs


def chain_of(
    options: EvaluateOptions,
    rescale: float = 1.0,
    *,
    steps: int = STEPS,
    step_size: float = STEP_SIZE,
    clip: float = 0.0,
    times: float = 1.0,
) -> Chain:
    """The chain of one call.

    Args:
      rescale: of the run.
      steps, step_size, clip: where the options leave the choice to the task; a `clip` of 0 is none.
      times: factor of the step size.
    """
    steps = steps if options.num_steps is None else options.num_steps
    step_size = step_size if options.step_lr is None else options.step_lr
    clip = clip if options.proj_norm is None else options.proj_norm
    noise = NOISE if options.noise_scale is None else options.noise_scale
    return Chain(
        steps=steps,
        step_size=times * step_size * rescale,
        noise=noise * rescale,
        high=rescale,
        clip_mode="li" if clip else "none",
        clip=clip,
    )


class MaskedMoves:
    """Langevin steps in part of the image: noise and step are multiplied by a mask. For `sampler.run`.

    Args:
      energy: of the images.
      chain: settings, with `clip_mode` "none" or "li".
      key: draws the noise, that of a sample at any batch size.
      mask: float32, broadcasts to the images; None for all of the image.
      normals: [steps, B, ...] in place of the noise that is drawn.
    """

    def __init__(
        self,
        energy: StepEnergy,
        chain: Chain,
        key: Key,
        mask: tf.Tensor | None = None,
        normals: tf.Tensor | None = None,
    ):
        self._energy, self._chain, self._key, self._mask = energy, chain, key, mask
        self._normals = normals

    def begin(self, x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        if self._normals is not None:
            return self._noised(x, step)
        return initial_noise(x, sigma=self._chain.noise, mask=self._mask, **self._numbers(x, step))

    def move(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        _, following = self.both(y, step)
        return following

    def end(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        x, _ = self._step(y, step, emit_next=False)
        return x

    def both(self, y: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The images after a step that begins at the noised images y, and these with the noise of the next."""
        if self._normals is None:
            x, following = self._step(y, step, emit_next=True)
            assert following is not None
            return x, following
        x = self.end(y, step)
        return x, self._noised(x, step + 1)

    def _noised(self, x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        noise = self._chain.noise * tf.cast(tf.gather(self._normals, step), x.dtype)
        return x + (noise if self._mask is None else noise * self._mask)

    def _step(self, y: tf.Tensor, step: tf.Tensor, emit_next: bool) -> tuple[tf.Tensor, tf.Tensor | None]:
        chain = self._chain
        return langevin_step(
            y,
            sampler.gradient_of(self._energy, y, step),
            eta=chain.step_size,
            sigma=chain.noise,
            mask=self._mask,
            clip_mode="none" if chain.clip_mode == "none" else "value",
            clip=chain.clip,
            lower=chain.low,
            upper=chain.high,
            emit_next=emit_next,
            **self._numbers(y, step),
        )

    def _numbers(self, images: tf.Tensor, step: tf.Tensor) -> dict[str, tf.Tensor]:
        """Which random numbers are drawn."""
        first = sampler.elements_before(self._key, images)
        return {"seed": sampler.philox_seed(self._key), "step": step, "first_element": first}


class Caller:
    """Calls of the sampler on a system's energy, compiled once.

    Args:
      system: a run.
      chain: of one call, in the range of the run.
      key: of the noise. That of an image depends on it, the number of the call and the number of the image.
      batch_size: images of a pass.
      advance: keep what a pass improves of the power iteration.
    """

    def __init__(self, system: EnergyBasedModel, chain: Chain, key: Key, batch_size: int, advance: bool = False):
        self._system, self._chain, self._key = system, chain, key
        self._batch_size, self._advance = batch_size, advance
        self._size = 0  # of the first pass: one compiled function serves all
        self._function = tf.function(self._run, autograph=False)

    def __call__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        number: int,
        *,
        mask: np.ndarray | None = None,
        first: int = 0,
    ) -> np.ndarray:
        """Images after a call, float32 [N, H, W, C] in [0, 1].

        Args:
          images: [N, H, W, C], numbers around [0, 1].
          labels: [N, K]; None for an unconditional network.
          number: of the call.
          mask: 0 or 1, [H, W, C]: what moves.
          first: number of the first image.
        """
        size = self._size = self._size or min(self._batch_size, len(images))
        results = []
        noise = self._key.fold("noise", number)
        fixed = None if mask is None else tf.constant(mask[np.newaxis], tf.float32)
        for start in range(0, len(images), size):
            part = tf.constant(filled_up(images[start : start + size], size), tf.float32)
            rows = None if labels is None else tf.constant(filled_up(labels[start : start + size], size), tf.float32)
            moved = self._function(part, rows, fixed, noise.seed, tf.constant(first + start, tf.int64))
            results.append(moved.numpy()[: len(images) - start])
        return np.concatenate(results)

    def _run(
        self, images: tf.Tensor, labels: tf.Tensor | None, mask: tf.Tensor | None, seed: tf.Tensor, first: tf.Tensor
    ) -> tf.Tensor:
        weights = self._system.normalized(self._advance)
        moves = MaskedMoves(energy_of(self._system, weights, labels), self._chain, Key(seed, first), mask)
        return sampler.run(images * self._chain.high, self._chain.steps, moves) / self._chain.high


def energy_of(system: EnergyBasedModel, weights, labels: tf.Tensor | None) -> StepEnergy:
    """Energies of a chain's images as the sampler of the training has them: times the temperature, without dropout."""
    temperature = float(system.config.temperature)

    def energy(images: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        del step
        return temperature * system.energy(weights, images, labels)

    return energy


# Labels and starts -----------------------------------------------------------------------------------------


def has_classes(system: EnergyBasedModel) -> bool:
    """Whether labels are one-hot classes."""
    return system.label_columns > 0 and system.config.labels_are_classes


def check_conditional(system: EnergyBasedModel, task: str) -> None:
    """Raises `SettingsError` for an unconditional run."""
    if not system.label_columns:
        raise SettingsError(
            f"--task={task} needs a run that was trained with --cclass, this one is unconditional: choose another run"
        )


def classes(system: EnergyBasedModel, task: str) -> np.ndarray:
    """One-hot labels of all classes, float32 [K, K].

    Raises:
      SettingsError: the run has none.
    """
    check_conditional(system, task)
    if not has_classes(system):
        raise SettingsError(
            f"--task={task} needs classes, this run's labels are the values of --{system.config.sprites_mode}: "
            "choose a run with --cond_shape or classes"
        )
    return np.eye(system.label_columns, dtype=np.float32)


def starts(system: EnergyBasedModel, key: Key, count: int) -> tf.Tensor:
    """Where chains from noise begin, float32 [count, H, W, C]: uniform in [0, 1), of dSprites 0.5 + 0.5 normal."""
    shape = [count, *system.spec.shape]
    key = key.fold("starts")
    return 0.5 + 0.5 * key.normal(shape) if system.config.is_sprites else key.uniform(shape)


def random_labels(system: EnergyBasedModel, key: Key, count: int) -> tf.Tensor | None:
    """Labels drawn anew, float32 [count, K]: one-hot classes, or values of a factor. None for an unconditional run."""
    columns = system.label_columns
    if not columns:
        return None
    uniforms = key.fold("labels").uniform([count, 1])[:, 0]
    if has_classes(system):
        return tf.one_hot(tf.cast(tf.floor(uniforms * columns), tf.int32), columns)
    return factor_labels(system.config.sprites_mode, uniforms)
