"""3x3 and causal convolutions of stride 1: compiled for the CPU where that is faster, and in plain TensorFlow."""

from __future__ import annotations

import logging

import tensorflow as tf

from tfgen.ops import library

# From here on the compiled operation is the faster one, for batches of 8 and more; see docs/performance.md. Batches do
# not decide: an image must not change with those beside it.
LEAST_CHANNELS = 16  # of the images and of the results
LEAST_SIDE = 4


def convolution_3x3(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, prepared: tf.Tensor | None = None) -> tf.Tensor:
    """Convolution of stride 1 with one zero of padding on all sides, plus bias.

    The compiled operation and its gradients use Winograd's F(2x2, 3x3) (Lavin & Gray, arXiv:1509.09308, section 4.1),
    with 16 instead of 36 products for 2x2 results. Results have the same bits every time, however many threads there
    are, and those of an image do not depend on the rest of the batch. Against float64, from 8 channels on, the result
    and the gradient by `x` have 0.3 to 0.9 of the error of sums of products in order, that by `kernel` 0.3 to 1.6. An
    infinite or NaN input makes NaN of all 2x2 results that read it.

    Which form runs is decided by static shapes when the call is traced, in `_obstacle`: TensorFlow's own convolution
    for few channels, tiny images, other types, on a GPU, without the library and within `library.plain_tensorflow()`.
    Functions compiled by XLA (`jit_compile=True`) need the latter: tracing cannot know of XLA.

    Args:
      x: [B, H, W, in], floating point; any sides, even or odd.
      kernel: [3, 3, in, out], the dtype of `x`.
      bias: [out], the dtype of `x`.
      prepared: `prepared_kernel(kernel)`, if that is at hand, which the compiled operation then need not make.

    Returns:
      [B, H, W, out], the dtype of `x`. Differentiable any number of times without `prepared`, and not with it.

    Raises:
      ValueError: a kernel that is not 3x3, or arguments that do not fit together (while a graph is built).
      tf.errors.InvalidArgumentError: the same, where it shows only when the graph runs.
    """
    _require_3x3(kernel)
    obstacle = _obstacle(x, kernel)
    if obstacle:
        library.log_once(logging.INFO, f"3x3 convolution in plain TensorFlow: {obstacle}")
        return convolution_3x3_reference(x, kernel, bias)
    library.log_once(logging.INFO, "3x3 convolutions: compiled operation for the CPU")
    if prepared is not None:
        return library.loaded().operations.tfgen_prepared_convolution3x3(x, prepared, bias)
    return library.loaded().operations.tfgen_convolution3x3(x, kernel, bias)


