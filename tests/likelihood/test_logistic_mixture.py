from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.likelihood import logistic_mixture as lm
from tfgen.likelihood.logistic_mixture import EIGHT_BIT, EIGHT_BIT_EXACT, FIVE_BIT, FIVE_BIT_EXACT, Buckets

BUCKETS = {"8 bits": EIGHT_BIT, "8 bits, exact": EIGHT_BIT_EXACT, "5 bits": FIVE_BIT, "5 bits, exact": FIVE_BIT_EXACT}
EIGHT_BIT_LEVELS = np.arange(256) / 127.5 - 1
FIVE_BIT_LEVELS = np.arange(0, 256, 8) / 127.5 - 1


def draw_parameters(shape: tuple[int, ...], components: int, channels: int = 3, spread: float = 1.0) -> np.ndarray:
    """float64 [*shape, 10 M or 3 M]; log-scales around -2.5, some below their floor."""
    random = np.random.RandomState(SEED)
    kinds = 3 if channels == 3 else 2
    rest = random.randn(*shape, channels, kinds, components) * spread
    rest[..., 1, :] = rest[..., 1, :] * 2 - 2.5
    logits = random.randn(*shape, components)
    return np.concatenate([logits, rest.reshape(*shape, -1)], axis=-1)


def by_definition(parameters: tf.Tensor, target: tf.Tensor, buckets: Buckets) -> tf.Tensor:
    """Three colours, with tf.where and automatic differentiation. For the exact rule, masses large enough."""
    m = parameters.shape[-1] // 10
    rest = tf.reshape(parameters[:, m:], [-1, 3, 3, m])
    means, log_scales = rest[:, :, 0], tf.maximum(rest[:, :, 1], -7)
    a, b, c = tf.unstack(tf.tanh(rest[:, :, 2]), axis=1)
    red, green, _ = tf.unstack(target[..., tf.newaxis], axis=1)
    means = tf.stack([means[:, 0], means[:, 1] + a * red, means[:, 2] + b * red + c * green], axis=1)
    t = target[..., tf.newaxis]
    v, w = tf.exp(-log_scales), buckets.half_width
    upper, lower, middle = v * (t - means + w), v * (t - means - w), v * (t - means)
    side = -tf.sign(middle)  # the difference is the same in the other tail, where it keeps its digits
    mass = tf.abs(tf.sigmoid(side * upper) - tf.sigmoid(side * lower))
    density = middle - log_scales - 2 * tf.nn.softplus(middle) + math.log(2 * w)
    between = tf.where(mass > (0 if buckets.exact else 1e-5), tf.math.log(tf.maximum(mass, 1e-300)), density)
    between = tf.where(t > buckets.open_above, -tf.nn.softplus(lower), between)
    log_probs = tf.where(t < buckets.open_below, -tf.nn.softplus(-upper), between)
    return tf.reduce_logsumexp(tf.nn.log_softmax(parameters[:, :m]) + tf.reduce_sum(log_probs, axis=1), axis=1)


def value_and_gradient(function, parameters: tf.Tensor, *arguments) -> tuple[np.ndarray, np.ndarray]:
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        value = function(parameters, *arguments)
    return value.numpy(), tape.gradient(value, parameters).numpy()


def test_layout_of_the_parameters():
    mixture = lm.split_parameters(tf.range(20, dtype=tf.float64), 3)  # M = 2
    np.testing.assert_array_equal(mixture.logits, [0, 1])
    np.testing.assert_array_equal(mixture.means, [[2, 3], [8, 9], [14, 15]])
    np.testing.assert_array_equal(mixture.log_scales, [[4, 5], [10, 11], [16, 17]])
    np.testing.assert_allclose(mixture.coefficients, np.tanh([[6, 7], [12, 13], [18, 19]]))
    grey = lm.split_parameters(tf.range(-9, 0, dtype=tf.float64), 1)  # M = 3
    np.testing.assert_array_equal(grey.means, [[-6, -5, -4]])
    np.testing.assert_array_equal(grey.log_scales, [[-3, -2, -1]])
    assert grey.coefficients is None
    assert lm.split_parameters(tf.fill([3], -9.0), 1).log_scales == -7


def test_means_follow_the_earlier_colours():
    means = tf.constant([[0.1], [0.2], [0.3]])
    coefficients = tf.constant([[0.5], [-0.25], [0.125]])  # green on red, blue on red, blue on green
    mixture = lm.Mixture(tf.zeros([1]), means, tf.zeros([3, 1]), coefficients)
    found = lm.conditional_means(mixture, tf.constant([0.8, -0.4, math.nan]))
    np.testing.assert_allclose(found[:, 0], [0.1, 0.2 + 0.5 * 0.8, 0.3 - 0.25 * 0.8 + 0.125 * -0.4], rtol=1e-6)


