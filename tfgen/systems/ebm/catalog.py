"""The seven energy networks of Du & Mordatch, "Implicit Generation and Generalization in Energy Based Models", 2019,
arXiv:1903.08689 (its appendix, and the code that was published with it), as shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from tfgen.systems.ebm.architecture import (
    Activation,
    Attention,
    Block,
    Convolution,
    Dense,
    NetworkShape,
    Residual,
    ShapeError,
)


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
    spec_iterations: int = 1,
    spec_target: float = 1.0,
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
      spec_iterations, spec_target: how, see `spectral.normalized`.
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
    request = Request(
        kind, filters, side, channels, label_columns, activation, spec_norm, use_attention, dropout, downsample
    )
    return dataclasses.replace(build(request), spec_iterations=spec_iterations, spec_target=spec_target)


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
