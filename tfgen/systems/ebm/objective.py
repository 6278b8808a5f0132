"""What energy-based models are trained on (Du & Mordatch, arXiv:1903.08689, section 3 and algorithm 1).

Positives are images of the data, negatives what a chain makes of its start. Energies of positives are to fall, those
of negatives to rise, and both to stay small. Where asked for, the gradient also goes back through the chain, to
negatives of lower energy; the original's programs never ask for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
import tensorflow as tf

from tfgen.systems.ebm.networks import Dropout, EnergyNetwork, Weights
from tfgen.systems.ebm.sampler import gradient_of

Kind = Literal["cd", "logsumexp", "softplus"]
KINDS: tuple[Kind, ...] = ("cd", "logsumexp", "softplus")

_SMALLEST_SUM = 1e-4  # added to the sum of weights of "logsumexp"
_SMALLEST_SHARE = 1e-7  # inside the logarithm of an entropy


@dataclasses.dataclass(frozen=True)
class Objective:
    """Settings of the loss.

    Attributes:
      kind: how energies of positives and negatives are compared, see `contrast`.
      ml_coeff: weight of that comparison.
      l2_coeff: weight of the squared energies.
      temperature: factor of the energies that are compared and that the chain descends.
      zero_kl: leave out the energy of negatives as a function of the chain, and the way back through the chain.
    """

    kind: Kind = "cd"
    ml_coeff: float = 1.0
    l2_coeff: float = 1.0
    temperature: float = 1.0
    zero_kl: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"objective {self.kind!r}, expected one of {', '.join(KINDS)}")


def contrast(positive: tf.Tensor, negative: tf.Tensor, objective: Objective) -> tf.Tensor:
    """The likelihood term, whose mean is minimised: a scalar, or [B, 1] for "softplus".

    With T the temperature:

    * "cd" (contrastive divergence, Hinton 2002): mean(T E+) - mean(T E-).
    * "logsumexp": the mean of T E- is one with weights, proportional to exp(-T (E- - min E-)).
    * "softplus": log(1 + exp(T (E+ - E-))) of each positive and the negative beside it.

    Args:
      positive, negative: energies, [B+, 1] and [B-, 1].

    Raises:
      ValueError: pairs are asked for and the numbers of positives and negatives differ.
    """
    positive, negative = objective.temperature * positive, objective.temperature * negative
    if objective.kind == "cd":
        return objective.ml_coeff * (tf.reduce_mean(positive) - tf.reduce_mean(negative))
    if objective.kind == "logsumexp":
        weights = tf.stop_gradient(tf.exp(tf.reduce_min(negative) - negative))
        total = tf.reduce_sum(weights) + _SMALLEST_SUM
        return objective.ml_coeff * (tf.reduce_mean(positive) - tf.reduce_sum(weights * negative / total))
    if positive.shape[0] != negative.shape[0]:
        raise ValueError(
            f"the objective softplus compares pairs, found {positive.shape[0]} positives and {negative.shape[0]} "
            "negatives: use --objective=cd"
        )
    return objective.ml_coeff * tf.nn.softplus(positive - negative)


def total_loss(
    positive: tf.Tensor, negative: tf.Tensor, of_chain: tf.Tensor | None, objective: Objective
) -> tuple[tf.Tensor, tf.Tensor]:
    """The loss, a scalar, and its likelihood term as `contrast` gives it.

    Args:
      positive, negative: energies, [B+, 1] and [B-, 1].
      of_chain: energies [B-, 1] of the negatives as a function of the chain; None with `zero_kl`.
    """
    likelihood = contrast(positive, negative, objective)
    squares = tf.reduce_mean(tf.square(positive)) + tf.reduce_mean(tf.square(negative))
    loss = tf.reduce_mean(likelihood) + objective.l2_coeff * squares
    if of_chain is not None:
        loss += tf.reduce_mean(of_chain)  # without the temperature
    return loss, likelihood


def limited(loss: tf.Tensor, positive: tf.Tensor, negative: tf.Tensor, limit: float) -> tf.Tensor:
    """The loss, or NaN where the mean of |energy| of positives or negatives is above `limit`; 0 is no limit.

    Runs of these models can diverge, and do not come back. The trainer skips steps whose loss is NaN, and stops after
    some in a row.
    """
    if not limit:
        return loss
    within = tf.maximum(tf.reduce_mean(tf.abs(positive)), tf.reduce_mean(tf.abs(negative))) <= limit
    return tf.where(within, loss, np.float32(np.nan))


# One step of training --------------------------------------------------------------------------------------


class Passes(Protocol):
    """Randomness of dropout in each of the passes of a step; only networks with dropout ask."""

    def __call__(self, name: str, step: tf.Tensor | None = None) -> Dropout | None:
        """Of the pass called "positive", "chain" (of `step`), "negative", "of_chain", "start" or "end"."""


def no_dropout(name: str, step: tf.Tensor | None = None) -> None:
    """`Passes` of a network without dropout."""
    del name, step


Sampler = Callable[[Callable[[tf.Tensor, tf.Tensor], tf.Tensor], tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a step of training computes.

    Attributes:
      loss: scalar to minimise.
      likelihood: its likelihood term, see `contrast`.
      positive, negative: energies, [B+, 1] and [B-, 1].
      of_chain: energies [B-, 1] as a function of the chain; None with `zero_kl`.
      negatives: what the chain gave, a constant.
    """

    loss: tf.Tensor
    likelihood: tf.Tensor
    positive: tf.Tensor
    negative: tf.Tensor
    of_chain: tf.Tensor | None
    negatives: tf.Tensor


