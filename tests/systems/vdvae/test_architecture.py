"""Block strings and widths: the grammar, the shapes they describe, and what is refused with which words."""

from __future__ import annotations

import re

import pytest

from tfgen.systems.vdvae import architecture
from tfgen.systems.vdvae.architecture import ArchitectureError, parse_blocks, parse_widths

GOOD = {"image_size": 8, "enc_blocks": "8x1,8d2,4x1,4d4,1x1", "dec_blocks": "1x1,4m1,8m4", "width": 8}


def build(**changes) -> architecture.Architecture:
    return architecture.build(**(GOOD | changes))


# The grammar ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("32", [(32, None)]),
        ("32x3", [(32, None)] * 3),
        ("32x0", []),
        ("8x0,4x1,2x0", [(4, None)]),
        ("32d2", [(32, 2)]),
        ("4m1", [(4, 1)]),
        ("1x1,4m1,4x2, 8m4 ,8", [(1, None), (4, 1), (4, None), (4, None), (8, 4), (8, None)]),
        ("1024x1,1024d2", [(1024, None), (1024, 2)]),
    ],
)
def test_tokens(text, expected):
    assert [(token.resolution, token.second) for token in parse_blocks(text)] == expected


@pytest.mark.parametrize(
    "item",
    ["x3", "4x", "m", "4x2m1", "4m1x2", "4d2m1", "4mm1", "-4x1", "4x-1", "4.0", "4 x1", "4X1", "four", "0", "0x2", ":"],
)
@pytest.mark.parametrize("name", ["enc_blocks", "dec_blocks"])
def test_garbage_is_named(name, item):
    text = f"8x1,{item},4x1"
    with pytest.raises(ArchitectureError, match=re.escape(f"--{name}={text}: cannot read {item!r}; expected RxN (N")):
        parse_blocks(text, name)


@pytest.mark.parametrize("text", [",", "4x1,", ",4x1", "4x1,,1x1"])
def test_an_empty_token_is_garbage(text):
    with pytest.raises(ArchitectureError, match="cannot read ''; expected RxN"):
        parse_blocks(text)


@pytest.mark.parametrize("name", ["enc_blocks", "dec_blocks"])
def test_repetitions_are_bounded(name):
    assert len(parse_blocks("8x10000", name)) == 10_000
    message = f"--{name}=8x1, 4x10001: '4x10001' stands for 10,001 blocks, expected at most 10,000"
    with pytest.raises(ArchitectureError, match=re.escape(message)):
        parse_blocks("8x1, 4x10001", name)
    with pytest.raises(ArchitectureError, match="cannot read '8x9999"):
        parse_blocks("8x" + "9" * 5000, name)


@pytest.mark.parametrize("item", ["4d0", "4m0"])
def test_a_second_number_of_zero_is_refused(item):
    message = f"--enc_blocks=8x1,{item}: the number after '{item[1]}' in '{item}' is 0, expected 1 or more"
    with pytest.raises(ArchitectureError, match=re.escape(message)):
        parse_blocks(f"8x1,{item}")


def test_d_and_m_mean_what_their_reader_takes_them_for():
    assert build(enc_blocks="8x1,8m2,4x1,4m4,1x1", dec_blocks="1x1,4d1,8d4") == build()


# Widths --------------------------------------------------------------------------------------------------


def test_widths():
    widths = parse_widths(16, "512:32, 256:64")
    assert [widths[side] for side in (1, 256, 512, 1024)] == [16, 64, 32, 16]
    assert parse_widths(16, "")[512] == 16


@pytest.mark.parametrize("item", ["8", "8:", ":16", "8:0", "8:-1", "a:16", "8:16:2", "8=16", "8:1.5"])
def test_widths_that_cannot_be_read(item):
    message = f"--custom_width_str=4:16,{item}: cannot read '{item}'; expected RESOLUTION:WIDTH, such as 256:64"
    with pytest.raises(ArchitectureError, match=re.escape(message)):
        parse_widths(8, f"4:16,{item}")


def test_inner_widths_are_truncated():
    shape = build(width=10, custom_width_str="4:11,1:15", bottleneck_multiple=0.25)
    assert [block.middle for block in shape.encoder] == [2, 2, 2, 2, 3]
    assert [block.middle for block in shape.decoder] == [3, 2, 2]
    assert [block.width for block in shape.decoder] == [15, 11, 10]


# Shapes --------------------------------------------------------------------------------------------------


def test_encoder():
    """A block's output belongs to the resolution after pooling, whose width it is padded to."""
    encoder = build(custom_width_str="4:12,1:20").encoder
    found = [(b.resolution, b.width, b.pool, b.output_resolution, b.output_width) for b in encoder]
    assert found == [(8, 8, 1, 8, 8), (8, 8, 2, 4, 12), (4, 12, 1, 4, 12), (4, 12, 4, 1, 20), (1, 20, 1, 1, 20)]


def test_pooling_drops_a_remainder():
    shape = build(image_size=7, enc_blocks="7d2,3d2", dec_blocks="1x1,7m1")
    assert [block.output_resolution for block in shape.encoder] == [3, 1]


