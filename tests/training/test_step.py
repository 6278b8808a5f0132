"""One training step: skipping, accumulation, agreement."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfgen.data.source import ImageSpec
from tfgen.distribute import Ranks
from tfgen.systems.base import Loss
from tfgen.training.optimizers import Adam
from tfgen.training.recipe import LossScaleSettings, Recipe
from tfgen.training.schedules import Constant
from tfgen.training.state import TrainState
from tfgen.training.step import STOP, TrainStep

NO_REQUEST = np.zeros(2, np.float32)


class Network(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.matrix = tf.Variable(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))
        self.bias = tf.Variable(np.zeros(3, np.float32))


class Toy:
    """A linear regression with noise on its inputs; a batch's "poison" multiplies the loss."""

    spec = ImageSpec(1, 1, 1)

    def __init__(self):
        self.network, self.state, self.rank_state = Network(), tf.Module(), tf.Module()

    def loss(self, batch, key, training):
        assert training
        x = batch["x"] + 0.1 * key.fold("noise").normal(tf.unstack(tf.shape(batch["x"])))
        y = x @ self.network.matrix + self.network.bias
        poison = tf.reduce_max(batch["poison"])
        return Loss(tf.reduce_mean(tf.square(y - 1)) * poison, {"bits_per_dim": tf.reduce_mean(y)})


RECIPE = Recipe(
    seed=3, batch_size=8, steps=10, optimizer=Adam(), learning_rate=Constant(0.01), max_grad_norm=1.0, ema_decays=(0.9,)
)


def build(accumulation=1, **changes):
    system = Toy()
    recipe = dataclasses.replace(RECIPE, optimizer=Adam(), **changes)
    state = TrainState(system, recipe)
    return state, TrainStep(system, recipe, state, Ranks(), accumulation)


def batch(poison=1.0, seed=0):
    x = np.random.RandomState(seed).normal(size=[8, 4]).astype(np.float32)
    return {"x": tf.constant(x), "poison": tf.constant(np.full(8, poison, np.float32))}


def bits(variables):
    return [variable.numpy().tobytes() for variable in variables]


def test_the_loss_falls():
    state, step = build()
    losses = [float(step(batch(), NO_REQUEST)["loss"]) for _ in range(50)]
    assert losses[-1] < 0.8 * losses[0]
    assert int(state.step) == int(state.updates) == 50


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_bad_loss_changes_nothing_and_is_counted(poison):
    state, step = build()
    step(batch(), NO_REQUEST)
    learned = [*state.network.variables, *state.optimizer.variables, *state.averages[0].variables]
    before = bits(learned)
    for count in (1, 2):
        outputs = step(batch(poison), NO_REQUEST)
        assert bits(learned) == before
        assert float(outputs["skipped"]) == 1.0
        assert float(outputs["troubled_steps"]) == count
    assert (int(state.step), int(state.skipped_steps), int(state.updates)) == (3, 2, 1)
    outputs = step(batch(), NO_REQUEST)
    assert float(outputs["troubled_steps"]) == 0.0
    assert bits(learned) != before


def test_updates_above_the_norm_limit_are_skipped():
    state, step = build(max_update_norm=1e-6)
    before = bits(state.network.variables)
    assert float(step(batch(), NO_REQUEST)["skipped"]) == 1.0
    assert bits(state.network.variables) == before


def test_an_overflowed_gradient_in_float32_is_trouble_but_taken():
    # The loss stays finite while its gradient does not: square root at zero.
    state, step = build()
    system = step._system

    def loss(rows, key, training):
        healthy = Toy.loss(system, rows, key, training)
        return Loss(healthy.objective + tf.sqrt(tf.reduce_sum(tf.abs(system.network.bias))), healthy.metrics)

    system.loss = loss
    outputs = step(batch(), NO_REQUEST)
    assert np.isfinite(outputs["loss"])
    assert not np.isfinite(outputs["grad_norm"])
    assert (float(outputs["skipped"]), float(outputs["troubled_steps"])) == (0.0, 1.0)
    assert np.isfinite(state.network.bias.numpy()).all()


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_equals_the_whole_batch(parts):
    one, whole = build()
    other, split = build(accumulation=parts)
    for number in range(3):
        first, second = whole(batch(seed=number), NO_REQUEST), split(batch(seed=number), NO_REQUEST)
        np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-6)
    for a, b in zip(one.network.variables, other.network.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-6)


