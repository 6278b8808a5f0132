"""What energy networks are made of, without TensorFlow: layers, their order, and the variables that these have.

A network reads images and, where it is conditional, rows of label values, and gives one energy for each image. Its
variables are listed in the order in which the original creates them, under the original's names. `catalog` has the
seven published networks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Literal

Activation = Literal["leaky", "swish", "relu"]
# What a variable is: how it begins follows from it, see `networks.initial_value`.
Kind = Literal["weight", "zero weight", "plain weight", "plain zero weight", "vector", "gain", "bias"]


class ShapeError(ValueError):
    """Settings of a network that do not fit together, or images and labels that do not fit the network."""


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution with zero padding ("SAME"), without a bias of its output.

    Attributes:
      name: of its variables.
      size: side of the kernel.
      inputs, outputs: channels.
      labels: columns of the label that gain and biases have a row for; 1 for one row without an axis.
      stride: of the convolution.
      input_bias: a bias is added to the input, before padding.
      gain: the output is multiplied by a gain; it is chosen by the label where the network is conditional.
      zero: the weight begins as (almost) zero, and its spectral norm is limited rather than set.
    """

    name: str
    size: int
    inputs: int
    outputs: int
    labels: int = 1
    stride: int = 1
    input_bias: bool = False
    gain: bool = False
    zero: bool = False


@dataclasses.dataclass(frozen=True)
class Block:
    """A convolution of a plain network (MnistNet, DspritesNet) and the activation after it."""

    convolution: Convolution
    activation: Activation

    @property
    def name(self) -> str:
        return self.convolution.name

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        return (self.convolution,)


@dataclasses.dataclass(frozen=True)
class Residual:
    """Two 3x3 convolutions beside a connection around them.

    Attributes:
      name: of its variables, continued by "_res_c1", "_res_c2" and "_res_adaptive".
      inputs, outputs: channels. Where they differ the connection is a third convolution, "adaptive".
      labels: see `Convolution`.
      pools: the side is halved after the sum, before the last activation.
      activation: inside, and after the sum.
    """

    name: str
    inputs: int
    outputs: int
    labels: int
    pools: bool
    activation: Activation

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """c1, c2 and, where the number of channels changes, adaptive."""
        prefix, labels = f"{self.name}_res", self.labels
        c1 = Convolution(f"{prefix}_c1", 3, self.inputs, self.outputs, labels, input_bias=True)
        c2 = Convolution(f"{prefix}_c2", 3, self.outputs, self.outputs, labels, input_bias=True, gain=True, zero=True)
        if self.inputs == self.outputs:
            return (c1, c2)
        return (c1, c2, Convolution(f"{prefix}_adaptive", 3, self.inputs, self.outputs, labels))


@dataclasses.dataclass(frozen=True)
class Attention:
    """Self-attention over all positions.

    Attributes:
      channels: of the features.
      keys: channels of queries and keys.
      block: name of the residual block where it stands.
      instead: it stands in place of that block, whose variables still exist; otherwise after it.
    """

    channels: int
    keys: int
    block: str
    instead: bool = True

    name = "atten"


@dataclasses.dataclass(frozen=True)
class Dense:
    """A matrix product plus bias.

    Attributes:
      name: of its variables.
      inputs, outputs: numbers of features.
      normalized: by its spectral norm, where the network is.
    """

    name: str
    inputs: int
    outputs: int
    normalized: bool


