"""Settings of VDVAE: the published presets to the number, and what is refused."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.vdvae import small
from tfgen import presets, settings
from tfgen.data.source import ImageSpec
from tfgen.settings import SettingsError
from tfgen.systems.vdvae import data, network, published
from tfgen.systems.vdvae.config import Config, parameter_count
from tfgen.systems.vdvae.network import VDVAE

# What the presets of the original resolve to. The others inherit what is not said from the one before.
CIFAR10 = {
    "dataset": "cifar10", "width": 384, "custom_width_str": "", "zdim": 16, "bottleneck_multiple": 0.25,
    "num_mixtures": 10, "no_bias_above": 64, "lr": 0.0002, "wd": 0.01, "adam_beta1": 0.9, "adam_beta2": 0.9,
    "warmup_iters": 100, "n_batch": 16, "ema_rate": 0.9999, "grad_clip": 200, "skip_threshold": 400,
    "epochs_per_eval": 10, "epochs_per_eval_save": 20, "iters_per_images": 10000, "num_images_visualize": 8,
    "num_variables_visualize": 6, "num_temperatures_visualize": 3, "data_root": "./", "seed": 0, "num_epochs": 10000,
    "iters_per_print": 1000, "iters_per_save": 10000, "iters_per_ckpt": 25000, "rate_weight": 1,
    "enc_blocks": "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
    "dec_blocks": "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
}  # fmt: skip
IMAGENET32 = CIFAR10 | {
    "dataset": "imagenet32", "width": 512, "lr": 0.00015, "n_batch": 8, "ema_rate": 0.999, "skip_threshold": 300,
    "epochs_per_eval": 1, "epochs_per_eval_save": 1,
    "enc_blocks": "32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6",
    "dec_blocks": "1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40",
}  # fmt: skip
IMAGENET64 = IMAGENET32 | {
    "dataset": "imagenet64", "n_batch": 4, "grad_clip": 220, "skip_threshold": 380,
    "enc_blocks": "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
    "dec_blocks": "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12",
}  # fmt: skip
FFHQ256 = IMAGENET64 | {
    "dataset": "ffhq_256", "n_batch": 1, "grad_clip": 130, "skip_threshold": 180,
    "num_images_visualize": 2, "num_variables_visualize": 3, "num_temperatures_visualize": 1,
    "enc_blocks": "256x3,256d2,128x8,128d2,64x12,64d2,32x17,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4",
    "dec_blocks": "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x21,64m32,64x13,128m64,128x7,256m128",
}  # fmt: skip
FFHQ1024 = FFHQ256 | {
    "dataset": "ffhq_1024", "width": 16, "num_mixtures": 2, "lr": 0.00007, "grad_clip": 360, "skip_threshold": 500,
    "custom_width_str": "512:32,256:64,128:512,64:512,32:512,16:512,8:512,4:512,1:512", "iters_per_images": 25000,
    "num_images_visualize": 1, "num_variables_visualize": 0, "num_temperatures_visualize": 4,
    "data_root": "./ffhq_images1024x1024",
    "enc_blocks": "1024x1,1024d2,512x3,512d2,256x5,256d2,128x7,128d2,64x10,64d2,32x14,32d2,16x7,16d2,8x5,8d2,4x5,"
    "4d4,1x4",
    "dec_blocks": "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x20,64m32,64x14,128m64,128x7,256m128,256x2,512m256,1024m512",
}  # fmt: skip
VALUES = {
    "cifar10": CIFAR10,
    "imagenet32": IMAGENET32,
    "imagenet64": IMAGENET64,
    "ffhq256": FFHQ256,
    "ffhq1024": FFHQ1024,
}


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of the original at full size; `decoder` includes the head, `latents` are per image."""

    total: int
    encoder: int
    decoder: int
    biases: int
    head: int
    tensors: int
    encoder_blocks: int
    latents: int
    layers: dict[int, int]


COUNTS = {
    "cifar10": Counts(
        39_145_700, 7_497_888, 31_647_812, 522_624, 38_500, 1393, 33, 412_432, {1: 1, 4: 3, 8: 6, 16: 11, 32: 22}
    ),
    "imagenet32": Counts(
        119_280_868, 18_931_712, 100_349_156, 696_832, 51_300, 2423, 48, 765_216, {1: 2, 4: 5, 8: 10, 16: 20, 32: 41}
    ),
    "imagenet64": Counts(
        125_005_860, 26_450_816, 98_555_044, 2_793_984, 51_300, 2482, 65, 1_451_040,
        {1: 2, 4: 4, 8: 8, 16: 16, 32: 32, 64: 13},
    ),
    "ffhq256": Counts(
        114_874_852, 27_993_600, 86_881_252, 2_793_984, 51_300, 2272, 68, 4_470_816,
        {1: 2, 4: 4, 8: 5, 16: 10, 32: 22, 64: 14, 128: 8, 256: 1},
    ),
    "ffhq1024": Counts(
        109_366_904, 23_759_288, 85_607_616, 2_793_984, 340, 2392, 70, 27_588_640,
        {1: 2, 4: 4, 8: 5, 16: 10, 32: 21, 64: 15, 128: 8, 256: 3, 512: 1, 1024: 1},
    ),
}  # fmt: skip


def resolve(name: str) -> tuple[Config, ImageSpec]:
    config = settings.parse(["--system=vdvae", f"--hps={name}"]).config
    spec = data.known_spec(config.dataset)
    assert spec is not None
    return config, spec


class Shape:
    """Stands for a variable whose shape is all that matters."""

    def __init__(self, value, name=None):
        self.shape = value.shape


