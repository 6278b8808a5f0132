"""The network of Child, "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images".

ICLR 2021, arXiv:2011.10650.

Letters: B batch, R image side, r resolution of a block, W(r) its channels, Z latent channels of a stochastic layer,
M logistic components. Features are channels-last, [B, r, r, W].

A network has up to two and a half thousand variables in more than a hundred blocks, most of them alike. The arithmetic
of a block is therefore a function of its inputs and weights that all blocks of a shape share, see `traced_once`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfgen.likelihood import gaussian
from tfgen.ops.convolution import convolution_3x3
from tfgen.ops.gelu import gelu
from tfgen.ops.traced import traced_once
from tfgen.randomness import host_generator
from tfgen.systems.vdvae.architecture import Architecture, DecoderBlock, EncoderBlock

# draw(layer index, shape) -> standard normal float32 of that shape; called once for each stochastic layer that draws.
Draw = Callable[[int, Sequence[int | tf.Tensor]], tf.Tensor]
Weights = list[tf.Tensor]  # kernel, bias, kernel, bias ... of a bottleneck, kernels [height, width, in, out]


# Arithmetic ------------------------------------------------------------------------------------------------


def convolution(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Stride 1, zero padding that keeps the size: [B, r, r, in] -> [B, r, r, out]."""
    height, width, inputs, outputs = kernel.shape
    if height == width == 1:
        # The same numbers as one matrix product over all pixels, whose gradients TensorFlow computes faster.
        rows = tf.matmul(tf.reshape(x, [-1, inputs]), tf.reshape(kernel, [inputs, outputs]))
        return tf.reshape(tf.nn.bias_add(rows, bias), tf.concat([tf.shape(x)[:3], [outputs]], 0))
    return convolution_3x3(x, kernel, bias)


def bottleneck(x: tf.Tensor, weights: Weights) -> tf.Tensor:
    """Four convolutions, each after a GELU: 1x1 down to the bottleneck, two inside it, 1x1 out (figure 3, left)."""
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        x = convolution(gelu(x), kernel, bias)
    return x


def pooled(x: tf.Tensor, factor: int) -> tf.Tensor:
    """Means over squares of `factor` by `factor` pixels; a remainder of rows and columns is dropped."""
    return tf.nn.avg_pool2d(x, factor, factor, "VALID") if factor > 1 else x


def padded(x: tf.Tensor, shape: EncoderBlock) -> tf.Tensor:
    """Channels of zeros appended up to the width of the next block."""
    missing = shape.output_width - shape.width
    return tf.pad(x, [[0, 0], [0, 0], [0, 0], [0, missing]]) if missing else x


@traced_once
def residual_block(x: tf.Tensor, weights: Weights, pool: int) -> tf.Tensor:
    """x + bottleneck(x), then `pooled`."""
    return pooled(x + bottleneck(x, weights), pool)


