"""Chains on an energy whose gradient is known, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.ebm import small
from tfgen.ops.philox import philox_normal
from tfgen.randomness import Key
from tfgen.systems.ebm import sampler
from tfgen.systems.ebm.sampler import Chain, FusedMoves, PlainMoves, TransitionMoves

CURVATURE = np.array([[1.0, 4.0, 9.0], [0.5, 0.0, 2.0]], np.float32)
STARTS = np.array([[0.2, 0.8, 0.5], [1.0, 0.0, 0.3]], np.float32)


def quadratic(x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Energies [2, 1] of two points [2, 3]."""
    del step
    return tf.reduce_sum(0.5 * CURVATURE * x**2, axis=1, keepdims=True)


def normals(steps: int) -> np.ndarray:
    return np.random.RandomState(1).normal(size=[steps, *STARTS.shape]).astype(np.float32)


def expected(chain: Chain, noise: np.ndarray) -> np.ndarray:
    x = STARTS.astype(np.float64)
    for n in noise:
        y = x + chain.noise * n
        g = CURVATURE * y
        if chain.clip_mode == "li":
            g = np.clip(g, -chain.clip, chain.clip)
        elif chain.clip_mode != "none":
            axis = None if chain.clip_mode == "l2_tensor" else 1
            norm = np.sqrt((g**2).sum(axis, keepdims=True))
            g = g * chain.clip / np.maximum(norm, chain.clip)
        x = np.clip(y - chain.step_size * g, chain.low, chain.high)
    return x


def run(chain: Chain, noise: np.ndarray, starts=STARTS) -> np.ndarray:
    return sampler.run(starts, chain.steps, PlainMoves(quadratic, chain, sampler.given(tf.constant(noise))))


@pytest.mark.parametrize("mode", ["none", "li", "l2_tensor", "l2_sample"])
@pytest.mark.parametrize("steps", [1, 4])
def test_chain(mode, steps):
    chain = Chain(steps, 0.1, 0.05, high=0.9, clip_mode=mode, clip=1.5 if mode != "none" else 0.0)
    noise = normals(steps)
    np.testing.assert_allclose(run(chain, noise), expected(chain, noise), rtol=1e-5)
    np.testing.assert_allclose(tf.function(lambda: run(chain, noise))(), expected(chain, noise), rtol=1e-5)


def test_a_gradient_within_its_limit_is_not_changed():
    gradient = tf.constant(STARTS)
    for mode in ("li", "l2_tensor", "l2_sample"):
        np.testing.assert_allclose(sampler.clipped(gradient, mode, 2.0), STARTS, rtol=1e-6)
    assert np.linalg.norm(sampler.clipped(gradient, "l2_tensor", 0.5)) == pytest.approx(0.5)
    np.testing.assert_allclose(np.linalg.norm(sampler.clipped(gradient, "l2_sample", 0.5), axis=1), 0.5, rtol=1e-6)


@pytest.mark.parametrize("mode", ["li", "l2_tensor", "l2_sample"])
def test_clips_can_be_differentiated_at_zero(mode):
    x = tf.zeros([2, 3])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = sampler.clipped(x, mode, 0.1)
    np.testing.assert_allclose(tape.gradient(y, x), np.ones([2, 3]), rtol=1e-6)


@pytest.mark.parametrize("mode", ["none", "li"])
def test_nan_is_not_clipped_away(mode):
    starts = STARTS.copy()
    starts[1, 1] = np.nan
    chain = Chain(2, 0.1, 0.05, clip_mode=mode, clip=1.0 if mode == "li" else 0.0)
    np.testing.assert_array_equal(np.isnan(run(chain, normals(2), starts)), np.isnan(starts))