def test_a_resolution_may_be_reached_by_pooling_alone():
    assert build(enc_blocks="8d2,4d4", dec_blocks="1x1,4m1,8m4").encoder[-1].output_resolution == 1


def test_decoder():
    decoder = build(dec_blocks="1x2,4m1,8m4,8x1,8m4").decoder
    expected = [(1, None), (1, None), (4, 1), (8, 4), (8, None), (8, 4)]
    assert [(block.resolution, block.mixin) for block in decoder] == expected


def test_a_resolution_may_be_left_out_of_the_decoder():
    """Its encoder blocks still lead to the ones below."""
    assert build(dec_blocks="1x1,8m1").latent_resolutions == (1, 8)


@pytest.mark.parametrize(("limit", "expected"), [(64, (1, 4, 8)), (4, (1, 4)), (3, (1,)), (0, ())])
def test_biases_are_ascending_up_to_the_limit(limit, expected):
    shape = build(dec_blocks="4x1,1x1,4m1,8m4", no_bias_above=limit)
    assert shape.bias_resolutions == expected
    assert shape.latent_resolutions == (1, 4, 8)


def test_a_bias_map_can_be_mixed_in_before_any_block():
    early = "1x1,8m4,4m1,8m4"
    assert build(dec_blocks=early).decoder[1].mixin == 4
    with pytest.raises(ArchitectureError, match=r"adds the state at 4 before any block.*--no_bias_above=3 have no"):
        build(dec_blocks=early, no_bias_above=3)


# What contradicts itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enc_blocks": ""}, "--enc_blocks is empty: give the encoder at least one block"),
        ({"enc_blocks": "8x0"}, "--enc_blocks is empty"),
        ({"enc_blocks": "4x1,1x1"}, "block 0 declares resolution 4, but the features are 8 x 8 there (images of 8"),
        ({"enc_blocks": "8x1,8d2,8x1"}, "block 2 declares resolution 8, but the features are 4 x 4 there"),
        ({"enc_blocks": "8x1,8d9"}, "block 1 pools 8 x 8 features by 9, which leaves nothing; at most 8"),
        ({"image_size": 16}, "block 0 declares resolution 8, but the features are 16 x 16 there (images of 16"),
        ({"dec_blocks": ""}, "--dec_blocks= has no block at resolution 8, that of the images"),
        ({"dec_blocks": "1x1,4m1"}, "--dec_blocks=1x1,4m1 has no block at resolution 8, that of the images"),
        ({"dec_blocks": "1x1,8x0"}, "has no block at resolution 8"),
        (
            {"dec_blocks": "1x1,2m1,8m2"},
            "block 1 (resolution 2) has no encoder features of its size; --enc_blocks offers 1, 4, 8",
        ),
        ({"dec_blocks": "1x1,16m1,8m1"}, "block 1 (resolution 16) has no encoder features of its size"),
        (
            {"dec_blocks": "1x1,4m8,8m4"},
            "block 1 (resolution 4) adds the state at 8: the source must be smaller and divide 4",
        ),
        ({"dec_blocks": "1x1,4m4,8m4"}, "adds the state at 4: the source must be smaller and divide 4"),
        ({"dec_blocks": "1x1,8m3"}, "adds the state at 3: the source must be smaller and divide 8"),
        ({"dec_blocks": "1x1,8m2"}, "adds the state at 2, which no decoder block has; there are 1, 8"),
        (
            {"dec_blocks": "4x1,8m4"},
            "the encoder ends at resolution 1, which no decoder block reads: end --enc_blocks earlier or add 1x1 to "
            "--dec_blocks (it has resolutions 4, 8)",
        ),
        (
            {"dec_blocks": "1x1,8m1,4m1"},
            "--dec_blocks=1x1,8m1,4m1: the last block has resolution 4, but the image is made of the state at 8, and "
            "nothing reads what comes after block 1: end with a block at 8",
        ),
        (
            {"dec_blocks": "1x1,4m1,8x1"},
            "no block after block 1, the last at resolution 4, adds the state at 4, so that it does not reach the "
            "image: write Rm4 at a later, larger resolution R, or leave it out",
        ),
        ({"dec_blocks": "1x1,4x1,8m4"}, "no block after block 0, the last at resolution 1, adds the state at 1"),
        ({"dec_blocks": "1x1,4m1,8m4,4x1,8x1"}, "no block after block 3, the last at resolution 4, adds the state"),
        (
            {"custom_width_str": "8:16"},
            "--custom_width_str gives resolution 8, that of the images, 16 channels, but stem and output head have "
            "--width=8: make them equal",
        ),
        (
            {"custom_width_str": "4:12,1:8"},
            "widths may only grow as the resolution falls, but 4 has 12 channels and 1 has 8: change",
        ),
        ({"custom_width_str": "4:4"}, "8 has 8 channels and 4 has 4"),
        (
            {"bottleneck_multiple": 0.1},
            "--bottleneck_multiple=0.1 of 8 channels (resolution 8) leaves no channel inside a block",
        ),
    ],
)
def test_complaints(changes, message):
    with pytest.raises(ArchitectureError, match=re.escape(message)):
        build(**changes)
