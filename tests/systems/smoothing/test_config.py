"""Settings and presets of distribution smoothing."""

from __future__ import annotations

import pytest

from tfgen import presets
from tfgen.commandline import parse_words
from tfgen.data.source import ImageSpec
from tfgen.settings import RunSettings, SettingsError
from tfgen.systems.smoothing.config import Config, Stage, parameter_count

ALL = presets.names("smoothing")
COLOURS = {"MNIST": 1, "digits": 1}
TRAINING = ("mnist", "cifar10", "celeba")


def resolve(name: str) -> Config:
    config, _ = parse_words(presets.find("smoothing", name).words(), Config, RunSettings)
    return config


@pytest.mark.parametrize("name", ALL)
def test_a_preset_is_valid_and_its_header_true(name):
    preset, config = presets.find("smoothing", name), resolve(name)
    config.check()
    assert preset.description.endswith(".")
    assert preset.source
    assert preset.parameters == parameter_count(config, COLOURS.get(config.dataset, 3))


@pytest.mark.parametrize("data", TRAINING)
def test_training_files_of_the_original(data):
    """The values of its YAML files, beside those that all of them share and the defaults repeat."""
    smoothed, reverse = (resolve(f"pixelcnnpp_{kind}_train_{data}") for kind in ("smoothed", "conditioned"))
    expected = {"mnist": ("MNIST", 40, 0.5), "cifar10": ("CIFAR10", 160, 0.3), "celeba": ("celeba", 160, 0.3)}[data]
    for config, stage, batch in ((smoothed, Stage.SMOOTHED, 80), (reverse, Stage.REVERSE, 50)):
        assert (config.dataset, config.nr_filters, config.noise) == expected
        assert (config.stage, config.batch_size, config.ema) == (stage, batch, False)
        assert (config.lr, config.lr_decay, config.max_epochs) == (0.0002, 0.999995, 1000)
        assert (config.print_every, config.save_interval) == (50, 10)
        assert (config.nr_resnet, config.nr_logistic_mix, config.ema_rate) == (5, 10, 0.999)
    assert reverse.clean_noise == 0.01
    assert resolve(f"{data}_smoothed") == smoothed
    assert resolve(f"{data}_reverse") == reverse


@pytest.mark.parametrize("data", ["digits", "photos", *TRAINING])
def test_each_data_set_has_all_three(data):
    stages = {kind: resolve(f"{data}_{kind}") for kind in ("smoothed", "reverse", "plain")}
    assert [config.stage for config in stages.values()] == [Stage.SMOOTHED, Stage.REVERSE, Stage.PLAIN]
    assert len({(config.dataset, config.nr_resnet, config.nr_filters) for config in stages.values()}) == 1
    assert stages["smoothed"].noise == stages["reverse"].noise


def test_every_file_of_the_original_has_a_preset():
    kinds = ["smoothed_sample", "reverse_sample", "gradient_sample"]
    kinds += [f"{kind}_train_{data}" for kind in ("smoothed", "conditioned") for data in TRAINING]
    assert {f"pixelcnnpp_{kind}" for kind in kinds} <= set(ALL)
    assert resolve("pixelcnnpp_reverse_sample").stage is Stage.REVERSE
    assert resolve("pixelcnnpp_smoothed_sample").sample_batch == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runner": "PixelCNNPPGradientSamplerRunner"}, "--denoise=gradient"),
        ({"config": "configs/pixelcnnpp_conditioned_train_celeba.yml"}, "--hps=pixelcnnpp_conditioned_train_celeba"),
        ({"stage1_run": "runs/a"}, "belongs to stage 2"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(SettingsError, match=message):
        Config(**settings).check()


@pytest.mark.parametrize("settings", [{"noise": 0.0}, {"clean_noise": 0.0}, {"dropout": 1.0}, {"runner": "Runner"}])
def test_values_outside_of_their_range(settings):
    with pytest.raises(SettingsError, match=f"--{next(iter(settings))}="):
        Config(**settings)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        (ImageSpec(8, 8, 2), {}, "1 or 3 colours"),
        (ImageSpec(8, 8, 3), {"input_channels": 1}, "leave the flag out"),
        (ImageSpec(8, 10, 3), {}, "multiples of 4"),
    ],
)
def test_images_that_do_not_fit(spec, settings, message):
    with pytest.raises(SettingsError, match=message):
        Config(**settings).validate(spec)
