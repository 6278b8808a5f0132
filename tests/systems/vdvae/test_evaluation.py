"""Bounds of images: the formula, several importance samples, what they depend on, sets of all sizes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.vdvae import small
from tfgen import evaluation
from tfgen.data.errors import DataError
from tfgen.data.source import Subset
from tfgen.distribute import Ranks
from tfgen.likelihood import logistic_mixture
from tfgen.randomness import Key
from tfgen.systems.vdvae.evaluation import EvaluateOptions
from tfgen.systems.vdvae.sampling import latent_noise

ONE = EvaluateOptions()


@pytest.fixture(scope="module")
def system():
    return small.system(rate_per_resolution=True)


def evaluate(system, folder, count=7, batch_size=3, options=ONE, limit=None):
    return evaluation.evaluate(system, small.source(count), batch_size, Ranks(), options, folder, limit)


def close(one: dict[str, float], two: dict[str, float]) -> bool:
    return one.keys() == two.keys() and all(np.isclose(one[name], two[name], rtol=1e-5, atol=1e-6) for name in one)


# One draw ------------------------------------------------------------------------------------------------


def test_the_bound_is_the_formula(system):
    """Negative log-likelihood of the head plus the KLs, in nats per sub-pixel, for each image."""
    images = small.images(7)
    inputs, targets = system.preprocessing.input_and_target(tf.constant(images))
    noise = latent_noise(Key.create(9, "evaluation", first_sample=20).fold(0))
    inferred = system.network.infer(inputs, noise)
    parameters = system.network.mixture_parameters(inferred.features)
    log_prob = logistic_mixture.log_prob(parameters, targets).numpy().astype(np.float64)
    distortion = -log_prob.sum(axis=(1, 2)) / 192
    rates = [kl.numpy().astype(np.float64).sum(axis=(1, 2, 3)) / 192 for kl in inferred.kls]
    found = system._evaluator.image_metrics(images, 20, EvaluateOptions(noise_seed=9))
    expected = {
        "distortion": distortion, "rate": sum(rates), "elbo": distortion + sum(rates),
        "bits_per_dim_bound": (distortion + sum(rates)) / np.log(2), "non_finite": np.zeros(7),
        "elbo_filtered": distortion + sum(rates),
        "rate_at_1": rates[0], "rate_at_4": rates[1], "rate_at_8": rates[2],
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


def test_five_bit_images_have_wider_buckets():
    system = small.system(dataset="ffhq_256")
    inputs, targets = system.preprocessing.input_and_target(tf.constant(small.images(2)))
    noise = latent_noise(Key.create(0, "evaluation"))
    parameters = system.network.mixture_parameters(system.network.infer(inputs, noise).features)
    log_prob = logistic_mixture.log_prob(parameters, targets, logistic_mixture.FIVE_BIT)
    expected = -tf.reduce_sum(log_prob, axis=[1, 2]) / 192
    np.testing.assert_allclose(system.bound(inputs, targets, noise).distortion, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("dataset", "buckets"),
    [("ffhq_256", logistic_mixture.FIVE_BIT_EXACT), ("photos", logistic_mixture.EIGHT_BIT_EXACT)],
)
def test_exact_buckets_come_beside_the_published_ones(dataset, buckets, tmp_path):
    """Of the same latents, so that the difference is that of the buckets alone."""
    system, images = small.system(dataset=dataset), small.images(7)
    inputs, targets = system.preprocessing.input_and_target(tf.constant(images))
    inferred = system.network.infer(inputs, latent_noise(Key.create(0, "evaluation").fold(0)))
    log_prob = logistic_mixture.log_prob(system.network.mixture_parameters(inferred.features), targets, buckets)
    expected = -tf.reduce_sum(log_prob, axis=[1, 2]) / 192 + tf.add_n(
        [tf.reduce_sum(kl, axis=[1, 2, 3]) / 192 for kl in inferred.kls]
    )
    options = EvaluateOptions(exact_buckets=True)
    found = system._evaluator.image_metrics(images, 0, options)
    np.testing.assert_allclose(found["exact_elbo"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["exact_bits_per_dim_bound"], expected / np.log(2), rtol=1e-5)
    assert (found["exact_elbo"] != found["elbo"]).all()
    if dataset == "ffhq_256":  # narrower buckets hold less, but for the top one, which is open
        below_the_top = system._evaluator.image_metrics(np.minimum(images, 247), 0, options)
        gap = below_the_top["exact_elbo"] - below_the_top["elbo"]
        assert ((gap > 0) & (gap < 0.03)).all()
    result = evaluate(system, tmp_path, options=options)
    assert result["exact_elbo"] == pytest.approx(found["exact_elbo"].mean(), rel=1e-5)
    assert "exact_elbo" not in evaluate(system, tmp_path)


# Several draws -------------------------------------------------------------------------------------------


def test_the_importance_weighted_bound_is_the_formula(system):
    images, dims = small.images(7), 192
    found = system._evaluator.image_metrics(images, 0, EvaluateOptions(importance_samples=4))
    inputs, targets = system.preprocessing.input_and_target(tf.constant(images))
    weights = []
    for draw in range(4):
        noise = latent_noise(Key.create(0, "evaluation").fold(draw))
        bound = system.bound(inputs, targets, noise, sampled_kl=True)
        weights.append(-dims * (bound.distortion + bound.rate).numpy().astype(np.float64))
    top = np.max(weights, axis=0)
    expected = -(top + np.log(np.mean(np.exp(np.array(weights) - top), axis=0))) / dims
    np.testing.assert_allclose(found["iw_elbo"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["iw_bits_per_dim_bound"], expected / np.log(2), rtol=1e-5)
    # At least as tight as the mean of the bounds that it combines (Jensen), at most log K tighter than the best.
    assert (found["iw_elbo"] <= -np.mean(weights, axis=0) / dims + 1e-9).all()
    assert (found["iw_elbo"] >= -top / dims - 1e-9).all()


def test_more_samples_give_a_tighter_bound_on_average(system, tmp_path):
    def result(samples):
        return evaluate(system, tmp_path, 7, 7, EvaluateOptions(importance_samples=samples))

    two, many = result(2), result(16)
    assert many["iw_elbo"] < two["iw_elbo"] < two["elbo"]
    assert many["elbo"] == two["elbo"]
    assert many["iw_bits_per_dim_bound"] == pytest.approx(many["iw_elbo"] / np.log(2))


def test_the_bound_converges_to_a_known_likelihood():
    """With latents that do not reach the features p(x | z) is p(x): the likelihood is known, and the KL is the gap."""
    system = small.system(enc_blocks="8x1,8d8", dec_blocks="1x1,8m1")
    for block in system.network.decoder_blocks:
        block.projection.kernel.assign(tf.zeros_like(block.projection.kernel))
        # Posteriors a little beside their priors: weights that a hundred draws average well.
        for layer in (block.posterior, block.prior):
            layer.c4.kernel.assign(0.35 * layer.c4.kernel)
            layer.c4.bias.assign(0.35 * layer.c4.bias)
    images = small.images(16)
    gaps = {}
    for samples in (2, 10, 100):
        found = system._evaluator.image_metrics(images, 0, EvaluateOptions(importance_samples=samples))
        truth, rate = found["distortion"], found["rate"].mean()
        np.testing.assert_allclose(found["elbo"], truth + found["rate"], rtol=1e-6)
        gaps[samples] = (found["iw_elbo"] - truth).mean()
    assert rate * 192 > 0.5
    assert gaps[2] < rate
    assert abs(gaps[100]) < abs(gaps[10]) < abs(gaps[2])
    assert abs(gaps[100]) < 0.1 * rate, (rate, gaps)


# What a result depends on --------------------------------------------------------------------------------


def test_the_batch_size_does_not_matter(system, tmp_path):
    """Nor does a last batch that is not full: every image counts once."""
    options = EvaluateOptions(importance_samples=2)
    each = system._evaluator.image_metrics(small.images(7), 0, options)
    expected = {name: values.mean() for name, values in each.items()} | {"examples": 7}
    for batch_size in (3, 7, 100):
        assert close(evaluate(system, tmp_path, 7, batch_size, options), expected)


def test_a_set_smaller_than_a_batch(system, tmp_path):
    each = system._evaluator.image_metrics(small.images(7), 0, ONE)
    expected = {name: values[:3].mean() for name, values in each.items()} | {"examples": 3}
    assert close(evaluate(system, tmp_path, count=7, batch_size=16, limit=3), expected)


class OneOfThree(Ranks):
    """A rank of three, one after the other in this process; the last one gets the sums of all."""

    size = 3

    def __init__(self, rank: int, sums: list[tf.Tensor]):
        self.rank, self.sums = rank, sums

    def sum(self, tensor):
        self.sums.append(tensor)
        return tf.add_n(self.sums)


@pytest.mark.parametrize("count", [4, 2])
def test_ranks_share_the_images(system, tmp_path, count):
    """Each counts once, also where a rank has none in the last round, or none at all."""
    sums: list[tf.Tensor] = []
    for rank in range(3):
        result = evaluation.evaluate(system, small.source(count), 1, OneOfThree(rank, sums), ONE, tmp_path)
    assert close(result, evaluate(system, tmp_path, count))


def test_the_seed_decides(system, tmp_path):
    first = evaluate(system, tmp_path)
    assert evaluate(system, tmp_path) == first
    other = evaluate(system, tmp_path, options=EvaluateOptions(noise_seed=1))
    assert other["elbo"] != first["elbo"]
    assert other["elbo"] == pytest.approx(first["elbo"], rel=0.2)


def test_images_without_a_finite_bound_are_counted(system, tmp_path):
    gain = system.network.gain.numpy()
    try:
        system.network.gain.assign(np.full_like(gain, np.nan))
        found = evaluate(system, tmp_path)
    finally:
        system.network.gain.assign(gain)
    assert found["non_finite"] == 1
    assert np.isnan(found["elbo"])
    assert found["elbo_filtered"] == 0
    assert evaluate(system, tmp_path)["non_finite"] == 0


def test_an_image_without_a_finite_bound_is_left_out_of_the_filtered_mean(system, tmp_path, monkeypatch):
    """On any number of ranks, one of which has no other image."""
    each = system._evaluator.image_metrics(small.images(4), 0, ONE)["elbo"]
    bound = system._evaluator._bound

    def with_a_nan(images, first, *rest, **named):
        distortion, rates = bound(images, first, *rest, **named)
        return np.where(first + np.arange(len(images)) == 2, np.nan, distortion), rates

    monkeypatch.setattr(system._evaluator, "_bound", with_a_nan)
    sums: list[tf.Tensor] = []
    for rank in range(3):
        by_ranks = evaluation.evaluate(system, small.source(4), 1, OneOfThree(rank, sums), ONE, tmp_path)
    for found in (by_ranks, evaluate(system, tmp_path, 4, 1)):
        assert np.isnan(found["elbo"])
        assert found["non_finite"] == 0.25
        assert found["elbo_filtered"] == pytest.approx(each[[0, 1, 3]].mean(), rel=1e-5)


def test_an_empty_set_is_an_error_that_says_so(system, tmp_path):
    empty = Subset(small.source(3), np.zeros(0, np.int64), "nobody")
    with pytest.raises(DataError, match="nothing to evaluate: nobody has 0 images; expected at least 1"):
        evaluation.evaluate(system, empty, 4, Ranks(), ONE, tmp_path)
    with pytest.raises(DataError, match="numbers has 7 images, of which 0 were asked for"):
        evaluate(system, tmp_path, limit=0)
