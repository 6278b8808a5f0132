"""ELU of features and of their negatives: compiled for the CPU, and in plain TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from tfgen.ops import library


def concat_elu(x: tf.Tensor) -> tf.Tensor:
    """ELU(x), then ELU(-x), along the last axis, with ELU(x) = exp(x) - 1 below 0 (Clevert et al., arXiv:1511.07289).

    The compiled operation makes one pass over the array, with one exponential for both halves, where TensorFlow makes
    three; so does its gradient. It exists for float32 on the CPU, and keeps the relative precision of exp(x) - 1 near
    0. On a GPU, for other types and where the kernels are not built the form in plain TensorFlow runs.

    Args:
      x: [..., F], floating point.

    Returns:
      [..., 2 F], the dtype of `x`. Differentiable any number of times.
    """
    kernels = library.load() if x.dtype == tf.float32 and not library.gpu_visible() else None
    return concat_elu_reference(x) if kernels is None else kernels.operations.tfgen_concat_elu(x)


def concat_elu_reference(x: tf.Tensor) -> tf.Tensor:
    """`concat_elu` in plain TensorFlow."""
    return tf.nn.elu(tf.concat([x, -x], axis=-1))


@tf.RegisterGradient("TfgenConcatElu")
def _gradient(operation: tf.Operation, upstream: tf.Tensor) -> tf.Tensor:
    return library.loaded().operations.tfgen_concat_elu_grad(operation.inputs[0], upstream)


@tf.RegisterGradient("TfgenConcatEluGrad")
def _second_gradient(operation: tf.Operation, upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x, first_upstream = operation.inputs
    # The slope of ELU is the least of 1 and exp(x), and below 0 it is its own derivative.
    slope, opposite = tf.exp(tf.minimum(x, 0.0)), tf.exp(tf.minimum(-x, 0.0))
    of_first, of_second = tf.split(first_upstream, 2, axis=-1)
    zero = tf.zeros_like(x)
    curved = tf.where(x < 0, of_first * slope, zero) + tf.where(x > 0, of_second * opposite, zero)
    return upstream * curved, tf.concat([upstream * slope, -upstream * opposite], axis=-1)
