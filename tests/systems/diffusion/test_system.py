"""Improved diffusion as a system: what a loss reports, which steps it trains on, and how it is trained."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.diffusion import small
from tfgen.distribute import Ranks
from tfgen.monitor import window
from tfgen.randomness import StepDraws
from tfgen.settings import SettingsError
from tfgen.systems.diffusion.evaluation import EvaluateOptions
from tfgen.systems.diffusion.resizing import from_uint8
from tfgen.systems.diffusion.sampling import SampleOptions
from tfgen.systems.diffusion.system import ImprovedDiffusion
from tfgen.training.state import TrainState
from tfgen.training.step import TrainStep

NO_REQUEST = np.zeros(2, np.float32)
COUNT = 16
BATCH = small.batch(COUNT)


class Trainer:
    """A run of a system, step by step."""

    def __init__(self, system: ImprovedDiffusion, **changes):
        self.recipe = dataclasses.replace(system.recipe(train_size=100, ranks=1), **changes)
        self.state = TrainState(system, self.recipe)
        self._step = TrainStep(system, self.recipe, self.state, Ranks())

    def step(self, count: int = 4) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self._step(small.batch(count), NO_REQUEST).items()}


@pytest.fixture(scope="module")
def system():
    return small.system()


@pytest.fixture
def eager():
    """Few steps of many settings: compiling each takes longer."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def terms_of(system, batch, key, labels=None) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Losses of each image, its step and weight, computed from the parts of the system."""
    t, weights, noise = system.draws(batch, key)
    x_start = from_uint8(batch["image"])
    x_t = system.process.q_sample(x_start, t, noise)
    output = system.network(x_t, system.process.network_timesteps(t), labels=labels)
    terms = system.process.training_losses(output, x_start, x_t, t, noise)
    return {name: value.numpy() for name, value in terms.items()}, t.numpy(), weights.numpy()


