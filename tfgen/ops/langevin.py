"""Langevin steps: clip the gradient, step, project and add the next step's noise, in one pass over memory.

The sampler of Du & Mordatch (arXiv:1903.08689, equation 2) adds noise, takes the energy's gradient at the noised point,
and steps against it. The last noise of a step and the first of the next are written at once, so that a chain

    y = initial_noise(x, ...)
    for step in range(steps):
        x, y = langevin_step(y, gradient of the energy at y, step=step, emit_next=step < steps - 1, ...)

costs one pass over its points for each step. The compiled operation (kernels/langevin) exists for CPU and GPU; on a GPU
without its kernels, where the library is not built, under TFGEN_PURE_TF=1 and within `library.plain_tensorflow()` the
form in plain TensorFlow runs, which draws the same random words. Which of the two runs is logged once. Functions
compiled by XLA (`jit_compile=True`) need the plain form: tracing cannot know of XLA.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import tensorflow as tf

from tfgen.ops import library
from tfgen.ops.langevin_reference import Modes, Numbers, noise_reference, step_reference
from tfgen.ops.philox import (
    Integer,
    Source,
    Stream,
    compiled,
    philox_normal,
    philox_uniform,
    philox_words,
)

__all__ = ["Stream", "initial_noise", "langevin_step", "philox_normal", "philox_uniform", "philox_words"]

ClipMode = Literal["none", "value", "tensor_norm", "sample_norm"]
Projection = Literal["range", "box", "ball"]
CLIP_MODES: tuple[ClipMode, ...] = ("none", "value", "tensor_norm", "sample_norm")
PROJECTIONS: tuple[Projection, ...] = ("range", "box", "ball")

Number: TypeAlias = float | tf.Tensor


def langevin_step(
    x: tf.Tensor,
    gradient: tf.Tensor,
    *,
    eta: Number,
    sigma: Number,
    seed: Integer,
    step: Integer,
    mask: tf.Tensor | None = None,
    clip_mode: ClipMode = "none",
    clip: Number = 0.0,
    projection: Projection = "range",
    lower: Number = 0.0,
    upper: Number = 1.0,
    anchor: tf.Tensor | None = None,
    radius: Number = 0.0,
    gradient_first: bool = False,
    emit_next: bool = False,
    stream: int = Stream.LANGEVIN_NOISE,
    first_element: Integer = 0,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """One Langevin step.

        g  = gradient                                           clip_mode "none"
           = clipped to -clip .. clip                           "value"
           = gradient clip / max(norm of gradient, clip)        "tensor_norm": of the whole tensor; "sample_norm"
        t  = x - (eta g) mask                                   the noise of this step is in x already
           = x + (sigma n[step]) mask - (eta g) mask            with `gradient_first`
        x' = t clipped to lower .. upper                        projection "range"
           = t clipped to anchor - radius .. anchor + radius    "box"
           = anchor + d radius / max(norm of d, radius)         "ball": d = t - anchor, of each sample
        y' = x' + (sigma n[step + 1]) mask                      with `emit_next`

    n[k] are the numbers of `philox_normal(shape of x, seed, k, stream, first_element)`; the step after 2^32 - 1 is 0.
    All is computed in float32, every product rounded before it is added, but norms are summed in float64. A NaN in
    `x`, `gradient` or `anchor` gives NaN.

    The gradient by `x` and `gradient` is that of the formulas; a value on a bound passes it, and a norm that equals
    `clip` or `radius` counts as clipped. Random numbers, `mask`, `anchor` and all numbers have none.

    Args:
      x: [N, ...], float32; the point at which `gradient` was taken.
      gradient: of the energy, float32, the shape of `x`.
      eta: step size, the factor of the gradient.
      sigma: standard deviation of the noise.
      seed: 64 bits, signed or unsigned.
      step: number of this step, from 0 to 2^32 - 1.
      mask: factor of gradient and noise, float32, broadcasts to `x`.
      clip: positive, with any `clip_mode` but "none".
      lower, upper: bounds of a "range".
      anchor: float32, the shape of `x`; with a "box" or "ball", and only there.
      radius: positive, with a "box" or "ball".
      gradient_first: `x` is the point without noise, which is added with the step.
      emit_next: also return the point at which the next gradient is to be taken.
      stream: of random numbers, see `philox.Stream`.
      first_element: number of the first element of `x` in the stream: where a batch is split, what is before it.

    Returns:
      x' and y', of the shape of `x`; None for y' without `emit_next`. Differentiable once.

    Raises:
      ValueError: arguments that do not fit together, as far as they are known.
      tf.errors.InvalidArgumentError: the same, where it is known only when a graph runs.
    """
    x, gradient = tf.convert_to_tensor(x), tf.convert_to_tensor(gradient)
    if clip_mode not in CLIP_MODES:
        raise ValueError(f"clip_mode must be one of {', '.join(CLIP_MODES)}, found {clip_mode!r}")
    if projection not in PROJECTIONS:
        raise ValueError(f"projection must be one of {', '.join(PROJECTIONS)}, found {projection!r}")
    if (anchor is None) != (projection == "range"):
        raise ValueError(f"anchor belongs to the projections box and ball, and only there; found {projection!r}")
    _check_tensor("x", x, x)
    _check_tensor("gradient", gradient, x)
    if anchor is not None:
        anchor = tf.stop_gradient(tf.convert_to_tensor(anchor))
        _check_tensor("anchor", anchor, x)
    if clip_mode != "none":
        clip = _positive("clip", clip)
    if projection == "range":
        lower, upper = _ordered(lower, upper)
    else:
        radius = _positive("radius", radius)
    numbers = Numbers(*(_number(number) for number in (eta, sigma, lower, upper, clip, radius)))
    modes = Modes(clip_mode, projection, gradient_first)
    source = Source.checked(seed, step, first_element, stream)
    mask = _broadcast_mask(mask, x)
    kernels = compiled()
    if kernels is None:
        return step_reference(x, gradient, mask, anchor, numbers, modes, source, emit_next)
    result = kernels.operations.tfgen_langevin_step(
        x=x,
        g=gradient,
        mask=[] if mask is None else [mask],
        anchor=[] if anchor is None else [anchor],
        next=int(emit_next),
        **numbers._asdict(),
        **modes._asdict(),
        **source._asdict(),
    )
    return result.x_next, result.y_next[0] if emit_next else None


def initial_noise(
    x: tf.Tensor,
    *,
    sigma: Number,
    seed: Integer,
    step: Integer,
    mask: tf.Tensor | None = None,
    stream: int = Stream.LANGEVIN_NOISE,
    first_element: Integer = 0,
) -> tf.Tensor:
    """x + (sigma n[step]) mask: where the first gradient of a chain is taken. Arguments as of `langevin_step`."""
    x = tf.convert_to_tensor(x)
    _check_tensor("x", x, x)
    mask, source = _broadcast_mask(mask, x), Source.checked(seed, step, first_element, stream)
    kernels = compiled()
    if kernels is None:
        return noise_reference(x, mask, _number(sigma), source)
    return kernels.operations.tfgen_langevin_noise(
        x=x, mask=[] if mask is None else [mask], sigma=_number(sigma), **source._asdict()
    )


@tf.RegisterGradient("TfgenLangevinStep")
def _step_gradient(operation: tf.Operation, *upstreams: tf.Tensor) -> list[tf.Tensor | None]:
    """Of x' and y'. The norms are outputs for this function alone."""
    masks, anchors = operation.get_attr("masks"), operation.get_attr("anchors")
    inputs = list(operation.inputs)
    x, gradient, rest = inputs[0], inputs[1], inputs[2:]
    numbers = rest[masks + anchors :]
    _, gradient_norms, displacement_norms, *_ = operation.outputs
    dx, dg = library.loaded().operations.tfgen_langevin_step_grad(
        x,
        gradient,
        rest[:masks],
        rest[masks : masks + anchors],
        *numbers,
        gradient_norms,
        displacement_norms,
        [upstreams[0], *upstreams[3:]],
        clip_mode=operation.get_attr("clip_mode").decode(),
        projection=operation.get_attr("projection").decode(),
        gradient_first=operation.get_attr("gradient_first"),
        stream=operation.get_attr("stream"),
    )
    return [dx, dg, *[None] * len(rest)]


@tf.RegisterGradient("TfgenLangevinNoise")
def _noise_gradient(operation: tf.Operation, upstream: tf.Tensor) -> list[tf.Tensor | None]:
    return [upstream, *[None] * (len(operation.inputs) - 1)]


# Arguments -----------------------------------------------------------------------------------------------


def _check_tensor(name: str, tensor: tf.Tensor, x: tf.Tensor) -> None:
    if tensor.dtype != tf.float32:
        raise ValueError(f"{name} must be float32, found {tensor.dtype.name}: cast it")
    if tensor.shape.rank is None or tensor.shape.rank == 0:
        raise ValueError(f"{name} must have a known number of axes, the first of samples, found {tensor.shape}")
    if not tensor.shape.is_compatible_with(x.shape):
        raise ValueError(f"{name} must have the shape of x, {x.shape}, found {tensor.shape}")


def _number(number: Number) -> tf.Tensor:
    return tf.stop_gradient(tf.cast(number, tf.float32))


def _positive(name: str, number: Number) -> Number:
    if tf.is_tensor(number):
        with tf.control_dependencies([tf.debugging.assert_positive(number, f"{name} must be more than 0")]):
            return tf.identity(number)
    if not number > 0:
        raise ValueError(f"{name} must be more than 0, found {number}")
    return number


def _ordered(lower: Number, upper: Number) -> tuple[Number, Number]:
    if tf.is_tensor(lower) or tf.is_tensor(upper):
        words = "lower must not exceed upper"
        lower, upper = tf.cast(lower, tf.float32), tf.cast(upper, tf.float32)
        with tf.control_dependencies([tf.debugging.assert_less_equal(lower, upper, words)]):
            return tf.identity(lower), upper
    if not lower <= upper:
        raise ValueError(f"lower must not exceed upper, found {lower} and {upper}")
    return lower, upper


def _broadcast_mask(mask: tf.Tensor | None, x: tf.Tensor) -> tf.Tensor | None:
    """[1 or N, ...] with the other axes of `x`: a mask for all samples stays one sample large."""
    if mask is None:
        return None
    mask = tf.stop_gradient(tf.convert_to_tensor(mask))
    if mask.dtype != tf.float32:
        raise ValueError(f"mask must be float32, found {mask.dtype.name}: cast it")
    try:
        fits = tf.broadcast_static_shape(mask.shape, x.shape).is_compatible_with(x.shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"mask must broadcast to the shape of x, {x.shape}, found {mask.shape}")
    sizes = tf.shape(x)
    if mask.shape.rank is not None and (mask.shape.rank < x.shape.rank or mask.shape[0] == 1):
        sizes = tf.concat([[1], sizes[1:]], axis=0)
    broadcast = tf.broadcast_to(mask, sizes)
    broadcast.set_shape([broadcast.shape[0], *x.shape[1:]])
    return broadcast
