"""Settings of DistAug: derived values, parameter counts and checks."""

from __future__ import annotations

import dataclasses

import pytest

from tfgen.data.source import ImageSpec
from tfgen.settings import SettingsError
from tfgen.systems.distaug.config import Config, parameter_count

SPEC = ImageSpec(8, 8, 3)
GOOD = Config(n_ctx=192, n_embd=32, n_layer=4, n_head=2, attention_layers="bT,b,b,b", local_attn_ctx=24, blocksize=8)


def test_defaults_contradict_nothing():
    Config().check()
    GOOD.validate(SPEC)
    dataclasses.replace(GOOD, blocksparse_op=True).validate(SPEC)


def test_attention_modes_cycle_over_the_layers():
    config = Config(n_layer=6, attention_layers="b,bT,a")
    assert config.modes == ("b", "bT", "a", "b", "bT", "a")


def test_conditioning_types_keep_the_order_of_application():
    everything = Config(
        use_rotation=True,
        use_color=True,
        use_transposition=True,
        use_reverse=True,
        use_jigsaw=True,
        rand_augment_conditioning=True,
        use_randomly_determined_order=True,
        randomly_determined_order_num_perms=5,
        use_dataset_conditioning=True,
    )
    rows = {
        "sos_rot": 4,
        "sos_c": 6,
        "sos_tr": 2,
        "sos_rev": 2,
        "sos_js": 24,
        "sos_aa": 2,
        "sos_rd": 6,
        "sos_data": 2,
    }
    assert list(everything.conditioning_types.items()) == list(rows.items())
    unconditional = dataclasses.replace(everything, use_unconditional_augmentation=True)
    assert unconditional.conditioning_types == {}
    assert unconditional.augmentation_types == rows


def test_parameter_count_by_hand():
    # E 2, S 1, I 6, one layer, 4x5 grey images: tables 256 + 10 + 1 rows of 2, norms 8, q and k 2 (2 + 1),
    # v and post 2 (4 + 2), MLP (12 + 6) + (12 + 2), final norm 4, output 512.
    config = Config(n_embd=2, n_head=1, n_layer=1, qk_ratio=0.5, mlp_multiple=3.0)
    spec = ImageSpec(4, 5, 1)
    assert parameter_count(config, spec) == 534 + 8 + 6 + 12 + 32 + 4 + 512
    lookahead = dataclasses.replace(config, randomly_determined_order_use_lookahead=True)
    assert parameter_count(lookahead, spec) - parameter_count(config, spec) == 20
    rotation = dataclasses.replace(config, use_rotation=True)
    assert parameter_count(rotation, spec) - parameter_count(config, spec) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_ctx": 64, "local_attn_ctx": 8}, "--n_ctx=64, but images of cifar10 are 8x8x3: expected --n_ctx=192"),
        ({"n_layer": 6}, "--n_layer=6 is no multiple of the 4 modes"),
        ({"attention_layers": "bT,strided"}, "no attention mode 'strided'"),
        ({"attention_layers": "b, b"}, "no attention mode ' b'"),
        ({"n_head": 3}, "n_embd = 32 cannot be split evenly into --n_head=3"),
        ({"n_head": 32, "qk_ratio": 0.5}, r"int\(n_embd \* qk_ratio\) = 16 cannot be split"),
        ({"qk_ratio": 0.0}, "cannot be split"),
        ({"mlp_multiple": 0.01}, "leaves an MLP of width 0"),
        ({"blocksize": 12}, "--blocksize=12: expected one of 8, 16, 32, 64"),
        ({"blocksize": 64, "blocksparse_op": True, "n_ctx": 96}, "--n_ctx=96 is no multiple of --blocksize=64"),
        ({"local_attn_ctx": 12, "blocksparse_op": True}, "--local_attn_ctx=12 is no multiple of --blocksize=8"),
        ({"local_attn_ctx": 20}, "--n_ctx=192 is no multiple of --local_attn_ctx=20"),
        ({"local_attn_ctx": 48, "blocksparse_op": True}, "n_ctx / local_attn_ctx = 4 is no multiple of --blocksize=8"),
        ({"attention_layers": "b_all"}, "mode b_all needs --n_ctx=1024"),
        ({"rand_augment_conditioning": True, "use_unconditional_augmentation": True}, "contradicts"),
        ({"use_dataset_conditioning": True}, "add --auxiliary_dataset=NAME"),
        ({"auxiliary_dataset_subset_size": 10}, "needs --auxiliary_dataset=NAME"),
        ({"aug_eval": "valid", "use_dataset_conditioning": True, "auxiliary_dataset": "digits"}, "cannot choose"),
        ({"dataset": "imagenet32cifar"}, "--auxiliary_dataset=imagenet32"),
        ({"use_jigsaw": True, "jigsaw_grid_size": 3}, "does not divide the sides"),
        ({"temperature": 0.0}, "--temperature=0.0: expected a number above 0"),
        ({"resid_pdrop": 1.0}, "below 1"),
        ({"n_layer": "4"}, "--n_layer=4: expected an integer"),
        ({"use_rotation": 1}, "expected true or false"),
    ],
)
def test_complaints(changes, message):
    with pytest.raises(SettingsError, match=message):
        dataclasses.replace(GOOD, **changes).validate(SPEC)


@pytest.mark.parametrize("flag", ["use_rotation", "use_transposition"])
def test_rotation_needs_square_images(flag):
    config = Config(n_ctx=72, **{flag: True})
    with pytest.raises(SettingsError, match="need square images, but images of cifar10 are 4x6x3"):
        config.validate(ImageSpec(4, 6, 3))


def test_rand_augment_needs_three_channels():
    with pytest.raises(SettingsError, match="--rand_augment needs images with 3 channels"):
        Config(n_ctx=64, rand_augment=True).validate(ImageSpec(8, 8, 1))


def test_colour_permutation_needs_three_channels():
    with pytest.raises(SettingsError, match="3 channels, but images of cifar10 are 8x8x1"):
        Config(n_ctx=64, use_color=True).validate(ImageSpec(8, 8, 1))


def test_grey_images_of_any_size_are_fine():
    Config(n_ctx=64, use_rotation=True, use_jigsaw=True).validate(ImageSpec(8, 8, 1))
    Config(n_ctx=20, use_reverse=True).validate(ImageSpec(4, 5, 1))
