"""The UNet of Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021, arXiv:2102.09672.

It follows Ho et al., "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, appendix B.

Letters: B batch, H and W sides of the image, h and w those of the features of a block, C channels, L = h w positions,
N heads, E channels of the embedding. Features are channels-last, [B, h, w, C].

Variables are float32, are created in the order of the original's state dictionary and carry its names. Activations
have the dtype of the shape; norms, softmax, embeddings and the last convolution are computed in float32.

Blocks are many and alike. Their arithmetic is a function of inputs and weights that all blocks of a shape share, see
`traced_once`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfgen.ops import library
from tfgen.ops.blocksparse import Pattern, attention
from tfgen.ops.convolution import convolution_3x3, enlarged, enlarged_convolution_3x3, prepared_kernel
from tfgen.ops.group_norm import group_norm
from tfgen.ops.traced import traced_once
from tfgen.randomness import Key, host_generator
from tfgen.systems.diffusion import architecture
from tfgen.systems.diffusion.architecture import GROUPS, UNetShape
from tfgen.systems.diffusion.resizing import bilinear

Weights = list[tf.Tensor]
Prepared = dict[str, tf.Tensor]  # of `UNet.prepared_kernels`

# Arithmetic ------------------------------------------------------------------------------------------------


def timestep_frequencies(width: int) -> np.ndarray:
    """float32 [width // 2]: 10000^(-i / (width // 2)), i = 0, 1, ..."""
    half = width // 2
    exponents = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    # Rounded to float32 as an exponent, as in the original: near t = 4000 each rounding is seen in the embedding.
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def timestep_embedding(timesteps: tf.Tensor, width: int) -> tf.Tensor:
    """Sinusoids of the timesteps (Ho et al., appendix B, after Vaswani et al., section 3.5).

    Args:
      timesteps: [B], whole or fractional.

    Returns:
      float32 [B, width]: all cosines, then all sines, then a zero if `width` is odd.
    """
    angles = tf.cast(timesteps, tf.float32)[:, tf.newaxis] * timestep_frequencies(width)
    embedding = tf.concat([tf.cos(angles), tf.sin(angles)], axis=1)
    return tf.pad(embedding, [[0, 0], [0, width % 2]])


def convolution(
    x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, prepared: tf.Tensor | None = None, stride: int = 1
) -> tf.Tensor:
    """Zero padding of half the kernel on all sides, [B, h, w, in] -> [B, ceil(h / stride), ceil(w / stride), out].

    Args:
      prepared: `prepared_kernel(kernel)`, if that is at hand.
    """
    if kernel.shape[:2] == (3, 3) and stride == 1:
        return convolution_3x3(x, tf.cast(kernel, x.dtype), tf.cast(bias, x.dtype), prepared)
    before = kernel.shape[0] // 2
    # "SAME" would pad images of even sides on the lower and right side only where the stride is 2.
    padding = "SAME" if stride == 1 else [[0, 0], [before, before], [before, before], [0, 0]]
    return tf.nn.bias_add(tf.nn.conv2d(x, tf.cast(kernel, x.dtype), stride, padding), tf.cast(bias, x.dtype))


def affine(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """[rows, in] -> [rows, out]."""
    return tf.nn.bias_add(tf.matmul(x, tf.cast(kernel, x.dtype)), tf.cast(bias, x.dtype))


def halved(x: tf.Tensor) -> tf.Tensor:
    """Means of 2x2 pixels: [B, h, w, C] -> [B, h // 2, w // 2, C]."""
    return tf.nn.avg_pool2d(x, 2, 2, "VALID")


def dropout(x: tf.Tensor, rate: float, randomness: Weights) -> tf.Tensor:
    """Inverted dropout of x [B, h, w, C]: each entry is kept with probability 1 - rate, and then divided by it.

    The share that is dropped is exact to 2^-16. The backward pass keeps one byte for each entry.

    Args:
      randomness: seed and first sample of a `Key`; the mask of a sample depends on them and its index only. Empty for
        no dropout.
    """
    if not randomness:
        return x
    dropped = min(round(rate * 2**16), 2**16 - 1)  # of the values that 16 bits have, beginning with the least
    kept = Key(*randomness).bits([tf.shape(x)[0], *x.shape[1:]]) >= tf.constant(dropped - 2**15, tf.int16)

    @tf.custom_gradient
    def masked(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        # A product: TensorFlow takes four times as long to select between a tensor and a number.
        scale = tf.cast(1.0 / (1.0 - rate), x.dtype)
        return x * (tf.cast(kept, x.dtype) * scale), lambda upstream: upstream * (tf.cast(kept, x.dtype) * scale)

    return masked(x)


def qkv_attention(qkv: tf.Tensor, heads: int) -> tf.Tensor:
    """Attention of every position to all, [B, L, 3 C] -> [B, L, C] (Vaswani et al., arXiv:1706.03762, equation 1).

    Channels are head-major on both sides: each head has its queries, keys and values side by side.

    On the CPU the block-sparse operation with all blocks kept takes less time than products and softmax one after the
    other, and stores no weights for the backward pass. On a GPU it has not been measured against them.
    """
    _, length, channels = qkv.shape
    size, pattern = channels // (3 * heads), Pattern("a_all", length)
    if library.load() and not library.gpu_visible() and pattern.block_form() is not None:
        parts = tf.unstack(tf.reshape(qkv, [-1, 3, size]), axis=1)  # [B L N, C / N]
        query, key, value = (tf.reshape(part, [-1, length, channels // 3]) for part in parts)
        return attention(query, key, value, pattern, heads)
    parts = tf.transpose(tf.reshape(qkv, [-1, length, heads, 3, size]), [3, 0, 2, 1, 4])
    query, key, value = tf.unstack(parts)  # [B, N, L, C / N]
    # Half of the scale on either side: in float16 the plain products could overflow.
    scale = tf.cast(size**-0.25, qkv.dtype)
    scores = tf.matmul(query * scale, key * scale, transpose_b=True)  # [B, N, L, L]
    weights = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32)), qkv.dtype)
    return tf.reshape(tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3]), [-1, length, channels // 3])


@traced_once
def residual_block(
    x: tf.Tensor,
    embedding: tf.Tensor,
    weights: Weights,
    skip: Weights,
    prepared: Weights,
    randomness: Weights,
    rate: float,
    scale_shift: bool,
) -> tf.Tensor:
    """Residual block of the features x [B, h, w, C], conditioned on silu(embedding) [B, E].

    Args:
      weights: of the first norm and convolution, of the embedding's projection, of the second norm and convolution.
      skip: of the 1x1 convolution on the skip connection where the number of channels changes; else empty.
      prepared: `prepared_kernel` of the first and the second convolution, or empty.
      randomness, rate: of `dropout`.
      scale_shift: see `UNetShape.use_scale_shift_norm`.
    """
    norm1, conv1, projection, norm2, conv2 = zip(weights[::2], weights[1::2], strict=True)
    h = convolution(group_norm(x, *norm1, GROUPS, silu=True), *conv1, *prepared[:1])
    conditioning = affine(embedding, *projection)
    if scale_shift:
        h = group_norm(h, *norm2, GROUPS, silu=True, modulation=tuple(tf.split(conditioning, 2, axis=1)))
    else:
        h = h + tf.cast(conditioning, h.dtype)[:, tf.newaxis, tf.newaxis]
        h = group_norm(h, *norm2, GROUPS, silu=True)
    h = convolution(dropout(h, rate, randomness), *conv2, *prepared[1:])
    return (convolution(x, *skip) if skip else x) + h


@traced_once
def attention_block(x: tf.Tensor, weights: Weights, heads: int) -> tf.Tensor:
    """x plus attention over its positions; `weights` of the norm, of queries, keys and values, of the projection."""
    norm, qkv, projection = zip(weights[::2], weights[1::2], strict=True)
    _, height, width, channels = x.shape
    normalized = tf.reshape(group_norm(x, *norm, GROUPS), [-1, channels])
    attended = qkv_attention(tf.reshape(affine(normalized, *qkv), [-1, height * width, 3 * channels]), heads)
    projected = affine(tf.reshape(attended, [-1, channels]), *projection)
    return x + tf.reshape(projected, [-1, height, width, channels])


# Variables -------------------------------------------------------------------------------------------------


class Initializer:
    """Initial values as a function of the seed and the name of the variable; all zero if the seed is None."""

    def __init__(self, seed: int | None):
        self.seed = seed

    def uniform(self, name: str, shape: Sequence[int], bound: float) -> tf.Tensor:
        """float32 in +-bound."""
        return self._drawn(name, shape, lambda generator: generator.uniform(-bound, bound, shape))

    def normal(self, name: str, shape: Sequence[int]) -> tf.Tensor:
        """float32, standard normal."""
        return self._drawn(name, shape, lambda generator: generator.standard_normal(shape))

    def _drawn(self, name: str, shape: Sequence[int], draw: Callable) -> tf.Tensor:
        if self.seed is None:
            return tf.zeros(shape)
        return tf.constant(draw(host_generator(self.seed, f"initial weights of {name}")).astype(np.float32))


class Layer(tf.keras.layers.Layer):
    """A layer named by its path. Keras does not cast what it is called with: that depends on the part of a layer."""

    def __init__(self, path: str):
        super().__init__(name=path.replace("/", "_"), autocast=False)

    @property
    def preparable(self) -> list[Affine]:
        """The weights of 3x3 convolutions of stride 1 that may be prepared."""
        return []


class Norm(Layer):
    """Scale (from 1) and shift (from 0) of a group norm."""

    def __init__(self, path: str, channels: int):
        super().__init__(path)
        self.scale = tf.Variable(tf.ones([channels]), name=f"{path}/scale")
        self.shift = tf.Variable(tf.zeros([channels]), name=f"{path}/shift")

    @property
    def values(self) -> Weights:
        return [self.scale.read_value(), self.shift.read_value()]


class Affine(Layer):
    """Kernel [..., in, out] and bias [out] of a convolution or matrix product; both begin as zero if `zero`."""

    def __init__(self, path: str, shape: Sequence[int], initializer: Initializer, zero: bool = False):
        super().__init__(path)
        bound = 1.0 / math.sqrt(math.prod(shape[:-1]))
        kernel = tf.zeros(shape) if zero else initializer.uniform(f"{path}/kernel", shape, bound)
        bias = tf.zeros(shape[-1:]) if zero else initializer.uniform(f"{path}/bias", shape[-1:], bound)
        self.kernel = tf.Variable(kernel, name=f"{path}/kernel")
        self.bias = tf.Variable(bias, name=f"{path}/bias")

    @property
    def values(self) -> Weights:
        return [self.kernel.read_value(), self.bias.read_value()]


class Table(Layer):
    """One row for each class."""

    def __init__(self, path: str, rows: int, width: int, initializer: Initializer):
        super().__init__(path)
        self.rows = tf.Variable(initializer.normal(f"{path}/rows", [rows, width]), name=f"{path}/rows")


class Convolution(Layer):
    """The first layer."""

    def __init__(self, path: str, part: architecture.Convolution, shape: UNetShape, initializer: Initializer):
        super().__init__(path)
        self.convolution = Affine(path, [3, 3, part.inputs, part.outputs], initializer)

    def call(
        self, x: tf.Tensor, embedding: tf.Tensor, key: Key | None, recompute: bool, prepared: Prepared
    ) -> tf.Tensor:
        return convolution(x, *self.convolution.values)


class Residual(Layer):
    """Weights of a residual block; the arithmetic is `residual_block`'s."""

    def __init__(self, path: str, part: architecture.Residual, shape: UNetShape, initializer: Initializer):
        super().__init__(path)
        self.path, self.rate, self.scale_shift = path, shape.dropout, shape.use_scale_shift_norm
        inputs, outputs = part.inputs, part.outputs
        self.in_norm = Norm(f"{path}/in_layers/0", inputs)
        self.in_conv = Affine(f"{path}/in_layers/2", [3, 3, inputs, outputs], initializer)
        modulation = [shape.embedding_width, outputs * (2 if self.scale_shift else 1)]
        self.projection = Affine(f"{path}/emb_layers/1", modulation, initializer)
        self.out_norm = Norm(f"{path}/out_layers/0", outputs)
        self.out_conv = Affine(f"{path}/out_layers/3", [3, 3, outputs, outputs], initializer, zero=True)
        changes = inputs != outputs
        self.skip = Affine(f"{path}/skip_connection", [1, 1, inputs, outputs], initializer) if changes else None

    @property
    def preparable(self) -> list[Affine]:
        return [self.in_conv, self.out_conv]

    def call(
        self, x: tf.Tensor, embedding: tf.Tensor, key: Key | None, recompute: bool, prepared: Prepared
    ) -> tf.Tensor:
        layers = (self.in_norm, self.in_conv, self.projection, self.out_norm, self.out_conv)
        own = key and key.fold(self.path)
        randomness = [own.seed, own.first_sample] if own is not None and self.rate else []

        def computed(x: tf.Tensor, embedding: tf.Tensor) -> tf.Tensor:
            weights = [value for layer in layers for value in layer.values]
            skip = self.skip.values if self.skip is not None else []
            ready = [prepared[layer.name] for layer in self.preparable if layer.name in prepared]
            return residual_block(x, embedding, weights, skip, ready, randomness, self.rate, self.scale_shift)

        return (tf.recompute_grad(computed) if recompute else computed)(x, embedding)


class Attention(Layer):
    """Weights of an attention block; the arithmetic is `attention_block`'s."""

    def __init__(self, path: str, part: architecture.Attention, shape: UNetShape, initializer: Initializer):
        super().__init__(path)
        self.heads, channels = part.heads, part.channels
        self.norm = Norm(f"{path}/norm", channels)
        self.qkv = Affine(f"{path}/qkv", [channels, 3 * channels], initializer)
        self.projection = Affine(f"{path}/proj_out", [channels, channels], initializer, zero=True)

    def call(
        self, x: tf.Tensor, embedding: tf.Tensor, key: Key | None, recompute: bool, prepared: Prepared
    ) -> tf.Tensor:
        def computed(x: tf.Tensor) -> tf.Tensor:
            weights = [value for layer in (self.norm, self.qkv, self.projection) for value in layer.values]
            return attention_block(x, weights, self.heads)

        return (tf.recompute_grad(computed) if recompute else computed)(x)


class Resampling(Layer):
    """Half or twice the side, with a convolution or without."""

    def __init__(
        self,
        path: str,
        part: architecture.Downsample | architecture.Upsample,
        shape: UNetShape,
        initializer: Initializer,
    ):
        super().__init__(path)
        self.enlarges = isinstance(part, architecture.Upsample)
        size, name = [3, 3, part.channels, part.channels], "conv" if self.enlarges else "op"
        self.convolution = Affine(f"{path}/{name}", size, initializer) if shape.conv_resample else None

    @property
    def preparable(self) -> list[Affine]:
        return [self.convolution] if self.enlarges and self.convolution is not None else []

    def call(
        self, x: tf.Tensor, embedding: tf.Tensor, key: Key | None, recompute: bool, prepared: Prepared
    ) -> tf.Tensor:
        if self.convolution is None:
            return enlarged(x) if self.enlarges else halved(x)
        kernel, bias = self.convolution.values
        if self.enlarges:
            ready = prepared.get(self.convolution.name)
            return enlarged_convolution_3x3(x, tf.cast(kernel, x.dtype), tf.cast(bias, x.dtype), ready)
        return convolution(x, kernel, bias, stride=2)


_LAYERS: dict[type, Callable] = {
    architecture.Convolution: Convolution,
    architecture.Residual: Residual,
    architecture.Attention: Attention,
    architecture.Downsample: Resampling,
    architecture.Upsample: Resampling,
}

# The whole network -----------------------------------------------------------------------------------------


class UNet(tf.keras.Model):
    """Noise (or image) and variance of a diffused image, see `UNetShape` for what there is to choose.

    Args:
      shape: of the network.
      seed: of the initial values; None for zeros, where weights are loaded anyway.

    Example:
      network = UNet(UNetShape(width=32, channel_mult=(1, 2), attention_rates={2}, num_heads=4), seed=0)
      output = network(x, timesteps)  # [B, H, W, 3]
    """

    def __init__(self, shape: UNetShape, seed: int | None):
        super().__init__(name="unet")
        self.shape = shape
        initializer = Initializer(seed)
        width, embedding_width = shape.width, shape.embedding_width
        self.time_in = Affine("time_embed/0", [width, embedding_width], initializer)
        self.time_out = Affine("time_embed/2", [embedding_width, embedding_width], initializer)
        self.labels = Table("label_emb", shape.classes, embedding_width, initializer) if shape.classes else None
        plan = shape.plan()

        def layers(path: str, block: architecture.Block) -> list[Layer]:
            return [_LAYERS[type(part)](f"{path}/{j}", part, shape, initializer) for j, part in enumerate(block)]

        self.input_blocks = [layers(f"input_blocks/{i}", block) for i, block in enumerate(plan.input_blocks)]
        self.middle_block = layers("middle_block", plan.middle_block)
        self.output_blocks = [layers(f"output_blocks/{i}", block) for i, block in enumerate(plan.output_blocks)]
        self.out_norm = Norm("out/0", width)
        self.out_conv = Affine("out/2", [3, 3, width, shape.out_channels], initializer, zero=True)
        self.built = True

    def call(
        self,
        x: tf.Tensor,
        timesteps: tf.Tensor,
        labels: tf.Tensor | None = None,
        low_res: tf.Tensor | None = None,
        training: bool = False,
        dropout_key: Key | None = None,
        prepared: Prepared | None = None,
    ) -> tf.Tensor:
        """Output for images x at their timesteps.

        Args:
          x: float32 [B, H, W, in_channels], about -1 to 1 where there is no noise. H and W are static.
          timesteps: [B], whole or fractional.
          labels: integers [B] below `shape.classes`; None for a network without.
          low_res: float32 [B, any, any, in_channels], what super-resolution enlarges; None for other networks.
          training: with dropout, and with recomputation if the shape says so.
          dropout_key: draws the dropout masks; needed in training with dropout.
          prepared: `prepared_kernels()` of the weights as they are, which saves time; not in training, since the
            output has no gradients then.

        Returns:
          float32 [B, H, W, out_channels].

        Raises:
          ShapeError: inputs that do not fit the network.
          ValueError: no key, where one is needed.
        """
        outputs = self.block_outputs(x, timesteps, labels, low_res, training, dropout_key, prepared)
        return self.head(outputs[f"output_{len(self.output_blocks) - 1}"])

    def prepared_kernels(self) -> Prepared:
        """Kernels of 3x3 convolutions as the compiled operation needs them, for many calls with the same weights.

        They take 16/9 of the memory of these weights, and are to be made again when weights change. The output of a
        call with them has the same bits.

        Returns:
          By the name of the layer. Empty where convolutions are TensorFlow's.
        """
        if self.shape.dtype != tf.float32:
            return {}
        blocks = [*self.input_blocks, self.middle_block, *self.output_blocks]
        affines = [affine for block in blocks for layer in block for affine in layer.preparable]
        made = {affine.name: prepared_kernel(affine.kernel.read_value()) for affine in affines}
        return {name: kernel for name, kernel in made.items() if kernel is not None}

    def head(self, h: tf.Tensor) -> tf.Tensor:
        """Output [B, H, W, out_channels] of what the last block gives, [B, H, W, width]; both in float32."""
        scale, shift = self.out_norm.values
        h = group_norm(tf.cast(h, tf.float32), scale, shift, GROUPS, silu=True)
        return convolution(h, *self.out_conv.values)

    def block_outputs(
        self,
        x: tf.Tensor,
        timesteps: tf.Tensor,
        labels: tf.Tensor | None = None,
        low_res: tf.Tensor | None = None,
        training: bool = False,
        dropout_key: Key | None = None,
        prepared: Prepared | None = None,
    ) -> dict[str, tf.Tensor]:
        """What every block gives, in order: input_0 ..., middle, output_0 ..., each [B, h, w, C]; as for `call`."""
        x = tf.convert_to_tensor(x)
        self._check_inputs(x, labels, low_res)
        if training and self.shape.dropout and dropout_key is None:
            raise ValueError("training with dropout needs a random key: pass dropout_key=Key.create(seed, 'dropout')")
        if low_res is not None:
            x = tf.concat([x, bilinear(low_res, x.shape[1], x.shape[2])], axis=3)
        embedding = tf.nn.silu(self.embed(timesteps, labels))
        key, recompute = dropout_key if training else None, training and self.shape.recompute

        def run(block: list[Layer], h: tf.Tensor) -> tf.Tensor:
            for layer in block:
                h = layer(h, embedding, key, recompute, prepared or {})
            return h

        h = tf.cast(x, self.shape.dtype)
        outputs, kept = {}, []
        for index, block in enumerate(self.input_blocks):
            h = outputs[f"input_{index}"] = run(block, h)
            kept.append(h)
        h = outputs["middle"] = run(self.middle_block, h)
        for index, block in enumerate(self.output_blocks):
            h = outputs[f"output_{index}"] = run(block, tf.concat([h, kept.pop()], axis=3))
        return outputs

    def embed(self, timesteps: tf.Tensor, labels: tf.Tensor | None = None) -> tf.Tensor:
        """float32 [B, E] of timesteps [B] and, with classes, labels [B]."""
        hidden = tf.nn.silu(affine(timestep_embedding(timesteps, self.shape.width), *self.time_in.values))
        embedding = affine(hidden, *self.time_out.values)
        return embedding if self.labels is None else embedding + tf.gather(self.labels.rows, labels)

    def _check_inputs(self, x: tf.Tensor, labels: tf.Tensor | None, low_res: tf.Tensor | None) -> None:
        shape = self.shape
        if x.shape.rank != 4 or x.shape[3] != shape.in_channels or None in (x.shape[1], x.shape[2]):
            raise architecture.ShapeError(
                f"images have shape {x.shape}, expected [B, height, width, {shape.in_channels}] with known sides"
            )
        shape.check_image(x.shape[1], x.shape[2])
        if (labels is None) != (self.labels is None):
            expected = "none, its network has no classes" if labels is not None else f"[B] below {shape.classes}"
            raise architecture.ShapeError(f"expected labels: {expected}; found {'none' if labels is None else 'some'}")
        if (low_res is None) == shape.low_res:
            raise architecture.ShapeError(
                f"{'expected' if shape.low_res else 'did not expect'} low_res: "
                f"{'a super-resolution network reads' if shape.low_res else 'this network reads no'} second image"
            )
