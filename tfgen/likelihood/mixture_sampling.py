"""Samples of mixtures of logistic distributions over the sub-pixels of an image.

Parameters are laid out, and colours depend on one another, as in `tfgen.likelihood.logistic_mixture`; M components, C
colours. A temperature T divides the logits and multiplies the scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfgen.likelihood.continuous_mixture import logistic_log_density
from tfgen.likelihood.logistic_mixture import MIN_LOG_SCALE, split_parameters, take_logits_off

SEARCH_BOUNDS = {1: 30.0, 3: 20.0}  # by the number of colours: samples that are not clipped lie in [-bound, bound]
_HALVINGS_AT_ONCE = 4  # measured on a CPU: the best or nearly so for 1 to 64 pixels at a time
_UNIFORM_MARGIN = 1e-5


def gumbel(
    parameters: tf.Tensor,
    mixture_uniforms: tf.Tensor,
    logistic_uniforms: tf.Tensor,
    clip: bool = True,
    temperature: float = 1.0,
) -> tf.Tensor:
    """Draws pixels: a component by the Gumbel maximum, then its colours in order, by inverse distribution functions.

    Salimans et al. (2017), PixelCNN++, as published.

    Args:
      parameters: floating point [..., 10 M] for three colours, [..., 3 M] for one.
      mixture_uniforms: [..., M] in (0, 1), see `open_interval`.
      logistic_uniforms: [..., C] in (0, 1).
      clip: clip each colour to [-1, 1], before the next one depends on it.
      temperature: T > 0.

    Returns:
      [..., C].

    Raises:
      ValueError: parameters and uniforms whose last axes do not go together; a temperature that is not positive.
    """
    _check_temperature(temperature)
    channels = logistic_uniforms.shape[-1]
    logits, rest = take_logits_off(parameters, channels)
    components = logits.shape[-1]
    if mixture_uniforms.shape[-1] != components:
        raise ValueError(
            f"expected mixture_uniforms of shape [..., {components}], one for each component of parameters of shape "
            f"{list(parameters.shape)}, found {list(mixture_uniforms.shape)}"
        )
    if temperature != 1:
        logits /= temperature
    chosen = tf.argmax(logits - tf.math.log(-tf.math.log(mixture_uniforms)), axis=-1)  # [...]
    picked = tf.gather(rest, chosen, axis=-1, batch_dims=chosen.shape.rank)  # [..., C, 2 or 3]
    scales = temperature * tf.exp(tf.maximum(picked[..., 1], MIN_LOG_SCALE))  # [..., C]
    drawn = tf.unstack(picked[..., 0] + scales * logit(logistic_uniforms), axis=-1)  # C of [...]
    coefficients = tf.unstack(tf.tanh(picked[..., 2]), axis=-1) if channels == 3 else []
    colours: list[tf.Tensor] = []
    for value in drawn:
        value = _given_earlier(value, coefficients, colours)
        colours.append(tf.clip_by_value(value, -1, 1) if clip else value)
    return tf.stack(colours, axis=-1)


def inverse_cdf(
    parameters: tf.Tensor,
    logits_of_uniforms: tf.Tensor,
    clip: bool,
    iterations: int,
    temperature: float = 1.0,
    added_noise: tf.Tensor | None = None,
) -> tf.Tensor:
    """Draws pixels, colour by colour: where the distribution function of the mixture has the value asked for.

    That of green is conditional on red, and that of blue on both: the weight of a component is its posterior
    probability given the earlier colours. Solved by bisection, so that samples lie on a grid; see `bisect`. The draw is
    one of the published sampler of Meng et al. (2021), up to the rounding that decides between neighbours of the grid.

    Args:
      parameters: floating point [..., 10 M] for three colours, [..., 3 M] for one.
      logits_of_uniforms: same dtype [..., C], between -80 and 80: ln(u / (1 - u)) of the values u asked for (`logit`).
      clip: search in [-1, 1], else between the `SEARCH_BOUNDS`; samples outside go to the end of the interval.
      iterations: halvings of the interval, at least 1.
      temperature: T > 0.
      added_noise: [..., C], added to a colour where the means of later ones depend on it.

    Returns:
      [..., C]. Parameters that are no numbers give the lower end of the interval.

    Raises:
      ValueError: parameters and logits whose last axes do not go together; a temperature that is not positive; no
        iteration.
    """
    _check_temperature(temperature)
    channels = logits_of_uniforms.shape[-1]
    mixture = split_parameters(parameters, channels)
    log_weights, log_scales = mixture.logits, mixture.log_scales
    if temperature != 1:
        log_weights, log_scales = log_weights / temperature, log_scales + math.log(temperature)
    log_weights = _spread(log_weights)  # [..., 1, M, 1], as all that is of components
    coefficients = [] if mixture.coefficients is None else _by_colour(mixture.coefficients)
    targets = _by_colour(logits_of_uniforms[..., tf.newaxis])  # [..., 1, 1, 1], as all that is of pixels
    noises = [0.0] * channels if added_noise is None else _by_colour(added_noise[..., tf.newaxis])
    bound = 1.0 if clip else SEARCH_BOUNDS[channels]
    colours: list[tf.Tensor] = []
    given: list[tf.Tensor] = []  # the same with the noise
    for mean, log_scale, target, noise in zip(
        _by_colour(mixture.means), _by_colour(log_scales), targets, noises, strict=True
    ):
        mean = _given_earlier(mean, coefficients, given)
        colour = quantile(log_weights, mean, log_scale, target, bound, iterations)
        log_weights += logistic_log_density(colour - mean, log_scale)  # of the components and all colours so far
        colours.append(colour)
        given.append(colour + noise)
    return tf.squeeze(tf.concat(colours, axis=-1), axis=[-3, -2])


def quantile(
    log_weights: tf.Tensor,
    means: tf.Tensor,
    log_scales: tf.Tensor,
    target: tf.Tensor,
    bound: float,
    iterations: int,
) -> tf.Tensor:
    """Where the distribution function of mixtures of logistics on a line has given values, by `bisect`.

    Written for few operations: they are the time that it takes where pixels are drawn one by one.

    Args:
      log_weights: floating point [..., 1, M, 1]; need not be normalised.
      means, log_scales: [..., 1, M, 1].
      target: ln(u / (1 - u)) of the value u, [..., 1, 1, 1].
      bound: the search is in [-bound, bound].
      iterations: of the bisection.

    Returns:
      [..., 1, 1, 1].
    """
    # With z = (x - mean) / scale, F(x) = sum_k w_k sigmoid(z_k) and sum_k w_k = 1, a point x is too low where F(x) < u:
    #     sum_k w_k (sigmoid(z_k) exp(-t / 2) - sigmoid(-z_k) exp(t / 2)) < 0,    t = ln(u / (1 - u))
    # Positive terms on both sides keep their digits in both tails, for one sigmoid each and no logarithm. The sides are
    # axis -3, components -2, points -1. Only ratios of weights matter.
    side = tf.constant([[[1.0]], [[-1.0]]], means.dtype)
    weights = tf.exp(log_weights - tf.reduce_max(log_weights, axis=-2, keepdims=True))
    terms = weights * (side * tf.exp(-0.5 * side * target))  # [..., 2, M, 1]
    slopes = side * tf.exp(-log_scales)  # [..., 2, M, 1]

    def too_low(points: tf.Tensor) -> tf.Tensor:
        """Of [..., 1, 1, P] points."""
        return tf.reduce_sum(terms * tf.sigmoid((points - means) * slopes), axis=[-3, -2], keepdims=True) < 0

    return bisect(too_low, tf.zeros_like(target) - bound, 2 * bound, iterations)


def bisect(too_low: Callable[[tf.Tensor], tf.Tensor], low: tf.Tensor, width: float, iterations: int) -> tf.Tensor:
    """The last point that a bisection of [low, low + width] looks at.

    Each iteration looks at the middle of the interval, and keeps the upper half where that is too low, else the lower.
    Several iterations are done at once: of all points that they may look at, they end above the highest that is too
    low. What the last iteration finds does not change the point that it looks at, and is not asked for.

    Args:
      too_low: says of points [..., P] whether they are: bool, of the same shape.
      low: floating point [..., 1].
      width: of the intervals.
      iterations: n >= 1.

    Returns:
      [..., 1]: low plus an odd multiple of width / 2^n, as far as the dtype tells them apart.

    Raises:
      ValueError: no iteration.
    """
    if iterations < 1:
        raise ValueError(f"expected at least 1 iteration of bisection, found {iterations}")
    asked = iterations - 1
    while asked:
        halvings = min(asked, _HALVINGS_AT_ONCE)
        asked -= halvings
        width /= 2**halvings  # of a cell of the grid
        points = low + tf.constant(width * np.arange(1, 2**halvings), low.dtype)  # [..., P]
        low = tf.reduce_max(tf.where(too_low(points), points, low), axis=-1, keepdims=True)
    return low + width / 2


# Uniform numbers ---------------------------------------------------------------------------------------------


def open_interval(uniforms: tf.Tensor) -> tf.Tensor:
    """Numbers of [0, 1), such as `Key.uniform` draws, in [1e-5, 1 - 1e-5): their logarithms are finite."""
    return _UNIFORM_MARGIN + (1 - 2 * _UNIFORM_MARGIN) * uniforms


def logit(uniforms: tf.Tensor) -> tf.Tensor:
    """ln(u / (1 - u)) of u in (0, 1), of any shape."""
    return tf.math.log(uniforms) - tf.math.log(1 - uniforms)


def published_gumbel_order(drawn: tf.Tensor, image_shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """The uniform numbers of `gumbel` among those that the code of Meng et al. (2021) draws for images at once.

    Args:
      drawn: [B, H W (M + C)]: first those of the mixtures, then those of the colours.
      image_shape: (H, W, C).

    Returns:
      [B, H, W, M] and [B, H, W, C].
    """
    height, width, channels = image_shape
    components = drawn.shape[-1] // (height * width) - channels
    mixture, logistic = tf.split(drawn, [height * width * components, height * width * channels], axis=-1)
    return tf.reshape(mixture, [-1, height, width, components]), tf.reshape(logistic, [-1, height, width, channels])


def published_inverse_cdf_order(drawn: tf.Tensor, image_shape: Sequence[int]) -> tf.Tensor:
    """The numbers of `inverse_cdf`, uniform or their logits, in the order of the same code: plane after plane.

    Args:
      drawn: [B, C H W].
      image_shape: (H, W, C).

    Returns:
      [B, H, W, C].
    """
    height, width, channels = image_shape
    return tf.transpose(tf.reshape(drawn, [-1, channels, height, width]), [0, 2, 3, 1])


def _by_colour(tensor: tf.Tensor) -> list[tf.Tensor]:
    """[..., C, M] to C of [..., 1, M, 1]."""
    return tf.unstack(_spread(tensor), axis=-4)


def _spread(tensor: tf.Tensor) -> tf.Tensor:
    """[..., M] to [..., 1, M, 1]."""
    return tensor[..., tf.newaxis, :, tf.newaxis]


def _given_earlier(start: tf.Tensor, coefficients: Sequence[tf.Tensor], earlier: Sequence[tf.Tensor]) -> tf.Tensor:
    """`start` and what a colour owes to those before it.

    Args:
      coefficients: green on red, blue on red, blue on green; none for one colour.
      earlier: no colour, red, or red and green.
    """
    first = len(earlier) * (len(earlier) - 1) // 2
    for coefficient, colour in zip(coefficients[first : first + len(earlier)], earlier, strict=True):
        start += coefficient * colour
    return start


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, found {temperature}")
