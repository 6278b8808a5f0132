"""Random numbers are a function of (seed, purpose, step, sample index)."""

import numpy as np
import pytest
import tensorflow as tf

from tfgen.randomness import Key, StepDraws, host_generator


@pytest.mark.parametrize("draw", ["uniform", "normal", "bits"])
@pytest.mark.parametrize("shape", [(7, 3, 5), (300, 33), (64, 1), (5,)])
def test_rows_do_not_depend_on_the_batch(draw, shape):
    key = Key.create(3, "test").fold("layer", 4)
    whole = getattr(key, draw)(shape).numpy()
    for first, count in ((0, 2), (1, 3), (shape[0] - 1, 1)):
        part = getattr(key.skip(first), draw)((count, *shape[1:])).numpy()
        np.testing.assert_array_equal(part, whole[first : first + count])


def test_inside_a_function_with_dynamic_batch_and_step():
    key = Key.create(3, "test")

    @tf.function
    def draw(step, first, count):
        return key.fold(step).skip(first).normal([count, 6])

    for step in (0, 12345678901):
        eager = key.fold(tf.constant(step, tf.int64)).normal([9, 6]).numpy()
        np.testing.assert_array_equal(draw(tf.constant(step, tf.int64), 4, 3).numpy(), eager[4:7])


def test_streams_differ_by_seed_purpose_and_fold():
    keys = [Key.create(0, "a"), Key.create(1, "a"), Key.create(0, "b"), Key.create(0, "a").fold(1)]
    keys += [Key.create(0, "a").fold("x"), Key.create(0, "a").fold(1, 2), Key.create(0, "a").fold(2, 1)]
    drawn = [tuple(key.uniform([4, 4]).numpy().ravel()) for key in keys]
    assert len(set(drawn)) == len(keys)


def test_distributions():
    uniform = Key.create(5, "moments").uniform([1000, 101]).numpy()
    normal = Key.create(5, "moments").normal([1000, 101]).numpy()
    assert uniform.min() >= 0.0
    assert uniform.max() < 1.0
    # Five standard errors of the mean of 101,000 numbers.
    assert abs(uniform.mean() - 0.5) < 5 * 0.2887 / 101000**0.5
    assert abs(normal.mean()) < 5 / 101000**0.5
    assert abs(normal.std() - 1) < 5 / (2 * 101000) ** 0.5
    neighbours = np.corrcoef(uniform[:-1].ravel(), uniform[1:].ravel())[0, 1]
    assert abs(neighbours) < 5 / 101000**0.5


def test_bits_are_halves_of_words_each_value_alike():
    drawn = Key.create(5, "bits").bits([1000, 101]).numpy()
    assert drawn.dtype == np.int16
    for shift in range(16):  # 101,000 fair coins, and no two neighbours alike
        coins = (drawn >> shift) & 1
        assert abs(coins.mean() - 0.5) < 5 * 0.5 / 101000**0.5
        assert abs(np.corrcoef(coins[:, :-1].ravel(), coins[:, 1:].ravel())[0, 1]) < 5 / 100000**0.5
    assert drawn.min() < -32700
    assert drawn.max() > 32700
    words = Key.create(5, "bits")._draw(tf.raw_ops.StatelessRandomUniformFullIntV2, [3, 12], tf.uint32).numpy()
    np.testing.assert_array_equal(Key.create(5, "bits").bits([3, 24]).numpy().view(np.uint32), words)


def test_ranks_share_the_draws_of_the_global_batch():
    def tokens(rank, ranks, batch_size):
        draws = StepDraws(seed=7, step=3, rank=rank, ranks=ranks, batch_size=batch_size)
        return draws.mine(draws.generator("tokens").randint(100, size=draws.global_batch_size))

    one = tokens(0, 1, 8)
    np.testing.assert_array_equal(np.concatenate([tokens(0, 2, 4), tokens(1, 2, 4)]), one)


def test_host_generator_depends_on_everything():
    drawn = [
        tuple(host_generator(seed, purpose, *data).randint(2**31, size=4))
        for seed, purpose, data in [(0, "a", ()), (1, "a", ()), (0, "b", ()), (0, "a", (0,)), (0, "a", (1,))]
    ]
    assert len(set(drawn)) == 5
    assert drawn[0] == tuple(host_generator(0, "a").randint(2**31, size=4))