def test_accumulation_must_divide_the_batch():
    with pytest.raises(ValueError, match=r"batch of 8 images per rank cannot be split in 3 .*--grad_accumulation"):
        build(accumulation=3)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_microbatches_that_are_averaged_equal_the_whole_batch(size):
    one, whole = build()
    other, split = build(microbatch=size)
    for number in range(3):
        first, second = whole(batch(seed=number), NO_REQUEST), split(batch(seed=number), NO_REQUEST)
        for name in ("loss", "bits_per_dim", "grad_norm"):
            np.testing.assert_allclose(first[name], second[name], rtol=2e-6)
    for a, b in zip(one.network.variables, other.network.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-6)


def test_an_uneven_last_microbatch_counts_its_images_once_or_its_mean_whole():
    """3 + 3 + 2 images: averaged, the gradient is that of the whole batch; added, that of the three means."""
    gradients = {}
    for name, changes in {
        "whole": {},
        "mean": {"microbatch": 3},
        "sum": {"microbatch": 3, "microbatches_add": True},
    }.items():
        state, step = build(**changes)
        metrics, _, gradients[name], _ = step._loss_and_gradients(batch(), step._key.fold(state.step), tf.constant(1.0))
        gradients[name + " loss"] = metrics["loss"]
    state, step = build()
    key, added, losses = step._key.fold(state.step), 0.0, []
    for part in (slice(0, 3), slice(3, 6), slice(6, 8)):
        rows = {name: value[part] for name, value in batch().items()}
        with tf.GradientTape() as tape:
            loss = step._system.loss(rows, key.skip(part.start), training=True).objective
        added += tape.gradient(loss, state.network.matrix).numpy()
        losses.append(float(loss))
    np.testing.assert_allclose(gradients["mean"][0], gradients["whole"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients["sum"][0], added, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients["mean loss"], gradients["whole loss"], rtol=1e-6)
    np.testing.assert_allclose(gradients["sum loss"], np.mean(losses), rtol=1e-6)


def test_two_ways_to_split_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"--grad_accumulation=2 and microbatches of 4 .*drop one"):
        build(accumulation=2, microbatch=4)


def test_observations_arrive_between_microbatches_in_the_order_of_samples():
    _, step = build(microbatch=3)
    system = step._system
    system.state.seen = tf.Variable(np.full(8, -1.0), dtype=tf.float64)
    system.state.count = tf.Variable(0, dtype=tf.int32)

    def loss(rows, key, training):
        # The objective of a microbatch depends on what was observed in those before it.
        healthy = Toy.loss(system, rows, key, training)
        seen_before = tf.cast(system.state.count.read_value(), tf.float32)
        values = rows["x"][:, 0]
        pair = tf.stack([tf.reduce_sum(values), tf.cast(tf.shape(values)[0], tf.float32)])
        return Loss(healthy.objective, {"seen": seen_before}, {"first": pair}, {"value": values})

    def observe(observations):
        (values,) = observations.values()
        places = system.state.count + tf.range(tf.shape(values)[0])
        system.state.seen.scatter_nd_update(places[:, None], tf.cast(values, tf.float64))
        system.state.count.assign_add(tf.shape(values)[0])

    system.loss, system.observe = loss, observe
    outputs = step(batch(), NO_REQUEST)
    values = batch()["x"][:, 0].numpy()
    np.testing.assert_array_equal(system.state.seen.numpy(), values.astype(np.float64))
    np.testing.assert_allclose(outputs["seen"], (0 * 3 + 3 * 3 + 6 * 2) / 8, rtol=1e-6)
    np.testing.assert_allclose(outputs["first"], [values.sum(), 8.0], rtol=1e-6)


def test_loss_scale_reacts_and_leaves_the_update_alone():
    plain, step = build()
    scaled, scaled_step = build(loss_scale=LossScaleSettings(initial=2.0**16))
    for number in range(3):
        step(batch(seed=number), NO_REQUEST)
        outputs = scaled_step(batch(seed=number), NO_REQUEST)
    assert float(outputs["loss_scale"]) > 2.0**16
    for a, b in zip(plain.network.variables, scaled.network.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


def test_requests_come_back():
    _, step = build()
    asked = np.zeros(2, np.float32)
    asked[STOP] = 1.0
    np.testing.assert_array_equal(step(batch(), asked)["requests"], asked)


def test_same_bits_every_time():
    results = []
    for _ in range(2):
        state, step = build()
        for number in range(5):
            step(batch(seed=number), NO_REQUEST)
        results.append(bits(state.variables))
    assert results[0] == results[1]
