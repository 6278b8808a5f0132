"""Sampling of a trained network: chains from noise or from the replay buffer, in parts that can be watched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen.randomness import Key
from tfgen.settings import SettingsError, check_values, flag
from tfgen.systems.base import SampleCallback
from tfgen.systems.ebm import preprocess, replay
from tfgen.systems.ebm.chains import moves_of
from tfgen.systems.ebm.sampler import Chain, run_part
from tfgen.systems.ebm.training_settings import chain_of

if TYPE_CHECKING:
    from tfgen.systems.ebm.system import EnergyBasedModel

_PARTS = 20  # of a chain, between which it can be watched
_FROM_NOISE = 10  # times the steps of the training: chains of the training go on for as long, through the buffer


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Flags that `tfgen.sample` has for energy-based models."""

    num_steps: int = flag(
        0,
        "Steps of a chain. 0: those of the training, ten times as many from noise if the run has a replay buffer.",
        minimum=0,
        group="Chains",
    )
    step_lr: float | None = flag(None, "Step size, a multiple of rescale; default: that of the training.", minimum=0.0)
    proj_norm: float | None = flag(None, "Limit of the gradient, 0 for none; default: that of the training.", minimum=0)
    noise_scale: float | None = flag(
        None, "Noise of a step, in units of 0.005 rescale; default: that of the training.", minimum=0.0
    )
    from_replay: bool = flag(False, "Begin at samples of the run's replay buffer instead of at noise.")
    label: str = flag(
        "",
        "Label of all samples: a class, or for dSprites its values with commas between. Empty: classes in turn, values "
        "drawn anew for each.",
    )

    def __post_init__(self) -> None:
        check_values(self)


