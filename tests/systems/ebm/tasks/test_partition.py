"""Annealed importance sampling of energies whose partition function is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tests.systems.ebm.tasks import small
from tfgen.settings import SettingsError
from tfgen.systems.ebm.tasks import partition
from tfgen.systems.ebm.tasks.partition import Step


def test_schedule():
    forward, backward = partition.schedule(2, 0.01)
    assert forward == [Step(0.0, 0.5, 0.01), Step(0.5, 1.0, pytest.approx(0.01 * 5**-1.25))]
    assert backward == [
        Step(1.0, 0.5, pytest.approx(0.01 * 5**-2.5)),
        Step(0.5, 0.0, pytest.approx(0.01 * 5**-1.25)),
    ]
    with pytest.raises(ValueError, match="0 distributions, expected 1 or more"):
        partition.schedule(0, 0.01)


def test_bridge():
    """A share of the energy, and a wall around the range."""
    x = tf.constant([[0.5, 2.01], [-0.02, 1.0]])
    of_share = partition.bridge(lambda x, _: tf.reduce_sum(x, axis=1, keepdims=True), None, tf.constant(0.25), 2.0)
    energy, gradient = of_share(x)
    np.testing.assert_allclose(energy, [0.25 * 2.51 + 1.0, 0.25 * 0.98 + 4.0], rtol=1e-4)
    np.testing.assert_allclose(gradient, [[0.25, 0.25 + 200.0], [0.25 - 400.0, 0.25]], rtol=1e-4)


def test_the_partition_function_of_a_quadratic_energy():
    """Forward from the uniform density and backward from the energy's own, weights tell the integral over the range."""
    high, rate, centre, chains = 1.5, 2.0, 0.4, 400
    generator = np.random.default_rng(SEED)

    def energy(x, labels):
        assert labels is None
        return tf.reduce_sum(rate * tf.square(x - centre), axis=1, keepdims=True)

    @tf.function
    def move(x, numbers, number):
        return partition.transition(energy, None, x, Step(*tf.unstack(numbers)), high, seed=SEED, number=number)

    def log_weights(x, steps) -> np.ndarray:
        total, x = np.zeros(chains), tf.constant(x, tf.float32)
        for number, step in enumerate(steps):
            result = move(x, tf.constant(step, tf.float32), tf.constant(number))
            total, x = total + result.log_weight.numpy(), result.position
            assert np.mean(result.acceptance) > 0.5
        return total

    forward, backward = partition.schedule(8, 0.012)
    samples = generator.normal(centre, (2 * rate) ** -0.5, 4 * chains * 2)
    samples = samples[(samples >= 0) & (samples < high)][: 2 * chains].reshape(chains, 2)
    there = log_weights(generator.uniform(0, high, [chains, 2]), forward)
    back = log_weights(samples, backward)
    found = partition.summary(there, back, 2 * math.log(high))
    root = math.sqrt(rate)
    one = math.sqrt(math.pi) / (2 * root) * (math.erf(root * (high - centre)) + math.erf(root * centre))
    expected = 2 * math.log(one)
    # The feet of the walls have some hundredths of the volume, and the means some of noise.
    assert found["lower_value_log_mean_exp"] == pytest.approx(expected, abs=0.1)
    assert found["upper_value_log_mean_exp"] == pytest.approx(expected, abs=0.1)
    assert found["lower_value"] < found["lower_value_log_mean_exp"] - 0.1
    assert found["upper_value"] > found["upper_value_log_mean_exp"] + 0.1


def test_summary():
    found = partition.summary(np.array([0.0, math.log(3.0)]), np.array([0.0, -math.log(4.0)]), 10.0)
    assert found == pytest.approx(
        {
            "lower_value": 10 + math.log(3) / 2,
            "lower_value_sd": math.log(3) / 2,
            "lower_value_log_mean_exp": 10 + math.log(2),
            "upper_value": 10 + math.log(2),
            "upper_value_sd": math.log(2),
            "upper_value_log_mean_exp": 10 - math.log(5 / 8),
        }
    )
    assert partition.log_mean_exp(np.array([1000.0, 1000.0])) == 1000.0
    assert partition.log_mean_exp(np.array([-np.inf, -np.inf])) == -np.inf


def test_step_sizes():
    def default(channels, **settings):
        return partition.default_step_size(small.system(**settings).config, channels)

    assert default(1) == default(1, rescale=8.0) == 0.0065
    assert default(3) == 0.0045
    assert default(3, rescale=8.0) == 0.0085


def test_a_constant_energy(monkeypatch, tmp_path):
    """Its partition function is that constant and the volume of the range, whatever the chains do."""
    system = small.system(cclass=False, rescale=2.0)
    constant = 3.25
    monkeypatch.setattr(system, "energy", lambda weights, images, labels: tf.fill([tf.shape(images)[0], 1], constant))
    options = small.options("ais", pdist=3, ais_batch=2, temperature=2.0)
    results = partition.ais(system, options, small.job(tmp_path))
    expected = -2 * constant + 64 * math.log(2)
    for name in ("lower_value", "lower_value_log_mean_exp", "upper_value", "upper_value_log_mean_exp"):
        assert results[name] == pytest.approx(expected, rel=1e-5)
    assert results["positive_sample_probability"] == -2 * constant
    assert results["log_likelihood"] == pytest.approx(-64 * math.log(2), rel=1e-4)


def test_the_task(tmp_path):
    """A conditional network is one of the images of class 0; --alr is heeded."""
    system, job = small.system(), small.job(tmp_path, batch_size=5)
    values = {"pdist": 2, "ais_batch": 3}
    results = partition.ais(system, small.options("ais", **values), job)
    key = job.key.fold("levels")
    batch = job.source.read(np.arange(12))
    images = ((batch["image"] / 255 * 255 / 256) + key.uniform([12, 8, 8, 1]).numpy() / 256).astype(np.float32)
    energies = system.energy(system.normalized(), images, tf.one_hot([0] * 12, 4)).numpy()[:, 0]
    assert results["positive_sample_probability"] == pytest.approx(-energies.mean(), rel=1e-4)
    assert results["positive_sample_probability_sd"] == pytest.approx(energies.std(), rel=1e-3)
    expected = -energies[batch["label"] == 0].mean() - results["lower_value_log_mean_exp"]
    assert results["log_likelihood"] == pytest.approx(expected, rel=1e-4)
    assert 0 < results["acceptance"] <= 1
    other = partition.ais(system, small.options("ais", alr=0.001, **values), job)
    assert other["lower_value"] != results["lower_value"]
    assert other["positive_sample_probability"] == results["positive_sample_probability"]


def test_labels_that_are_no_classes(monkeypatch, tmp_path):
    system = small.system()
    monkeypatch.setattr(type(system.config), "sprites_mode", "cond_pos")
    monkeypatch.setattr(type(system.config), "labels_are_classes", False)
    with pytest.raises(SettingsError, match=r"--task=ais needs classes .* numbers \(--cond_pos\)"):
        partition.ais(system, small.options("ais"), small.job(tmp_path))
