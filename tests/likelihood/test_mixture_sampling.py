from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.likelihood.test_logistic_mixture import FIVE_BIT_LEVELS, draw_parameters
from tests.seeds import SEED
from tfgen.likelihood import mixture_sampling as ms
from tfgen.likelihood.logistic_mixture import FIVE_BIT_EXACT, log_prob


def draw_logits(shape: tuple[int, ...], seed: int = SEED) -> np.ndarray:
    uniforms = np.random.RandomState(seed).uniform(1e-5, 1 - 1e-5, shape)
    return np.log(uniforms) - np.log1p(-uniforms)


# By the Gumbel maximum ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_step_by_step(clip, temperature):
    random = np.random.RandomState(SEED)
    parameters = draw_parameters((6, 5), 3)
    mixture_uniforms, logistic_uniforms = random.rand(6, 5, 3), random.rand(6, 5, 3)
    found = ms.gumbel(*map(tf.constant, (parameters, mixture_uniforms, logistic_uniforms)), clip, temperature)
    bound = 1 if clip else math.inf
    outside = 0
    for i, j in np.ndindex(6, 5):
        logits, rest = parameters[i, j, :3], parameters[i, j, 3:].reshape(3, 3, 3)
        k = int(np.argmax(logits / temperature - np.log(-np.log(mixture_uniforms[i, j]))))
        u = logistic_uniforms[i, j]
        log_scales = np.maximum(rest[:, 1, k], -7) + np.log(temperature)
        y = rest[:, 0, k] + np.exp(log_scales) * (np.log(u) - np.log(1 - u))
        a, b, c = np.tanh(rest[:, 2, k])
        red = np.clip(y[0], -bound, bound)
        green = np.clip(y[1] + a * red, -bound, bound)
        blue = np.clip(y[2] + b * red + c * green, -bound, bound)
        outside += abs(y[0]) > 1
        np.testing.assert_allclose(found[i, j], [red, green, blue], rtol=1e-12, atol=1e-12)
    assert outside  # so that the order of clipping has been seen


def test_samples_have_the_probabilities_of_their_buckets():
    parameters = np.array([0.4, -0.3, 0.5, -0.4, -1.5, -2.5], np.float32)  # one colour, M = 2
    uniforms = np.random.RandomState(SEED).rand(40_000, 3).astype(np.float32)
    repeated = tf.constant(np.tile(parameters, (40_000, 1)))
    drawn = ms.gumbel(repeated, ms.open_interval(uniforms[:, :2]), ms.open_interval(uniforms[:, 2:]))
    nearest = np.rint((drawn.numpy()[:, 0] + 1) * 127.5 / 8).clip(0, 31).astype(int)
    target = tf.constant(FIVE_BIT_LEVELS[:, np.newaxis], tf.float32)
    expected = np.exp(log_prob(repeated[:32], target, FIVE_BIT_EXACT))
    # Samples at 1 belong to the top bucket, from level 244 on, as rounding has it.
    np.testing.assert_allclose(np.bincount(nearest, minlength=32) / 40_000, expected, atol=0.01)


# By the distribution function --------------------------------------------------------------------------------


