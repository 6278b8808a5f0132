"""Likelihoods of distribution smoothing."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.smoothing import small
from tfgen.data.arrays import ArraySource
from tfgen.data.pipeline import EvaluationBatches
from tfgen.randomness import Key
from tfgen.settings import SettingsError
from tfgen.systems.smoothing.config import Stage
from tfgen.systems.smoothing.evaluation import EvaluateOptions

SOURCE = ArraySource(small.images(10), "numbers")


@pytest.fixture(scope="module")
def both():
    system = small.system(Stage.REVERSE)
    system.accept_companions({"stage1": small.system()})
    return system


def evaluated(system, batch_size: int, **options) -> dict[str, float]:
    batches = EvaluationBatches(SOURCE, batch_size, 0, 1, None)
    return system.evaluate(batches, EvaluateOptions(**options), pathlib.Path())


def test_every_image_counts_once_whatever_the_batches(both):
    four, ten = evaluated(both, 4, importance_samples=2), evaluated(both, 10, importance_samples=2)
    assert four.keys() == ten.keys()
    assert four["examples"] == 10
    for name, value in ten.items():
        assert four[name] == pytest.approx(value, rel=1e-5), name


def test_the_bound_is_the_sum_of_its_terms(both):
    evaluator = both.evaluator
    images, options = small.images(10), EvaluateOptions(importance_samples=3)
    metrics = evaluator.image_metrics(images, 0, options)
    dims, noise = both.spec.dims, both.config.noise
    terms = [evaluator._terms(images, 0, 0, draw) for draw in range(3)]
    entropy = 0.5 * dims * math.log(2 * math.pi * math.e * noise**2)
    bound = (terms[0].own + terms[0].prior - entropy) / dims / math.log(2)
    np.testing.assert_allclose(metrics["bits_per_dim_two_stage_bound"], bound, rtol=1e-10)
    weights = np.array([-(term.own + term.prior + term.log_q) for term in terms])
    top = weights.max(0)
    by_hand = -(top + np.log(np.mean(np.exp(weights - top), axis=0))) / dims / math.log(2)
    np.testing.assert_allclose(metrics["bits_per_dim_two_stage_iw_bound"], by_hand, rtol=1e-10)
    for name in ("bits_per_dim_given_smoothed", "bits_per_dim_two_stage_bound"):
        np.testing.assert_allclose(metrics[f"{name}_8bit"] - metrics[name], math.log2(127.5), rtol=1e-9)


def test_log_q_is_that_of_the_noise_drawn(both):
    """Its mean over draws is minus the entropy of the noise."""
    evaluator = both.evaluator
    values = np.concatenate([evaluator._terms(small.images(10), 0, 0, draw).log_q for draw in range(4)])
    dims = both.spec.dims
    entropy = 0.5 * dims * math.log(2 * math.pi * math.e * both.config.noise**2)
    spread = math.sqrt(dims / 2)  # of log q of one image
    assert abs(values.mean() + entropy) < 4 * spread / math.sqrt(len(values))


def test_the_image_stays_the_same_when_its_smoothed_one_is_drawn_again(both):
    """Otherwise the importance-weighted bound would be one of another quantity."""
    seen = []
    record = both.noisy

    def noisy(*arguments):
        seen.append(record(*arguments))
        return seen[-1]

    both.noisy = noisy
    try:
        for draw in (0, 1):
            both.evaluator._terms_in_graph(
                tf.constant(small.images(2)), Key.create(0, "evaluation").seed, tf.constant(5, tf.int64), draw
            )
    finally:
        del both.noisy
    (first, target), (second, again) = seen
    np.testing.assert_array_equal(target, again)
    assert np.abs(first - second).max() > 0.1


def test_without_stage_1_there_is_no_bound():
    result = evaluated(small.system(Stage.REVERSE), 4, importance_samples=3)
    assert set(result) == {"bits_per_dim_given_smoothed", "bits_per_dim_given_smoothed_8bit", "nats", "examples"}
    assert set(evaluated(small.system(Stage.PLAIN), 4)) == {"bits_per_dim", "nats", "examples"}


def test_a_rank_without_images_reports_the_same_names(both):
    empty = both.evaluate([], EvaluateOptions(), pathlib.Path())
    assert empty.keys() == evaluated(both, 4).keys()
    assert empty["examples"] == 0


def test_the_number_of_the_original_divides_by_one_batch_less(both):
    metrics = both.evaluator.image_metrics(small.images(10), 0, EvaluateOptions())["bits_per_dim_given_smoothed"]
    expected = (metrics[:4].mean() + metrics[4:8].mean()) / 1
    assert evaluated(both, 4, original_average=True)["original_average"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(SettingsError, match="lower --batch_size"):
        evaluated(both, 10, original_average=True)
    two_ranks = EvaluationBatches(SOURCE, 4, 1, 2, None)
    with pytest.raises(SettingsError, match="one process, found 2"):
        both.evaluate(two_ranks, EvaluateOptions(original_average=True), pathlib.Path())
