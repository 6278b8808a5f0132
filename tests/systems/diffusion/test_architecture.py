"""The shape of the UNet: the blocks that settings resolve to, their size, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tfgen.systems.diffusion.architecture import (
    Attention,
    Convolution,
    Downsample,
    Residual,
    ShapeError,
    UNetShape,
    Upsample,
    parameter_count,
    unet_shape,
)
from tfgen.systems.diffusion.unet import UNet

SMALL = UNetShape(width=32, num_res_blocks=1, channel_mult=(1, 2), attention_rates=frozenset({2}), num_heads=2)


def test_plan_of_the_cifar10_network():
    plan = unet_shape(image_size=32, num_channels=128, num_res_blocks=3, learn_sigma=True).plan()
    attention = Attention(256, 4)

    def blocks(*pairs, then=()):
        return [(Residual(*pair), *then) for pair in pairs]

    with_attention = {"then": (attention,)}
    assert list(plan.input_blocks) == [
        (Convolution(3, 128),), *blocks(*[(128, 128)] * 3), (Downsample(128),),
        *blocks((128, 256), (256, 256), (256, 256), **with_attention), (Downsample(256),),
        *blocks(*[(256, 256)] * 3, **with_attention), (Downsample(256),), *blocks(*[(256, 256)] * 3),
    ]  # fmt: skip
    assert plan.middle_block == (Residual(256, 256), attention, Residual(256, 256))
    assert list(plan.output_blocks) == [
        *blocks(*[(512, 256)] * 3), (Residual(512, 256), Upsample(256)),
        *blocks(*[(512, 256)] * 3, **with_attention), (Residual(512, 256), attention, Upsample(256)),
        *blocks(*[(512, 256)] * 3, **with_attention), (Residual(384, 256), attention, Upsample(256)),
        *blocks((384, 128), *[(256, 128)] * 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"image_size": 64, "num_res_blocks": 3, "learn_sigma": True}, 121_063_942),
        ({"image_size": 32, "num_res_blocks": 3, "learn_sigma": True, "dropout": 0.3}, 52_546_438),
        (
            {"image_size": 64, "num_channels": 192, "num_res_blocks": 3, "learn_sigma": True, "class_cond": True},
            273_049_350,
        ),
        (
            {"image_size": 256, "num_channels": 192, "learn_sigma": True, "class_cond": True, "low_res": True},
            279_792_390,
        ),
        (
            {"image_size": 256, "num_heads": 1, "learn_sigma": True, "use_scale_shift_norm": False,
             "attention_resolutions": "16"},
            113_676_678,
        ),
        ({"image_size": 64, "num_res_blocks": 3}, 121_060_483),
        ({"image_size": 64}, 92_025_731),
        ({"image_size": 256, "low_res": True}, 124_056_707),
        ({"image_size": 32, "num_channels": 64, "learn_sigma": True, "dropout": 0.3}, 9_926_790),
    ],
)  # fmt: skip
def test_published_parameter_counts(flags, expected):
    assert parameter_count(unet_shape(**flags)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_scale_shift_norm": True, "num_classes": 5, "null_class": True, "out_channels": 6},
        {"low_res": True, "conv_resample": False, "channel_mult": (1, 1, 3), "num_res_blocks": 2, "in_channels": 1},
    ],
)
def test_parameter_count_is_that_of_the_variables(changes):
    shape = dataclasses.replace(SMALL, **changes)
    network = UNet(shape, seed=None)
    assert sum(np.prod(variable.shape) for variable in network.trainable_variables) == parameter_count(shape)
    assert len(network.variables) == len(network.trainable_variables)


def test_attention_resolutions_become_rates():
    assert unet_shape(image_size=32, attention_resolutions="16,8").attention_rates == {2, 4}
    assert unet_shape(image_size=64, attention_resolutions=" 32 , 8").attention_rates == {2, 8}
    assert unet_shape(image_size=64, attention_resolutions="").attention_rates == set()
    assert unet_shape(image_size=128, channel_mult=(1, 2)).channel_mult == (1, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_channels": 48}, "num_channels is 48, expected a multiple of 32 such as 64"),
        ({"num_channels": 0}, "multiple of 32 such as 32"),
        ({"channel_mult": (2, 2)}, "channel_mult is 2,2, expected whole numbers that begin with 1"),
        ({"channel_mult": (1, 0)}, "begin with 1"),
        ({"num_heads": 3}, "num_heads is 3, which does not divide the 256 channels"),
        ({"num_heads_upsample": 3}, "num_heads_upsample is 3, which does not divide"),
        ({"num_heads": 0}, "num_heads is 0, expected 1 or more"),
        ({"num_res_blocks": 0}, "num_res_blocks is 0"),
        ({"dropout": 1.0}, "dropout is 1, expected at least 0 and less than 1"),
        ({"dtype": "float64"}, "dtype is float64, expected one of float32"),
        ({"null_class": True}, "null_class needs labels"),
        ({"class_cond": True, "num_classes": 0}, "num_classes is 0"),
        ({"attention_resolutions": "16;8"}, "expected sides separated by commas"),
        ({"attention_resolutions": "16,0"}, "'0' is none"),
        ({"image_size": 128}, "side 128 have no customary channel_mult"),
    ],
)
def test_refused_settings(flags, message):
    with pytest.raises(ShapeError, match=message):
        unet_shape(**({"image_size": 32} | flags))


def test_null_label():
    assert dataclasses.replace(SMALL, num_classes=10, null_class=True).null_label == 10
    with pytest.raises(ShapeError, match="no class that stands for"):
        _ = dataclasses.replace(SMALL, num_classes=10).null_label
