"""Distribution smoothing as a system: what is learned in each stage, and how stages fit together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.smoothing import small
from tfgen.data.source import ImageSpec
from tfgen.likelihood import continuous_mixture
from tfgen.randomness import Key
from tfgen.settings import SettingsError
from tfgen.systems.smoothing import data
from tfgen.systems.smoothing.config import Stage
from tfgen.systems.smoothing.published import ADAM_EPSILON

KEY = Key.create(0, "train")
BATCH = {"image": tf.constant(small.images(4))}


@pytest.fixture(scope="module")
def reverse():
    return small.system(Stage.REVERSE)


def test_the_loss_is_the_mean_over_images_in_nats():
    system = small.system()
    _, target = system.noisy(data.scaled(BATCH["image"]), KEY)
    by_hand = -tf.reduce_sum(continuous_mixture.log_density(system.network(target), target)) / 4
    loss = system.loss(BATCH, KEY, training=False)
    assert float(loss.objective) == pytest.approx(float(by_hand), rel=1e-5)
    dims = math.prod(small.SPEC.shape)
    bits = float(loss.metrics["bits_per_dim_smoothed"])
    assert bits == pytest.approx(float(by_hand) / dims / math.log(2), rel=1e-5)


def test_noise_has_the_deviation_asked_for_and_belongs_to_the_image(reverse):
    images = data.scaled(small.images(64))
    smoothed, clean = reverse.noisy(images, KEY)
    assert np.std(smoothed - images) == pytest.approx(reverse.config.noise, rel=0.03)
    assert np.std(clean - images) == pytest.approx(reverse.config.clean_noise, rel=0.03)
    assert abs(np.corrcoef(np.ravel(smoothed - images), np.ravel(clean - images))[0, 1]) < 0.05
    later, _ = reverse.noisy(images[10:14], KEY.skip(10))
    np.testing.assert_array_equal(later, smoothed[10:14])


def test_stage_2_learns_the_image_given_the_smoothed_one(reverse):
    smoothed, clean = reverse.noisy(data.scaled(BATCH["image"]), KEY)
    tall = tf.concat([smoothed, clean], axis=1)
    parameters = reverse.network(tall)[:, small.SPEC.height :]
    by_hand = -tf.reduce_sum(continuous_mixture.log_density(parameters, clean)) / 4
    loss = reverse.loss(BATCH, KEY, training=False)
    assert float(loss.objective) == pytest.approx(float(by_hand), rel=1e-5)
    assert list(loss.metrics) == ["bits_per_dim_given_smoothed"]


def test_dropout_is_on_in_training_alone():
    system = small.system()
    kept = [float(system.loss(BATCH, key, training=False).objective) for key in (KEY, KEY)]
    assert kept[0] == kept[1] != float(system.loss(BATCH, KEY, training=True).objective)
    without = small.system(dropout=0.0)
    assert float(without.loss(BATCH, KEY, training=True).objective) == kept[0]


def test_a_plain_model_gives_every_image_a_probability():
    """Summed over the levels of the last pixel of a grey image, given the others, it is 1."""
    system = small.system(Stage.PLAIN, ImageSpec(4, 4, 1))
    images = np.repeat(small.images(1, ImageSpec(4, 4, 1)), 256, axis=0)
    images[:, 3, 3, 0] = np.arange(256)
    log_prob = system.log_prob(data.scaled(images))[:, 3, 3]
    assert float(tf.reduce_sum(tf.exp(log_prob))) == pytest.approx(1, abs=1e-4)


def test_epsilon_is_that_of_sums_over_the_global_batch():
    system = small.system()
    assert system.recipe(100, ranks=2).optimizer.epsilon == pytest.approx(ADAM_EPSILON / 8)
    recipe = system.recipe(100, ranks=1)
    rates = recipe.learning_rate(tf.constant([0, 1, 100_000], tf.int64))
    np.testing.assert_allclose(rates, 2e-4 * 0.999995 ** np.array([0, 1, 100_000]), rtol=1e-6)
    assert recipe.ema_decays == ()
    assert small.system(ema=True, ema_rate=0.9).recipe(100, 1).ema_decays == (0.9,)


def test_steps_of_the_recipe_are_whole_epochs():
    recipe = small.system(max_epochs=40, save_interval=10).recipe(train_size=103, ranks=2)
    assert (recipe.steps, recipe.eval_every, recipe.save_every, recipe.keep_every) == (480, 12, 120, 240)


@pytest.mark.parametrize(
    ("stage1", "message"),
    [
        ({"noise": 0.5}, "set --noise=0.5"),
        ({"spec": ImageSpec(8, 8, 3)}, "models images of 8x8x3"),
        ({"stage": Stage.PLAIN}, "expected a run of SmoothedPixelCNNPPTrainRunner, found PixelCNNPPTrainRunner"),
    ],
    ids=["noise", "size", "stage"],
)
def test_a_stage_1_that_does_not_fit(reverse, stage1, message):
    with pytest.raises(SettingsError, match=message):
        reverse.accept_companions({"stage1": small.system(**stage1)})


def test_another_precision_is_refused():
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        with pytest.raises(SettingsError, match="leave the flag out"):
            small.system()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def test_companions_are_those_of_stage_2_alone(reverse):
    options = reverse.sample_options_class(stage1_run="moved")
    assert reverse.companion_runs(reverse.config, options) == {"stage1": "moved"}
    assert reverse.companion_runs(reverse.config, reverse.export_options_class()) == {}
    known = small.system(Stage.REVERSE, stage1_run="here").config
    assert reverse.companion_runs(known, reverse.evaluate_options_class()) == {"stage1": "here"}
    assert reverse.companion_runs(known, reverse.evaluate_options_class(stage1_run="none")) == {}
    assert reverse.companion_runs(known, reverse.sample_options_class(from_images=True)) == {}
    with pytest.raises(SettingsError, match="belongs to runs of stage 2"):
        reverse.companion_runs(small.system().config, options)