@traced_once
def inference_layer(
    x: tf.Tensor,
    features: tf.Tensor,
    noise: tf.Tensor,
    posterior: Weights,
    prior: Weights,
    rest: Weights,
    sampled_kl: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One stochastic layer with its latents from the posterior (figure 3, right).

    Args:
      x: state of the resolution, [B, r, r, W].
      features: of the encoder, [B, r, r, W].
      noise: standard normal, [B, r, r, Z].
      posterior, prior, rest: weights of the layer; `rest` is the projection of the latents and the residual block.
      sampled_kl: give log q(z) - log p(z) at the latents drawn, whose expectation is the KL.

    Returns:
      The new state [B, r, r, W], the latents z and the elementwise KL(q || p) in nats, both [B, r, r, Z].
    """
    posterior_mean, posterior_log_std = tf.split(bottleneck(tf.concat([x, features], -1), posterior), 2, -1)
    prior_mean, prior_log_std, deterministic = split_prior(bottleneck(x, prior), noise.shape[-1])
    z = gaussian.draw(posterior_mean, posterior_log_std, noise)
    if sampled_kl:
        kl = gaussian.log_prob(z, posterior_mean, posterior_log_std) - gaussian.log_prob(z, prior_mean, prior_log_std)
    else:
        kl = gaussian.kl_divergence(posterior_mean, posterior_log_std, prior_mean, prior_log_std)
    return _with_latents(x + deterministic, z, rest), z, kl


@traced_once
def generation_layer(
    x: tf.Tensor, noise: tf.Tensor, temperature: tf.Tensor, prior: Weights, rest: Weights
) -> tf.Tensor:
    """One stochastic layer with its latents from the prior, whose standard deviation is scaled by `temperature`."""
    mean, log_std, deterministic = split_prior(bottleneck(x, prior), noise.shape[-1])
    # log(0) = -inf and exp(-inf) = 0: temperature 0 gives the mean.
    z = gaussian.draw(mean, log_std + tf.math.log(temperature), noise)
    return _with_latents(x + deterministic, z, rest)


@traced_once
def given_layer(x: tf.Tensor, z: tf.Tensor, prior: Weights, rest: Weights) -> tf.Tensor:
    """One stochastic layer whose latents z [B, r, r, Z] are given."""
    _, _, deterministic = split_prior(bottleneck(x, prior), z.shape[-1])
    return _with_latents(x + deterministic, z, rest)


def split_prior(outputs: tf.Tensor, latents: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mean and log standard deviation of the prior, [..., Z], and the features it adds to the state, [..., W]."""
    # Not slices: the gradient of a split is one concatenation, that of three slices three padded copies and their sum.
    mean, log_std, features = tf.split(outputs, [latents, latents, outputs.shape[-1] - 2 * latents], -1)
    return mean, log_std, features


def _with_latents(x: tf.Tensor, z: tf.Tensor, rest: Weights) -> tf.Tensor:
    x = x + convolution(z, *rest[:2])
    return x + bottleneck(x, rest[2:])


def enlarged(x: tf.Tensor, factor: int) -> tf.Tensor:
    """Every pixel repeated `factor` times along both axes: [B, r, r, W] -> [B, r factor, r factor, W]."""
    return tf.repeat(tf.repeat(x, factor, axis=1), factor, axis=2)


# Variables -------------------------------------------------------------------------------------------------


class Initializer:
    """Initial weights as a function of the seed and the name of the variable."""

    def __init__(self, seed: int):
        self.seed = seed

    def __call__(self, name: str, shape: Sequence[int], scale: float) -> np.ndarray:
        """Uniform in +-scale / sqrt(fan in), float32, for a kernel [height, width, in, out]."""
        bound = scale / np.sqrt(np.prod(shape[:-1]))
        drawn = host_generator(self.seed, f"initial weights of {name}").uniform(-bound, bound, shape)
        return drawn.astype(np.float32)


class Convolution(tf.keras.layers.Layer):
    """Kernel and bias of one convolution; the arithmetic is `convolution`'s."""

    def __init__(self, name: str, side: int, inputs: int, outputs: int, initializer: Initializer, scale: float = 1.0):
        super().__init__(name=name.replace("/", "_"))
        shape = [side, side, inputs, outputs]
        self.kernel = tf.Variable(initializer(name, shape, scale), name=f"{name}/kernel")
        self.bias = tf.Variable(tf.zeros([outputs]), name=f"{name}/bias")

    @property
    def values(self) -> Weights:
        return [self.kernel.read_value(), self.bias.read_value()]


class Bottleneck(tf.keras.layers.Layer):
    """The four convolutions c1 to c4 of a bottleneck.

    Args:
      side: of the two inner kernels.
      last_scale: factor on the initial values of c4; 0 makes the block begin as zero.
    """

    def __init__(
        self,
        name: str,
        side: int,
        inputs: int,
        middle: int,
        outputs: int,
        initializer: Initializer,
        last_scale: float = 1.0,
    ):
        super().__init__(name=name.replace("/", "_"))
        self.c1 = Convolution(f"{name}/c1", 1, inputs, middle, initializer)
        self.c2 = Convolution(f"{name}/c2", side, middle, middle, initializer)
        self.c3 = Convolution(f"{name}/c3", side, middle, middle, initializer)
        self.c4 = Convolution(f"{name}/c4", 1, middle, outputs, initializer, last_scale)

    @property
    def values(self) -> Weights:
        return [*self.c1.values, *self.c2.values, *self.c3.values, *self.c4.values]


def _side(resolution: int) -> int:
    return 3 if resolution > 2 else 1  # a 3x3 kernel on 2x2 features would mostly see padding


class ResidualBlock(tf.keras.layers.Layer):
    """A block of the encoder: residual bottleneck, pooling, channels padded to the next width."""

    def __init__(self, name: str, shape: EncoderBlock, initializer: Initializer, last_scale: float):
        super().__init__(name=name.replace("/", "_"))
        self.shape = shape
        self.inner = Bottleneck(
            name, _side(shape.resolution), shape.width, shape.middle, shape.width, initializer, last_scale
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return padded(residual_block(x, self.inner.values, self.shape.pool), self.shape)


class StochasticLayer(tf.keras.layers.Layer):
    """A block of the decoder: posterior, prior, projection of the latents, residual block."""

    def __init__(self, name: str, shape: DecoderBlock, latents: int, initializer: Initializer, last_scale: float):
        super().__init__(name=name.replace("/", "_"))
        self.shape = shape
        side, width, middle = _side(shape.resolution), shape.width, shape.middle
        self.posterior = Bottleneck(f"{name}/posterior", side, 2 * width, middle, 2 * latents, initializer)
        self.prior = Bottleneck(f"{name}/prior", side, width, middle, 2 * latents + width, initializer, last_scale=0.0)
        self.projection = Convolution(f"{name}/projection", 1, latents, width, initializer, last_scale)
        self.residual = Bottleneck(f"{name}/residual", side, width, middle, width, initializer, last_scale)

    @property
    def rest(self) -> Weights:
        return [*self.projection.values, *self.residual.values]


# The whole network -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Inference:
    """What the encoder and the decoder make of a batch of images.

    Attributes:
      features: float32 [B, R, R, width], input of the head.
      latents: one [B, r, r, Z] for each stochastic layer, in order.
      kls: elementwise KL(q || p) in nats, of the same shapes.
    """

    features: tf.Tensor
    latents: list[tf.Tensor]
    kls: list[tf.Tensor]


class VDVAE(tf.keras.Model):
    """Encoder, top-down decoder and the convolution of the output head.

    Args:
      architecture: blocks and widths.
      latents: channels of every stochastic layer (Z).
      mixtures: logistic components of the head (M).
      seed: of the initial weights.
    """

    def __init__(self, architecture: Architecture, latents: int, mixtures: int, seed: int):
        super().__init__(name="vdvae")
        self.architecture, self.latents = architecture, latents
        initializer = Initializer(seed)
        width, widths = architecture.width, architecture.widths
        self.stem = Convolution("encoder/stem", 3, 3, width, initializer)
        # Residual branches start small enough for their sum to keep its scale at any depth (section 3.2).
        encoder_scale = 1.0 / np.sqrt(len(architecture.encoder))
        decoder_scale = 1.0 / np.sqrt(len(architecture.decoder))
        self.encoder_blocks = [
            ResidualBlock(f"encoder/block_{index:03d}", shape, initializer, encoder_scale)
            for index, shape in enumerate(architecture.encoder)
        ]
        self.decoder_blocks = [
            StochasticLayer(f"decoder/block_{index:03d}", shape, latents, initializer, decoder_scale)
            for index, shape in enumerate(architecture.decoder)
        ]
        self.initial_states = [
            tf.Variable(tf.zeros([1, side, side, widths[side]]), name=f"decoder/initial_state_{side}")
            for side in architecture.bias_resolutions
        ]
        self.gain = tf.Variable(tf.ones([width]), name="decoder/gain")
        self.bias = tf.Variable(tf.zeros([width]), name="decoder/bias")
        self.head = Convolution("head", 1, width, 10 * mixtures, initializer)

    def encode(self, images: tf.Tensor) -> dict[int, tf.Tensor]:
        """Features of the encoder by resolution, [B, r, r, W(r)]: the newest of each size.

        Args:
          images: preprocessed, float32 [B, R, R, 3].
        """
        x = convolution(images, *self.stem.values)
        features = {self.architecture.image_size: x}
        for block in self.encoder_blocks:
            x = block(x)
            features[block.shape.output_resolution] = x
        return features

    def infer(self, images: tf.Tensor, draw: Draw, sampled_kl: bool = False) -> Inference:
        """Latents from the posterior, layer by layer (paper, equation 4).

        Args:
          images: preprocessed, float32 [B, R, R, 3].
          draw: noise of each layer.
          sampled_kl: see `inference_layer`.
        """
        features = self.encode(images)
        batch = tf.shape(images)[0]
        states = self.starting_states(batch)
        latents, kls = [], []
        for index, block in enumerate(self.decoder_blocks):
            side = block.shape.resolution
            noise = draw(index, [batch, side, side, self.latents])
            x, z, kl = inference_layer(
                self.input_state(states, block.shape, batch),
                features[side],
                noise,
                block.posterior.values,
                block.prior.values,
                block.rest,
                sampled_kl,
            )
            states[side] = x
            latents.append(z)
            kls.append(kl)
        return Inference(self._final(states), latents, kls)

    def generate(
        self,
        batch: int | tf.Tensor,
        draw: Draw,
        latents: Sequence[tf.Tensor | None] = (),
        temperatures: float | tf.Tensor | Sequence[float | tf.Tensor] = 1.0,
        leading: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Features [batch, R, R, width] for the head, from the prior.

        Args:
          draw: noise of each layer that draws.
          latents: of the first layers, [batch, r, r, Z] each; None, and every layer beyond the list, draws.
          temperatures: factor on the standard deviation of the prior, one for all layers or one for each.
          leading: how many of `latents` are used, where a graph leaves that open: int32 scalar.

        Raises:
          ValueError: more latents than layers, or another number of temperatures than layers.
        """
        layers = len(self.decoder_blocks)
        if len(latents) > layers:
            raise ValueError(f"{len(latents)} latents given for the {layers} stochastic layers of this network")
        per_layer = list(temperatures) if isinstance(temperatures, (list, tuple)) else [temperatures] * layers
        if len(per_layer) != layers:
            raise ValueError(f"{len(per_layer)} temperatures given, expected 1 or one for each of the {layers} layers")
        given = [*latents, *[None] * (layers - len(latents))]
        states = self.starting_states(batch)
        for index, (block, z, temperature) in enumerate(zip(self.decoder_blocks, given, per_layer, strict=True)):
            side = block.shape.resolution
            x, weights = self.input_state(states, block.shape, batch), (block.prior.values, block.rest)
            with_given = functools.partial(given_layer, x, z, *weights)
            if z is not None and leading is None:
                states[side] = with_given()
                continue
            noise = draw(index, [batch, side, side, self.latents])
            with_drawn = functools.partial(generation_layer, x, noise, tf.cast(temperature, tf.float32), *weights)
            if z is None or leading is None:
                states[side] = with_drawn()
            else:
                states[side] = tf.cond(index < leading, with_given, with_drawn)
        return self._final(states)

    def mixture_parameters(self, features: tf.Tensor) -> tf.Tensor:
        """Parameters of the mixture of logistics, float32 [B, R, R, 10 M]; see `tfgen.likelihood.logistic_mixture`."""
        return convolution(features, *self.head.values)

    def call(self, images: tf.Tensor, draw: Draw) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Mixture parameters and elementwise KLs of preprocessed images; see `infer`."""
        inferred = self.infer(images, draw)
        return self.mixture_parameters(inferred.features), inferred.kls

    def starting_states(self, batch: int | tf.Tensor) -> dict[int, tf.Tensor]:
        """The learned states that the decoder starts from, [batch, r, r, W], by resolution."""
        return {
            side: tf.repeat(state, batch, axis=0)
            for side, state in zip(self.architecture.bias_resolutions, self.initial_states, strict=True)
        }

    def input_state(self, states: dict[int, tf.Tensor], shape: DecoderBlock, batch: int | tf.Tensor) -> tf.Tensor:
        """What a block reads: the state at its resolution, [B, r, r, W], with the one that it mixes in added."""
        side, width = shape.resolution, shape.width
        x = states[side] if side in states else tf.zeros([batch, side, side, width])
        if shape.mixin is None:
            return x
        return x + enlarged(states[shape.mixin][..., :width], side // shape.mixin)

    def _final(self, states: dict[int, tf.Tensor]) -> tf.Tensor:
        return states[self.architecture.image_size] * self.gain + self.bias
