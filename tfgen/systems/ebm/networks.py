"""The energy networks: variables, and the energy of images as a function of normalised weights.

Letters: B batch, H and W sides of the image, h and w those of the features of a layer, C channels, K columns of the
label. Features are channels-last, [B, h, w, C]; everything is float32.

Weights are normalised once and used many times: a training step evaluates the energy of positives, of negatives and of
every step of the sampler with the same weights, and improves each vector of the power iteration by one step in all:

    weights = network.normalized()
    energy = network.energy(weights, images, labels)  # [B, 1], as often as one likes
    network.store_vectors(weights)

An energy can be differentiated twice, inside a `tf.while_loop` too. That is what back-propagation through the
sampler needs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfgen.ops.convolution import convolution_3x3
from tfgen.randomness import Key, host_generator
from tfgen.systems.ebm import spectral
from tfgen.systems.ebm.architecture import (
    Activation,
    Attention,
    Block,
    Convolution,
    Dense,
    NetworkShape,
    Residual,
    ShapeError,
    Variable,
)

# A key, from which every site draws its mask, or the masks themselves in the order of the sites: 0 or 1, [B, h, w, C].
Dropout = Key | Sequence[tf.Tensor]

OFF: Sequence[tf.Tensor] = ()  # in place of these: no dropout in this pass, whatever the network was built with

_TINY = 1e-10  # standard deviation of weights that begin as zero
_PLANE_SHARE = 0.1  # of a label's values in MnistNet's planes


@dataclasses.dataclass(frozen=True)
class Weights:
    """What one evaluation of the network is made of, made by `EnergyNetwork.normalized`.

    Attributes:
      values: every variable that the energy depends on, by name, weights normalised.
      vectors: the vectors of the power iteration after it, by name.
    """

    values: Mapping[str, tf.Tensor]
    vectors: Mapping[str, tf.Tensor]

    def stopped(self) -> Weights:
        """The same numbers as constants: a gradient of the energy then reaches images only."""
        return Weights({name: tf.stop_gradient(value) for name, value in self.values.items()}, self.vectors)


# Arithmetic ------------------------------------------------------------------------------------------------


def leaky(x: tf.Tensor) -> tf.Tensor:
    """max(x, 0.2 x). Its slope at 0 is 0.2, which matters: features of an empty background are exactly 0."""
    return tf.nn.leaky_relu(x, alpha=0.2)


def swish(x: tf.Tensor) -> tf.Tensor:
    """x sigmoid(x) (Ramachandran et al., arXiv:1710.05941)."""
    return x * tf.sigmoid(x)


_ACTIVATIONS: Mapping[Activation, Callable[[tf.Tensor], tf.Tensor]] = {
    "leaky": leaky,
    "swish": swish,
    "relu": tf.nn.relu,
}


def activated(x: tf.Tensor, activation: Activation) -> tf.Tensor:
    """One of the three activations, element by element."""
    return _ACTIVATIONS[activation](x)


def halved(x: tf.Tensor) -> tf.Tensor:
    """Means of 2x2 pixels: [B, h, w, C] -> [B, h // 2, w // 2, C]."""
    return tf.nn.avg_pool2d(x, 2, 2, "VALID")


def convolution(x: tf.Tensor, weight: tf.Tensor, stride: int = 1) -> tf.Tensor:
    """Zero padding, [B, h, w, in] -> [B, ceil(h / stride), ceil(w / stride), out].

    Where a 4x4 kernel needs an odd number of zeros the further one is at the lower and right side ("SAME").
    """
    if weight.shape[:2] == (3, 3) and stride == 1:
        return convolution_3x3(x, weight, tf.zeros([weight.shape[3]], weight.dtype))
    return tf.nn.conv2d(x, weight, stride, "SAME")


def of_label(rows: tf.Tensor, labels: tf.Tensor | None) -> tf.Tensor:
    """What gain or bias the labels choose: a vector [C] as it is without labels, else labels times rows, [B, 1, 1, C].

    Args:
      rows: [C] or [K, C].
      labels: [B, K], one-hot or real; with rows [C], K is 1.
    """
    if labels is None:
        return rows
    rows = rows[tf.newaxis] if rows.shape.rank == 1 else rows
    return tf.matmul(labels, rows)[:, tf.newaxis, tf.newaxis, :]


def conditional_convolution(
    x: tf.Tensor, layer: Convolution, values: Mapping[str, tf.Tensor], labels: tf.Tensor | None, stride: int = 1
) -> tf.Tensor:
    """A convolution with the input bias and the gain that `layer` has, [B, h, w, in] -> [B, h', w', out].

    The bias stands before the padding: padding stays 0.
    """
    if layer.input_bias:
        x = x + of_label(values[f"{layer.name}/gb"], labels)
    x = convolution(x, values[f"{layer.name}/cweight"], stride)
    if layer.gain:
        gain = of_label(values[f"{layer.name}/g"], labels)
        x = x * (gain if labels is None else gain + values[f"{layer.name}/cb"])
    return x


def residual(
    x: tf.Tensor,
    layer: Residual,
    values: Mapping[str, tf.Tensor],
    labels: tf.Tensor | None,
    dropout: Dropout | None,
    site: int,
) -> tf.Tensor:
    """A residual block, [B, h, w, in] -> [B, h, w, out] or, where it pools, [B, h // 2, w // 2, out].

    Args:
      dropout: None for a network without.
      site: number of this block among those with a mask.
    """
    c1, c2, *adaptive = layer.convolutions
    h = conditional_convolution(x, c1, values, labels)
    if dropout is not None:
        h = h * (2.0 * _mask(dropout, site, layer.name, h))
    h = conditional_convolution(activated(h, layer.activation), c2, values, labels)
    around = conditional_convolution(x, adaptive[0], values, labels) if adaptive else x
    h = h + around
    return activated(halved(h) if layer.pools else h, layer.activation)


def _mask(dropout: Dropout, site: int, name: str, features: tf.Tensor) -> tf.Tensor:
    """0 or 1 for each of the features; a half of them is 1."""
    if isinstance(dropout, Key):
        bits = dropout.fold(name).bits([tf.shape(features)[0], *features.shape[1:]])
        return tf.cast(bits >= tf.constant(0, tf.int16), features.dtype)
    return tf.cast(dropout[site], features.dtype)


def attention(x: tf.Tensor, values: Mapping[str, tf.Tensor], prefix: str = Attention.name) -> tf.Tensor:
    """x + gamma times attention of every position to all, [B, h, w, C] -> [B, h, w, C] (Zhang et al.,
    arXiv:1805.08318, section 3).

    As in the original scores are not scaled, and values have an activation and no bias.
    """
    batch, (height, width, channels) = tf.shape(x)[0], x.shape[1:]
    query, key, value = (convolution(x, values[f"{prefix}/atten_{part}weight"]) for part in ("q", "k", "v"))

    def flat(features: tf.Tensor) -> tf.Tensor:
        return tf.reshape(features, [batch, height * width, features.shape[-1]])

    query = flat(query + values[f"{prefix}/atten_q_b1"])
    key = flat(key + values[f"{prefix}/atten_k_b1"])
    scores = tf.matmul(query, key, transpose_b=True)  # [B, h w, h w], softmax over keys
    attended = tf.matmul(tf.nn.softmax(scores), flat(leaky(value)))
    return x + values[f"{prefix}/gamma"] * tf.reshape(attended, [batch, height, width, channels])


def dense(x: tf.Tensor, layer: Dense, values: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """[B, in] -> [B, out]."""
    return tf.matmul(x, values[f"{layer.name}/wweight"]) + values[f"{layer.name}/b"]


# Variables -------------------------------------------------------------------------------------------------


def initial_value(variable: Variable, seed: int | None) -> np.ndarray:
    """float32 value that a variable begins with, a function of the seed and its name.

    Weights that are normalised and vectors are standard normal, 1e-10 of it for those that begin as zero; weights that
    are not normalised are uniform after Glorot & Bengio (AISTATS 2010), or zero. Gains are 1 and biases 0.

    Args:
      seed: None for zeros throughout, where values are loaded anyway.
    """
    shape, kind = variable.shape, variable.kind
    if seed is None or kind in ("bias", "plain zero weight"):
        return np.zeros(shape, np.float32)
    if kind == "gain":
        return np.ones(shape, np.float32)
    generator = host_generator(seed, f"initial value of {variable.name}")
    if kind == "plain weight":
        area = math.prod(shape[:-2])
        bound = math.sqrt(6.0 / (area * (shape[-2] + shape[-1])))
        return generator.uniform(-bound, bound, shape).astype(np.float32)
    scale = _TINY if kind == "zero weight" else 1.0
    return (scale * generator.standard_normal(shape)).astype(np.float32)


class EnergyNetwork(tf.keras.Model):
    """Energy of images; see `NetworkShape` for what there is to choose.

    Args:
      shape: of the network.
      seed: of the initial values; None for zeros, where values are loaded anyway.
      context: number in the names of the variables, "context_0/...", which tells networks of a combination apart.

    Attributes:
      by_name: every variable by its name without "context_0/", in the order of the original.

    Example:
      network = EnergyNetwork(network_shape("ResNet32", 32, label_columns=10), seed=0)
      energy = network.energy(network.normalized(), images, labels)  # [B, 1]
    """

    def __init__(self, shape: NetworkShape, seed: int | None, context: int = 0):
        super().__init__(name=f"context_{context}")
        self.shape = shape
        self.all_variables = [
            tf.Variable(initial_value(v, seed), trainable=v.trainable, name=f"context_{context}/{v.name}")
            for v in shape.variables()
        ]
        self.built = True

    @property
    def by_name(self) -> dict[str, tf.Variable]:
        names = (variable.name for variable in self.shape.variables())
        return dict(zip(names, self.all_variables, strict=True))

    @property
    def trained(self) -> dict[str, tf.Variable]:
        """The variables that have a gradient, by name: trainable ones that the energy depends on."""
        variables = self.by_name
        return {v.name: variables[v.name] for v in self.shape.variables() if v.used and v.trainable}

    def normalized(self) -> Weights:
        """The weights that energies are computed with, after one improvement of the vectors of those in use."""
        variables = self.by_name
        values: dict[str, tf.Tensor] = {}
        vectors: dict[str, tf.Tensor] = {}
        for variable in self.shape.variables():
            if not variable.used or variable.kind == "vector":
                continue
            name, value = variable.name, variables[variable.name].read_value()
            if variable.kind in ("weight", "zero weight"):
                vector = f"{name.removesuffix('weight')}_u"
                value, vectors[vector] = spectral.normalized(
                    value,
                    variables[vector].read_value(),
                    iterations=self.shape.spec_iterations,
                    target=self.shape.spec_target,
                    zero=variable.kind == "zero weight",
                )
            values[name] = value
        return Weights(values, vectors)

    def store_vectors(self, weights: Weights, take: tf.Tensor | None = None) -> None:
        """Keeps the vectors of the power iteration for the next time, unless `take` (bool scalar) is False."""
        variables = self.by_name
        for name, vector in weights.vectors.items():
            kept = variables[name]
            kept.assign(vector if take is None else tf.where(take, vector, kept.read_value()))

    def energy(
        self, weights: Weights, images: tf.Tensor, labels: tf.Tensor | None = None, dropout: Dropout | None = None
    ) -> tf.Tensor:
        """float32 [B, 1], low where images are likely.

        Args:
          weights: from `normalized`.
          images: float32 [B, side, side, channels]; of one channel also [B, side, side].
          labels: float32 [B, label_columns]; an unconditional network does not read them.
          dropout: a key or masks for a network with dropout, or `OFF`; others do not read it.

        Raises:
          ShapeError: images, labels or masks that do not fit the network.
        """
        return self.activations(weights, images, labels, dropout)[self.shape.head.name]

    def call(self, images: tf.Tensor, labels: tf.Tensor | None = None, dropout: Dropout | None = None) -> tf.Tensor:
        """The energy with freshly normalised weights, whose vectors are not kept."""
        return self.energy(self.normalized(), images, labels, dropout)

    def activations(
        self, weights: Weights, images: tf.Tensor, labels: tf.Tensor | None = None, dropout: Dropout | None = None
    ) -> dict[str, tf.Tensor]:
        """What every layer gives, by name, in order: "c1_pre", blocks, "atten", "fc_dense", "fc5".

        The last two have no activation. Arguments and errors are those of `energy`.
        """
        shape, values = self.shape, weights.values
        images = self._checked_images(images)
        labels = self._checked_labels(labels)
        masks = self._checked_dropout(dropout)
        if shape.label_planes:
            images, labels = _with_planes(images, labels), None
        outputs: dict[str, tf.Tensor] = {}
        x = outputs[shape.stem.name] = self._block(images, shape.stem, values, labels=None)
        site = 0
        for layer in shape.layers:
            if isinstance(layer, Attention):
                x = attention(x, values, layer.name)
            elif isinstance(layer, Residual):
                x = residual(x, layer, values, labels, masks, site)
                site += 1
            else:
                x = self._strided_block(x, layer, values, labels)
            outputs[layer.name] = x
        if shape.plain and shape.dense is not None:
            hidden = outputs[shape.dense.name] = dense(tf.reshape(x, [-1, shape.dense.inputs]), shape.dense, values)
            features = activated(hidden, shape.stem.activation)
        else:
            features = tf.reduce_sum(activated(x, shape.sum_activation), axis=[1, 2])
        outputs[shape.head.name] = dense(features, shape.head, values)
        return outputs

    def _block(self, x: tf.Tensor, block: Block, values, labels: tf.Tensor | None, stride: int = 1) -> tf.Tensor:
        return activated(conditional_convolution(x, block.convolution, values, labels, stride), block.activation)

    def _strided_block(self, x: tf.Tensor, block: Block, values, labels: tf.Tensor | None) -> tf.Tensor:
        """A block of a plain network, which halves the side by its stride or by pooling after the activation."""
        if self.shape.pools_after:
            return halved(self._block(x, block, values, labels))
        return self._block(x, block, values, labels, block.convolution.stride)

    def _checked_images(self, images: tf.Tensor) -> tf.Tensor:
        """Images with their axis of channels."""
        side, channels = self.shape.side, self.shape.channels
        images = tf.convert_to_tensor(images)
        if images.shape.rank == 3 and channels == 1:
            images = images[..., tf.newaxis]
        if images.shape.rank != 4 or tuple(images.shape[1:]) != (side, side, channels):
            raise ShapeError(
                f"images have shape {images.shape}, expected [B, {side}, {side}, {channels}] for {self.shape.kind}"
            )
        return images

    def _checked_labels(self, labels: tf.Tensor | None) -> tf.Tensor | None:
        columns = self.shape.label_columns
        if not columns:
            return None
        if labels is None or tf.convert_to_tensor(labels).shape[1:] != (columns,):
            found = "none" if labels is None else f"shape {tf.convert_to_tensor(labels).shape}"
            raise ShapeError(f"labels: {found}, expected [B, {columns}] for a conditional {self.shape.kind}")
        return tf.cast(labels, tf.float32)

    def _checked_dropout(self, dropout: Dropout | None) -> Dropout | None:
        sites = self.shape.dropout_sites
        if not sites or dropout is OFF:
            return None
        if dropout is None:
            raise ShapeError(
                f"{self.shape.kind} has dropout in every forward pass: pass dropout=Key.create(seed, 'dropout'), or "
                "networks.OFF for a pass without"
            )
        if not isinstance(dropout, Key) and len(dropout) != sites:
            raise ShapeError(f"{len(dropout)} dropout masks, expected {sites}, one for each residual block in use")
        return dropout


def _with_planes(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Images with a tenth of each label value as a further constant channel: [B, H, W, C] -> [B, H, W, C + K]."""
    planes = (_PLANE_SHARE * labels)[:, tf.newaxis, tf.newaxis, :]
    size = [tf.shape(images)[0], *images.shape[1:3], labels.shape[1]]
    return tf.concat([images, tf.broadcast_to(planes, size)], axis=3)