@pytest.mark.parametrize("name", VALUES)
def test_values_of_a_preset(name):
    config, spec = resolve(name)
    assert {key: getattr(config, key) for key in VALUES[name]} == VALUES[name]
    side = int(config.enc_blocks.split("x")[0])
    assert spec.shape == (side, side, 3)
    config.validate(spec)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_the_network_of_a_preset(name, monkeypatch):
    """The network itself, at full size, of variables without values."""
    config, spec = resolve(name)
    monkeypatch.setattr(network.tf, "Variable", Shape)
    monkeypatch.setattr(network.Initializer, "__call__", lambda self, name, shape, scale: np.broadcast_to(0.0, shape))
    shape = config.architecture(spec.height)
    named = published.variables(VDVAE(shape, config.zdim, config.num_mixtures, config.seed))
    sizes = {item.name: int(np.prod(item.variable.shape)) for item in named}

    def total(start: str) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(start))

    layers = Counter(block.resolution for block in shape.decoder)
    latents = sum(config.zdim * side * side * count for side, count in layers.items())
    found = Counts(
        sum(sizes.values()), total("encoder."), total("decoder."), total("decoder.bias_xs."), total("decoder.out_net."),
        len(sizes), len(shape.encoder), latents, dict(layers),
    )  # fmt: skip
    assert found == COUNTS[name]
    assert parameter_count(config, spec.height) == COUNTS[name].total
    assert presets.find("vdvae", name).parameters == COUNTS[name].total


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width": 10, "custom_width_str": "4:12,1:20", "bottleneck_multiple": 0.25, "no_bias_above": 4},
        {"enc_blocks": "8d2,4d2,2d2", "dec_blocks": "1x2,2m1,2x1,4m2,8m4,8x1", "zdim": 3, "num_mixtures": 1},
    ],
)
def test_parameter_count_of_real_networks(changes):
    system = small.system(**changes)
    found = sum(variable.shape.num_elements() for variable in system.network.trainable_variables)
    assert found == parameter_count(system.config, small.SIDE)
    assert len(published.variables(system.network)) == len(system.network.trainable_variables)


@pytest.mark.parametrize("name", presets.names("vdvae"))
def test_every_preset_states_its_parameter_count(name):
    config = settings.parse(["--system=vdvae", f"--hps={name}"]).config
    side = int(config.enc_blocks.split("x")[0])
    config.validate(ImageSpec(side, side, 3))
    assert presets.find("vdvae", name).parameters == parameter_count(config, side)


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--scale_encblock", "the original always scales"),
        ("--lr_prior=0.5", "never reads it"),
        ("--wd_prior=0.5", "never reads it"),
        ("--temperature=0.5", "choose it when sampling"),
        ("--epochs_per_probe=3", "never reads it"),
        ("--epochs_per_eval_save=3", "never reads it"),
        ("--port=1", "the ranks come from"),
    ],
)
def test_flags_without_effect_are_accepted_and_named(argument, reason):
    (sentence,) = settings.parse(["--system=vdvae", "--hps=cifar10", argument]).ignored()
    assert sentence.startswith(argument.partition("=")[0] + "=")
    assert "is ignored: " in sentence
    assert reason in sentence


@pytest.mark.parametrize("arguments", [[], ["--hps=cifar10", "--enc_blocks="]])
def test_block_strings_are_needed(arguments):
    with pytest.raises(SettingsError, match=r"--enc_blocks is empty: name a preset .*or give both block strings"):
        settings.parse(["--system=vdvae", *arguments])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dec_blocks": ""}, "--dec_blocks is empty"),
        ({"dec_blocks": "1x1,4y1"}, "--dec_blocks=1x1,4y1: cannot read '4y1'"),
        ({"custom_width_str": "4"}, "--custom_width_str=4: cannot read '4'"),
        ({"dec_blocks": "1x1,4m1"}, "has no block at resolution 8"),
        ({"skip_threshold": 0.0}, "--skip_threshold=0: expected a norm above 0, or -1"),
        ({"skip_threshold": -2.0}, "--skip_threshold=-2: expected a norm above 0, or -1"),
        ({"restore_optimizer_path": "a-opt.th"}, "--restore_optimizer_path needs the weights that go with it"),
        ({"restore_log_path": "a-log.jsonl"}, "--restore_log_path needs the weights"),
        ({"zdim": 0}, "--zdim=0: expected an integer of at least 1"),
        ({"warmup_iters": -1.0}, "--warmup_iters=-1.0: expected a number of at least 0"),
        ({"adam_beta2": 1.0}, "--adam_beta2=1.0: expected a number .*below 1"),
        ({"rate_weight": -0.5}, "--rate_weight=-0.5: expected a number of at least 0"),
    ],
)
def test_complaints(changes, message):
    with pytest.raises(SettingsError, match=message):
        Config(**(small.SMALL | changes)).validate(small.SPEC)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ImageSpec(8, 8, 1), r"images of photos are 8x8x1: .*3 channels \(RGB\); convert the images to RGB"),
        (ImageSpec(8, 8, 4), r"images of photos are 8x8x4: .*3 channels"),
        (ImageSpec(8, 4, 3), "images of photos are 8x4x3: VDVAE needs square images; crop or resize them"),
    ],
)
def test_images_that_do_not_fit(spec, message):
    with pytest.raises(SettingsError, match=message):
        small.system(spec)


def test_rate_without_warmup_is_the_full_one():
    """The original divides by zero there."""
    steps = tf.constant([0, 1, 50, 100, 101], tf.int64)
    np.testing.assert_allclose(small.system(lr=0.5).learning_rate(steps), [0.5] * 5)
    warm = small.system(lr=0.5, warmup_iters=100.0)
    np.testing.assert_allclose(warm.learning_rate(steps), [0, 0.005, 0.25, 0.5, 0.5], rtol=1e-6)