# The loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_kl": True}, {"learn_sigma": False}, {"predict_xstart": True, "rescale_learned_sigmas": False}],
    ids=["hybrid", "vlb", "simple", "x_0"],
)
def test_the_loss_is_that_of_the_process(changes):
    system = small.system(**changes)
    terms, t, weights = terms_of(system, BATCH, small.KEY)
    loss = system.loss(BATCH, small.KEY, training=True)
    np.testing.assert_array_equal(weights, np.ones(COUNT))
    assert float(loss.objective) == pytest.approx(terms["loss"].mean(), rel=1e-5)
    assert loss.metrics.keys() == terms.keys() - {"loss"}
    for name, value in loss.metrics.items():
        assert float(value) == pytest.approx(terms[name].mean(), rel=1e-5)
    assert loss.partial_metrics.keys() == {f"{name}_q{number}" for name in terms for number in range(4)}
    for name, values in terms.items():
        for number in range(4):
            inside = values[4 * t // 20 == number]
            expected = [inside.sum(), len(inside)]
            np.testing.assert_allclose(loss.partial_metrics[f"{name}_q{number}"], expected, rtol=1e-5)
    assert not loss.observations


def test_steps_and_noise_are_functions_of_the_key_and_the_image(system):
    t, _, noise = system.draws(small.batch(400), small.KEY)
    assert set(t.numpy()) == set(range(20))
    later_t, _, later_noise = system.draws(small.batch(3), small.KEY.skip(7))
    np.testing.assert_array_equal(later_t, t[7:10])
    np.testing.assert_array_equal(later_noise, noise[7:10])
    assert (system.draws(small.batch(400), small.KEY.fold(1))[0].numpy() != t.numpy()).any()
    one, other = (float(system.loss(BATCH, key, training=True).objective) for key in (small.KEY, small.KEY.fold(1)))
    assert one != other


def test_a_quarter_without_an_image_is_not_logged(system):
    one = {name: value[:1] for name, value in BATCH.items()}
    partial = system.loss(one, small.KEY, training=True).partial_metrics
    counts = {name: float(value[1]) for name, value in partial.items() if name.startswith("loss_q")}
    assert sorted(counts.values()) == [0, 0, 0, 1]
    logged = window.summarize([{name: tuple(value.numpy()) for name, value in partial.items()}], {})
    assert {name for name in logged if name.startswith("loss_q")} == {name for name, n in counts.items() if n}


def test_labels_are_hidden_as_often_as_asked():
    system = small.system(small.LABELLED, **small.OF_CLASSES, label_dropout=0.25)
    labels = tf.constant(np.arange(4000) % 3, tf.int32)
    hidden = system._some_hidden(labels, small.KEY).numpy()
    changed = hidden != labels.numpy()
    assert set(hidden[changed]) == {3}
    assert abs(changed.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_array_equal(system._some_hidden(labels[5:50], small.KEY.skip(5)), hidden[5:50])
    batch = small.batch(COUNT, classes=3)
    terms, _, _ = terms_of(system, batch, small.KEY, system._some_hidden(batch["label"], small.KEY))
    assert float(system.loss(batch, small.KEY, training=True).objective) == pytest.approx(
        terms["loss"].mean(), rel=1e-5
    )
    whole = small.system(small.LABELLED, **small.OF_CLASSES)
    np.testing.assert_array_equal(whole._some_hidden(labels, small.KEY), labels)


def test_dropout_is_for_training_alone():
    system = small.system(dropout=0.5)
    trained, tested = (float(system.loss(BATCH, small.KEY, training=flag).objective) for flag in (True, False))
    assert trained != tested
    assert tested == pytest.approx(terms_of(system, BATCH, small.KEY)[0]["loss"].mean(), rel=1e-5)


def test_half_of_the_images_are_mirrored_where_asked(system):
    batch = {"image": small.images(200), "label": np.zeros(200, np.int32), "dataset": np.zeros(200)}
    plain = system.prepare(batch, StepDraws(0, 5, 0, 1, 200))
    assert plain.keys() == {"image"}
    np.testing.assert_array_equal(plain["image"], batch["image"])
    flipping = small.system(small.LABELLED, **small.OF_CLASSES, random_flip=True)
    flipped = flipping.prepare(batch, StepDraws(0, 5, 0, 1, 200))
    assert flipped.keys() == {"image", "label"}
    mirrored = (flipped["image"] == batch["image"][:, :, ::-1]).all(axis=(1, 2, 3))
    same = (flipped["image"] == batch["image"]).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 70 < mirrored.sum() < 130
    # The second of two ranks decides over its own images as one process does over all.
    second = flipping.prepare({name: value[100:] for name, value in batch.items()}, StepDraws(0, 5, 1, 2, 100))
    np.testing.assert_array_equal(second["image"], flipped["image"][100:])


# Steps -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("eager")
def test_losses_reach_the_sampler_of_steps_and_change_its_weights():
    system = small.system(schedule_sampler="loss-second-moment", diffusion_steps=4)
    trainer, sampler = Trainer(system, batch_size=64), system.timestep_sampler
    assert any(variable is sampler.history for variable in trainer.state.variables)
    terms, t, weights = terms_of(system, small.batch(64), trainer._step._key.fold(tf.constant(0, tf.int64)))
    outputs = trainer.step(64)
    assert outputs["loss"] == pytest.approx(terms["loss"].mean(), rel=1e-5)
    np.testing.assert_array_equal(weights, np.ones(64))
    for step in range(4):
        seen = terms["loss"][t == step][-10:]
        assert sampler.counts[step] == len(seen)
        np.testing.assert_allclose(sampler.history[step, : len(seen)], seen, rtol=1e-4)
    while not sampler.warmed_up():
        trainer.step(64)
    probabilities = sampler.weights() / tf.reduce_sum(sampler.weights())
    assert float(tf.reduce_max(probabilities)) > 2 * float(tf.reduce_min(probabilities))
    # From now on losses are weighted, and the history gets them without their weights.
    key = trainer._step._key.fold(trainer.state.step)
    terms, t, weights = terms_of(system, small.batch(64), key)
    np.testing.assert_allclose(weights, 1 / (4 * tf.gather(probabilities, t)), rtol=1e-5)
    outputs = trainer.step(64)
    assert outputs["loss"] == pytest.approx((terms["loss"] * weights).mean(), rel=1e-4)
    assert outputs["mse"] == pytest.approx((terms["mse"] * weights).mean(), rel=1e-4)
    most = np.bincount(t).argmax()
    np.testing.assert_allclose(sampler.history[most, -1], terms["loss"][t == most][-1], rtol=1e-4)


@pytest.mark.usefixtures("eager")
def test_gradients_of_microbatches_are_added_or_averaged():
    norms = {}
    for name, changes in {
        "whole": {},
        "added": {"microbatch": 2},
        "uneven": {"microbatch": 3, "microbatch_average": True},
    }.items():
        outputs = Trainer(small.system(**changes)).step()
        norms[name] = outputs["grad_norm"]
        assert sum(outputs[f"loss_q{number}"][1] for number in range(4)) == 4
    assert norms["uneven"] == pytest.approx(norms["whole"], rel=1e-4)
    assert norms["added"] == pytest.approx(2 * norms["whole"], rel=1e-4)


@pytest.mark.usefixtures("eager")
def test_a_loss_that_is_no_number_changes_nothing_and_is_not_remembered():
    system = small.system(schedule_sampler="loss-second-moment")
    trainer = Trainer(system)
    system.network.out_conv.bias.assign(tf.fill([6], np.nan))
    before = [variable.numpy().tobytes() for variable in trainer.state.network.variables]
    outputs = trainer.step()
    assert outputs["skipped"] == 1
    assert [variable.numpy().tobytes() for variable in trainer.state.network.variables] == before
    assert int(tf.reduce_sum(system.timestep_sampler.counts)) == 0


# Data of other commands --------------------------------------------------------------------------------------


def test_data_with_other_classes_than_the_run_has():
    of_three = small.system(small.LABELLED, **small.OF_CLASSES)
    of_three.check_data(small.LABELLED, EvaluateOptions())
    for classes, found in ((2, "2 classes"), (4, "4 classes"), (None, "no labels")):
        spec = dataclasses.replace(small.SPEC, num_classes=classes)
        for options in (EvaluateOptions(), SampleOptions(), None):
            with pytest.raises(SettingsError, match=f"learned 3 classes, and these data have {found}.*--data_dir"):
                of_three.check_data(spec, options)
        of_three.check_data(spec, SampleOptions(class_label=0))  # nobody asks for the labels of the data
        small.system().check_data(spec, EvaluateOptions())


def test_how_many_classes_published_weights_know_is_unknown():
    config = small.config(dataset="", class_cond=True, num_classes=1000)
    ImprovedDiffusion(config, ImprovedDiffusion.image_spec(config)).check_data(small.LABELLED, EvaluateOptions())
    # Of a run of ours the data told.
    trained = ImprovedDiffusion(config, small.LABELLED)
    with pytest.raises(SettingsError, match="learned 3 classes, and these data have 4"):
        trained.check_data(dataclasses.replace(small.LABELLED, num_classes=4), EvaluateOptions())


# The recipe --------------------------------------------------------------------------------------------------


def test_recipe():
    config = small.config(
        lr=0.5, weight_decay=0.25, lr_anneal_steps=40, microbatch=3, ema_rate="0.5,0.9", log_interval=2,
        save_interval=3, seed=7, resume_checkpoint="model000001.pt",
    )  # fmt: skip
    recipe = ImprovedDiffusion(config, small.SPEC).recipe(train_size=8, ranks=2)
    assert (recipe.seed, recipe.batch_size, recipe.microbatch, recipe.microbatches_add) == (7, 4, 3, True)
    assert (recipe.steps, recipe.ema_decays, recipe.restore_path) == (40, (0.5, 0.9), "model000001.pt")
    assert (recipe.log_every, recipe.save_every, recipe.sample_every) == (2, 3, 3)
    assert (recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.epsilon) == (0.9, 0.999, 1e-8)
    assert recipe.optimizer.weight_decay == 0.25
    rates = [float(recipe.learning_rate(tf.constant(step, tf.int64))) for step in (0, 10, 39)]
    assert rates == pytest.approx([0.5, 0.375, 0.0125])
    assert (recipe.non_finite, recipe.skipped_steps_count, recipe.loss_scale) == ("skip", True, None)
    assert (recipe.max_grad_norm, recipe.max_update_norm) == (None, None)
    endless = ImprovedDiffusion(small.config(lr=0.5), small.SPEC).recipe(train_size=8, ranks=1)
    assert endless.steps >= 10**9
    assert (endless.microbatch, float(endless.learning_rate(tf.constant(10**8, tf.int64)))) == (0, 0.5)


@pytest.mark.usefixtures("eager")
def test_half_precision():
    """Loss scaling as the original's: from 2^20, more after each good update, halved on overflow."""
    assert ImprovedDiffusion.half_precision(small.config(use_fp16=True))
    assert not ImprovedDiffusion.half_precision(small.config())
    expected = terms_of(small.system(), BATCH, small.KEY)[0]["loss"].mean()
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        system = small.system(use_fp16=True, fp16_scale_growth=0.5)
        assert system.network.shape.dtype == "float16"
        assert {variable.dtype for variable in system.network.trainable_variables} == {tf.float32}
        found = float(system.loss(BATCH, small.KEY, training=True).objective)
        trainer = Trainer(system)
        scale = trainer.recipe.loss_scale
        assert (scale.initial, scale.growth, scale.dynamic) == (2.0**20, 2.0**0.5, True)
        assert scale.loss_counts  # a loss that is not finite halves the scale, too
        scales, skipped = [], []
        for _ in range(5):
            outputs = trainer.step()
            scales.append(np.log2(outputs["loss_scale"]))
            skipped.append(int(outputs["skipped"]))
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert found == pytest.approx(expected, rel=0.02)
    assert 0 < sum(skipped) < 5
    # What is logged is the scale after the step.
    np.testing.assert_allclose(np.diff([20, *scales]), [-1.0 if skip else 0.5 for skip in skipped], atol=1e-4)
