"""Energies of several concepts in one: their conjunction, disjunction and negation, and chains that descend them.

Du & Mordatch, arXiv:1903.08689, section 4.3, combine networks that know one factor of an image each (size, shape,
position, rotation) by descending all of them. Where energies stand for unnormalised densities exp(-E), the conjunction
of concepts is the product of densities, the disjunction their sum, and the negation of one divides by a power of it
(Du, Li & Mordatch, arXiv:2004.06030, section 3):

    A and B    E_A + E_B
    A or B     -log(exp(-E_A) + exp(-E_B))
    not A      -alpha E_A

The original has the conjunction only, and visits the concepts one after the other in place of adding their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import tensorflow as tf

from tfgen.ops.langevin import initial_noise, langevin_step
from tfgen.randomness import Key
from tfgen.systems.ebm import networks, sampler
from tfgen.systems.ebm.networks import EnergyNetwork, Weights
from tfgen.systems.ebm.sampler import Chain, Noise

Energy = Callable[[tf.Tensor], tf.Tensor]  # energies [B, 1] of images [B, ...]
Rule = Literal["sequential", "sum", "or"]
RULES: tuple[Rule, ...] = ("sequential", "sum", "or")


# Energies --------------------------------------------------------------------------------------------------


def concept(network: EnergyNetwork, weights: Weights, labels: tf.Tensor | None) -> Energy:
    """The energy of images under a network, given labels [B, K]. Dropout is off."""
    return lambda images: network.energy(weights, images, labels, networks.OFF)


def conjunction(energies: Sequence[Energy]) -> Energy:
    """Low where all energies are: their sum (arXiv:2004.06030, equation 9)."""
    return lambda images: tf.add_n([energy(images) for energy in energies])


def disjunction(energies: Sequence[Energy]) -> Energy:
    """Low where one of the energies is: -log of the sum of exp(-energy) (arXiv:2004.06030, equation 11).

    Energies of networks have an unknown constant each: a concept whose energies are lower throughout wins.
    """
    return lambda images: -tf.reduce_logsumexp(-tf.stack([energy(images) for energy in energies]), axis=0)


def negation(energy: Energy, strength: float) -> Energy:
    """High where the energy is low: -strength times the energy (arXiv:2004.06030, equation 13).

    It has no minimum of its own, and is of use beside other concepts.
    """
    return lambda images: -strength * energy(images)


def composed(energies: Mapping[str, Energy], rule: Rule, negated: Mapping[str, float]) -> list[Energy]:
    """What a round of a chain descends, one after the other.

    "sequential": every concept by itself, in their order. "sum": the conjunction of all. "or": the disjunction of those
    that are not negated, and not the others.

    Args:
      energies: by name.
      negated: strength of the negation of some of them, by name.

    Raises:
      ValueError: an unknown rule, or nothing but negations.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r}, expected one of {', '.join(RULES)}")
    if not set(energies) - set(negated):
        raise ValueError(f"{', '.join(energies) or 'no concept'}: expected one or more that are not negated")
    signed = [negation(energy, negated[name]) if name in negated else energy for name, energy in energies.items()]
    if rule == "sequential":
        return signed
    if rule == "sum":
        return [conjunction(signed)]
    either = disjunction([energy for name, energy in energies.items() if name not in negated])
    against = [negation(energy, negated[name]) for name, energy in energies.items() if name in negated]
    return [conjunction([either, *against])]


# Chains ----------------------------------------------------------------------------------------------------


