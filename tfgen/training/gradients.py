"""From raw gradients to those an optimizer may apply: unscaled, finite and of bounded norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import tensorflow as tf

FLOAT16_MAX = 65504.0


class ClippedGradients(NamedTuple):
    """Result of `clip_by_global_norm`.

    Attributes:
      gradients: dense float32 tensors, unscaled and clipped; of no use where not `usable`.
      norm: float32 scalar to report, before clipping; inf or NaN tells that a gradient overflowed.
      usable: bool scalar. Where it is False no update may be made: hand it to `Optimizer.apply`, whose weight decay
        and moments would otherwise move.
    """

    gradients: list[tf.Tensor]
    norm: tf.Tensor
    usable: tf.Tensor


def as_float32(gradients: Sequence[tf.Tensor | tf.IndexedSlices | None]) -> list[tf.Tensor]:
    """Dense float32 tensors of the gradients; rows of `IndexedSlices` (embedding look-ups) are summed.

    Raises:
      ValueError: a gradient is None.
    """
    missing = [index for index, gradient in enumerate(gradients) if gradient is None]
    if missing:
        raise ValueError(
            f"no gradient for {len(missing)} of {len(gradients)} variables (indices {missing[:8]}): the objective does "
            "not depend on them; leave them out, or ask for unconnected_gradients=tf.UnconnectedGradients.ZERO"
        )
    return [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in gradients]


def global_norm(tensors: Sequence[tf.Tensor | tf.IndexedSlices]) -> tf.Tensor:
    """Square root of the sum of squares over all entries of all tensors (one or more), float32 scalar."""
    # One operation a tensor: a network can have two thousand.
    return tf.sqrt(2.0 * tf.add_n([tf.nn.l2_loss(tensor) for tensor in as_float32(tensors)]))


def clip_by_global_norm(
    gradients: Sequence[tf.Tensor | tf.IndexedSlices],
    max_norm: float | None,
    *,
    scale: float | tf.Tensor = 1.0,
    epsilon: float = 0.0,
    non_finite: Literal["zero", "clamp", "skip"],
) -> ClippedGradients:
    """Multiplies all gradients by scale * max_norm / max(norm + epsilon, max_norm), after removing what is not finite.

    Pascanu et al., arXiv:1211.5063, algorithm 1, with the norm taken over all variables together.

    Args:
      gradients: one per variable, of any floating dtype.
      max_norm: bound on the norm; None or 0 for none (the norm is still computed).
      scale: reciprocal of the loss scale; the number 1.0, where there is none, costs nothing.
      epsilon: added to the norm; PyTorch's clip has 1e-6.
      non_finite: what becomes of inf and NaN.
        "zero" (dynamic loss scale, or float32 compute): `norm` is that of the gradients as they are, so that the
          loss scale can react; then such entries become 0 and the update is made with the rest.
        "clamp" (static loss scale): entries are limited to the float16 range and NaN becomes 0 before the one norm.
        "skip": nothing is removed; the gradients are usable if their norm is finite.

    Raises:
      ValueError: negative `max_norm`, unknown `non_finite`, or a gradient that is None.
    """
    if max_norm is not None and max_norm < 0:
        raise ValueError(f"max_norm is {max_norm}, expected a positive bound, or None or 0 for no clipping")
    tensors = as_float32(gradients)
    if non_finite == "zero":
        tensors = _scaled(tensors, scale)
        reported = global_norm(tensors)
        # A finite norm has finite entries: then no tensor is read again.
        *tensors, norm = tf.cond(
            tf.math.is_finite(reported), lambda: [*tensors, reported], lambda: _without_non_finite(tensors)
        )
    elif non_finite == "clamp":
        # NaN first: clip_by_value is a minimum and a maximum, whose treatment of NaN depends on the device.
        tensors = [tf.where(tf.math.is_nan(tensor), 0.0, tensor) for tensor in tensors]
        # The limit is that of the scaled values, since those are what float16 holds.
        tensors = [tf.clip_by_value(tensor, -FLOAT16_MAX, FLOAT16_MAX) for tensor in tensors]
        tensors = _scaled(tensors, scale)
        norm = reported = global_norm(tensors)
    elif non_finite == "skip":
        tensors = _scaled(tensors, scale)
        norm = reported = global_norm(tensors)
    else:
        raise ValueError(f"non_finite is {non_finite!r}, expected 'zero', 'clamp' or 'skip'")

    # Finite entries can still overflow float32 in the sum of their squares.
    usable = tf.math.is_finite(norm)
    if max_norm:
        factor = max_norm / tf.maximum(norm + epsilon, max_norm)
        tensors = [tensor * factor for tensor in tensors]
    return ClippedGradients(tensors, reported, usable)


def _scaled(tensors: list[tf.Tensor], scale: float | tf.Tensor) -> list[tf.Tensor]:
    if isinstance(scale, float) and scale == 1.0:
        return tensors
    factor = tf.cast(scale, tf.float32)
    return [tensor * factor for tensor in tensors]


def _without_non_finite(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """The tensors with zeros for inf and NaN, then their norm."""
    kept = [tf.where(tf.math.is_finite(tensor), tensor, 0.0) for tensor in tensors]
    return [*kept, global_norm(kept)]
