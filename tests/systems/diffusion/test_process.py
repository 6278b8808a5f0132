from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tests.systems.diffusion.processes import GaussianImages, process
from tfgen.systems.diffusion.process import LossType, MeanType, Process, VarianceType

SHAPE = (4, 3, 2, 3)
T = tf.constant([0, 1, 50, 99])


@pytest.fixture
def random():
    return np.random.RandomState(SEED)


def normal(random, channels=3):
    return tf.constant(random.standard_normal([*SHAPE[:3], channels]).astype(np.float32))


def on_the_grid(random):
    return tf.constant((random.randint(0, 256, SHAPE) / 127.5 - 1).astype(np.float32))


def test_the_posterior_is_that_of_bayes():
    """q(x_(t-1) | x_t, x_0) from q(x_(t-1) | x_0) and q(x_t | x_(t-1)), both normal."""
    ours = process()
    x_0, x_t = 0.7, -0.4
    for step in (1, 2, 50, 98):
        prior, noise = 1 - ours.alphas_cumprod[step - 1], ours.betas[step]
        factor = math.sqrt(1 - noise)
        precision = 1 / prior + factor**2 / noise
        mean = (math.sqrt(ours.alphas_cumprod[step - 1]) * x_0 / prior + factor * x_t / noise) / precision
        images = [tf.fill([1, 1, 1, 1], tf.constant(value, tf.float64)) for value in (x_0, x_t)]
        found, variance, log_variance = ours.q_posterior_mean_variance(*images, tf.constant([step]))
        assert found.numpy().item() == pytest.approx(mean, rel=1e-9)
        assert variance.numpy().item() == pytest.approx(1 / precision, rel=1e-9)
        assert log_variance.numpy().item() == pytest.approx(-math.log(precision), rel=1e-9)


def test_noise_comes_step_by_step_or_at_once():
    """The moments of x_t after t single steps are those of q(x_t | x_0)."""
    ours = process()
    mean, variance = 1.0, 0.0
    for step, beta in enumerate(ours.betas):
        mean, variance = mean * math.sqrt(1 - beta), variance * (1 - beta) + beta
        found = ours.q_mean_variance(tf.ones([1, 1, 1, 1], tf.float64), tf.constant([step]))
        np.testing.assert_allclose(
            [value.numpy().item() for value in found], [mean, variance, math.log(variance)], rtol=1e-9
        )


