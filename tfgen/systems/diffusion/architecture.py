"""Shape of the UNet: its settings, the blocks they resolve to, and how many parameters these have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

GROUPS = 32  # of every group norm
CHANNEL_MULTIPLIERS = {256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4), 32: (1, 2, 2, 2)}  # of the original, by image side
DTYPES = ("float32", "float16", "bfloat16")


class ShapeError(ValueError):
    """Settings of a network that do not fit together, or images that do not fit the network."""


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The first layer, 3x3."""

    inputs: int
    outputs: int


@dataclasses.dataclass(frozen=True)
class Residual:
    """Two 3x3 convolutions beside a skip connection."""

    inputs: int
    outputs: int


@dataclasses.dataclass(frozen=True)
class Attention:
    """Self-attention over all positions."""

    channels: int
    heads: int


@dataclasses.dataclass(frozen=True)
class Downsample:
    """Half the side."""

    channels: int


@dataclasses.dataclass(frozen=True)
class Upsample:
    """Twice the side."""

    channels: int


Part = Convolution | Residual | Attention | Downsample | Upsample
Block = tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every block in order.

    Attributes:
      input_blocks: the output of each is kept for the way up.
      middle_block: between the two.
      output_blocks: each reads the state and the newest kept output, side by side.
    """

    input_blocks: tuple[Block, ...]
    middle_block: Block
    output_blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class UNetShape:
    """Everything that the arithmetic of a network depends on. The image's side is not among it.

    Attributes:
      in_channels: of the images.
      width: channels of the first level (num_channels), a multiple of 32.
      out_channels: of the output; twice `in_channels` where the variance is learned.
      num_res_blocks: residual blocks of a level on the way down; one more on the way up.
      channel_mult: width of each level as a multiple of `width`; the first is 1.
      attention_rates: downsampling rates (1, 2, 4 ...) at which residual blocks are followed by attention. Rates that
        no level has are unused. The middle block always has attention.
      num_heads, num_heads_upsample: attention heads; on the way up, where -1 is as many as on the way down.
      num_classes: of the labels; None for a network without labels.
      null_class: one more class, `null_label`, that stands for "no label" (classifier-free guidance).
      dropout: share of the features dropped before the second convolution of a residual block, in training.
      use_scale_shift_norm: the embedding scales and shifts what a norm gives; otherwise it is added before the norm.
      conv_resample: resampling has a convolution; otherwise it is a mean of 2x2 pixels and a repetition of pixels.
      low_res: the network also reads an image of lower resolution (super-resolution).
      recompute: compute the inside of blocks again in the backward pass, to save memory (use_checkpoint).
      dtype: of the activations: float32, float16 or bfloat16. Norms, softmax and embeddings stay float32.

    Raises:
      ShapeError: values that do not fit together.
    """

    width: int
    in_channels: int = 3
    out_channels: int = 3
    num_res_blocks: int = 2
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)
    attention_rates: frozenset[int] = frozenset()
    num_heads: int = 1
    num_heads_upsample: int = -1
    num_classes: int | None = None
    null_class: bool = False
    dropout: float = 0.0
    use_scale_shift_norm: bool = False
    conv_resample: bool = True
    low_res: bool = False
    recompute: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        object.__setattr__(self, "attention_rates", frozenset(self.attention_rates))
        if self.width < GROUPS or self.width % GROUPS:
            near = max(GROUPS, round(self.width / GROUPS) * GROUPS)
            raise ShapeError(f"num_channels is {self.width}, expected a multiple of {GROUPS} such as {near}")
        if not self.channel_mult or self.channel_mult[0] != 1 or min(self.channel_mult) < 1:
            raise ShapeError(
                f"channel_mult is {_listed(self.channel_mult)}, expected whole numbers that begin with 1, such as 1,2,2"
            )
        if self.num_res_blocks < 1:
            raise ShapeError(f"num_res_blocks is {self.num_res_blocks}, expected 1 or more")
        if self.num_classes is not None and self.num_classes < 1:
            raise ShapeError(f"num_classes is {self.num_classes}, expected 1 or more, or None for no labels")
        if self.null_class and self.num_classes is None:
            raise ShapeError("null_class needs labels: set class_cond (num_classes), or leave null_class off")
        if not 0 <= self.dropout < 1:
            raise ShapeError(f"dropout is {self.dropout:g}, expected at least 0 and less than 1")
        if self.dtype not in DTYPES:
            raise ShapeError(f"dtype is {self.dtype}, expected one of {', '.join(DTYPES)}")
        for heads, name in ((self.num_heads, "num_heads"), (self.upsample_heads, "num_heads_upsample")):
            if heads < 1:
                raise ShapeError(f"{name} is {heads}, expected 1 or more")
        self._check_heads()

    def _check_heads(self) -> None:
        plan = self.plan()
        for block in (*plan.input_blocks, plan.middle_block, *plan.output_blocks):
            for part in block:
                if isinstance(part, Attention) and part.channels % part.heads:
                    upward = block in plan.output_blocks and self.num_heads_upsample != -1
                    name = "num_heads_upsample" if upward else "num_heads"
                    raise ShapeError(
                        f"{name} is {part.heads}, which does not divide the {part.channels} channels of an attention "
                        "layer: choose a divisor such as 1, 2 or 4"
                    )

    @property
    def upsample_heads(self) -> int:
        return self.num_heads if self.num_heads_upsample == -1 else self.num_heads_upsample

    @property
    def embedding_width(self) -> int:
        """Channels of the embedding of timestep and label."""
        return 4 * self.width

    @property
    def classes(self) -> int:
        """Rows of the class table; 0 without labels."""
        return (self.num_classes or 0) + self.null_class

    @property
    def null_label(self) -> int:
        """The label that stands for none.

        Raises:
          ShapeError: the network has no such class.
        """
        if not self.null_class or self.num_classes is None:
            raise ShapeError("this network has no class that stands for 'no label': train one with null_class")
        return self.num_classes

    def check_image(self, height: int, width: int) -> None:
        """Raises `ShapeError` for images whose sides cannot be halved between all levels."""
        multiple = 2 ** (len(self.channel_mult) - 1)
        if height % multiple or width % multiple or min(height, width) < 1:
            raise ShapeError(
                f"images are {height}x{width}, but {len(self.channel_mult)} levels (channel_mult "
                f"{_listed(self.channel_mult)}) need sides that are multiples of {multiple}: crop or resize the images, "
                "or give fewer levels"
            )

    def plan(self) -> Plan:
        """The blocks of these settings (Nichol & Dhariwal, section 3 and appendix A)."""
        levels = [self.width * multiplier for multiplier in self.channel_mult]
        rate, channels = 1, self.width
        image_channels = self.in_channels * (2 if self.low_res else 1)
        down: list[Block] = [(Convolution(image_channels, channels),)]
        kept = [channels]
        for level, outputs in enumerate(levels):
            for _ in range(self.num_res_blocks):
                down.append((Residual(channels, outputs), *self._attention(rate, outputs, self.num_heads)))
                channels = outputs
                kept.append(channels)
            if level < len(levels) - 1:
                down.append((Downsample(channels),))
                kept.append(channels)
                rate *= 2
        middle = (Residual(channels, channels), Attention(channels, self.num_heads), Residual(channels, channels))
        up: list[Block] = []
        for level, outputs in reversed(list(enumerate(levels))):
            for index in range(self.num_res_blocks + 1):
                parts: list[Part] = [Residual(channels + kept.pop(), outputs)]
                parts += self._attention(rate, outputs, self.upsample_heads)
                channels = outputs
                if level and index == self.num_res_blocks:
                    parts.append(Upsample(channels))
                    rate //= 2
                up.append(tuple(parts))
        return Plan(tuple(down), middle, tuple(up))

    def _attention(self, rate: int, channels: int, heads: int) -> tuple[Attention, ...]:
        return (Attention(channels, heads),) if rate in self.attention_rates else ()


def parameter_count(shape: UNetShape) -> int:
    """Number of trainable parameters, from the settings alone."""
    embedding = shape.embedding_width

    def affine(inputs: int, outputs: int, area: int = 1) -> int:
        return (inputs * area + 1) * outputs

    def parameters(part: Part) -> int:
        match part:
            case Convolution(inputs, outputs):
                return affine(inputs, outputs, 9)
            case Residual(inputs, outputs):
                skip = affine(inputs, outputs) if inputs != outputs else 0
                modulation = affine(embedding, outputs * (2 if shape.use_scale_shift_norm else 1))
                norms = 2 * inputs + 2 * outputs
                return norms + affine(inputs, outputs, 9) + modulation + affine(outputs, outputs, 9) + skip
            case Attention(channels):
                return 2 * channels + affine(channels, 3 * channels) + affine(channels, channels)
            case Downsample(channels) | Upsample(channels):
                return affine(channels, channels, 9) if shape.conv_resample else 0

    plan = shape.plan()
    total = affine(shape.width, embedding) + affine(embedding, embedding) + shape.classes * embedding
    for block in (*plan.input_blocks, plan.middle_block, *plan.output_blocks):
        total += sum(parameters(part) for part in block)
    return total + 2 * shape.width + affine(shape.width, shape.out_channels, 9)


def unet_shape(
    *,
    image_size: int,
    num_channels: int = 128,
    num_res_blocks: int = 2,
    num_heads: int = 4,
    num_heads_upsample: int = -1,
    attention_resolutions: str = "16,8",
    dropout: float = 0.0,
    learn_sigma: bool = False,
    class_cond: bool = False,
    use_scale_shift_norm: bool = True,
    use_checkpoint: bool = False,
    channel_mult: Sequence[int] = (),
    num_classes: int = 1000,
    null_class: bool = False,
    low_res: bool = False,
    image_channels: int = 3,
    dtype: str = "float32",
) -> UNetShape:
    """The shape that flags of the original, and our own from `channel_mult` on, describe.

    Args:
      image_size: side of the images (large_size in super-resolution).
      attention_resolutions: comma list of the sides, not rates, at which attention is used.
      channel_mult: of each level; empty for the original's at this size.
      low_res: for super-resolution.

    Raises:
      ShapeError: a size without multipliers, a list that is none, or settings that do not fit together.
    """
    if not channel_mult and image_size not in CHANNEL_MULTIPLIERS:
        sizes = ", ".join(map(str, sorted(CHANNEL_MULTIPLIERS)))
        raise ShapeError(
            f"images of side {image_size} have no customary channel_mult (sides {sizes} have): give one, such as "
            "--channel_mult=1,2,2,2"
        )
    multipliers = tuple(channel_mult) or CHANNEL_MULTIPLIERS[image_size]
    return UNetShape(
        width=num_channels,
        in_channels=image_channels,
        out_channels=image_channels * (2 if learn_sigma else 1),
        num_res_blocks=num_res_blocks,
        channel_mult=multipliers,
        attention_rates=_rates(image_size, attention_resolutions),
        num_heads=num_heads,
        num_heads_upsample=num_heads_upsample,
        num_classes=num_classes if class_cond else None,
        null_class=null_class,
        dropout=dropout,
        use_scale_shift_norm=use_scale_shift_norm,
        low_res=low_res,
        recompute=use_checkpoint,
        dtype=dtype,
    )


def _rates(image_size: int, resolutions: str) -> frozenset[int]:
    sides = [text.strip() for text in resolutions.split(",")] if resolutions.strip() else []
    wrong = [text for text in sides if not text.isdecimal() or int(text) < 1]
    if wrong:
        raise ShapeError(
            f"attention_resolutions is {resolutions!r}, expected sides separated by commas, such as 16,8; "
            f"{wrong[0]!r} is none"
        )
    return frozenset(image_size // int(text) for text in sides)


def _listed(values: Sequence[int]) -> str:
    return ",".join(map(str, values)) or "empty"
