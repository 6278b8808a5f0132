import math

import numpy as np
import pytest
import tensorflow as tf

from tfgen.training.schedules import Constant, LinearDecay, WarmupDecay


def _reference(schedule: WarmupDecay, finished: int) -> float:
    """Section 9.1 of the specification, in double precision."""
    t = finished - schedule.offset + 1
    if t < schedule.warmup_steps:
        return schedule.peak * t / schedule.warmup_steps
    progress = (t - schedule.warmup_steps) / (schedule.total_steps - schedule.warmup_steps)
    if schedule.shape == "linear":
        return schedule.peak * (1 - min(progress, 1))
    return schedule.peak * 0.5 * (1 + math.cos(math.pi * (min(progress, 1) if schedule.clamp else progress)))


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupDecay(1.0, 5, 20),
        WarmupDecay(0.3, 5, 20, clamp=True),
        WarmupDecay(0.3, 7, 31, offset=4, shape="linear"),
        WarmupDecay(2e-4, 0, 10),
        WarmupDecay(7e-4, 7_500, 3_360_000),
        WarmupDecay(3.5e-4, 15_000, 100_000_001, shape="linear"),
    ],
)
def test_follows_the_formula(schedule: WarmupDecay) -> None:
    landmarks = [0, schedule.warmup_steps, schedule.total_steps // 2, schedule.total_steps, 2 * schedule.total_steps]
    steps = sorted({max(0, mark + near) for mark in landmarks for near in range(-4, 5)})
    expected = [_reference(schedule, step) for step in steps]
    # One digit of 1 + cos(angle) is 2^-23, and the angle has as many; large steps differ by less than the tolerance.
    np.testing.assert_allclose(schedule(np.array(steps)).numpy(), expected, rtol=1e-6, atol=1e-6 * schedule.peak)


def test_cosine_rises_again_unless_clamped() -> None:
    after = np.arange(19, 34)
    rising, clamped = WarmupDecay(1.0, 5, 20)(after).numpy(), WarmupDecay(1.0, 5, 20, clamp=True)(after).numpy()
    assert (np.diff(rising) > 0).all()
    assert rising[-1] > 0.98
    np.testing.assert_array_equal(clamped, 0.0)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_graph_and_eager_give_the_same_bits(shape: str) -> None:
    schedule = WarmupDecay(3e-4, 50, 1000, shape=shape)
    steps = tf.range(1200, dtype=tf.int64)
    np.testing.assert_array_equal(tf.function(schedule)(steps).numpy(), schedule(steps).numpy())


def test_takes_integers_arrays_tensors_and_variables() -> None:
    schedule = WarmupDecay(3e-4, 5, 10**10)
    step = 5 * 10**9  # beyond int32
    rates = [
        schedule(kind)
        for kind in (step, np.int64(step), tf.constant(step, tf.int64), tf.Variable(step, dtype=tf.int64))
    ]
    assert {rate.dtype for rate in rates} == {tf.float32}
    assert {rate.shape.rank for rate in rates} == {0}
    np.testing.assert_allclose([rate.numpy() for rate in rates], 1.5e-4, rtol=1e-6)
    assert schedule(np.zeros([2, 3], np.int32)).shape == [2, 3]


def test_a_run_that_ends_in_its_warmup_never_divides_by_zero() -> None:
    np.testing.assert_allclose(WarmupDecay(1.0, 10, 10)(np.arange(10)).numpy(), np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(WarmupDecay(1.0, 10, 4)(np.arange(4)).numpy(), np.arange(1, 5) / 10, rtol=1e-6)


def test_constant() -> None:
    assert Constant(2e-4)(7).numpy() == np.float32(2e-4)
    np.testing.assert_array_equal(Constant(0.5)(np.arange(3)).numpy(), [0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "cubic"}, "expected 'cosine' or 'linear'"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"total_steps": 0}, "total_steps is 0"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupDecay(**{"peak": 1.0, "warmup_steps": 1, "total_steps": 2} | arguments)


def test_linear_decay_is_a_straight_line_to_zero():
    schedule = LinearDecay(1e-4, 500_000)
    steps = np.array([0, 1, 250_000, 499_999, 500_000, 600_000])
    expected = 1e-4 * np.maximum(1 - steps / 500_000, 0)
    np.testing.assert_allclose(schedule(steps).numpy(), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="steps is 0, expected"):
        LinearDecay(1e-4, 0)
