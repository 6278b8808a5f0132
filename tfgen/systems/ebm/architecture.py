"""Shapes of the seven energy networks of Du & Mordatch, "Implicit Generation and Generalization in Energy Based
Models", 2019, arXiv:1903.08689 (appendix A.6 there, and the code that was published with it). No TensorFlow.

A network reads images and, where it is conditional, rows of label values, and gives one energy for each image. Its
variables are listed in the order in which the original creates them, under the original's names.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Everything that the arithmetic of a network depends on; made by `network_shape`.

    Attributes:
      kind: name of the network, one of `NETWORKS`.
      filters: its unit of width.
      side, channels: of the images.
      label_columns: values of a label, one-hot or real; 0 for an unconditional network.
      spec_norm: weights are divided by their spectral norm.
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


# The seven networks ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Request:
    """What a network is asked to be; see `network_shape`."""

    kind: str
    filters: int
    side: int
    channels: int
    label_columns: int
    activation: Activation
    spec_norm: bool
    attends: bool
    dropout: bool
    downsample: bool

    @property
    def labels(self) -> int:
        return max(self.label_columns, 1)


def network_shape(
    kind: str,
    filters: int,
    *,
    side: int | None = None,
    channels: int | None = None,
    label_columns: int = 0,
    swish: bool = False,
    spec_norm: bool = True,
    use_attention: bool = False,
    dropout: bool = False,
    downsample: bool = False,
) -> NetworkShape:
    """The shape of one of the published networks.

    Args:
      kind: "MnistNet", "DspritesNet", "ResNet32", "ResNet32Large", "ResNet32Larger", "ResNet32Wider" or "ResNet128".
      filters: unit of width, the original's num_filters.
      side, channels: of the images; None for those of the original. The side matters to MnistNet and DspritesNet only,
        whose heads read every position.
      label_columns: values of a label; 0 for an unconditional network.
      swish: swish in place of the leaky rectifier. ResNet32, Large and Larger do not have it and ignore it.
      spec_norm: normalise weights by their spectral norm.
      use_attention: use the attention layer; MnistNet and DspritesNet have none and ignore it.
      dropout: of the features inside residual blocks, in every forward pass. Plain networks have none and ignore it.
      downsample: means of 2x2 in place of strides in plain networks; the others have no strides and ignore it.

    Raises:
      ShapeError: no such network, or settings that it cannot have.
    """
    if kind not in NETWORKS:
        raise ShapeError(f"no network {kind!r}; the networks are {', '.join(NETWORKS)}")
    if filters < 1 or label_columns < 0:
        raise ShapeError(f"{kind} with {filters} filters and {label_columns} label columns: expected 1 and 0 or more")
    build, usual_side, usual_channels = NETWORKS[kind]
    side, channels = usual_side if side is None else side, usual_channels if channels is None else channels
    has_swish = kind in ("MnistNet", "DspritesNet", "ResNet32Wider", "ResNet128")
    activation: Activation = "swish" if swish and has_swish else "leaky"
    return build(
        Request(kind, filters, side, channels, label_columns, activation, spec_norm, use_attention, dropout, downsample)
    )


def _mnist(request: Request) -> NetworkShape:
    d = request.filters
    if request.downsample and request.side % 8:
        raise ShapeError(
            f"--downsample halves the {request.side} pixels of MnistNet's images three times: expected a multiple of "
            "8 pixels; leave --downsample out"
        )
    # The original means to add the label as planes, but has no weights for them and fails.
    stem = _block(request, "c1_pre", 3, request.channels + request.label_columns, 64)
    blocks = tuple(
        _block(request, name, 4, inputs, outputs, stride=2)
        for name, inputs, outputs in (("c1", 64, d), ("c2", d, 2 * d), ("c3", 2 * d, 4 * d))
    )
    return _plain(request, stem, blocks, label_planes=request.label_columns > 0)


def _dsprites(request: Request) -> NetworkShape:
    d = request.filters
    stem = _block(request, "c1_pre", 3, request.channels, 32)
    plan = (("c1", 32, d), ("c2", d, 2 * d), ("c3", 2 * d, 2 * d), ("c4", 2 * d, 2 * d))
    blocks = tuple(
        _block(request, name, 4, i, o, request.labels, stride=2, input_bias=True, gain=name == "c3")
        for name, i, o in plan
    )
    return _plain(request, stem, blocks, label_planes=False)


def _block(request: Request, name: str, size: int, inputs: int, outputs: int, labels: int = 1, **switches) -> Block:
    return Block(Convolution(name, size, inputs, outputs, labels, **switches), request.activation)


def _plain(request: Request, stem: Block, blocks: Sequence[Block], label_planes: bool) -> NetworkShape:
    side = request.side
    for _ in blocks:
        side = side // 2 if request.downsample else -(-side // 2)
    features, hidden = side * side * blocks[-1].convolution.outputs, 2 * request.filters
    if features < 1:
        raise ShapeError(f"images of {request.side} pixels are too small for {request.kind} with --downsample")
    return NetworkShape(
        request.kind,
        request.filters,
        request.side,
        request.channels,
        request.label_columns,
        request.spec_norm,
        stem,
        tuple(blocks),
        dense=Dense("fc_dense", features, hidden, normalized=True),
        head=Dense("fc5", hidden, 1, normalized=False),
        plain=True,
        pools_after=request.downsample,
        label_planes=label_planes,
    )


def _resnet32(request: Request) -> NetworkShape:
    d = request.filters
    blocks = _residuals(request, d, "res_optim:d-d- res_1:d-d res_2:d-2d- res_3:2d-2d res_4:2d-2d- res_5:2d-2d")
    dense = Dense("fc_dense", 32 * d, 4 * d, normalized=True)
    return _residual(request, d, blocks, "relu", Attention(2 * d, max(d // 2, 1), "res_3"), dense)


_LARGE = "res_1:d-d res_2:d-d res_3:d-2d- res_4:2d-2d res_5:2d-2d res_6:2d-4d- res_7:4d-4d res_8:4d-4d"
_LARGER = (
    "res_1:d-d res_2:d-d res_2a:d-d res_2b:d-d res_3:d-2d- res_4:2d-2d res_5:2d-2d res_5a:2d-2d res_5b:2d-2d "
    "res_6:2d-4d- res_7:4d-4d res_8:4d-4d res_8a:4d-4d res_8b:4d-4d"
)


def _large(request: Request) -> NetworkShape:
    d = request.filters
    blocks = _residuals(request, d, f"res_optim:d-d- {_LARGE}")
    return _residual(request, d, blocks, _by_label(request), Attention(2 * d, d, "res_4"))


def _larger(request: Request) -> NetworkShape:
    d = request.filters
    blocks = _residuals(request, d, f"res_optim:d-d- {_LARGER}")
    dense = Dense("fc_dense", 32 * d, 4 * d, normalized=True)
    return _residual(request, d, blocks, _by_label(request), Attention(2 * d, max(d // 2, 1), "res_4"), dense)


def _by_label(request: Request) -> Activation:
    return "leaky" if request.label_columns else "relu"


def _wider(request: Request) -> NetworkShape:
    d, stem = request.filters, 128
    if d == stem:
        raise ShapeError(
            "ResNet32Wider cannot have 128 filters: its first block widens the 128 channels of the first layer; "
            "the original has 192 (CIFAR-10) or 256 (ImageNet)"
        )
    first = Residual("res_optim", stem, d, request.labels, True, "leaky")
    blocks = (first, *_residuals(request, d, _LARGE))
    return _residual(request, stem, blocks, _swish_or_relu(request), Attention(d, max(d // 2, 1), "res_1"))


def _resnet128(request: Request) -> NetworkShape:
    d, stem = request.filters, 64
    if d != stem:
        raise ShapeError(f"ResNet128 has {stem} filters, those of its first layer; found {d}: set --filters={stem}")
    if not request.label_columns:
        raise ShapeError("ResNet128 is conditional only: add --cclass")
    first = Residual("res_optim", d, d, request.labels, True, "leaky")
    plan = "res_3:d-2d- res_5:2d-4d- res_7:4d-8d- res_9:8d-8d- res_10:8d-8d"
    blocks = (first, *_residuals(request, d, plan))
    attention = Attention(d, max(d // 2, 1), "res_optim", instead=False)
    return _residual(request, stem, blocks, _swish_or_relu(request), attention)


def _swish_or_relu(request: Request) -> Activation:
    return "swish" if request.activation == "swish" else "relu"


def _residuals(request: Request, d: int, plan: str) -> tuple[Residual, ...]:
    """Blocks written as "name:inputs-outputs", with a last "-" where the side is halved; widths in units of d."""

    def width(text: str) -> int:
        return int(text.removesuffix("d") or 1) * d

    blocks = []
    for word in plan.split():
        name, _, widths = word.partition(":")
        inputs, outputs, *rest = widths.split("-")
        blocks.append(Residual(name, width(inputs), width(outputs), request.labels, bool(rest), request.activation))
    return tuple(blocks)


def _residual(
    request: Request,
    stem: int,
    blocks: Sequence[Residual],
    sum_activation: Activation,
    attention: Attention,
    dense: Dense | None = None,
) -> NetworkShape:
    return NetworkShape(
        request.kind,
        request.filters,
        request.side,
        request.channels,
        request.label_columns,
        request.spec_norm,
        _block(request, "c1_pre", 3, request.channels, stem),
        tuple(blocks),
        dense,
        Dense("fc5", blocks[-1].outputs, 1, normalized=False),
        plain=False,
        dropout=request.dropout,
        attention=attention,
        attends=request.attends,
        sum_activation=sum_activation,
    )


# The function that makes each, and the side and channels of the images it was published for.
NETWORKS: Mapping[str, tuple[Callable[[Request], NetworkShape], int, int]] = {
    "MnistNet": (_mnist, 28, 1),
    "DspritesNet": (_dsprites, 64, 1),
    "ResNet32": (_resnet32, 32, 3),
    "ResNet32Large": (_large, 32, 3),
    "ResNet32Larger": (_larger, 32, 3),
    "ResNet32Wider": (_wider, 32, 3),
    "ResNet128": (_resnet128, 128, 3),
}
