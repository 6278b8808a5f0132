from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.systems.diffusion import timestep_samplers
from tfgen.systems.diffusion.timestep_samplers import LossSecondMomentSampler, UniformSampler

STEPS, HISTORY = 5, 4


class Sequential:
    """One loss after the other, in lists."""

    def __init__(self):
        self.losses = [[] for _ in range(STEPS)]

    def update(self, t, losses):
        for step, loss in zip(t, losses, strict=True):
            if np.isfinite(loss):
                self.losses[step] = [*self.losses[step], loss][-HISTORY:]

    def weights(self):
        if min(map(len, self.losses)) < HISTORY:
            return np.ones(STEPS)
        moments = np.sqrt([np.mean(np.square(row)) for row in self.losses])
        return 0.999 * moments / moments.sum() + 0.001 / STEPS


@pytest.fixture
def random():
    return np.random.RandomState(SEED)


def sampler():
    return LossSecondMomentSampler(STEPS, HISTORY)


def warm(losses):
    """A sampler that has seen one loss for each step often enough."""
    warmed = sampler()
    for _ in range(HISTORY):
        warmed.update(tf.range(STEPS), tf.constant(losses, tf.float64))
    return warmed


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_batch_counts_as_its_losses_one_after_the_other(random, batch):
    ours, expected = sampler(), Sequential()
    update = tf.function(
        ours.update, input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.float64)]
    )
    for _ in range(40 if batch < 10 else 4):
        t, losses = random.randint(0, STEPS, batch), random.exponential(size=batch)
        losses[random.random_sample(batch) < 0.1] = random.choice([np.nan, np.inf, -np.inf])
        update(tf.constant(t), tf.constant(losses))
        expected.update(t, losses)
        assert ours.counts.numpy().tolist() == [len(row) for row in expected.losses]
        for step, row in enumerate(expected.losses):
            np.testing.assert_array_equal(ours.history[step, : len(row)], row)
        np.testing.assert_allclose(ours.weights(), expected.weights(), rtol=1e-12)
    assert ours.warmed_up()


def test_more_losses_of_a_step_than_are_remembered():
    ours = sampler()
    ours.update(tf.constant([2, 0, 2]), tf.constant([1.0, 9.0, 2.0]))
    ours.update(tf.constant([2] * 6), tf.range(3.0, 9.0))
    np.testing.assert_array_equal(ours.history[2], [5, 6, 7, 8])
    np.testing.assert_array_equal(ours.counts, [1, 0, 4, 0, 0])
    np.testing.assert_array_equal(ours.history[0], [9, 0, 0, 0])


def test_nothing_to_learn_from():
    ours = warm([1, 2, 3, 4, 5])
    before = ours.history.numpy()
    ours.update(tf.constant([0, 1]), tf.constant([np.nan, np.inf]))
    ours.update(tf.zeros([0], tf.int32), tf.zeros([0]))
    np.testing.assert_array_equal(ours.history, before)


def test_one_step_that_is_missing_keeps_all_alike():
    ours = sampler()
    for _ in range(HISTORY):
        ours.update(tf.range(STEPS - 1), tf.range(1.0, STEPS))
    assert not ours.warmed_up()
    np.testing.assert_array_equal(ours.weights(), np.ones(STEPS))


def test_losses_of_zero_leave_the_uniform_share():
    steps, importance = warm(np.zeros(STEPS)).draw(tf.constant([0.1, 0.3, 0.5, 0.7, 0.9], tf.float64))
    np.testing.assert_array_equal(steps, range(STEPS))
    np.testing.assert_allclose(importance, 1, rtol=1e-6)


@pytest.mark.parametrize("losses", [None, [1, 0.01, 5, 2, 0.5]])
def test_draws_are_those_of_numpy(losses):
    ours = UniformSampler(STEPS) if losses is None else warm(losses)
    weights = ours.weights().numpy()
    p = weights / weights.sum()
    expected = np.random.RandomState(7).choice(STEPS, 500, p=p)
    steps, importance = tf.function(ours.draw)(tf.constant(np.random.RandomState(7).random_sample(500)))
    assert steps.dtype == tf.int32
    assert importance.dtype == tf.float32
    np.testing.assert_array_equal(steps, expected)
    np.testing.assert_allclose(importance, 1 / (STEPS * p[expected]), rtol=1e-6)
    assert len(set(expected)) == STEPS


def test_the_ends_of_the_unit_interval():
    steps, _ = timestep_samplers.draw(
        tf.constant([1, 2, 1], tf.float64), tf.constant([0, np.nextafter(1, 0)], tf.float64)
    )
    np.testing.assert_array_equal(steps, [0, 2])


def test_the_weighted_loss_has_the_uniform_expectation():
    losses = np.array([1, 0.01, 5, 2, 0.5])
    grid = (np.arange(100_000) + 0.5) / 100_000  # the expectation over the uniform numbers
    steps, importance = warm(losses).draw(tf.constant(grid))
    assert np.mean(losses[steps] * importance) == pytest.approx(losses.mean(), rel=1e-3)
    assert np.mean(losses[steps]) > 1.5 * losses.mean()


def test_coarse_uniform_numbers_are_refused():
    with pytest.raises(ValueError, match="float64, found float32"):
        UniformSampler(3).draw(tf.constant([0.5]))


def test_what_must_survive_a_restart_is_found():
    assert {variable.name for variable in sampler().variables} == {"history:0", "counts:0"}