def test_x_t_has_the_noise_level_of_its_own_image(random):
    ours = process()
    x_start, noise = on_the_grid(random), normal(random)
    x_t = ours.q_sample(x_start, T, noise)
    for image, step in enumerate(T.numpy()):
        level = ours.alphas_cumprod[step]
        expected = math.sqrt(level) * x_start[image] + math.sqrt(1 - level) * noise[image]
        np.testing.assert_allclose(x_t[image], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variance", VarianceType)
@pytest.mark.parametrize("mean", MeanType)
def test_the_true_output_gives_the_posterior(random, mean, variance):
    """Whatever the output means: if it is right, x_0 is found and the mean is the posterior's."""
    ours = process(mean, variance)
    x_start, noise = tf.cast(on_the_grid(random), tf.float64), tf.cast(normal(random), tf.float64)
    x_t = ours.q_sample(x_start, T, noise)
    posterior, _, _ = ours.q_posterior_mean_variance(x_start, x_t, T)
    output = {MeanType.EPSILON: noise, MeanType.START_X: x_start, MeanType.PREVIOUS_X: posterior}[mean]
    values = tf.cast(normal(random), tf.float64)
    if variance.learned:
        output = tf.concat([output, values], axis=-1)
    prediction = ours.p_mean_variance(output, x_t, T, clip_denoised=False)
    np.testing.assert_allclose(prediction.pred_xstart, x_start, atol=1e-8)
    np.testing.assert_allclose(prediction.mean, posterior, atol=1e-8)
    small, large = ours.posterior_log_variance_clipped[T.numpy()], np.log(ours.betas[T.numpy()])
    small, large = (table.reshape(-1, 1, 1, 1) for table in (small, large))
    expected = {
        VarianceType.LEARNED: values,
        VarianceType.LEARNED_RANGE: small + (values + 1) / 2 * (large - small),
        VarianceType.FIXED_SMALL: np.broadcast_to(small, SHAPE),
        VarianceType.FIXED_LARGE: np.broadcast_to(np.concatenate([small[:1], large[1:]]), SHAPE),
    }[variance]
    np.testing.assert_allclose(prediction.log_variance, expected, rtol=1e-9)
    first = 1 if variance is VarianceType.FIXED_SMALL else 0  # where the variance is 0
    np.testing.assert_allclose(prediction.variance[first:], np.exp(expected)[first:], rtol=1e-9)
    if first:
        np.testing.assert_array_equal(prediction.variance[0], np.zeros(SHAPE[1:]))


def test_predictions_of_x_0_are_changed_and_then_clipped(random):
    ours = process(MeanType.START_X)
    output, x_t = 3 * normal(random), normal(random)
    prediction = ours.p_mean_variance(output, x_t, T, True, denoised_fn=lambda x: x / 2)
    np.testing.assert_allclose(prediction.pred_xstart, np.clip(output / 2, -1, 1), rtol=1e-6)
    np.testing.assert_allclose(
        prediction.mean, ours.q_posterior_mean_variance(prediction.pred_xstart, x_t, T)[0], rtol=1e-6
    )
    previous = process(MeanType.PREVIOUS_X).p_mean_variance(output, x_t, T, True)
    np.testing.assert_array_equal(previous.mean, output)
    assert np.abs(previous.pred_xstart).max() <= 1


def test_noise_and_x_0_from_each_other(random):
    ours = process()
    x_start, noise = on_the_grid(random), normal(random)
    x_t = ours.q_sample(x_start, T, noise)
    # At t = 0 the noise is a small part of x_t, and float32 leaves three digits of it.
    np.testing.assert_allclose(ours.eps_from_xstart(x_t, T, x_start), noise, atol=1e-3)


def test_what_the_network_is_told():
    steps = tf.constant([0, 3, 9], tf.int64)
    assert process().network_timesteps(steps).dtype == tf.int64
    np.testing.assert_array_equal(process().network_timesteps(steps), [0, 3, 9])
    rescaled = process(steps=400, rescale_timesteps=True)
    assert rescaled.network_timesteps(steps).dtype == tf.float32
    np.testing.assert_array_equal(rescaled.network_timesteps(steps), [0, 7.5, 22.5])
    np.testing.assert_array_equal(process(steps=400).respaced("10").network_timesteps(steps), [0, 133, 399])
    np.testing.assert_array_equal(rescaled.respaced("10").network_timesteps(steps), [0, 332.5, 997.5])


def test_respaced_processes():
    base = process(variance=VarianceType.LEARNED_RANGE, rescale_timesteps=True)
    ours = base.respaced("4")
    assert (ours.steps, ours.base_steps) == (4, 100)
    assert (ours.mean_type, ours.variance_type, ours.rescale_timesteps) == (
        base.mean_type,
        base.variance_type,
        True,
    )
    np.testing.assert_array_equal(ours.timestep_map, [0, 33, 66, 99])
    np.testing.assert_allclose(ours.alphas_cumprod, base.alphas_cumprod[[0, 33, 66, 99]], rtol=1e-9)
    np.testing.assert_array_equal(base.respaced([0, 33, 66, 99]).betas, ours.betas)
    with pytest.raises(ValueError, match="respaced from 100 to 4"):
        ours.respaced("2")
    for text in ("1", "0"):
        with pytest.raises(ValueError, match=f"at least 2 steps, found '{text}'"):
            base.respaced(text)


@pytest.mark.parametrize(
    ("betas", "message"),
    [([0.1], "at least 2"), ([], "at least 2"), ([0.1, 1.0], "below 1, found 0.1 to 1"), ([0.0, 0.5], "found 0 to")],
)
def test_betas_that_are_refused(betas, message):
    with pytest.raises(ValueError, match=message):
        Process.create(betas, MeanType.EPSILON, VarianceType.FIXED_SMALL, LossType.MSE)


def test_outputs_and_images_that_are_refused(random):
    images = normal(random)
    with pytest.raises(
        ValueError, match=r"6 output channels .* LEARNED_RANGE, found an output of shape \[4, 3, 2, 3\]"
    ):
        process(variance=VarianceType.LEARNED_RANGE).p_mean_variance(images, images, T, True)
    with pytest.raises(ValueError, match="images as float32, found float16"):
        process().q_sample(tf.cast(images, tf.float16), T, tf.cast(images, tf.float16))


def test_the_bound_of_the_best_network_is_the_entropy():
    """For normal data the reverse process is normal: with its mean and variance the bound is tight at any T."""
    ours = process(MeanType.START_X, VarianceType.LEARNED, schedule="linear", steps=40)
    images = GaussianImages(mean=0.05, std=0.1)  # nothing near the ends, where levels are open
    random = np.random.RandomState(SEED)
    levels = np.round((images.mean + images.std * random.standard_normal((40, 16, 16, 1)) + 1) * 127.5)
    x_start = tf.constant((levels / 127.5 - 1).astype(np.float32))
    total = ours.prior_bits_per_dim(x_start)
    unknown = images.std**2 * ours.one_minus_alphas_cumprod / images.spread(ours) ** 2  # of x_0 given x_t
    variance = ours.posterior_variance + ours.posterior_mean_coef1**2 * unknown
    for step in range(ours.steps):
        t = tf.fill([40], step)
        x_t = ours.q_sample(x_start, t, tf.constant(random.standard_normal(x_start.shape), tf.float32))
        mean = images.pred_xstart(ours, x_t, step)
        output = tf.concat([mean, tf.fill(x_t.shape, tf.cast(math.log(variance[step]), tf.float32))], axis=-1)
        total += ours.variational_bound_term(output, x_start, x_t, t, clip_denoised=False)[0]
    entropy = math.log2(images.std * 127.5 * math.sqrt(2 * math.pi * math.e))
    assert tf.reduce_mean(total).numpy() == pytest.approx(entropy, abs=0.03)


def test_the_prior_term_is_small_and_never_negative(random):
    prior = process().prior_bits_per_dim(on_the_grid(random))
    assert prior.shape == [4]
    assert (np.abs(prior) < 1e-4).all()
    few = dataclasses.replace(process(), betas=process().betas[:50])
    assert (few.prior_bits_per_dim(on_the_grid(random)).numpy() > 0.01).all()


LOSSES = [(variance, loss) for variance in VarianceType for loss in LossType]


@pytest.mark.parametrize(("variance", "loss"), LOSSES)
def test_losses_and_their_parts(random, variance, loss):
    """The step count of the respaced process is the factor of the rescaled losses."""
    ours = process(MeanType.EPSILON, variance, loss, steps=300).respaced("100")
    x_start, noise = on_the_grid(random), normal(random)
    x_t = ours.q_sample(x_start, T, noise)
    output = normal(random, ours.output_channels(3)) / 3
    losses = ours.training_losses(output, x_start, x_t, T, noise)
    bound, _ = ours.variational_bound_term(output, x_start, x_t, T, clip_denoised=False)
    if loss.is_kl:
        assert losses.keys() == {"loss"}
        np.testing.assert_allclose(losses["loss"], bound * (100 if loss is LossType.RESCALED_KL else 1), rtol=1e-6)
        return
    squared = np.mean((noise - output[..., :3]) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(losses["mse"], squared, rtol=1e-5)
    if variance.learned:
        np.testing.assert_allclose(losses["vb"], bound * (0.1 if loss is LossType.RESCALED_MSE else 1), rtol=1e-6)
        squared = squared + losses["vb"]
    else:
        assert losses.keys() == {"loss", "mse"}
    np.testing.assert_allclose(losses["loss"], squared, rtol=1e-5)


@pytest.mark.parametrize("mean", MeanType)
def test_the_target_of_the_squared_error(random, mean):
    ours = process(mean)
    x_start, noise = on_the_grid(random), normal(random)
    x_t = ours.q_sample(x_start, T, noise)
    posterior = ours.q_posterior_mean_variance(x_start, x_t, T)[0]
    target = {MeanType.EPSILON: noise, MeanType.START_X: x_start, MeanType.PREVIOUS_X: posterior}[mean]
    losses = ours.training_losses(target + 0.5, x_start, x_t, T, noise)
    np.testing.assert_allclose(losses["mse"], 0.25, rtol=1e-4)


def test_the_bound_teaches_the_variance_alone(random):
    """Section 3.1: in the hybrid loss the mean has the gradient of the squared error."""
    ours = process(MeanType.EPSILON, VarianceType.LEARNED_RANGE, LossType.RESCALED_MSE)
    x_start, noise = on_the_grid(random), normal(random)
    x_t = ours.q_sample(x_start, T, noise)
    output = tf.Variable(normal(random, 6) / 3)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(ours.training_losses(output, x_start, x_t, T, noise)["loss"])
    gradient = tape.gradient(total, output).numpy()
    np.testing.assert_allclose(gradient[..., :3], 2 * (output[..., :3] - noise) / 18, rtol=1e-5, atol=1e-7)
    assert (gradient[..., 3:] != 0).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_gradients_are_numbers_even_far_from_the_data(random, scale):
    ours = process(MeanType.EPSILON, VarianceType.LEARNED_RANGE, LossType.KL)
    x_start, noise = on_the_grid(random), normal(random)
    x_t = ours.q_sample(x_start, T, noise)
    output = tf.Variable(tf.concat([scale * normal(random), normal(random)], axis=-1))
    with tf.GradientTape() as tape:
        losses = ours.training_losses(output, x_start, x_t, T, noise)["loss"]
    assert np.isfinite(losses).all()
    assert np.isfinite(tape.gradient(losses, output)).all()


def test_one_graph_for_every_batch_size(random):
    ours = process(MeanType.EPSILON, VarianceType.LEARNED_RANGE, LossType.RESCALED_MSE)
    images, outputs = (tf.TensorSpec([None, 3, 2, channels]) for channels in (3, 6))

    @tf.function(input_signature=[outputs, images, images, tf.TensorSpec([None], tf.int32)])
    def evaluate(output, x_start, noise, t):
        x_t = ours.q_sample(x_start, t, noise)
        losses = ours.training_losses(output, x_start, x_t, t, noise)
        return losses["loss"], ours.p_mean_variance(output, x_t, t, True).mean, ours.prior_bits_per_dim(x_start)

    output, x_start, noise = normal(random, 6), on_the_grid(random), normal(random)
    whole = evaluate(output, x_start, noise, T)
    for index in range(4):
        part = evaluate(*(values[index : index + 1] for values in (output, x_start, noise, T)))
        for one, all_of_them in zip(part, whole, strict=True):
            np.testing.assert_allclose(one[0], all_of_them[index], rtol=1e-5, atol=1e-6)
    assert evaluate.experimental_get_tracing_count() == 1