def convolution_3x3_reference(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """`convolution_3x3` in plain TensorFlow."""
    return tf.nn.bias_add(tf.nn.conv2d(x, kernel, strides=1, padding="SAME"), bias)


def enlarged_convolution_3x3(
    x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, prepared: tf.Tensor | None = None
) -> tf.Tensor:
    """`convolution_3x3(enlarged(x), kernel, bias)`: every pixel twice along both sides, then the convolution.

    The compiled operation reads the small images. Of the 16 products behind 2x2 results 7 are by differences of equal
    pixels, and are left out. Results are those of the two calls to the bit, for finite arguments; an infinite or NaN
    pixel reaches the results that read it and no others.

    Which form runs is decided as in `convolution_3x3`, by the sides of the result.

    Args:
      x: [B, H, W, in], floating point.
      kernel: [3, 3, in, out], the dtype of `x`.
      bias: [out], the dtype of `x`.
      prepared: as for `convolution_3x3`.

    Returns:
      [B, 2 H, 2 W, out], the dtype of `x`. Differentiable any number of times without `prepared`, and not with it.

    Raises:
      ValueError: a kernel that is not 3x3, or arguments that do not fit together (while a graph is built).
      tf.errors.InvalidArgumentError: the same, where it shows only when the graph runs.
    """
    _require_3x3(kernel)
    if _obstacle(x, kernel, scale=2):
        return convolution_3x3(enlarged(x), kernel, bias)
    if prepared is not None:
        return library.loaded().operations.tfgen_prepared_enlarged_convolution3x3(x, prepared, bias)
    return library.loaded().operations.tfgen_enlarged_convolution3x3(x, kernel, bias)


def prepared_kernel(kernel: tf.Tensor) -> tf.Tensor | None:
    """A kernel as the compiled 3x3 convolutions need it, for many of them with the same weights.

    It is a function of the weights, and the caller's to make again when these change.

    Args:
      kernel: [3, 3, in, out].

    Returns:
      float32 [n], in an order that is this machine's own, n about 16 in out; None where no convolution with this kernel
      would be compiled, whatever the sides of the images.

    Raises:
      ValueError: a kernel that is not 3x3.
    """
    _require_3x3(kernel)
    if _obstacle_of_kernel(kernel):
        return None
    return library.loaded().operations.tfgen_convolution3x3_transform_kernel(kernel)


def enlarged(x: tf.Tensor) -> tf.Tensor:
    """Every pixel twice along both sides: [B, H, W, C] -> [B, 2 H, 2 W, C]. H, W and C are static."""
    _, height, width, channels = x.shape
    wide = tf.stack([x, x], axis=3)  # [B, H, W, 2, C]
    rows = tf.reshape(wide, [-1, height, 1, 2 * width * channels])
    return tf.reshape(tf.concat([rows, rows], axis=2), [-1, 2 * height, 2 * width, channels])


def causal_convolution(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Convolution of stride 1 that reads no row below a pixel, plus bias: the convolutions of PixelCNN++.

    The image is padded with one row of zeros above and one column of zeros left of it; for a kernel 3 wide, which
    centres on its column, with another column right of it. A kernel 2 wide reads no column right of a pixel.

    The compiled operation and its gradients use Winograd's F(3x2, 2x3) and F(3x3, 2x2) on the tiles of 4x4 pixels of
    `convolution_3x3` (Lavin & Gray, arXiv:1509.09308, section 4.1), with 16 instead of 36 products for 3x2 or 3x3
    results. Results have the same bits every time, however many threads there are, and those of an image do not depend
    on the rest of the batch. Against float64, from 8 channels on, the result and the gradient by `x` have 0.3 to 1.7 of
    the error of sums of products in order, that by `kernel` 0.3 to 2.1.

    Causal but for rounding: the other pixels of a tile, up to two rows below and two columns beside what a result
    reads, cancel in exact arithmetic only. They change a result by a few units in its last place, its gradient at them
    is of that size instead of 0, and one of them that is infinite or NaN makes it NaN. The plain form is exact there.

    Which form runs is decided as in `convolution_3x3`.

    Args:
      x: [B, H, W, in], floating point; any sides, even or odd.
      kernel: [2, 2, in, out] or [2, 3, in, out], the dtype of `x`.
      bias: [out], the dtype of `x`.

    Returns:
      [B, H, W, out], the dtype of `x`. Differentiable any number of times.

    Raises:
      ValueError: a kernel that is not 2x2 or 2x3, or arguments that do not fit together (while a graph is built).
      tf.errors.InvalidArgumentError: the same, where it shows only when the graph runs.
    """
    if kernel.shape.rank != 4 or kernel.shape[:2] not in ((2, 2), (2, 3)):
        expected = "expected a kernel of shape [2, 2, in, out] or [2, 3, in, out]"
        raise ValueError(f"{expected}, found {kernel.shape}; use tf.pad and tf.nn.conv2d")
    obstacle = _obstacle(x, kernel)
    if obstacle:
        library.log_once(logging.INFO, f"causal convolution in plain TensorFlow: {obstacle}")
        return causal_convolution_reference(x, kernel, bias)
    library.log_once(logging.INFO, "causal convolutions: compiled operation for the CPU")
    return library.loaded().operations.tfgen_causal_convolution(x, kernel, bias)


def causal_convolution_reference(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """`causal_convolution` in plain TensorFlow.

    The padding is an operation of its own: results and gradients took a tenth less time than with tf.nn.conv2d's.
    """
    padded = tf.pad(x, [[0, 0], [1, 0], [1, kernel.shape[1] - 2], [0, 0]])
    return tf.nn.bias_add(tf.nn.conv2d(padded, kernel, strides=1, padding="VALID"), bias)


def _require_3x3(kernel: tf.Tensor) -> None:
    if kernel.shape.rank != 4 or kernel.shape[:2] != (3, 3):
        raise ValueError(f"expected a kernel of shape [3, 3, in, out], found {kernel.shape}; use tf.nn.conv2d")


def _obstacle(x: tf.Tensor, kernel: tf.Tensor, scale: int = 1) -> str:
    """Why a convolution is TensorFlow's; empty if it is compiled. The one place that decides.

    Args:
      scale: how many times as large as `x` the convolved images are, along both sides.
    """
    if x.dtype != tf.float32:
        return f"the compiled operation takes float32, found {x.dtype.name}"
    _, height, width, _ = x.shape
    if None in (height, width):
        return f"sides must be known, found {x.shape}"
    if scale * min(height, width) < LEAST_SIDE:
        return f"{scale * height} x {scale * width} pixels; the compiled operation is faster from {LEAST_SIDE} on"
    return _obstacle_of_kernel(kernel)


def _obstacle_of_kernel(kernel: tf.Tensor) -> str:
    """The same for convolutions of images of any size."""
    if library.load() is None:
        return "the kernels are not built, or not to be used"
    if kernel.dtype != tf.float32:
        return f"the compiled operation takes float32, found {kernel.dtype.name}"
    if library.gpu_visible():
        return "the compiled operation is for the CPU, and there is a GPU"
    inputs, outputs = kernel.shape[2:]
    if None in (inputs, outputs):
        return f"channels must be known, found {kernel.shape}"
    if min(inputs, outputs) < LEAST_CHANNELS:
        return f"{inputs} to {outputs} channels; the compiled operation is faster from {LEAST_CHANNELS} on"
    return ""


# Gradients. Those by images and by kernel are linear in each of their arguments, so that theirs are convolutions and
# such gradients again.


@tf.RegisterGradient("TfgenConvolution3x3")
def _gradient(operation: tf.Operation, dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    x, kernel, _ = operation.inputs
    return _images_gradient(kernel, dy), _kernel_gradient(x, dy), tf.raw_ops.BiasAddGrad(out_backprop=dy)


@tf.RegisterGradient("TfgenEnlargedConvolution3x3")
def _enlarged_gradient(operation: tf.Operation, dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    x, kernel, _ = operation.inputs
    _, height, width, channels = x.shape
    of_enlarged = tf.reshape(_images_gradient(kernel, dy), [-1, height, 2, width, 2, channels])
    dx = tf.reduce_sum(of_enlarged, axis=[2, 4])
    return dx, _kernel_gradient(enlarged(x), dy), tf.raw_ops.BiasAddGrad(out_backprop=dy)


@tf.RegisterGradient("TfgenConvolution3x3ImagesGrad")
def _gradient_of_images_gradient(operation: tf.Operation, upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    kernel, dy = operation.inputs
    return _kernel_gradient(upstream, dy), _without_bias(upstream, kernel)


@tf.RegisterGradient("TfgenConvolution3x3KernelGrad")
def _gradient_of_kernel_gradient(operation: tf.Operation, upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x, dy = operation.inputs
    return _images_gradient(upstream, dy), _without_bias(x, upstream)


def _images_gradient(kernel: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    return library.loaded().operations.tfgen_convolution3x3_images_grad(kernel, dy)


def _kernel_gradient(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    return library.loaded().operations.tfgen_convolution3x3_kernel_grad(x, dy)


def _without_bias(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return library.loaded().operations.tfgen_convolution3x3(x, kernel, tf.zeros(tf.shape(kernel)[3:]))


@tf.RegisterGradient("TfgenCausalConvolution")
def _causal_gradient(operation: tf.Operation, dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    x, kernel, _ = operation.inputs
    dkernel = _causal_kernel_gradient(x, dy, kernel.shape[1])
    return _causal_images_gradient(kernel, dy), dkernel, tf.raw_ops.BiasAddGrad(out_backprop=dy)


@tf.RegisterGradient("TfgenCausalConvolutionImagesGrad")
def _gradient_of_causal_images_gradient(operation: tf.Operation, upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    kernel, dy = operation.inputs
    return _causal_kernel_gradient(upstream, dy, kernel.shape[1]), _causal_without_bias(upstream, kernel)


@tf.RegisterGradient("TfgenCausalConvolutionKernelGrad")
def _gradient_of_causal_kernel_gradient(operation: tf.Operation, upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x, dy = operation.inputs
    return _causal_images_gradient(upstream, dy), _causal_without_bias(x, upstream)


def _causal_images_gradient(kernel: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    return library.loaded().operations.tfgen_causal_convolution_images_grad(kernel, dy)


def _causal_kernel_gradient(x: tf.Tensor, dy: tf.Tensor, width: int) -> tf.Tensor:
    return library.loaded().operations.tfgen_causal_convolution_kernel_grad(x, dy, kernel_width=width)


def _causal_without_bias(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return library.loaded().operations.tfgen_causal_convolution(x, kernel, tf.zeros(tf.shape(kernel)[3:]))
