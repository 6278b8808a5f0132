"""Block strings and widths: the architecture of a Very Deep VAE as its two strings describe it.

A block string is a comma list of tokens: `32x11` is eleven blocks at resolution 32; `32` is one; `32d2` in the encoder
is a block at 32 whose output is average-pooled by 2; `16m8` in the decoder is a block at 16 that first adds the state
at 8, repeated to 16 by 16. As in the original grammar `d` and `m` are interchangeable: the encoder reads the second
number as a pooling factor, the decoder as a source resolution. Imports no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from tfgen.settings import SettingsError

_TOKEN = re.compile(r"(\d{1,9})(?:([xmd])(\d{1,9}))?")
_MOST_REPETITIONS = 10_000  # a slip of the finger would fill the memory before anything else complains


class ArchitectureError(SettingsError):
    """Block strings, widths or image size that do not describe a network."""


@dataclasses.dataclass(frozen=True)
class Token:
    """One block of a string: its resolution, and the number after `m` or `d` if there is one."""

    resolution: int
    second: int | None = None


def parse_blocks(text: str, flag_name: str = "enc_blocks") -> tuple[Token, ...]:
    """The blocks of a block string, in order.

    Raises:
      ArchitectureError: a token outside the grammar, or of too many blocks; the text names it.
    """
    blocks: list[Token] = []
    for item in text.split(",") if text else ():
        match = _TOKEN.fullmatch(item.strip())
        if match is None or int(match[1]) == 0:
            raise ArchitectureError(
                f"--{flag_name}={text}: cannot read {item!r}; expected RxN (N blocks at resolution R), R, "
                "RdF (block, then pooling by F; encoder) or RmS (block that adds the state at resolution S; decoder)"
            )
        resolution, kind, number = int(match[1]), match[2], match[3]
        if kind == "x" and int(number) > _MOST_REPETITIONS:
            raise ArchitectureError(
                f"--{flag_name}={text}: {item.strip()!r} stands for {int(number):,} blocks, expected at most "
                f"{_MOST_REPETITIONS:,}"
            )
        if kind == "x":
            blocks += [Token(resolution)] * int(number)
        elif kind is None:
            blocks.append(Token(resolution))
        elif int(number) == 0:
            raise ArchitectureError(
                f"--{flag_name}={text}: the number after {kind!r} in {item!r} is 0, expected 1 or more"
            )
        else:
            blocks.append(Token(resolution, int(number)))
    return tuple(blocks)


class Widths(Mapping[int, int]):
    """Channels at each resolution: `custom` where it lists one, `default` everywhere else."""

    def __init__(self, default: int, custom: Mapping[int, int]):
        self.default, self.custom = default, dict(custom)

    def __getitem__(self, resolution: int) -> int:
        return self.custom.get(resolution, self.default)

    def __iter__(self):
        return iter(self.custom)

    def __len__(self) -> int:
        return len(self.custom)


def parse_widths(default: int, text: str) -> Widths:
    """Widths from `--width` and `--custom_width_str` ("512:32,256:64").

    Raises:
      ArchitectureError: an entry that is not RESOLUTION:WIDTH, or a width of 0.
    """
    custom: dict[int, int] = {}
    for item in text.split(",") if text else ():
        resolution, _, width = (part.strip() for part in item.partition(":"))
        if not (resolution.isdecimal() and width.isdecimal() and int(width) > 0):
            raise ArchitectureError(
                f"--custom_width_str={text}: cannot read {item!r}; expected RESOLUTION:WIDTH, such as 256:64"
            )
        custom[int(resolution)] = int(width)
    return Widths(default, custom)


@dataclasses.dataclass(frozen=True)
class EncoderBlock:
    """A residual block of the encoder.

    Attributes:
      resolution: side of its input.
      width, middle: channels of the block and of its bottleneck.
      pool: average-pooling factor after it; 1 for none.
      output_resolution, output_width: of what it hands on; channels are padded with zeros up to `output_width`.
    """

    resolution: int
    width: int
    middle: int
    pool: int
    output_resolution: int
    output_width: int


@dataclasses.dataclass(frozen=True)
class DecoderBlock:
    """A stochastic layer of the decoder.

    Attributes:
      resolution: side of its feature map and of its latents.
      width, middle: channels of the block and of its bottlenecks.
      mixin: resolution whose state is added first; None for none.
    """

    resolution: int
    width: int
    middle: int
    mixin: int | None


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A validated network shape.

    Attributes:
      image_size: side of the (square) images.
      width: channels of the stem and of the output.
      encoder, decoder: blocks in order of evaluation.
      bias_resolutions: resolutions with a learned spatial bias, ascending.
    """

    image_size: int
    width: int
    encoder: tuple[EncoderBlock, ...]
    decoder: tuple[DecoderBlock, ...]
    widths: Widths
    bias_resolutions: tuple[int, ...]

    @property
    def latent_resolutions(self) -> tuple[int, ...]:
        """Resolutions of the stochastic layers, ascending, each once."""
        return tuple(sorted({block.resolution for block in self.decoder}))