class Arithmetic(Protocol):
    """Noise and updates of a chain whose draws are numbered from 0. Images are float32 [B, ...]."""

    def noised(self, x: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
        """x + sigma n[draw]."""

    def moved(self, x: tf.Tensor, gradient: tf.Tensor, draw: tf.Tensor | None = None) -> tf.Tensor:
        """x - eta gradient or, with a draw, x + sigma n[draw] - eta gradient, within the range of images."""


class PlainArithmetic:
    """In plain TensorFlow operations.

    Args:
      chain: settings; the number of steps is not read.
      noise: see `sampler.drawn` and `sampler.given`; it is asked for draws where these speak of steps.
    """

    def __init__(self, chain: Chain, noise: Noise):
        self._chain, self._noise = chain, noise

    def noised(self, x: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
        return x + self._chain.noise * self._noise(x, draw)

    def moved(self, x: tf.Tensor, gradient: tf.Tensor, draw: tf.Tensor | None = None) -> tf.Tensor:
        chain = self._chain
        if draw is not None:
            x = self.noised(x, draw)
        step = chain.step_size * sampler.clipped(gradient, chain.clip_mode, chain.clip)
        return tf.clip_by_value(x - step, chain.low, chain.high)


class FusedArithmetic:
    """One operation an update, in one pass over the images; see `ops.langevin`.

    Args:
      chain: settings; the number of steps is not read.
      key: draws the noise, that of a sample at any batch size.
    """

    def __init__(self, chain: Chain, key: Key):
        self._chain, self._key = chain, key

    def noised(self, x: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
        return initial_noise(
            x,
            sigma=self._chain.noise,
            seed=sampler.philox_seed(self._key),
            step=draw,
            first_element=sampler.elements_before(self._key, x),
        )

    def moved(self, x: tf.Tensor, gradient: tf.Tensor, draw: tf.Tensor | None = None) -> tf.Tensor:
        chain = self._chain
        moved, _ = langevin_step(
            x,
            gradient,
            eta=chain.step_size,
            sigma=chain.noise,
            seed=sampler.philox_seed(self._key),
            step=0 if draw is None else draw,
            clip_mode=sampler.FUSED_MODES[chain.clip_mode],
            clip=chain.clip,
            lower=chain.low,
            upper=chain.high,
            gradient_first=draw is not None,
            first_element=sampler.elements_before(self._key, x),
        )
        return moved


class RoundMoves:
    """`sampler.Moves` whose steps are rounds: every energy is descended once, after the one before it.

    The gradient is taken at the images without noise, which is added with the update.
    """

    def __init__(self, energies: Sequence[Energy], arithmetic: Arithmetic):
        self._energies, self._arithmetic = energies, arithmetic

    def begin(self, x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        del step
        return x

    def move(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        for index, energy in enumerate(self._energies):
            y = self._arithmetic.moved(y, gradient_of(energy, y), step * len(self._energies) + index)
        return y

    def end(self, y: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return self.move(y, step)


def gradient_of(energy: Energy, images: tf.Tensor) -> tf.Tensor:
    """d (sum of energies) / d images, like the images [B, ...]; itself a function that can be differentiated."""
    return sampler.gradient_of(lambda x, _: energy(x), images, tf.constant(0))


class Combination:
    """Networks, how their energies are composed, and the chain that descends them.

    Args:
      members: networks by the name of what they know, in the order in which a round visits them.
      chain: settings; `steps` are rounds.
      rule: see `composed`.
      negated: strength of the negation of some of the members, by name.
      advance: keep what a call has improved in the vectors of the power iteration, as the original does. A sample then
        depends on the calls before its own.

    Raises:
      ValueError: members for images of different sizes; those of `composed`.

    Example:
      combination = Combination({"shape": one, "pos": other}, Chain(steps=20, step_size=500.0, noise=0.005))
      images = combination.sample(starts, {"shape": shapes, "pos": places}, Key.create(0, "combination"))
    """

    def __init__(
        self,
        members: Mapping[str, EnergyNetwork],
        chain: Chain,
        rule: Rule = "sequential",
        negated: Mapping[str, float] | None = None,
        advance: bool = False,
    ):
        sizes = {name: (network.shape.side, network.shape.channels) for name, network in members.items()}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{name} {side}x{side}x{channels}" for name, (side, channels) in sizes.items())
            raise ValueError(f"the networks read images of different sizes ({found}), expected one size for all")
        self.members, self.chain, self.rule, self.advance = dict(members), chain, rule, advance
        self.negated = dict(negated or {})
        unknown = set(self.negated) - set(members)
        if unknown:
            raise ValueError(f"negated: {', '.join(sorted(unknown))}; the concepts are {', '.join(members)}")
        composed(dict.fromkeys(members, tf.identity), rule, self.negated)  # complains
        self._compiled = tf.function(self._sample, reduce_retracing=True)

    def run(self, starts: tf.Tensor, labels: Mapping[str, tf.Tensor], arithmetic: Arithmetic) -> tf.Tensor:
        """Images at the end of the chain, float32 [B, side, side] or [B, side, side, channels], like the starts.

        Args:
          starts: where chains begin.
          labels: [B, K] of each member, by name.
          arithmetic: draws and adds; one draw for each energy of each round, in order.
        """
        weights = {name: network.normalized() for name, network in self.members.items()}
        energies = {name: concept(network, weights[name], labels.get(name)) for name, network in self.members.items()}
        moves = RoundMoves(composed(energies, self.rule, self.negated), arithmetic)
        images = sampler.run(starts, self.chain.steps, moves)
        if self.advance:
            for name, network in self.members.items():
                network.store_vectors(weights[name])
        return images

    def sample(self, starts: tf.Tensor, labels: Mapping[str, tf.Tensor], key: Key) -> tf.Tensor:
        """`run` as one compiled function with fused updates. Sample i is a function of its start, label, key and i."""
        labels = {name: tf.cast(labels[name], tf.float32) for name in self.members if name in labels}
        return self._compiled(tf.convert_to_tensor(starts), labels, key.seed, key.first_sample)

    def _sample(self, starts, labels, seed, first_sample):
        return self.run(starts, labels, FusedArithmetic(self.chain, Key(seed, first_sample)))


def panel(columns: Sequence[np.ndarray]) -> np.ndarray:
    """A picture with a row for each image, uint8 [B (side + 2), columns (side + 2), C].

    Args:
      columns: pictures side by side, uint8 [B, side, side, C] each. Every one has a white border of a pixel.
    """
    framed = [np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255) for images in columns]
    rows = np.concatenate(framed, axis=2)  # [B, side + 2, columns (side + 2), C]
    return rows.reshape(-1, *rows.shape[2:])
