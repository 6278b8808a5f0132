"""PixelCNN++, the network of distribution smoothing.

Salimans et al., arXiv:1701.05517; Meng et al., "Improved Autoregressive Modeling with Distribution Smoothing", ICLR
2021, arXiv:2103.15089.

Letters: B batch, H and W sides of the image, h and w those of a level (H, W; half; a quarter), C colours, F filters, n
residual blocks in a row, K logistic components. Features are channels-last, [B, h, w, F].

Two streams go through the network. `u` ("up") at row i has seen the rows above i; `ul` ("up and left") at (i, j) has
seen those and the pixels of row i left of j. `ul` reads `u`, never the other way round, and the output is that of `ul`:
it depends on the pixels before (i, j) in raster order only (section 2.3 of Salimans et al.), but for a few units in
the last place of features where convolutions are compiled (`tfgen.ops.convolution.causal_convolution`).

Attributes and the order of variables are those of the original's state dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfgen.ops.concat_elu import concat_elu
from tfgen.ops.convolution import causal_convolution
from tfgen.randomness import Key, host_generator

LEVELS = 3
PIXELS_DIVISOR = 2 ** (LEVELS - 1)  # sides are halved twice

# Arithmetic ------------------------------------------------------------------------------------------------


def normalized(v: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
    """Weight normalisation g v / |v| (Salimans & Kingma, arXiv:1602.07868, equation 2), without an epsilon.

    Args:
      v: [..., N]; the norm is over all axes but the last.
      g: [N].
    """
    return v * (g / tf.sqrt(tf.reduce_sum(tf.square(v), axis=list(range(v.shape.rank - 1)))))


def down_shifted(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, stride: int = 1) -> tf.Tensor:
    """Convolution that reads the row itself and rows above, centred on the column.

    Args:
      x: [B, h, w, in].
      kernel: [height, width, in, out], an odd width.

    Returns:
      [B, h / stride, w / stride, out].
    """
    height, width = kernel.shape[:2]
    if stride == 1 and (height, width) == (2, 3):
        return causal_convolution(x, kernel, bias)
    side = (width - 1) // 2
    padding = [[0, 0], [height - 1, 0], [side, side], [0, 0]]
    return _valid(x, kernel, bias, stride, padding)


def down_right_shifted(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, stride: int = 1) -> tf.Tensor:
    """Convolution that reads the pixel itself and pixels above and left of it; shapes as in `down_shifted`."""
    height, width = kernel.shape[:2]
    if stride == 1 and (height, width) == (2, 2):
        return causal_convolution(x, kernel, bias)
    padding = [[0, 0], [height - 1, 0], [width - 1, 0], [0, 0]]
    return _valid(x, kernel, bias, stride, padding)


def _valid(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, stride: int, padding: list[list[int]]) -> tf.Tensor:
    # Padded by itself: with a padding that differs between sides, gradients would take TensorFlow's slow form.
    return tf.nn.bias_add(tf.nn.conv2d(tf.pad(x, padding), kernel, stride, "VALID"), bias)


def down_shifted_transposed(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """[B, h, w, in] -> [B, 2 h, 2 w, out]: pixel (i, j) goes to rows 2 i, 2 i + 1 and columns 2 j - 1 to 2 j + 1.

    Args:
      kernel: [2, 3, out, in].
    """
    return _transposed(x, kernel, bias, [[0, 0], [0, 0], [1, 0], [0, 0]])


def down_right_shifted_transposed(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """[B, h, w, in] -> [B, 2 h, 2 w, out]: pixel (i, j) goes to rows 2 i, 2 i + 1 and columns 2 j, 2 j + 1.

    Args:
      kernel: [2, 2, out, in].
    """
    return _transposed(x, kernel, bias, "VALID")


def _transposed(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, padding: str | list[list[int]]) -> tf.Tensor:
    batch, height, width, _ = (tf.shape(x)[axis] if side is None else side for axis, side in enumerate(x.shape))
    shape = tf.stack([batch, 2 * height, 2 * width, kernel.shape[2]])
    return tf.nn.bias_add(tf.nn.conv2d_transpose(x, kernel, shape, 2, padding), bias)


def shifted_down(x: tf.Tensor) -> tf.Tensor:
    """Row i becomes row i + 1; the first row is exactly 0, without a bias."""
    return below_zeros(x[:, :-1])


def shifted_right(x: tf.Tensor) -> tf.Tensor:
    """Column j becomes column j + 1; the first column is exactly 0, without a bias."""
    return right_of_zeros(x[:, :, :-1])


def below_zeros(x: tf.Tensor) -> tf.Tensor:
    """With a row of zeros above."""
    return tf.pad(x, [[0, 0], [1, 0], [0, 0], [0, 0]])


def right_of_zeros(x: tf.Tensor) -> tf.Tensor:
    """With a column of zeros to the left."""
    return tf.pad(x, [[0, 0], [0, 0], [1, 0], [0, 0]])


def with_ones(images: tf.Tensor) -> tf.Tensor:
    """[B, H, W, C] -> [B, H, W, C + 1]: a channel of ones shows the network where zero padding begins."""
    return tf.pad(images, [[0, 0], [0, 0], [0, 0], [0, 1]], constant_values=1)


# Layers ----------------------------------------------------------------------------------------------------


class Initializer:
    """Initial weights as a function of the seed and the name of the layer."""

    def __init__(self, seed: int):
        self.seed = seed

    def __call__(self, name: str, shape: Sequence[int], fan_in: int) -> np.ndarray:
        """Uniform in +-1 / sqrt(fan_in), float32."""
        bound = 1.0 / np.sqrt(fan_in)
        drawn = host_generator(self.seed, f"initial weights of {name}").uniform(-bound, bound, shape)
        return drawn.astype(np.float32)


class WeightNormalized(tf.keras.layers.Layer):
    """Bias, gain g and direction v of a convolution or matrix.

    g is [N] for a direction [..., N]: per output, or, of a transposed convolution, whose kernel is [height, width, out,
    in], per input, as in the original. It begins as |v|, so that the first weights are v.
    """

    def __init__(self, name: str, shape: Sequence[int], outputs: int, fan_in: int, initializer: Initializer):
        super().__init__(name=name.replace("/", "_"))
        v = initializer(f"{name}/v", shape, fan_in)
        self.bias = tf.Variable(initializer(f"{name}/bias", [outputs], fan_in), name=f"{name}/bias")
        norm = np.sqrt(np.sum(np.square(v, dtype=np.float64), axis=tuple(range(v.ndim - 1))))
        self.g = tf.Variable(norm.astype(np.float32), name=f"{name}/g")
        self.v = tf.Variable(v, name=f"{name}/v")

    @property
    def kernel(self) -> tf.Tensor:
        """The weights in use, of the shape of v."""
        return normalized(self.v.read_value(), self.g.read_value())


class Convolution(WeightNormalized):
    """A `down_shifted` or `down_right_shifted` convolution."""

    def __init__(
        self,
        name: str,
        size: tuple[int, int],
        inputs: int,
        outputs: int,
        initializer: Initializer,
        right: bool,
        stride: int = 1,
    ):
        super().__init__(name, [*size, inputs, outputs], outputs, inputs * size[0] * size[1], initializer)
        self.right, self.stride = right, stride

    def call(self, x: tf.Tensor) -> tf.Tensor:
        function = down_right_shifted if self.right else down_shifted
        return function(x, self.kernel, self.bias, self.stride)


class TransposedConvolution(WeightNormalized):
    """A `down_shifted_transposed` or `down_right_shifted_transposed` convolution."""

    def __init__(self, name: str, filters: int, initializer: Initializer, right: bool):
        size = (2, 2) if right else (2, 3)
        # The original counts outputs as the fan-in here.
        super().__init__(name, [*size, filters, filters], filters, filters * size[0] * size[1], initializer)
        self.right = right

    def call(self, x: tf.Tensor) -> tf.Tensor:
        function = down_right_shifted_transposed if self.right else down_shifted_transposed
        return function(x, self.kernel, self.bias)


class Pointwise(WeightNormalized):
    """A matrix product at every pixel, [..., in] -> [..., out]."""

    def __init__(self, name: str, inputs: int, outputs: int, initializer: Initializer):
        super().__init__(name, [inputs, outputs], outputs, inputs, initializer)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        rows = tf.matmul(tf.reshape(x, [-1, self.v.shape[0]]), self.kernel)
        return tf.reshape(tf.nn.bias_add(rows, self.bias), tf.concat([tf.shape(x)[:-1], self.bias.shape], 0))


class GatedResnet(tf.keras.layers.Layer):
    """Gated residual block (Salimans et al., section 2.3; van den Oord et al., arXiv:1606.05328, equation 2).

    Args:
      right: of the `ul` stream.
      skips: F-channel inputs that come in from the side: 0, 1 or 2.
    """

    def __init__(self, name: str, filters: int, initializer: Initializer, right: bool, skips: int):
        super().__init__(name=name.replace("/", "_"))
        size = (2, 2) if right else (2, 3)
        self.path = name
        self.conv_input = Convolution(f"{name}/conv_input", size, 2 * filters, filters, initializer, right)
        self.nin_skip = Pointwise(f"{name}/nin_skip", 2 * skips * filters, filters, initializer) if skips else None
        self.conv_out = Convolution(f"{name}/conv_out", size, 2 * filters, 2 * filters, initializer, right)

    def call(self, x: tf.Tensor, skip: tf.Tensor | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        """[B, h, w, F] -> the same.

        Args:
          skip: [B, h, w, skips F].
          mask: of dropout, [B, 1, 1, 2 F]; None for no dropout.
        """
        hidden = self.conv_input(concat_elu(x))
        if self.nin_skip is not None:
            hidden += self.nin_skip(concat_elu(skip))
        hidden = concat_elu(hidden)
        if mask is not None:
            hidden *= mask
        values, gates = tf.split(self.conv_out(hidden), 2, axis=-1)
        return x + values * tf.sigmoid(gates)


class Streams(tf.keras.layers.Layer):
    """The residual blocks of both streams at one level.

    Args:
      skips: F-channel inputs of the blocks of `u`; those of `ul` have one more.
    """

    def __init__(self, name: str, blocks: int, filters: int, initializer: Initializer, skips: int):
        super().__init__(name=name.replace("/", "_"))
        self.u_stream = [
            GatedResnet(f"{name}/u_stream/{index}", filters, initializer, False, skips) for index in range(blocks)
        ]
        self.ul_stream = [
            GatedResnet(f"{name}/ul_stream/{index}", filters, initializer, True, skips + 1) for index in range(blocks)
        ]


# The network -----------------------------------------------------------------------------------------------


class PixelCNN(tf.keras.Model):
    """PixelCNN++.

    Args:
      channels: C, 1 or 3.
      filters: F.
      blocks: n, residual blocks in a row.
      mixtures: K, logistic components.
      seed: of the initial weights.
      dropout: share of the feature maps that `dropout_masks` drops.
    """

    def __init__(self, channels: int, filters: int, blocks: int, mixtures: int, seed: int, dropout: float = 0.5):
        super().__init__(name="pixelcnn")
        self.dropout = dropout
        self.channels, self.filters, self.blocks, self.mixtures = channels, filters, blocks, mixtures
        make = Initializer(seed)

        def between(name: str, right: bool) -> list[Convolution]:
            size = (2, 2) if right else (2, 3)
            return [
                Convolution(f"{name}/{index}", size, filters, filters, make, right, stride=2)
                for index in range(LEVELS - 1)
            ]

        # The way up goes to coarser levels, the way down back to finer ones.
        self.down_layers = [
            Streams(f"down_layers/{index}", blocks + (index > 0), filters, make, skips=1) for index in range(LEVELS)
        ]
        self.up_layers = [Streams(f"up_layers/{index}", blocks, filters, make, skips=0) for index in range(LEVELS)]
        self.downsize_u_stream = between("downsize_u_stream", right=False)
        self.downsize_ul_stream = between("downsize_ul_stream", right=True)
        self.upsize_u_stream = [
            TransposedConvolution(f"upsize_u_stream/{index}", filters, make, right=False) for index in range(LEVELS - 1)
        ]
        self.upsize_ul_stream = [
            TransposedConvolution(f"upsize_ul_stream/{index}", filters, make, right=True) for index in range(LEVELS - 1)
        ]
        self.u_init = Convolution("u_init", (2, 3), channels + 1, filters, make, right=False)
        self.ul_init = [
            Convolution("ul_init/0", (1, 3), channels + 1, filters, make, right=False),
            Convolution("ul_init/1", (2, 1), channels + 1, filters, make, right=True),
        ]
        # Logits; for each colour means and log-scales and, where there are three, coefficients.
        self.nin_out = Pointwise("nin_out", filters, (10 if channels == 3 else 3) * mixtures, make)

    @property
    def resnets(self) -> list[GatedResnet]:
        """All residual blocks, in the order of their variables."""
        levels = [*self.down_layers, *self.up_layers]
        return [block for level in levels for stream in (level.u_stream, level.ul_stream) for block in stream]

    def dropout_masks(self, key: Key, batch: int | tf.Tensor) -> dict[str, tf.Tensor]:
        """Masks [B, 1, 1, 2 F] of whole feature maps, 0 or 1 / (1 - dropout), by path of the residual block.

        The 2 F maps before `conv_out` are dropped independently, ELU(h) and ELU(-h) of one map, too.
        """
        paths = [block.path for block in self.resnets]
        width = 2 * self.filters
        kept = tf.cast(key.uniform([batch, len(paths) * width]) >= self.dropout, tf.float32) / (1.0 - self.dropout)
        masks = tf.split(tf.reshape(kept, [-1, 1, 1, len(paths) * width]), len(paths), axis=-1)
        return dict(zip(paths, masks, strict=True))

    def call(
        self, images: tf.Tensor, masks: dict[str, tf.Tensor] | None = None, first_row: int | tf.Tensor = 0
    ) -> tf.Tensor:
        """Parameters of the mixtures at the pixels from row `first_row` on, float32 [B, H - first_row, W, 10 K].

        With one colour there are 3 K.

        Args:
          images: in [-1, 1] or thereabouts, float32 [B, H, W, C].
          masks: of `dropout_masks`, or None for no dropout.
        """
        return self.parameters(self.features(images, masks)[:, first_row:])

    def parameters(self, features: tf.Tensor) -> tf.Tensor:
        """The output head: `features` [B, h, w, F] -> [B, h, w, 10 K or 3 K]."""
        return self.nin_out(tf.nn.elu(features))

    def features(self, images: tf.Tensor, masks: dict[str, tf.Tensor] | None = None) -> tf.Tensor:
        """The last features of `ul`, [B, H, W, F]; arguments as in `call`."""
        x = with_ones(images)
        # Shifted down and right, but for the rows and columns that the shifts would throw away.
        u = below_zeros(self.u_init(x[:, :-1]))
        ul = below_zeros(self.ul_init[0](x[:, :-1])) + right_of_zeros(self.ul_init[1](x[:, :, :-1]))
        u_skips, ul_skips = [u], [ul]

        def run(block: GatedResnet, x: tf.Tensor, *skips: tf.Tensor) -> tf.Tensor:
            skip = tf.concat(skips, axis=-1) if len(skips) > 1 else skips[0] if skips else None
            return block(x, skip, masks[block.path] if masks else None)

        for level, streams in enumerate(self.up_layers):
            for u_block, ul_block in zip(streams.u_stream, streams.ul_stream, strict=True):
                u = run(u_block, u)
                ul = run(ul_block, ul, u)
                u_skips.append(u)
                ul_skips.append(ul)
            if level < LEVELS - 1:
                u, ul = self.downsize_u_stream[level](u), self.downsize_ul_stream[level](ul)
                u_skips.append(u)
                ul_skips.append(ul)

        u, ul = u_skips.pop(), ul_skips.pop()
        for index, streams in enumerate(self.down_layers):
            for u_block, ul_block in zip(streams.u_stream, streams.ul_stream, strict=True):
                u = run(u_block, u, u_skips.pop())
                ul = run(ul_block, ul, u, ul_skips.pop())
            if index < LEVELS - 1:
                u, ul = self.upsize_u_stream[index](u), self.upsize_ul_stream[index](ul)
        return ul
