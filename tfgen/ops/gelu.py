"""GELU with a gradient that keeps only its input: compiled for the CPU, and in plain TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from tfgen.ops import library


def gelu(x: tf.Tensor) -> tf.Tensor:
    """x Phi(x) with Phi the standard normal distribution function (Hendrycks & Gimpel, arXiv:1606.08415), elementwise.

    The exact form, not the tanh approximation. The compiled operation makes one pass over the array where TensorFlow
    makes five; it exists for float32 on the CPU. On a GPU, for other types and where the kernels are not built the
    form in plain TensorFlow runs.

    Args:
      x: floating point, any shape.

    Returns:
      Of the shape and dtype of `x`. Differentiable twice.
    """
    kernels = library.load() if x.dtype == tf.float32 and not library.gpu_visible() else None
    return gelu_reference(x) if kernels is None else kernels.operations.tfgen_gelu(x)


@tf.RegisterGradient("TfgenGelu")
def _gelu_gradient(operation: tf.Operation, upstream: tf.Tensor) -> tf.Tensor:
    return library.loaded().operations.tfgen_gelu_grad(operation.inputs[0], upstream)


@tf.RegisterGradient("TfgenGeluGrad")
def _gelu_second_gradient(operation: tf.Operation, upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x, first_upstream = operation.inputs
    curvature = _density(x) * (2.0 - tf.square(x))
    return upstream * first_upstream * curvature, library.loaded().operations.tfgen_gelu_grad(x, upstream)


@tf.custom_gradient
def gelu_reference(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """`gelu` in plain TensorFlow. TensorFlow's own would keep three intermediates; this one computes Phi again."""

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return upstream * (_distribution(x) + x * _density(x))

    return x * _distribution(x), gradient


def _distribution(x: tf.Tensor) -> tf.Tensor:
    # erfc, not 1 + erf, would keep the relative precision of the left tail, but has no vectorised CPU kernel.
    return 0.5 + 0.5 * tf.math.erf(x * x.dtype.as_numpy_dtype(1.0 / math.sqrt(2.0)))


def _density(x: tf.Tensor) -> tf.Tensor:
    return x.dtype.as_numpy_dtype(1.0 / math.sqrt(2.0 * math.pi)) * tf.exp(-0.5 * tf.square(x))