class Sampler:
    """Samples of a system."""

    def __init__(self, system: EnergyBasedModel):
        self._system = system
        # Compiled functions by chain: each of them is built for its step size, noise and limit.
        self._functions: dict[Chain, Callable[..., tf.Tensor]] = {}

    def chain(self, options: SampleOptions) -> Chain:
        """The chain that the options describe."""
        config = self._system.config
        changed = {name: getattr(options, name) for name in ("step_lr", "proj_norm", "noise_scale")}
        config = dataclasses.replace(config, **{name: value for name, value in changed.items() if value is not None})
        steps = options.num_steps
        if not steps:
            longer = config.replay_batch and not options.from_replay
            steps = config.num_steps * (_FROM_NOISE if longer else 1)
        return dataclasses.replace(chain_of(config), steps=steps)

    def sample(
        self, count: int, key: Key, options: SampleOptions, callback: SampleCallback | None = None
    ) -> np.ndarray:
        """uint8 [count, H, W, C]. See `System.sample`.

        A sample is a function of the key and its number alone, but for runs whose gradients are limited over the whole
        batch (--proj_norm_type=l2), and for beginnings in a buffer, which is that of the rank that draws.

        Raises:
          SettingsError: a label that the network does not have; a start in a buffer that is not there.
        """
        system, chain = self._system, self.chain(options)
        labels_of = self._labels(options)
        if options.from_replay and system.chains.buffer is None:
            raise SettingsError("--from_replay: the run has no replay buffer (it was trained without --replay_batch)")
        if options.from_replay and not system.chains.buffered:
            raise SettingsError("--from_replay: the run's replay buffer is empty as yet: leave the flag out")
        size = system.config.batch_size
        chunks = []
        for first in range(0, count, size):
            own = key.skip(first)
            x, stored = self._starts(size, own, options)
            # A chain that goes on keeps its label, where the buffer knows it.
            labels = labels_of(size, own) if stored is None or options.label else stored
            x = self._run(chain, x, labels, own, first, -(-count // size), callback)
            chunks.append(self.to_bytes(x.numpy())[: count - first])
        return np.concatenate(chunks)

    def to_bytes(self, x: np.ndarray) -> np.ndarray:
        """uint8 of images in the range of the pixels."""
        return preprocess.logged_bytes(x, self._system.config.rescale)

    def _starts(self, size: int, key: Key, options: SampleOptions) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Images, and their labels where they come from a buffer that has them."""
        system = self._system
        config, shape = system.config, [size, *system.spec.shape]
        key = key.fold("starts")
        if config.is_sprites:
            fresh = tf.constant(preprocess.sprites_starts(key.normal(shape).numpy()))
        else:
            fresh = tf.constant(preprocess.uniform_starts(key.uniform(shape).numpy(), config.rescale))
        buffer = system.chains.buffer
        if not options.from_replay or buffer is None:
            return fresh, None
        # One draw a sample, so that sample i does not depend on how many are drawn at a time.
        share = tf.cast(key.fold("rows").uniform([size, 1])[:, 0], tf.float64)
        rows = tf.cast(share * tf.cast(buffer.length, tf.float64), tf.int64)
        stored = buffer.at(rows)
        if stored.images.dtype == tf.float32:
            return stored.images, stored.labels
        return replay.from_bytes(stored.images, key.fold("levels").uniform(shape), config.rescale), stored.labels

    def _run(
        self,
        chain: Chain,
        x: tf.Tensor,
        labels: tf.Tensor | None,
        key: Key,
        first: int,
        chunks: int,
        callback: SampleCallback | None,
    ) -> tf.Tensor:
        advanced = self._functions.setdefault(chain, self._advance(chain))
        part = max(1, -(-chain.steps // _PARTS))
        parts = -(-chain.steps // part)
        done = first // self._system.config.batch_size * parts
        for number, start in enumerate(range(0, chain.steps, part)):
            stop = min(start + part, chain.steps)
            x = advanced(x, labels, tf.constant(start), tf.constant(stop), key.seed, key.first_sample)
            if callback is not None:
                preview = self._preview(x) if first == 0 else None
                callback(done + number + 1, chunks * parts, preview)
        return x

    def _preview(self, x: tf.Tensor) -> Callable[[], np.ndarray]:
        return lambda: self.to_bytes(x.numpy())

    def _advance(self, chain: Chain) -> Callable[..., tf.Tensor]:
        system = self._system

        @tf.function(reduce_retracing=True, autograph=False)
        def advance(x, labels, first, last, seed, first_sample):
            """Images before step `first` to those after step `last` - 1."""
            weights = system.normalized()
            temperature = float(system.config.temperature)

            def energy(images: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
                del step
                return temperature * system.energy(weights, images, labels)

            return run_part(x, first, last, moves_of(system.config, energy, chain, Key(seed, first_sample)))

        return advance

    # Labels ---------------------------------------------------------------------------------------------

    def _labels(self, options: SampleOptions) -> Callable[[int, Key], tf.Tensor | None]:
        """Labels [n, K] of n samples for a key."""
        system = self._system
        columns, config = system.label_columns, system.config
        if options.label and not columns:
            raise SettingsError(f"--label={options.label}: the run is unconditional; leave the flag out")
        if not columns:
            return lambda count, key: None
        if options.label:
            row = tf.constant(self._row(options.label), tf.float32)
            return lambda count, key: tf.tile(row[tf.newaxis], [count, 1])
        if not config.labels_are_classes:
            return lambda count, key: factor_labels(config.sprites_mode, key.fold("labels").uniform([count, 1])[:, 0])

        def in_turn(count: int, key: Key) -> tf.Tensor:
            return tf.one_hot((key.first_sample + tf.range(count, dtype=tf.int64)) % columns, columns)

        return in_turn

    def _row(self, text: str) -> list[float]:
        columns, config = self._system.label_columns, self._system.config
        try:
            values = [float(part) for part in text.split(",")]
        except ValueError:
            values = []
        if len(values) == 1 and values[0] in range(columns) and (columns > 1 or not config.is_sprites):
            return list(np.eye(columns)[int(values[0])])
        if len(values) == columns and config.is_sprites:
            return values
        expected = f"{columns} numbers with commas between" if config.is_sprites else f"a class from 0 to {columns - 1}"
        raise SettingsError(f"--label={text}: expected {expected}")


def factor_labels(mode: str, uniforms: tf.Tensor) -> tf.Tensor:
    """Labels [n, K] of a factor of dSprites that goes through its values with the uniform numbers [n].

    Sizes are 0.5 to 1, rotations a circle. Positions follow a curve that covers the square.
    """
    if "size" in mode:
        return 0.5 + 0.5 * uniforms[:, tf.newaxis]
    if "rot" in mode:
        angle = 2.0 * np.pi * uniforms
        return tf.stack([tf.cos(angle), tf.sin(angle)], axis=1)
    moved = 0.5 if mode == "dpos_only" else 0.0
    return moved + tf.stack([uniforms, tf.math.floormod(uniforms * 89.0, 1.0)], axis=1)