@pytest.mark.parametrize("buckets", BUCKETS.values(), ids=BUCKETS)
def test_agrees_with_the_definition(buckets):
    random = np.random.RandomState(SEED + 1)
    levels = EIGHT_BIT_LEVELS if buckets in (EIGHT_BIT, EIGHT_BIT_EXACT) else FIVE_BIT_LEVELS
    target = random.choice(np.concatenate([levels, np.repeat(levels[[0, -1]], 20)]), [500, 3])
    parameters = tf.constant(draw_parameters((500,), 4, spread=0.3))
    expected, expected_gradient = value_and_gradient(by_definition, parameters, target, buckets)
    value, gradient = value_and_gradient(lm.log_prob, parameters, tf.constant(target), buckets)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-9)
    # 1e-5: what the derivative of the density is taken to be, see bucket_log_prob.
    assert np.abs(gradient - expected_gradient).max() < 1e-5 * np.abs(expected_gradient).max()


@pytest.mark.parametrize("buckets", [EIGHT_BIT, FIVE_BIT_EXACT])
def test_one_colour(buckets):
    parameters = tf.constant([[0.3, -0.2, 0.4, -0.6, -1.5, -2.0]])  # M = 2
    target = 24 / 127.5 - 1
    weights = np.exp([0.3, -0.2]) / np.exp([0.3, -0.2]).sum()
    cdf = [
        1 / (1 + np.exp(-(target + side * buckets.half_width - np.array([0.4, -0.6])) / np.exp([-1.5, -2.0])))
        for side in (1, -1)
    ]
    expected = math.log(np.sum(weights * (cdf[0] - cdf[1])))
    found = lm.log_prob(parameters, tf.constant([[target]], tf.float32), buckets)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("buckets", "levels", "tolerance"),
    [
        (FIVE_BIT_EXACT, FIVE_BIT_LEVELS, 1e-5),
        (EIGHT_BIT_EXACT, EIGHT_BIT_LEVELS, 1e-5),
        (EIGHT_BIT, EIGHT_BIT_LEVELS, 1e-3),  # underrates far tails
    ],
)
def test_probabilities_sum_to_one(buckets, levels, tolerance):
    parameters = np.repeat(draw_parameters((20, 1), 3, channels=1), len(levels), axis=1).astype(np.float32)
    target = np.tile(levels.astype(np.float32)[:, np.newaxis], (20, 1, 1))
    total = np.exp(lm.log_prob(tf.constant(parameters), tf.constant(target), buckets)).sum(axis=1)
    np.testing.assert_allclose(total, 1.0, atol=tolerance)


def test_the_published_low_bit_buckets_overlap():
    parameters = np.array([[0.0, -0.1, -3.0]], np.float32).repeat(32, axis=0)
    target = tf.constant(FIVE_BIT_LEVELS[:, np.newaxis], tf.float32)
    total = np.exp(lm.log_prob(tf.constant(parameters), target, FIVE_BIT)).sum()
    assert total == pytest.approx((2 / 31) / (8 / 127.5), abs=1e-3)


def test_exact_probabilities_of_all_colours_sum_to_one():
    parameters = draw_parameters((1,), 2).astype(np.float32).repeat(32**3, axis=0)
    target = np.stack(np.meshgrid(*[FIVE_BIT_LEVELS] * 3), axis=-1).reshape(-1, 3).astype(np.float32)
    total = np.exp(lm.log_prob(tf.constant(parameters), tf.constant(target), FIVE_BIT_EXACT)).sum(dtype=np.float64)
    assert total == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("middle", [(-1, -1, -1), (1, 1, -1), (-1, 0, 1)])
def test_exact_probabilities_of_all_colours_with_256_levels_sum_to_one(middle):
    """Narrow components near the ends, where buckets are open: levels further off than 16 have no mass."""
    near = [EIGHT_BIT_LEVELS[np.abs(EIGHT_BIT_LEVELS - level) < 16.5 / 127.5] for level in middle]
    target = np.stack(np.meshgrid(*near), axis=-1).reshape(-1, 3).astype(np.float32)
    rest = np.zeros((3, 3, 2), np.float32)  # colour; mean, log-scale, coefficient; component
    rest[:, 0] = np.array(middle)[:, np.newaxis] + np.random.RandomState(SEED).uniform(-1, 1, (3, 2)) / 127.5
    rest[:, 1] = -6, -5.5
    rest[:, 2] = 0.02  # moves a mean by 2.6 levels where the colour before it is at an end
    parameters = tf.constant([np.concatenate([[0.2, -0.3], rest.ravel()])], tf.float32) * tf.ones([len(target), 1])
    total = np.exp(lm.log_prob(parameters, tf.constant(target), EIGHT_BIT_EXACT)).sum(dtype=np.float64)
    assert total == pytest.approx(1.0, abs=1e-5)


