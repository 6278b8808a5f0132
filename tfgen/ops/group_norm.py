"""Group normalisation with what follows it in a residual block: modulation by an embedding, and SiLU.

Compiled for the CPU, and in plain TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfgen.ops import library

EPSILON = 1e-5  # Keras has 1e-3


def group_norm(
    x: tf.Tensor,
    scale: tf.Tensor,
    shift: tf.Tensor,
    groups: int = 32,
    silu: bool = False,
    modulation: tuple[tf.Tensor, tf.Tensor] | None = None,
) -> tf.Tensor:
    """Normalises each group of channels over its channels and all pixels (Wu & He, arXiv:1803.08494, equation 7).

        n = (x - mean) / sqrt(variance + 1e-5) * scale + shift
        n = n (1 + modulation[0]) + modulation[1]       where given
        n = n sigmoid(n)                                if `silu`

    The variance is the biased one. All of it is computed in float32 and cast back at the end. The compiled operation
    reads a sample three times while it is in the cache, where TensorFlow makes a dozen passes over memory; it exists
    for the CPU. On a GPU and where the kernels are not built the form in plain TensorFlow runs.

    Args:
      x: [B, H, W, C], float32, float16 or bfloat16. H, W and C are static.
      scale, shift: of each channel, float32 [C].
      groups: number of groups of neighbouring channels; divides C.
      modulation: scale and shift of each sample and channel, both [B, C].

    Returns:
      Of the shape and dtype of `x`. Keeps `x` and its means for the backward pass. Differentiable twice.

    Raises:
      ValueError: channels that do not form equal groups.
    """
    channels = x.shape[-1]
    if channels is None or channels % groups:
        raise ValueError(f"{channels} channels do not form {groups} equal groups: make their number a multiple of it")
    gain, offset = scale[tf.newaxis], shift[tf.newaxis]  # [1, C]
    if modulation is not None:
        factor = 1.0 + tf.cast(modulation[0], tf.float32)
        gain, offset = gain * factor, offset * factor + tf.cast(modulation[1], tf.float32)  # [B, C]
    kernels = None if x.dtype == tf.float64 or library.gpu_visible() else library.load()
    if kernels is None:
        return group_norm_reference(x, gain, offset, groups, silu)
    return kernels.operations.tfgen_group_norm(x, gain, offset, groups=groups, epsilon=EPSILON, silu=silu).y


@tf.RegisterGradient("TfgenGroupNorm")
def _group_norm_gradient(operation: tf.Operation, upstream: tf.Tensor, *_unused: tf.Tensor) -> list[tf.Tensor]:
    """Of y. Nothing else reads the other two outputs, the mean and 1 / deviation of each group."""
    gradient = library.loaded().operations.tfgen_group_norm_grad
    _, mean, inverse = operation.outputs
    groups, silu = operation.get_attr("groups"), operation.get_attr("silu")
    return list(gradient(*operation.inputs, upstream, mean, inverse, groups=groups, silu=silu))


@tf.RegisterGradient("TfgenGroupNormGrad")
def _group_norm_second_gradient(operation: tf.Operation, *upstreams: tf.Tensor) -> list[tf.Tensor | None]:
    """By way of the plain form. All of it depends on x, gain, offset and dy; mean and deviation get nothing."""
    x, gain, offset, dy, _, _ = operation.inputs
    groups, silu = operation.get_attr("groups"), operation.get_attr("silu")
    with tf.GradientTape() as outer:
        outer.watch([x, gain, offset, dy])
        with tf.GradientTape() as inner:
            inner.watch([x, gain, offset])
            y = group_norm_reference(x, gain, offset, groups, silu)
        first = inner.gradient(y, [x, gain, offset], output_gradients=dy)
    second = outer.gradient(first, [x, gain, offset, dy], output_gradients=list(upstreams))
    return [*second, None, None]


def group_norm_reference(x: tf.Tensor, gain: tf.Tensor, offset: tf.Tensor, groups: int, silu: bool) -> tf.Tensor:
    """`group_norm` in plain TensorFlow, with gain and offset [B or 1, C] as all factors together give them."""

    @tf.custom_gradient
    def normalized(x: tf.Tensor, gain: tf.Tensor, offset: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        mean, inverse = _moments(tf.cast(x, tf.float32), groups)
        y = _affine(tf.cast(x, tf.float32), mean, inverse, gain, offset)
        y = y * tf.sigmoid(y) if silu else y

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            upstream, wide = tf.cast(upstream, tf.float32), tf.cast(x, tf.float32)
            if silu:
                y = _affine(wide, mean, inverse, gain, offset)
                gate = tf.sigmoid(y)
                upstream *= gate * (1.0 + y * (1.0 - gate))
            by_offset = tf.reduce_sum(upstream, axis=[1, 2])  # [B, C]
            by_gain = inverse * (tf.reduce_sum(upstream * wide, axis=[1, 2]) - mean * by_offset)
            # What the means and the variance pass back, for each sample and channel.
            pixels = x.shape[1] * x.shape[2]
            along_mean = _group_means(gain * by_offset, groups) / pixels
            along_deviation = _group_means(gain * by_gain, groups) / pixels
            slope = -tf.square(inverse) * along_deviation
            level = -inverse * along_mean - mean * slope
            by_x = upstream * _on_pixels(inverse * gain) + (wide * _on_pixels(slope) + _on_pixels(level))
            return tf.cast(by_x, x.dtype), _summed_like(by_gain, gain), _summed_like(by_offset, offset)

        return tf.cast(y, x.dtype), gradient

    return normalized(x, gain, offset)


def _moments(x: tf.Tensor, groups: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and 1 / standard deviation of the group that each channel belongs to, both [B, C]."""
    mean = _group_means(tf.reduce_mean(x, axis=[1, 2]), groups)
    # Squares of the centred values: the difference of two large means would lose the variance in rounding.
    squares = tf.reduce_mean(tf.math.squared_difference(x, _on_pixels(mean)), axis=[1, 2])
    return mean, tf.math.rsqrt(_group_means(squares, groups) + EPSILON)


def _affine(x: tf.Tensor, mean: tf.Tensor, inverse: tf.Tensor, gain: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    factor = inverse * gain
    return x * _on_pixels(factor) + _on_pixels(offset - mean * factor)


def _group_means(values: tf.Tensor, groups: int) -> tf.Tensor:
    """Of each group of channels, given to all of its channels: [B, C] -> [B, C]."""
    members = values.shape[-1] // groups
    if members == 1:
        return values
    means = tf.reduce_mean(tf.reshape(values, [-1, groups, members]), axis=2, keepdims=True)
    return tf.reshape(means * tf.ones([members]), [-1, values.shape[-1]])


def _on_pixels(values: tf.Tensor) -> tf.Tensor:
    return values[:, tf.newaxis, tf.newaxis]  # [B, 1, 1, C]


def _summed_like(gradient: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """A gradient [B, C] summed over the batch if `values` [1, C] serve all samples."""
    return tf.reduce_sum(gradient, axis=0, keepdims=True) if values.shape[0] == 1 else gradient