def evaluate(
    network: EnergyNetwork,
    weights: Weights,
    objective: Objective,
    positives: tf.Tensor,
    starts: tf.Tensor,
    sampler: Sampler,
    labels: tf.Tensor | None = None,
    positive_labels: tf.Tensor | None = None,
    last_labels: tf.Tensor | None = None,
    dropout: Passes = no_dropout,
) -> Outcome:
    """Samples negatives and compares them with positives.

    Args:
      weights: of the network, normalised; the same in all passes.
      positives: float32 [B+, ...].
      starts: where chains begin, float32 [B-, ...].
      sampler: gives negatives for a `sampler.StepEnergy` and starts; with `zero_kl` off it must be one that a gradient
        can go back through.
      labels: [B-, K] of the chains and negatives; None for an unconditional network.
      positive_labels: [B+, K].
      last_labels: [B-, K], of the energy as a function of the chain; None for `labels`. In the original they are those
        of the data also where it draws the classes.
      dropout: randomness of a network with dropout.
    """
    positive = network.energy(weights, positives, positive_labels, dropout("positive"))

    def descended(images: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return objective.temperature * network.energy(weights, images, labels, dropout("chain", step))

    negatives = sampler(descended, starts)
    constant = tf.stop_gradient(negatives)
    negative = network.energy(weights, constant, labels, dropout("negative"))
    of_chain = None
    if not objective.zero_kl:
        of_chain = network.energy(
            weights.stopped(), negatives, labels if last_labels is None else last_labels, dropout("of_chain")
        )
    loss, likelihood = total_loss(positive, negative, of_chain, objective)
    return Outcome(loss, likelihood, positive, negative, of_chain, constant)


def inferred_labels(energies: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
    """One-hot classes [B, K], drawn with probabilities proportional to exp(-energy) (Gumbel, 1954).

    Args:
      energies: [B, K], of each image with each of the classes.
      uniforms: [B, K] in [0, 1).
    """
    gumbel = -tf.math.log(-tf.math.log(uniforms))
    return tf.one_hot(tf.argmax(gumbel - energies, axis=1), energies.shape[1])


def with_every_class(images: tf.Tensor, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Each image [B, ...] with each class: images [B classes, ...] and one-hot labels, classes running fastest."""
    labels = tf.tile(tf.eye(classes), [tf.shape(images)[0], 1])
    return tf.repeat(images, classes, axis=0), labels


# What is logged --------------------------------------------------------------------------------------------


def gradient_at_end(
    network: EnergyNetwork,
    weights: Weights,
    objective: Objective,
    negatives: tf.Tensor,
    labels: tf.Tensor | None = None,
    dropout: Passes = no_dropout,
) -> tf.Tensor:
    """d (sum of T E) / d images at the end of a chain, like the negatives: how far from a minimum it stopped."""

    def energy(images: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        del step
        return objective.temperature * network.energy(weights, images, labels, dropout("end"))

    return gradient_of(energy, negatives, tf.constant(0))


def distance(negatives: tf.Tensor, positives: tf.Tensor) -> tf.Tensor:
    """Mean of |negatives - positives|, pixel by pixel: a scalar."""
    return tf.reduce_mean(tf.abs(negatives - positives))


def label_entropy(labels: tf.Tensor) -> tf.Tensor:
    """Entropy, in nats, of the sum of the labels [B, K] of a batch as a distribution: a scalar."""
    total = tf.reduce_sum(labels, axis=0)
    share = total / tf.reduce_sum(total)
    return -tf.reduce_sum(share * tf.math.log(share + _SMALLEST_SHARE))


def statistics(outcome: Outcome, positives: tf.Tensor, labels: tf.Tensor | None) -> dict[str, tf.Tensor]:
    """Scalars about a step.

    Args:
      positives: images of the step, [B, ...].
      labels: [B-, K] of the chains; None for an unconditional network.
    """
    positive, negative = outcome.positive, outcome.negative
    metrics = {
        "energy_pos": tf.reduce_mean(positive),
        "energy_pos_std": tf.math.reduce_std(positive),
        "energy_neg": tf.reduce_mean(negative),
        "energy_neg_std": tf.math.reduce_std(negative),
        "energy_diff": tf.reduce_mean(positive) - tf.reduce_mean(negative),
        "energy_largest": tf.maximum(tf.reduce_max(tf.abs(positive)), tf.reduce_max(tf.abs(negative))),
        "loss_ml": tf.reduce_mean(outcome.likelihood),
        "x_off": distance(outcome.negatives, positives),
        "sample_mean": tf.reduce_mean(outcome.negatives),
        "sample_std": tf.math.reduce_std(outcome.negatives),
    }
    if outcome.of_chain is not None:
        metrics["loss_kl"] = tf.reduce_mean(outcome.of_chain)
    if labels is not None:
        metrics["label_entropy"] = label_entropy(labels)
    return metrics