def test_the_exact_rule_holds_in_far_tails():
    """A narrow component 40 scales away: the published rule, density times width, has another slope there."""
    target, mean, log_scale = FIVE_BIT_LEVELS[20], FIVE_BIT_LEVELS[20] - 1.0, math.log(1 / 40)
    parameters = tf.constant([[0.0, mean, log_scale]])
    nearest = 40 * (1.0 - FIVE_BIT_EXACT.half_width)
    found = lm.log_prob(parameters, tf.constant([[target]], tf.float32), FIVE_BIT_EXACT)
    expected = -nearest + math.log1p(-math.exp(-80 * FIVE_BIT_EXACT.half_width))
    assert float(found[0]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("target", [-1.0, 1.0])
def test_open_buckets_keep_their_digits(target):
    """A difference of sigmoids would be right to three."""
    distance, scale = 0.9, math.exp(-2.3)
    parameters = tf.constant([[0.0, target - math.copysign(distance, target), -2.3]])
    expected = -math.log1p(math.exp((distance - EIGHT_BIT.half_width) / scale))
    assert float(lm.log_prob(parameters, tf.constant([[target]]))[0]) == pytest.approx(expected, rel=1e-6)


def test_a_graph_rounds_as_the_single_operations_do():
    """Guards the sigmoid: as a reciprocal, which is less accurate, it moves single pixels by 1e-4 of their value."""
    target = tf.constant(EIGHT_BIT_LEVELS[:, np.newaxis].repeat(3, axis=1), tf.float32)
    parameters = tf.constant([[0.0, 0.1, -2.5, 0.0, -0.2, -3.5, 0.0, 0.3, -1.5, 0.0]]) * tf.ones([256, 1])
    in_graph = tf.function(lm.log_prob)(parameters, target)
    np.testing.assert_allclose(in_graph, lm.log_prob(parameters, target), rtol=2e-6)


@pytest.mark.parametrize("buckets", BUCKETS.values(), ids=BUCKETS)
@pytest.mark.parametrize("log_scale", [-1e4, -7.0, 0.0, 60.0, 1e4])
def test_nothing_finite_becomes_infinite(buckets, log_scale):
    target = np.array([-1, -0.9991, -0.999, 0.0, FIVE_BIT_LEVELS[-1], 0.999, 0.9991, 1], np.float32)
    target = tf.constant(np.stack(np.meshgrid(target, target, target), axis=-1).reshape(-1, 3))
    for mean in (-1e3, -1.0, 0.0, 1e3):
        parameters = tf.constant([[0.0] + [mean, log_scale, 20.0] * 3]) * tf.ones([len(target), 1])
        value, gradient = value_and_gradient(lm.log_prob, parameters, target, buckets)
        assert np.isfinite(value).all()
        assert np.isfinite(gradient).all()


def test_floored_log_scales_do_not_learn():
    parameters = tf.constant([[0.0, 0.2, -7.5]])
    _, gradient = value_and_gradient(lm.log_prob, parameters, tf.constant([[0.2]]))
    assert gradient[0, 2] == 0
    _, gradient = value_and_gradient(lm.log_prob, tf.constant([[0.0, 0.2, -6.5]]), tf.constant([[0.3]]))
    assert gradient[0, 2] != 0


@pytest.mark.parametrize("buckets", BUCKETS.values(), ids=BUCKETS)
def test_what_is_no_number_stays_none(buckets):
    """Rules about steps to skip have to see it."""
    parameters = draw_parameters((2,), 3).astype(np.float32)
    target = np.array([[0.1, math.nan, 0.2], [0.1, 0.2, 0.3]], np.float32)
    value, gradient = value_and_gradient(lm.log_prob, tf.constant(parameters), tf.constant(target), buckets)
    np.testing.assert_array_equal(np.isnan(value), [True, False])
    np.testing.assert_array_equal(np.isnan(gradient).any(axis=-1), [True, False])


def test_shapes_may_be_unknown_but_for_the_last_axis():
    signature = [tf.TensorSpec([None, None, None, size], tf.float32) for size in (20, 3)]
    evaluate = tf.function(lm.log_prob, input_signature=signature)
    for shape in ((2, 3, 4), (1, 1, 1)):
        parameters = draw_parameters(shape, 2).astype(np.float32)
        assert evaluate(parameters, np.zeros([*shape, 3], np.float32)).shape == shape


def test_images_are_truncated():
    levels = tf.constant(EIGHT_BIT_LEVELS, tf.float32)
    np.testing.assert_array_equal(lm.to_uint8(levels + 0.9 / 127.5), np.arange(256).clip(0, 255))
    np.testing.assert_array_equal(lm.to_uint8(tf.constant([-1.1, -1.0, 1.0, 1.1])), [0, 0, 255, 255])


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="1 or 3 colours, found 4"):
        lm.log_prob(tf.zeros([2, 13]), tf.zeros([2, 4]))
    with pytest.raises(ValueError, match=r"\[..., 10 \* M\] for M components and 3 colour\(s\), found \[2, 21\]"):
        lm.log_prob(tf.zeros([2, 21]), tf.zeros([2, 3]))