@dataclasses.dataclass(frozen=True)
class Variable:
    """One variable of a network.

    Attributes:
      name: in the original's files, without the leading "context_0/".
      shape: of it.
      kind: what it is.
      used: whether the energy depends on it. Others exist in the original's files, and are never trained.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    used: bool

    @property
    def trainable(self) -> bool:
        """Whether it counts as a parameter: all but the vectors of the power iteration."""
        return self.kind != "vector"


@dataclasses.dataclass(frozen=True)
class NetworkShape:
    """Everything that the arithmetic of a network depends on; made by `catalog.network_shape`.

    Attributes:
      kind: name of the network, one of `catalog.NETWORKS`.
      filters: its unit of width.
      side, channels: of the images.
      label_columns: values of a label, one-hot or real; 0 for an unconditional network.
      spec_norm: weights are divided by their spectral norm.
      spec_iterations, spec_target: power iterations of an estimate of that norm, and what it is to be.
      dropout: half of the features inside residual blocks are dropped, in every forward pass.
      pools_after: plain networks halve the side by a mean of 2x2 after the activation, instead of a stride.
      label_planes: the label is part of the image, as constant planes of a tenth of its values (MnistNet).
      stem: first layer.
      blocks: all blocks in the order of their variables.
      dense: the hidden layer, used by plain networks; None for a network without.
      head: the layer that gives the energy.
      plain: the hidden layer reads the features of every position (MnistNet, DspritesNet); otherwise the head reads
        their sums over positions.
      attention: where it is and how wide; None for plain networks, which have none.
      attends: whether attention is used; its variables exist in any case.
      sum_activation: of residual networks, before features are summed over positions.
    """

    kind: str
    filters: int
    side: int
    channels: int
    label_columns: int
    spec_norm: bool
    stem: Block
    blocks: tuple[Block | Residual, ...]
    dense: Dense | None
    head: Dense
    plain: bool
    dropout: bool = False
    pools_after: bool = False
    label_planes: bool = False
    attention: Attention | None = None
    attends: bool = False
    sum_activation: Activation = "relu"
    spec_iterations: int = 1
    spec_target: float = 1.0

    @property
    def layers(self) -> tuple[Block | Residual | Attention, ...]:
        """What stands between stem and head, in the order of a forward pass."""
        attention = self.attention if self.attends else None
        order: list[Block | Residual | Attention] = []
        for block in self.blocks:
            if attention is None or attention.block != block.name:
                order.append(block)
            else:
                order += [attention] if attention.instead else [block, attention]
        return tuple(order)

    @property
    def dropout_sites(self) -> int:
        """Dropout masks of a forward pass, one for each residual block in use."""
        return sum(isinstance(layer, Residual) for layer in self.layers) if self.dropout else 0

    def variables(self) -> tuple[Variable, ...]:
        """Every variable in the order in which the original creates them."""
        return _listed(self)


def parameter_count(shape: NetworkShape) -> int:
    """Numbers in all trainable variables, unused ones included, as the original counts them."""
    return sum(math.prod(variable.shape) for variable in shape.variables() if variable.trainable)


@functools.lru_cache(maxsize=16)
def _listed(shape: NetworkShape) -> tuple[Variable, ...]:
    return tuple(_variables(shape))


def _variables(shape: NetworkShape) -> Iterator[Variable]:
    used_blocks = {layer.name for layer in shape.layers}
    yield from _convolution_variables(shape, shape.stem.convolution, used=True)
    for block in shape.blocks:
        for convolution in block.convolutions:
            yield from _convolution_variables(shape, convolution, block.name in used_blocks)
    if shape.dense is not None:
        yield from _dense_variables(shape, shape.dense, used=shape.plain)
    yield from _dense_variables(shape, shape.head, used=True)
    if shape.attention is not None:
        yield from _attention_variables(shape, shape.attention, shape.attends)


def _weight(shape: NetworkShape, prefix: str, size: tuple[int, ...], used: bool, zero: bool = False):
    """A weight and, where it is normalised, its vector of the power iteration."""
    names: tuple[Kind, Kind] = ("zero weight", "plain zero weight") if zero else ("weight", "plain weight")
    yield Variable(f"{prefix}weight", size, names[0] if shape.spec_norm else names[1], used)
    if shape.spec_norm:
        yield Variable(f"{prefix}_u", (1, size[-1]), "vector", used)


def _convolution_variables(shape: NetworkShape, layer: Convolution, used: bool) -> Iterator[Variable]:
    def rows(width: int) -> tuple[int, ...]:
        return (width,) if layer.labels == 1 else (layer.labels, width)

    name, inputs, outputs = layer.name, layer.inputs, layer.outputs
    yield from _weight(shape, f"{name}/c", (layer.size, layer.size, inputs, outputs), used, layer.zero)
    yield Variable(f"{name}/b", (outputs,), "bias", False)
    yield Variable(f"{name}/g", rows(outputs), "gain", used and layer.gain)
    yield Variable(f"{name}/gb", rows(inputs), "bias", used and layer.input_bias)
    yield Variable(f"{name}/cb", (inputs,), "bias", used and layer.gain and shape.label_columns > 0)


def _dense_variables(shape: NetworkShape, layer: Dense, used: bool) -> Iterator[Variable]:
    size = (layer.inputs, layer.outputs)
    if layer.normalized:
        yield from _weight(shape, f"{layer.name}/w", size, used)
    else:
        yield Variable(f"{layer.name}/wweight", size, "plain weight", used)
    yield Variable(f"{layer.name}/b", (layer.outputs,), "bias", used)


def _attention_variables(shape: NetworkShape, layer: Attention, used: bool) -> Iterator[Variable]:
    for part, width in (("q", layer.keys), ("k", layer.keys), ("v", layer.channels)):
        prefix = f"{layer.name}/atten_{part}"
        yield from _weight(shape, prefix, (1, 1, layer.channels, width), used)
        yield Variable(f"{prefix}_b1", (width,), "bias", used and part != "v")
    yield Variable(f"{layer.name}/gamma", (1,), "bias", used)