def build(
    *,
    image_size: int,
    enc_blocks: str,
    dec_blocks: str,
    width: int,
    custom_width_str: str = "",
    bottleneck_multiple: float = 0.25,
    no_bias_above: int = 64,
) -> Architecture:
    """The network that the flags of the same names describe for images of `image_size`.

    Raises:
      ArchitectureError: strings that contradict each other, the widths or the image size; the text says where.
    """
    widths = parse_widths(width, custom_width_str)
    if widths[image_size] != width:
        raise ArchitectureError(
            f"--custom_width_str gives resolution {image_size}, that of the images, {widths[image_size]} channels, but "
            f"stem and output head have --width={width}: make them equal"
        )
    encoder = _encoder(image_size, enc_blocks, widths, bottleneck_multiple)
    offered = {image_size} | {block.output_resolution for block in encoder}
    decoder = _decoder(image_size, dec_blocks, widths, bottleneck_multiple, offered, no_bias_above)

    last = encoder[-1].output_resolution
    resolutions = sorted({block.resolution for block in decoder})
    if last not in resolutions:
        raise ArchitectureError(
            f"the encoder ends at resolution {last}, which no decoder block reads: end --enc_blocks earlier or add "
            f"{last}x1 to --dec_blocks (it has resolutions {_listed(resolutions)})"
        )
    biases = tuple(resolution for resolution in resolutions if resolution <= no_bias_above)
    return Architecture(image_size, width, encoder, decoder, widths, biases)


def _middle(width: int, multiple: float, resolution: int) -> int:
    middle = int(width * multiple)
    if middle < 1:
        raise ArchitectureError(
            f"--bottleneck_multiple={multiple:g} of {width} channels (resolution {resolution}) leaves no channel "
            "inside a block: raise it or the width"
        )
    return middle


def _encoder(image_size: int, text: str, widths: Widths, multiple: float) -> tuple[EncoderBlock, ...]:
    tokens = parse_blocks(text, "enc_blocks")
    if not tokens:
        raise ArchitectureError("--enc_blocks is empty: give the encoder at least one block, such as 32x2,32d2,16x2")
    blocks: list[EncoderBlock] = []
    resolution = image_size
    for index, token in enumerate(tokens):
        if token.resolution != resolution:
            raise ArchitectureError(
                f"--enc_blocks={text}: block {index} declares resolution {token.resolution}, but the features are "
                f"{resolution} x {resolution} there (images of {image_size}, pooled by the blocks before it)"
            )
        pool = token.second or 1
        if pool > resolution:
            raise ArchitectureError(
                f"--enc_blocks={text}: block {index} pools {resolution} x {resolution} features by {pool}, which "
                f"leaves nothing; at most {resolution}"
            )
        width, output = widths[resolution], resolution // pool
        if widths[output] < width:
            raise ArchitectureError(
                f"encoder widths may only grow as the resolution falls, but {resolution} has {width} channels and "
                f"{output} has {widths[output]}: change --custom_width_str"
            )
        blocks.append(
            EncoderBlock(resolution, width, _middle(width, multiple, resolution), pool, output, widths[output])
        )
        resolution = output
    return tuple(blocks)


def _decoder(
    image_size: int, text: str, widths: Widths, multiple: float, offered: set[int], no_bias_above: int
) -> tuple[DecoderBlock, ...]:
    tokens = parse_blocks(text, "dec_blocks")
    declared = {token.resolution for token in tokens}
    if image_size not in declared:
        raise ArchitectureError(
            f"--dec_blocks={text} has no block at resolution {image_size}, that of the images: "
            "the last one must have it"
        )
    blocks: list[DecoderBlock] = []
    for index, token in enumerate(tokens):
        resolution, mixin = token.resolution, token.second
        where = f"--dec_blocks={text}: block {index} (resolution {resolution})"
        if resolution not in offered:
            raise ArchitectureError(
                f"{where} has no encoder features of its size; --enc_blocks offers {_listed(sorted(offered))}"
            )
        if mixin is not None:
            if mixin >= resolution or resolution % mixin:
                raise ArchitectureError(
                    f"{where} adds the state at {mixin}: the source must be smaller and divide {resolution}"
                )
            if mixin not in declared:
                raise ArchitectureError(
                    f"{where} adds the state at {mixin}, which no decoder block has; "
                    f"there are {_listed(sorted(declared))}"
                )
            if mixin > no_bias_above and mixin not in {block.resolution for block in blocks}:
                raise ArchitectureError(
                    f"{where} adds the state at {mixin} before any block has computed it, and resolutions above "
                    f"--no_bias_above={no_bias_above} have no initial state: put a block at {mixin} first"
                )
            if widths[mixin] < widths[resolution]:
                raise ArchitectureError(
                    f"{where} takes {widths[resolution]} channels from resolution {mixin}, which has {widths[mixin]}: "
                    "widths may only grow as the resolution falls, change --custom_width_str"
                )
        width = widths[resolution]
        blocks.append(DecoderBlock(resolution, width, _middle(width, multiple, resolution), mixin))
    _check_that_all_is_used(image_size, text, blocks)
    return tuple(blocks)


def _check_that_all_is_used(image_size: int, text: str, blocks: list[DecoderBlock]) -> None:
    """Raises for blocks that do not reach the image: they would be computed, and stay as they were initialised."""
    last = {block.resolution: index for index, block in enumerate(blocks)}
    if last[image_size] != len(blocks) - 1:
        raise ArchitectureError(
            f"--dec_blocks={text}: the last block has resolution {blocks[-1].resolution}, but the image is made of the "
            f"state at {image_size}, and nothing reads what comes after block {last[image_size]}: end with a block at "
            f"{image_size}"
        )
    for resolution, index in last.items():
        if resolution != image_size and all(block.mixin != resolution for block in blocks[index + 1 :]):
            raise ArchitectureError(
                f"--dec_blocks={text}: no block after block {index}, the last at resolution {resolution}, adds the "
                f"state at {resolution}, so that it does not reach the image: write Rm{resolution} at a later, larger "
                "resolution R, or leave it out"
            )


def _listed(numbers) -> str:
    return ", ".join(str(number) for number in numbers)