def slow_inverse_cdf(parameters, targets, bound, iterations, temperature=1.0, noise=None) -> np.ndarray:
    """One halving at a time, on the logit of the distribution function: parameters [N, 10 M or 3 M], targets [N, C]."""
    count, channels = targets.shape
    components = parameters.shape[-1] // (10 if channels == 3 else 3)
    rest = parameters[:, components:].reshape(count, channels, -1, components)
    log_ratio = np.zeros((count, components))  # of posterior to prior of each component
    log_prior = log_softmax(parameters[:, :components] / temperature)
    colours = np.zeros((count, channels))
    seen = np.zeros((count, channels))
    for c in range(channels):
        means = rest[:, c, 0].copy()
        if c:
            for slot, earlier in {1: [(0, 0)], 2: [(1, 0), (2, 1)]}[c]:
                means += np.tanh(rest[:, slot, 2]) * seen[:, earlier, np.newaxis]
        log_scales = np.maximum(rest[:, c, 1], -7) + np.log(temperature)
        low, high = np.full(count, -bound), np.full(count, bound)
        for _ in range(iterations):
            middle = (low + high) / 2
            z = (middle[:, np.newaxis] - means) / np.exp(log_scales)
            log_cdf = log_sum_exp(log_prior + log_ratio - np.logaddexp(0, -z))
            log_rest = log_sum_exp(log_prior + log_ratio - np.logaddexp(0, z))
            is_low = log_cdf - log_rest < targets[:, c]
            low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
        colours[:, c] = middle
        seen[:, c] = middle if noise is None else middle + noise[:, c]
        z = (middle[:, np.newaxis] - means) / np.exp(log_scales)
        log_ratio += -z - log_scales - 2 * np.logaddexp(0, -z)
        log_ratio -= log_sum_exp(log_prior + log_ratio)[:, np.newaxis]
    return colours


def log_sum_exp(x: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(x, axis=-1)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - log_sum_exp(x)[:, np.newaxis]


@pytest.mark.parametrize("iterations", [1, 2, 4, 5, 6, 7, 15, 20, 30])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("clip", [True, False])
def test_the_grid_is_searched_as_one_halving_at_a_time_does(iterations, channels, clip):
    parameters, targets = draw_parameters((300,), 4, channels), draw_logits((300, channels))
    bound = 1 if clip else ms.SEARCH_BOUNDS[channels]
    found = ms.inverse_cdf(tf.constant(parameters), tf.constant(targets), clip, iterations)
    expected = slow_inverse_cdf(parameters, targets, bound, iterations)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * bound)


def test_temperature_and_noise():
    parameters, targets = draw_parameters((300,), 4), draw_logits((300, 3))
    noise = np.random.RandomState(SEED + 1).randn(300, 3)
    arguments = tf.constant(parameters), tf.constant(targets), False, 20
    for temperature, added in ((0.6, None), (1.0, noise), (1.7, noise)):
        found = ms.inverse_cdf(*arguments, temperature, None if added is None else tf.constant(added))
        expected = slow_inverse_cdf(parameters, targets, 20, 20, temperature, added)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_single_precision_reaches_into_both_tails():
    """The logits nearest to 0 and 1 among those that are drawn, and the largest that may be asked for.

    The middles of the last interval are 2 * 60 / 2^15 apart; rounding may decide between neighbours.
    """
    parameters, targets = draw_parameters((200,), 4, channels=1), np.resize([-80.0, -11.5, 11.5, 80.0], (200, 1))
    single = tf.constant(parameters, tf.float32), tf.constant(targets, tf.float32)
    expected = slow_inverse_cdf(parameters.astype(np.float32).astype(np.float64), targets, 30, 15)
    found = ms.inverse_cdf(*single, False, 15)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * 60 / 2**15 + 1e-5)
    assert (np.abs(found - expected) < 1e-5).mean() > 0.95


def test_samples_of_the_distribution_function_have_the_probabilities_of_their_buckets():
    """Of a mixture in which the weights of the components of green depend on red: two well separated ones."""
    count = 20_000
    one = [0.4, -0.4, *([0.5, -0.5, -2.5, -2.0, 0.1, 0.3] * 3)]  # M = 2
    repeated = tf.constant(np.tile(np.array(one, np.float32), (count, 1)))
    drawn = ms.inverse_cdf(repeated, tf.constant(draw_logits((count, 3)), tf.float32), False, 20).numpy()
    uniforms = ms.open_interval(tf.constant(np.random.RandomState(SEED + 1).rand(count, 5), tf.float32))
    by_maximum = ms.gumbel(repeated, uniforms[:, :2], uniforms[:, 2:], clip=False).numpy()
    np.testing.assert_allclose(drawn.mean(axis=0), by_maximum.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(by_maximum.T), atol=0.03)


