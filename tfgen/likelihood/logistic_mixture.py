"""Mixtures of logistic distributions over the sub-pixels of an image, cut into buckets.

Salimans et al. (2017), PixelCNN++, section 2.1 and 2.2. At each pixel the network gives M components; each has one
logit and, for each colour, a mean and a log-scale. Within a component green depends linearly on red, and blue on red
and green. A pixel value stands for a bucket of the real line, and its probability is the mass in the bucket.

Pixels live in [-1, 1]: level x of 256 is at x / 127.5 - 1.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import tensorflow as tf

MIN_LOG_SCALE = -7.0  # 2 levels of 256 hold nearly all of a logistic this narrow
_MIN_MASS = 1e-5  # the published rule takes density times width for a bucket of at most this mass


@dataclasses.dataclass(frozen=True)
class Buckets:
    """How the real line is cut.

    Attributes:
      half_width: a target t stands for [t - half_width, t + half_width] ...
      open_below: ... which extends to minus infinity for t < open_below ...
      open_above: ... and to plus infinity for t > open_above. Both comparisons are strict.
      exact: False for the published rule: a difference of two sigmoids, and density times width where that is at most
        1e-5, which underrates far tails of narrow components. True for the mass itself, whatever its size.
    """

    half_width: float
    open_below: float = -0.999
    open_above: float = 0.999
    exact: bool = False


EIGHT_BIT = Buckets(1 / 255)
# The same buckets with the mass of each, however small: the probabilities of the 256 levels sum to 1.
EIGHT_BIT_EXACT = Buckets(1 / 255, exact=True)
# As published for 5-bit FFHQ-256. Targets (8 * floor(x / 8) - 127.5) / 127.5 are 8 / 127.5 apart, so neighbours
# overlap by 2.8 %, and the top target, 0.945, does not reach open_above: the probabilities do not sum to 1.
FIVE_BIT = Buckets(1 / 31)
# The same targets with buckets that meet, the top one open (from level 244 on): the probabilities sum to 1.
FIVE_BIT_EXACT = Buckets(4 / 127.5, open_above=244 / 127.5 - 1, exact=True)


class Mixture(NamedTuple):
    """Parameters of the mixtures at pixels, of M components and C colours.

    Attributes:
      logits: [..., M].
      means: [..., C, M], before what they owe to earlier colours.
      log_scales: [..., C, M], as the network gives them or floored.
      coefficients: [..., 3, M] in (-1, 1): green on red, blue on red, blue on green; None for one colour.
    """

    logits: tf.Tensor
    means: tf.Tensor
    log_scales: tf.Tensor
    coefficients: tf.Tensor | None


def log_prob(parameters: tf.Tensor, target: tf.Tensor, buckets: Buckets = EIGHT_BIT) -> tf.Tensor:
    """Log-likelihood of each pixel, all its colours together.

    Args:
      parameters: floating point [..., 10 M] for three colours, [..., 3 M] for one; layout as in `split_parameters`.
      target: same dtype [..., C] in [-1, 1].
      buckets: what a target stands for.

    Returns:
      [...], nats, at most 0 (with `FIVE_BIT` at most ln 1.028 for each colour).

    Raises:
      ValueError: parameters and target whose last axes do not go together.
    """
    mixture = split_parameters(parameters, target.shape[-1])
    distance = target[..., tf.newaxis] - conditional_means(mixture, target)  # [..., C, M]
    return combine(mixture.logits, bucket_log_prob(distance, mixture.log_scales, target, buckets))


def split_parameters(parameters: tf.Tensor, channels: int) -> Mixture:
    """Takes the output of a network apart; log-scales are floored at -7.

    The last axis holds M logits and then, colour by colour, M means, M log-scales and, for three colours, M
    coefficients before their tanh. The coefficients beside red, green and blue are those of green on red, blue on red
    and blue on green.

    Args:
      parameters: floating point [..., 10 M] or [..., 3 M].
      channels: C, 3 or 1.

    Raises:
      ValueError: another number of colours; a last axis that does not divide.
    """
    logits, rest = take_logits_off(parameters, channels)
    parts = tf.unstack(rest, axis=-2)  # 2 or 3 of [..., C, M]
    return Mixture(
        logits=logits,
        means=parts[0],
        log_scales=tf.maximum(parts[1], MIN_LOG_SCALE),
        coefficients=tf.tanh(parts[2]) if channels == 3 else None,
    )


def conditional_means(mixture: Mixture, colours: tf.Tensor) -> tf.Tensor:
    """Means of each colour given the values of the colours before it: PixelCNN++, equation 3.

    Args:
      colours: [..., C]; the last colour is not used.

    Returns:
      [..., C, M].
    """
    if mixture.coefficients is None:
        return mixture.means
    given = tf.gather(colours, [0, 0, 1], axis=-1)[..., tf.newaxis]  # [..., 3, 1]: red, red, green
    green_red, blue_red, blue_green = tf.split(mixture.coefficients * given, 3, axis=-2)  # [..., 1, M]
    red, green, blue = tf.split(mixture.means, 3, axis=-2)  # [..., 1, M]
    return tf.concat([red, green + green_red, blue + blue_red + blue_green], axis=-2)


def combine(logits: tf.Tensor, log_probs: tf.Tensor) -> tf.Tensor:
    """Log-probability under the mixture, from that under each component.

    Args:
      logits: [..., M].
      log_probs: [..., M], nats; log-densities do as well.

    Returns:
      [...], nats.
    """
    return tf.reduce_logsumexp(tf.nn.log_softmax(logits) + log_probs, axis=-1)


def bucket_log_prob(distance: tf.Tensor, log_scales: tf.Tensor, target: tf.Tensor, buckets: Buckets) -> tf.Tensor:
    """Log of the mass that logistic distributions have in the buckets of the targets, summed over colours.

    With v = exp(-log_scale), m = v * distance and h = v * half_width, the mass is sigmoid(m + h) - sigmoid(m - h),
    where an open end puts 1 or 0 in place of its sigmoid.

    Args:
      distance: target minus mean, [..., C, M].
      log_scales: [..., C, M].
      target: [..., C]; says which buckets are open.

    Returns:
      [..., M], nats.
    """
    dtype = target.dtype
    width = tf.constant(buckets.half_width, dtype)
    below, above = target < buckets.open_below, target > buckets.open_above  # [..., C]
    opened = tf.logical_or(below, above)[..., tf.newaxis]  # [..., C, 1]
    is_open, is_closed = tf.cast(opened, dtype), tf.cast(tf.logical_not(opened), dtype)  # [..., C, 1]
    one = is_open + is_closed  # [..., C, 1]
    to_upper = tf.where(above, math.inf, width)[..., tf.newaxis]  # [..., C, 1]
    to_lower = tf.where(below, -math.inf, -width)[..., tf.newaxis]  # [..., C, 1]
    flip = tf.where(below, -tf.ones((), dtype), 1)[..., tf.newaxis]  # [..., C, 1]

    # Differentiated by hand: automatic differentiation would pass through every branch, at several times the cost.
    # Masks are [..., C, 1] and enter by arithmetic where they can. tf.raw_ops.Select does not broadcast, and is several
    # times as fast as tf.where on a CPU.
    @tf.custom_gradient
    def evaluate(distance, log_scales):
        precision = tf.maximum(tf.exp(-log_scales), 1e-30)  # 0 times an infinite bound would be no number
        sigmoid_upper = _sigmoid(precision * (distance + to_upper), one)
        sigmoid_lower = _sigmoid(precision * (distance + to_lower), one)
        mass = sigmoid_upper - sigmoid_lower
        if buckets.exact:
            # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): nothing cancels.
            value = (
                is_closed * tf.math.log(-tf.math.expm1(-2 * width * precision))
                - _softplus(-precision * (distance + to_upper))
                - _softplus(precision * (distance + to_lower))
            )
        else:
            # One softplus for three branches: of -(m + h) below, of m - h above, of m between.
            argument = precision * (flip * distance - is_open * width)
            log_density = argument - log_scales + math.log(2 * buckets.half_width)  # but for -2 softplus(m)
            tail = is_closed * log_density - (one + is_closed) * _softplus(argument)
            by_mass = is_closed * mass > _MIN_MASS
            floored_mass = tf.maximum(mass, 1e-12)
            value = tf.raw_ops.Select(condition=by_mass, x=tf.math.log(floored_mass), y=tail)

        def gradient(upstream):
            half = precision * width  # h
            # By m: 1 - sigmoid(m + h) - sigmoid(m - h). For the density it is 1 - 2 sigmoid(m), the same to 1e-5.
            by_scaled = 1 - sigmoid_upper - sigmoid_lower
            if buckets.exact:
                # By h, times h: h coth(h) - h mass; for an open bucket h - h mass.
                by_half = half * (1 / tf.tanh(precision * (to_upper - to_lower) / 2) - mass)
            else:
                # As of ln(mass) with the rounded mass, so that value and derivative belong together.
                slope_upper = sigmoid_upper * (1 - sigmoid_upper) / floored_mass
                slope_lower = sigmoid_lower * (1 - sigmoid_lower) / floored_mass
                by_scaled = tf.raw_ops.Select(condition=by_mass, x=slope_upper - slope_lower, y=by_scaled)
                by_half_tail = is_closed + is_open * half * (1 - mass)
                by_half = tf.raw_ops.Select(condition=by_mass, x=half * (slope_upper + slope_lower), y=by_half_tail)
            by_distance = precision * by_scaled
            upstream = upstream[..., tf.newaxis, :]  # [..., 1, M]
            return upstream * by_distance, -upstream * (distance * by_distance + by_half)

        return tf.reduce_sum(value, axis=-2), gradient

    return evaluate(distance, log_scales)


def to_uint8(images: tf.Tensor) -> tf.Tensor:
    """[-1, 1] to uint8 of the same shape. Truncates, as published; rounding would be half a level brighter."""
    return tf.cast(tf.clip_by_value((images + 1) * 127.5, 0, 255), tf.uint8)


def take_logits_off(parameters: tf.Tensor, channels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The logits, [..., M], and what follows them, [..., C, 2 or 3, M]."""
    if channels not in (1, 3):
        raise ValueError(f"expected images of 1 or 3 colours, found {channels}")
    kinds = 3 if channels == 3 else 2  # means, log-scales, coefficients
    size = parameters.shape[-1]
    each = 1 + channels * kinds
    if not size or size % each:
        raise ValueError(
            f"expected parameters of shape [..., {each} * M] for M components and {channels} colour(s), found "
            f"{_shape(parameters)}"
        )
    components = size // each
    logits, rest = tf.split(parameters, [components, size - components], axis=-1)
    shape = tf.concat([tf.shape(parameters)[:-1], [channels, kinds, components]], axis=0)
    return logits, tf.reshape(rest, shape)


def _sigmoid(x: tf.Tensor, one: tf.Tensor) -> tf.Tensor:
    """1 / (1 + exp(-x)), rounded after each of these operations.

    A small difference of two sigmoids near 1 has few digits left: which ones, and so the log-probability in its fourth
    digit, depends on how they were rounded. The published numbers come from this formula; tf.sigmoid rounds otherwise.

    Args:
      one: ones, of a shape that broadcasts, which must not be a constant: TensorFlow's graph optimiser takes a constant
        1 / x for a reciprocal, whose kernel is less accurate than a division.
    """
    return one / (1 + tf.exp(-x))


def _softplus(x: tf.Tensor) -> tf.Tensor:
    """ln(1 + exp(x)), in half the time of tf.nn.softplus on a CPU."""
    return tf.maximum(x, 0) + tf.math.log1p(tf.exp(-tf.abs(x)))


def _shape(tensor: tf.Tensor) -> list[int | None]:
    return list(tensor.shape)
