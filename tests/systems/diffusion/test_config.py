"""Settings of improved diffusion: the published presets to the number, and what is refused."""

from __future__ import annotations

import pytest

from tests.systems.diffusion import small
from tfgen import presets, settings
from tfgen.data.source import ImageSpec
from tfgen.settings import SettingsError
from tfgen.systems.diffusion import architecture
from tfgen.systems.diffusion.architecture import UNetShape, parameter_count
from tfgen.systems.diffusion.config import Config
from tfgen.systems.diffusion.process import LossType, VarianceType
from tfgen.systems.diffusion.system import process_of
from tfgen.systems.diffusion.unet import UNet

# Parameters, tensors, objective, variance, (lr, images an update in all, updates, sampler of steps).
UNIFORM, BY_LOSS = "uniform", "loss-second-moment"
PUBLISHED = {
    "cifar10": (52_546_438, 446, LossType.RESCALED_MSE, (1e-4, 128, 500_000, UNIFORM)),
    "cifar10_vlb": (52_546_438, 446, LossType.RESCALED_KL, (1e-4, 128, 500_000, BY_LOSS)),
    "imagenet64": (121_063_942, 450, LossType.RESCALED_MSE, (1e-4, 128, 1_500_000, UNIFORM)),
    "imagenet64_vlb": (121_063_942, 450, LossType.RESCALED_KL, (1e-4, 128, 1_500_000, BY_LOSS)),
    "imagenet64_cond": (273_049_350, 451, LossType.MSE, (3e-4, 2048, 250_000, UNIFORM)),
    "imagenet64_baseline": (121_060_483, 450, LossType.RESCALED_MSE, (1e-4, 128, None, UNIFORM)),
    "upsampler64_256": (279_792_390, 457, LossType.MSE, (3e-4, 256, 500_000, UNIFORM)),
    "lsun_bedroom": (113_676_678, 426, LossType.MSE, (1e-4, 128, 1_200_000, UNIFORM)),
    "lsun_bedroom_lr2e5": (113_676_678, 426, LossType.MSE, (2e-5, 128, 2_400_000, UNIFORM)),
}
# Without a preset.
COUNTS = [
    ({}, 92_025_731, 338),
    ({"super_resolution": True}, 124_056_707, 456),
    ({"image_size": 32, "num_channels": 64, "learn_sigma": True, "dropout": 0.3}, 9_926_790, None),
]


def resolve(name: str) -> settings.Settings:
    return settings.parse(["--system=diffusion", f"--hps={name}"])


def tensor_count(shape: UNetShape) -> int:
    """Kernels, biases, scales, shifts and tables of the network."""
    counts = {architecture.Convolution: 2, architecture.Downsample: 2, architecture.Upsample: 2}

    def tensors(part) -> int:
        if isinstance(part, architecture.Residual):
            return 10 if part.inputs == part.outputs else 12
        return 6 if isinstance(part, architecture.Attention) else counts[type(part)]

    plan = shape.plan()
    blocks = (*plan.input_blocks, plan.middle_block, *plan.output_blocks)
    return 8 + bool(shape.classes) + sum(tensors(part) for block in blocks for part in block)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_preset(name):
    parameters, tensors, objective, training = PUBLISHED[name]
    resolved = resolve(name)
    config, process = resolved.config, process_of(resolved.config)
    shape = config.network_shape()
    assert (parameter_count(shape), tensor_count(shape)) == (parameters, tensors)
    assert presets.find("diffusion", name).parameters == parameters
    assert process.loss_type is objective
    assert process.variance_type is (VarianceType.LEARNED_RANGE if config.learn_sigma else VarianceType.FIXED_LARGE)
    assert config.learn_sigma == (name != "imagenet64_baseline")
    assert process.rescale_timesteps == (objective is not LossType.MSE)
    assert process.steps == (1000 if name.startswith("lsun") else 4000)
    linear = name.startswith(("lsun", "upsampler")) or name.endswith("baseline")
    assert config.noise_schedule == ("linear" if linear else "cosine")
    assert config.dropout == (0.3 if name.startswith("cifar10") else 0)
    assert (config.lr, config.batch_size, resolved.run.steps, config.schedule_sampler) == training
    assert config.ema_decays == (0.9999,)
    config.validate(ImageSpec(config.side, config.side, 3, 1000 if config.class_cond else None))