def test_shapes_may_be_unknown_but_for_the_last_axis():
    signature = [tf.TensorSpec([None, None, size], tf.float32) for size in (20, 3)]
    draw = tf.function(lambda *given: ms.inverse_cdf(*given, True, 7), input_signature=signature)
    for shape in ((3, 4), (1, 1)):
        assert draw(draw_parameters(shape, 2).astype(np.float32), np.zeros([*shape, 3], np.float32)).shape == (
            *shape,
            3,
        )


def test_one_pixel_takes_few_operations():
    """Where pixels are drawn one by one, their number is the time. One halving at a time needs 2,400."""
    signature = [tf.TensorSpec([1, size], tf.float32) for size in (100, 3)]
    draw = tf.function(lambda *given: ms.inverse_cdf(*given, False, 20), input_signature=signature)
    operations = draw.get_concrete_function().graph.get_operations()
    assert sum(operation.type != "Const" for operation in operations) < 250


@pytest.mark.parametrize("iterations", [1, 2, 3, 6, 11, 12])
def test_bisection_of_another_function(iterations):
    roots = np.random.RandomState(SEED).uniform(-9, 9, 50)
    found = ms.bisect(
        lambda x: x < roots[:, np.newaxis], tf.fill([50, 1], tf.constant(-8.0, tf.float64)), 16, iterations
    )
    low, high = np.full(50, -8.0), np.full(50, 8.0)
    for _ in range(iterations):
        middle = (low + high) / 2
        low, high = np.where(middle < roots, middle, low), np.where(middle < roots, high, middle)
    np.testing.assert_array_equal(found[:, 0], middle)


# Uniform numbers ---------------------------------------------------------------------------------------------


def test_uniforms_keep_off_the_ends():
    found = ms.open_interval(tf.constant([0.0, 0.5, 1.0 - 2**-24]))
    np.testing.assert_allclose(found, [1e-5, 0.5, 1 - 1e-5], rtol=1e-6)
    assert float(found[2]) < 1


def test_logit():
    np.testing.assert_allclose(
        tf.sigmoid(ms.logit(tf.constant([1e-5, 0.3, 1 - 1e-5]))), [1e-5, 0.3, 1 - 1e-5], rtol=1e-6
    )


def test_published_orders_of_the_uniform_numbers():
    height, width, channels, components = 2, 3, 3, 4
    for_gumbel = np.arange(2 * height * width * (components + channels)).reshape(2, -1)
    mixture, logistic = ms.published_gumbel_order(tf.constant(for_gumbel), (height, width, channels))
    np.testing.assert_array_equal(mixture[1, 1, 2], 42 + np.array([20, 21, 22, 23]))  # of the second image's last pixel
    np.testing.assert_array_equal(logistic[1, 1, 2], 42 + 24 + np.array([15, 16, 17]))
    planes = np.arange(2 * channels * height * width).reshape(2, -1)
    ordered = ms.published_inverse_cdf_order(tf.constant(planes), (height, width, channels))
    np.testing.assert_array_equal(ordered[1, 1, 0], 18 + 3 + np.array([0, 6, 12]))


def test_what_does_not_fit():
    with pytest.raises(ValueError, match=r"mixture_uniforms of shape \[..., 2\].* \[5, 20\], found \[5, 3\]"):
        ms.gumbel(tf.zeros([5, 20]), tf.ones([5, 3]) / 2, tf.ones([5, 3]) / 2)
    with pytest.raises(ValueError, match=r"3 colour\(s\), found \[5, 21\]"):
        ms.inverse_cdf(tf.zeros([5, 21]), tf.zeros([5, 3]), True, 20)
    with pytest.raises(ValueError, match="at least 1 iteration of bisection, found 0"):
        ms.inverse_cdf(tf.zeros([5, 20]), tf.zeros([5, 3]), True, 0)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature above 0"):
            ms.inverse_cdf(tf.zeros([5, 20]), tf.zeros([5, 3]), True, 20, temperature)
        with pytest.raises(ValueError, match="temperature above 0"):
            ms.gumbel(tf.zeros([5, 20]), tf.ones([5, 2]) / 2, tf.ones([5, 3]) / 2, True, temperature)
