"""The Langevin step in plain TensorFlow: the definition that the compiled operation is tested against.

It is also what exports and XLA run, and what runs where there is no compiled operation.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfgen.ops.philox import Source, normal_reference


class Numbers(NamedTuple):
    """float32 scalars of a step; see `tfgen.ops.langevin.langevin_step`."""

    eta: tf.Tensor
    sigma: tf.Tensor
    lower: tf.Tensor
    upper: tf.Tensor
    clip: tf.Tensor
    radius: tf.Tensor


class Modes(NamedTuple):
    clip_mode: str
    projection: str
    gradient_first: bool


def step_reference(
    x: tf.Tensor,
    gradient: tf.Tensor,
    mask: tf.Tensor | None,
    anchor: tf.Tensor | None,
    numbers: Numbers,
    modes: Modes,
    source: Source,
    emit_next: bool,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """`tfgen.ops.langevin.langevin_step` of checked arguments, differentiable any number of times."""
    eta, sigma, lower, upper, clip, radius = numbers
    moved = x
    if modes.gradient_first:
        moved = moved + masked(sigma * normal_reference(tf.shape(x), source), mask)
    moved = moved - masked(eta * clipped(gradient, modes.clip_mode, clip), mask)
    if modes.projection == "range":
        x_next = between(moved, lower, upper)
    elif modes.projection == "box":
        x_next = between(moved, anchor - radius, anchor + radius)
    else:
        displacement = moved - anchor
        x_next = anchor + displacement * radius / tf.maximum(norm(displacement, by_sample=True), radius)
    if not emit_next:
        return x_next, None
    following = source._replace(step=(source.step + 1) % 2**32)
    return x_next, x_next + masked(sigma * normal_reference(tf.shape(x), following), mask)


def noise_reference(x: tf.Tensor, mask: tf.Tensor | None, sigma: tf.Tensor, source: Source) -> tf.Tensor:
    return x + masked(sigma * normal_reference(tf.shape(x), source), mask)


def masked(values: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    return values if mask is None else values * mask


def clipped(gradient: tf.Tensor, clip_mode: str, clip: tf.Tensor) -> tf.Tensor:
    if clip_mode == "none":
        return gradient
    if clip_mode == "value":
        return between(gradient, -clip, clip)
    return gradient * clip / tf.maximum(norm(gradient, by_sample=clip_mode == "sample_norm"), clip)


def between(values: tf.Tensor, lower: tf.Tensor, upper: tf.Tensor) -> tf.Tensor:
    """NaN gives NaN. On a bound the gradient goes to `values`, as they are the first arguments."""
    return tf.maximum(tf.minimum(values, upper), lower)


def norm(values: tf.Tensor, by_sample: bool) -> tf.Tensor:
    """Euclidean norm over all axes, or all but the first, which are kept with size 1; summed in float64."""
    axes = list(range(1 if by_sample else 0, values.shape.rank))
    squares = tf.reduce_sum(tf.square(tf.cast(values, tf.float64)), axes, keepdims=True)
    zero = squares == 0.0  # where the derivative of the root is infinite, times 0 of the squares
    root = tf.where(zero, squares, tf.sqrt(tf.where(zero, tf.ones_like(squares), squares)))
    return tf.cast(root, tf.float32)