@pytest.mark.parametrize("mode", ["none", "l2_tensor", "l2_sample"])
def test_gradient_goes_back_through_every_step(mode):
    """By the curvature along one axis, against finite differences."""
    chain = Chain(3, 0.05, 0.05, low=-10.0, high=10.0, clip_mode=mode, clip=2.0 if mode != "none" else 0.0)
    noise = sampler.given(tf.constant(normals(3)))

    @tf.function
    def result(factor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(factor)
            moves = PlainMoves(lambda x, step: quadratic(x, step) + factor * x[:, :1] ** 2, chain, noise)
            total = tf.reduce_sum(sampler.run(STARTS, chain.steps, moves) ** 2)
        return total, tape.gradient(total, factor)

    step = 1e-2
    difference = (result(tf.constant(1 + step))[0] - result(tf.constant(1 - step))[0]) / (2 * step)
    assert float(result(tf.constant(1.0))[1]) == pytest.approx(float(difference), rel=1e-2)


@pytest.mark.parametrize("fused", [False, True])
def test_noise_of_a_sample_does_not_depend_on_the_batch(fused):
    network = small.network("MnistNet", side=8)
    weights, chain, key = network.normalized(), Chain(2, 1.0, 0.1), Key.create(0, "noise")

    def ends(images: tf.Tensor, key: Key) -> np.ndarray:
        def energy(x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
            del step
            return network.energy(weights, x)

        moves = FusedMoves(energy, chain, key) if fused else PlainMoves(energy, chain, sampler.drawn(key))
        return sampler.run(images, chain.steps, moves).numpy()

    images = small.images(network, count=4)
    np.testing.assert_allclose(ends(images[1:3], key.skip(1)), ends(images, key)[1:3], atol=1e-6)
    assert np.abs(ends(images, key.fold(1)) - ends(images, key)).max() > 0.1


@pytest.mark.parametrize("mode", ["none", "li", "l2_tensor", "l2_sample"])
def test_fused_steps_are_plain_ones(mode):
    """With the numbers that the fused operation draws; so are their gradients."""
    chain = Chain(3, 0.1, 0.05, high=0.9, clip_mode=mode, clip=1.5 if mode != "none" else 0.0)
    key = Key.create(0, "noise")
    seed = tf.bitcast(key.seed, tf.int64)
    noise = tf.stack([philox_normal(STARTS.shape, seed, step) for step in range(3)])

    def result(moves) -> tuple[tf.Tensor, tf.Tensor]:
        starts = tf.constant(STARTS)
        with tf.GradientTape() as tape:
            tape.watch(starts)
            end = sampler.run(starts, chain.steps, moves)
            total = tf.reduce_sum(end**2)
        return end, tape.gradient(total, starts)

    plain = result(PlainMoves(quadratic, chain, sampler.given(noise)))
    fused = tf.function(lambda: result(FusedMoves(quadratic, chain, key)))()
    for one, other in zip(fused, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_hamiltonian_steps_draw_from_their_key():
    """At any batch size, and otherwise with another key."""
    network = small.network("MnistNet", side=8)
    weights, chain, key = network.normalized(), Chain(2, 1.0, 0.01), Key.create(0, "noise")

    def ends(images: tf.Tensor, key: Key) -> np.ndarray:
        def energy(x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
            del step
            return network.energy(weights, x)

        transition = sampler.hamiltonian(energy, key, step_size=0.1, leapfrogs=2)
        return sampler.run(images, 2, TransitionMoves(transition, chain, sampler.drawn(key))).numpy()

    images = small.images(network, count=3)
    np.testing.assert_allclose(ends(images[1:], key.skip(1)), ends(images, key)[1:], atol=1e-5)
    assert np.abs(ends(images, key.fold(1)) - ends(images, key)).max() > 0.05


def test_every_step_has_noise_and_knows_its_number():
    seen = []
    chain = Chain(3, 0.0, 1.0, low=-100.0, high=100.0)

    def energy(x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        seen.append(int(step))
        return quadratic(x, step)

    noise = normals(3)
    end = sampler.run(STARTS, 3, PlainMoves(energy, chain, sampler.given(tf.constant(noise))))
    np.testing.assert_allclose(end, STARTS + noise.sum(0), rtol=1e-5)
    assert seen == [0, 1, 2]


def test_a_transition_takes_the_place_of_the_gradient_step():
    chain = Chain(2, 0.0, 0.1)
    noise = normals(2)
    moves = TransitionMoves(
        lambda y, step: 0.5 * y + tf.cast(step, tf.float32), chain, sampler.given(tf.constant(noise))
    )
    first = np.clip(0.5 * (STARTS + 0.1 * noise[0]), 0, 1)
    second = np.clip(0.5 * (first + 0.1 * noise[1]) + 1, 0, 1)
    np.testing.assert_allclose(sampler.run(STARTS, 2, moves), second, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "a chain of 0 steps"),
        ({"steps": 1, "clip_mode": "li"}, "clip 0 of mode li, expected a limit above 0"),
    ],
)
def test_settings_of_a_chain_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Chain(step_size=1.0, noise=0.1, **settings)