@pytest.mark.parametrize(("flags", "parameters", "tensors"), COUNTS)
def test_further_counts(flags, parameters, tensors):
    shape = Config(**flags).network_shape()
    assert parameter_count(shape) == parameters
    assert tensors in (None, tensor_count(shape))


def test_counted_tensors_are_those_of_a_network():
    shape = small.config(**small.OF_CLASSES, label_dropout=0.1).network_shape()
    assert len(UNet(shape, seed=None).trainable_variables) == tensor_count(shape)


@pytest.mark.parametrize("name", presets.names("diffusion"))
def test_header_of_a_preset(name):
    preset, config = presets.find("diffusion", name), resolve(name).config
    assert preset.parameters == parameter_count(config.network_shape())
    assert preset.source == "tfgen" or name in PUBLISHED
    assert preset.hardware
    assert preset.weights.endswith(".pt") == (name in PUBLISHED and name != "imagenet64_baseline")
    config.check()


def test_every_published_preset_is_there():
    assert set(presets.names("diffusion")) == {*PUBLISHED, "digits", "photos"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 9}, "--image_size=9, --num_channels=32: .*9"),
        ({"num_channels": 48}, "multiple of 32"),
        ({"channel_mult": "1,b"}, "--channel_mult=1,b: expected numbers of at least 1"),
        ({"channel_mult": ""}, "no customary channel_mult"),
        ({"attention_resolutions": "0"}, "--attention_resolutions=0: expected numbers of at least 1"),
        ({"num_heads_upsample": 0}, "--num_heads_upsample=0: expected -1"),
        ({"ema_rate": "0.9,1"}, "--ema_rate=0.9,1: expected different numbers"),
        ({"ema_rate": "0.9,0.90"}, "--ema_rate=0.9,0.90: expected different numbers"),
        ({"ema_rate": "x"}, "--ema_rate=x: expected numbers"),
        ({"label_dropout": 0.1}, "--label_dropout=0.1 hides labels: it needs --class_cond"),
        ({"microbatch": 5}, "--microbatch=5 is above --batch_size=4"),
        ({"noise_schedule": "linear"}, "--diffusion_steps=20: expected at least 21"),
        ({"timestep_respacing": "21"}, "--timestep_respacing=21: expected at most 20"),
        ({"timestep_respacing": "ddim13"}, "--timestep_respacing=ddim13: no stride keeps exactly 13"),
        ({"timestep_respacing": "1"}, r"--timestep_respacing=1 keeps 1 step\(s\), expected at least 2"),
        ({"timestep_respacing": "few"}, "found the respacing 'few'"),
        (small.SUPER_RESOLUTION | {"small_size": 16}, "--small_size=16 is above --large_size=8"),
        (small.SUPER_RESOLUTION | {"learn_sigma": False, "sigma_small": True}, "--sigma_small: the original has it"),
        ({"lr": -1.0}, "--lr=-1.0: expected"),
        ({"noise_schedule": "sine"}, "--noise_schedule=sine: expected"),
    ],
)
def test_complaints(changes, message):
    with pytest.raises(SettingsError, match=message):
        small.config(**changes).check()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ImageSpec(8, 16, 3), "images of pictures are 8x16, expected --image_size=8"),
        (ImageSpec(8, 8, 1), r"have 1 channel\(s\), expected 3"),
        (ImageSpec(8, 8, 3), "--class_cond: the images of pictures have no labels"),
        (ImageSpec(8, 8, 3, 1), "--class_cond: the labels of pictures tell 1 class, expected at least 2"),
        (ImageSpec(8, 8, 3, 4), "has 4 classes and the network 3: set --num_classes=4"),
    ],
)
def test_images_that_do_not_fit(spec, message):
    with pytest.raises(SettingsError, match=message):
        small.config(**small.OF_CLASSES).validate(spec)
