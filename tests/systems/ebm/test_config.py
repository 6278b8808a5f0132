"""Settings: the original's names and defaults, the published presets to the number, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from tfgen import commandline, presets
from tfgen.data import builtin, sprites
from tfgen.data.source import ImageSpec
from tfgen.flagfields import flag_fields
from tfgen.settings import RunSettings, SettingsError
from tfgen.systems.ebm.architecture import parameter_count
from tfgen.systems.ebm.config import Config
from tfgen.systems.ebm.training_settings import chain_of, objective_of

# Of the training script and of the modules that it imports. Paths have defaults of their own here.
ORIGINAL = {
    **{"datasource": "random", "dataset": "mnist", "batch_size": 256, "single": False, "data_workers": 4},
    **{"logdir": "cachedir", "exp": "default", "log_interval": 10, "save_interval": 1000, "test_interval": 1000},
    **{"resume_iter": -1, "train": True, "epoch_num": 10000, "lr": 3e-4, "num_gpus": 1, "ml_coeff": 1.0},
    **{"l2_coeff": 1.0, "cclass": False, "model_cclass": False, "temperature": 1, "objective": "cd"},
    **{"zero_kl": False, "proj_norm": 0.0, "proj_norm_type": "li", "num_steps": 20, "step_lr": 1.0},
    **{"replay_batch": False, "hmc": False, "noise_scale": 1.0, "pcd": False, "num_filters": 64, "spec_norm": True},
    **{"use_attention": False, "large_model": False, "larger_model": False, "wider_model": False, "mixup": False},
    **{"augment": False, "rescale": 1.0, "cond_shape": False, "cond_size": False, "cond_pos": False},
    **{"cond_rot": False, "spec_iter": 1, "spec_norm_val": 1.0, "downsample": False, "spec_eval": False},
    **{"swish_act": False, "proposal_debug": False, "dshape_only": False, "dpos_only": False, "dsize_only": False},
    **{"drot_only": False, "dsprites_restrict": False, "cutout": False, "cutout_inside": False, "cutout_prob": 1.0},
    **{"cutout_mask_size": 16},
}
# Network, width, label columns, parameters; steps, step size, limit of the gradient, images of an update.
PUBLISHED = {
    "cifar10_uncond": (("ResNet32Large", 128, 0, 18_738_312), (60, 10.0, 0.01, 128)),
    "cifar10_cond": (("ResNet32", 128, 10, 7_567_880), (60, 10.0, 0.01, 128)),
    "imagenet32_cond": (("ResNet32Wider", 256, 1000, 97_773_448), (60, 10.0, 0.01, 32)),
    "imagenet128_cond": (("ResNet128", 64, 1000, 24_555_592), (50, 100.0, 0.0, 16)),
    "dsprites_cond_pos": (("DspritesNet", 64, 2, 953_283), (20, 500.0, 0.0, 256)),
    "dsprites_cond_rot": (("DspritesNet", 64, 2, 953_283), (20, 500.0, 0.0, 256)),
    "dsprites_cond_shape": (("DspritesNet", 64, 3, 954_083), (20, 500.0, 0.0, 256)),
    "dsprites_cond_size": (("DspritesNet", 64, 1, 952_483), (20, 500.0, 0.0, 256)),
}
SPECS = {"digits": builtin.DIGITS_SPEC, "photos": builtin.PHOTOS_SPEC, "sprites": sprites.SPEC}
SPRITES = {f"sprites_cond_{factor}" for factor in ("pos", "rot", "shape", "size")}


def resolve(name: str) -> Config:
    config, _ = commandline.parse_words(presets.find("ebm", name).words(), Config, RunSettings)
    return config


def test_flags_of_the_original_have_its_defaults():
    defaults = {name: field.default for name, field in flag_fields(Config).items()}
    assert {name: defaults[name] for name in ORIGINAL} == ORIGINAL
    assert not set(defaults) & set(flag_fields(RunSettings))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_preset(name):
    network, training = PUBLISHED[name]
    config = resolve(name)
    shape = config.network_shape()
    assert (shape.kind, shape.filters, shape.label_columns, parameter_count(shape)) == network
    assert (config.num_steps, config.step_lr, config.proj_norm, config.batch_size) == training
    assert config.zero_kl
    assert config.replay_batch
    assert shape.dropout == (name == "cifar10_uncond")
    assert config.swish_act == (name == "imagenet128_cond" or name.startswith("dsprites"))
    config.check()


@pytest.mark.parametrize("name", presets.names("ebm"))
def test_header_of_a_preset(name):
    preset, config = presets.find("ebm", name), resolve(name)
    assert preset.parameters == parameter_count(config.network_shape(SPECS.get(config.dataset)))
    assert preset.source
    assert preset.hardware
    if config.dataset in SPECS:
        config.validate(SPECS[config.dataset])


def test_every_published_preset_is_there():
    assert set(presets.names("ebm")) == {*PUBLISHED, *SPRITES, "mnist", "digits", "photos"}


def test_chain_grows_with_the_range_of_the_pixels():
    chain = chain_of(Config(rescale=2.0, step_lr=10.0, noise_scale=0.5, proj_norm=0.01, proj_norm_type="l2"))
    assert (chain.step_size, chain.noise, chain.high, chain.clip_mode) == (20.0, 0.005, 2.0, "l2_tensor")
    assert chain_of(Config(proj_norm_type="l2")).clip_mode == "none"


def test_objective():
    objective = objective_of(Config(objective="softplus", temperature=3, zero_kl=True, l2_coeff=0.5))
    assert dataclasses.astuple(objective) == ("softplus", 1.0, 0.5, 3.0, True)


def test_network_of_a_data_set():
    kinds = {
        **{"mnist": "MnistNet", "digits": "MnistNet", "dsprites": "DspritesNet", "cifar10": "ResNet32"},
        **{"imagenet": "ResNet32Wider", "photos": "ResNet32", "sprites": "DspritesNet"},
    }
    assert {name: Config(dataset=name).network_kind for name in kinds} == kinds
    assert Config(dataset="cifar10", large_model=True, wider_model=True).network_kind == "ResNet32Large"
    assert Config(dataset="cifar10", wider_model=True).width == 192
    assert Config(dataset="cifar10", network="MnistNet", num_filters=5).width == 5
    assert Config(dataset="x.npy", cclass=True).label_columns(ImageSpec(32, 32, 3, 7)) == 7


def test_checkpoint_to_begin_with():
    assert Config().restore_path == ""
    assert Config(exp="cifar10_cond", resume_iter=74700).restore_path == "cachedir/cifar10_cond/model_74700"


def test_drawn_sprites_are_smaller_than_those_of_the_archive():
    sides = {name: Config(dataset=name).network_shape().side for name in ("sprites", "dsprites")}
    assert sides == {"sprites": 32, "dsprites": 64}
    Config(dataset="sprites", cclass=True, cond_pos=True).validate(sprites.SPEC)


def test_labels_of_sprites():
    assert Config(dataset="sprites", cclass=True, cond_size=True).label_columns(sprites.SPEC) == 1
    assert Config(dataset="dsprites", cclass=True).label_columns() == 3
    subset = Config(dataset="dsprites", cclass=True, dpos_only=True)
    assert (subset.label_columns(), subset.sprites_mode) == (2, "dpos_only")
    both = Config(dataset="dsprites", cclass=True, dpos_only=True, cond_pos=True)
    both.check()
    assert both.sprites_mode == "dpos_only"
    Config(dataset="dsprites", cclass=True, dsprites_restrict=True, cond_rot=True).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "kl"}, "--objective=kl: expected one of cd, logsumexp, softplus"),
        ({"cond_pos": True, "cclass": True}, "--cond_pos is about dSprites: add --dataset=dsprites or"),
        ({"dataset": "dsprites", "rescale": 2.0}, "--rescale=2: images of dsprites are always between 0 and 1"),
        ({"dataset": "imagenet", "rescale": 8.0}, "--rescale=8: images of imagenet are always between 0 and 1"),
        ({"dataset": "sprites", "augment": True}, "--augment would move images of sprites away from their labels"),
        (
            {"dataset": "dsprites", "cond_pos": True},
            "--cond_pos chooses what the network is conditioned on: add --cclass",
        ),
        (
            {"dataset": "dsprites", "cclass": True, "cond_pos": True, "cond_rot": True},
            "--cond_pos and --cond_rot contradict each other",
        ),
        (
            {"dataset": "dsprites", "cclass": True, "dsize_only": True, "cond_rot": True},
            "--dsize_only and --cond_rot contradict each other",
        ),
        ({"model_cclass": True, "cclass": True}, "--model_cclass draws the classes of CIFAR-10: it needs"),
        ({"replay_batch": True, "pcd": True}, "drop one"),
        ({"replay_labels": True}, "--replay_labels says how the buffer works: it needs --replay_batch"),
        ({"replay_batch": True, "replay_labels": True}, "an unconditional network has none; add --cclass"),
        ({"replay_batch": True, "replay_capacity": 100}, "--replay_capacity=100 is below --batch_size=256"),
        ({"hmc": True}, "--hmc: no gradient goes back through its transitions; add --zero_kl"),
        ({"downsample": True}, "--downsample halves the 28 pixels"),
        ({"dataset": "cifar10", "wider_model": True, "filters": 128}, "ResNet32Wider cannot have 128 filters"),
        ({"dataset": "imagenetfull"}, "ResNet128 is conditional only: add --cclass"),
        (
            {"dataset": "cifar10", "cclass": True, "model_cclass": True, "objective": "softplus"},
            "--objective=softplus compares pairs",
        ),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(SettingsError, match=message):
        Config(**changes).check()


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({}, ImageSpec(28, 20, 1), "images of mnist are 28x20, expected square ones"),
        (
            {"cutout": True, "cutout_inside": True, "cutout_mask_size": 30},
            ImageSpec(28, 28, 1),
            "--cutout_mask_size=30 is more than the 28 pixels",
        ),
        ({"dataset": "photos", "cclass": True}, ImageSpec(32, 32, 3), "the images of photos have no labels"),
        (
            {"dataset": "photos", "downsample": True, "network": "MnistNet"},
            ImageSpec(20, 20, 3),
            "halves the 20 pixels",
        ),
        ({"dataset": "tiny"}, ImageSpec(4, 4, 3), "images of tiny have 4 pixels.*expected 8 or more"),
    ],
)
def test_settings_that_contradict_the_images(changes, spec, message):
    with pytest.raises(SettingsError, match=message):
        Config(**changes).validate(spec)
