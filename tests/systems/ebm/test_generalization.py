"""Rows of crosses, the joint chain against NumPy, a step of the training, and the test."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.ebm import small
from tests.systems.ebm.test_combination import BOWLS, STARTS, normals, slope
from tfgen.data.errors import DataError
from tfgen.ops.philox import philox_normal
from tfgen.randomness import Key
from tfgen.systems.ebm import generalization, sampler
from tfgen.systems.ebm.combination import FusedArithmetic, PlainArithmetic
from tfgen.systems.ebm.generalization import Generalization, JointTraining, Pair
from tfgen.systems.ebm.networks import Weights
from tfgen.systems.ebm.sampler import Chain

TURN = 30 * math.pi / 39
SHAPES, SCALES, ROTATIONS, PLACES = (1, 2, 3), (0.5, 0.8, 1.0), (0.0, TURN), (0.0, 15 / 31, 16 / 31, 1.0)
LATENTS = np.array([[1, *values] for values in itertools.product(SHAPES, SCALES, ROTATIONS, PLACES, PLACES)])


# Rows ------------------------------------------------------------------------------------------------------


def rows_of(factor: str, fraction: float = 0.0):
    return generalization.rows_of(factor, LATENTS, fraction, np.random.RandomState(0))


@pytest.mark.parametrize(
    ("factor", "column", "fixed", "smallest", "values"),
    [
        ("size", 2, {1: 1, 3: TURN}, 0.5, 3),
        ("shape", 1, {2: 0.5, 3: TURN}, 1, 3),
        ("rot", 3, {1: 1, 2: 0.5}, TURN, 2),
    ],
)
def test_crosses_and_what_is_unseen(factor, column, fixed, smallest, values):
    plane = np.all([LATENTS[:, at] == value for at, value in fixed.items()], axis=0)
    centre = (LATENTS[:, 4:6] == 16 / 31).all(1)
    position = np.flatnonzero(plane & (LATENTS[:, column] == smallest))
    of_factor = np.flatnonzero(plane & centre)
    assert (len(position), len(of_factor)) == (16, values)
    rows = rows_of(factor)
    np.testing.assert_array_equal(rows.training, [*np.tile(position, 16 // values), *of_factor])
    unseen = plane & (LATENTS[:, column] != smallest) & ~centre
    np.testing.assert_array_equal(rows.unseen, np.flatnonzero(unseen))


def test_a_share_of_the_others_is_learned_and_not_tested():
    whole, rows = rows_of("size"), rows_of("size", fraction=0.5)
    drawn = rows.training[len(whole.training) :]
    others = np.union1d(whole.unseen, whole.training)
    assert len(drawn) == 23  # half of the 48 of the plane but one
    assert len(set(drawn)) == 23
    assert set(drawn) <= set(others)
    np.testing.assert_array_equal(rows.unseen, np.setdiff1d(whole.unseen, drawn))


def test_data_without_such_images():
    with pytest.raises(DataError, match="0 images that differ in their position"):
        generalization.rows_of("size", LATENTS[LATENTS[:, 1] == 2], 0.0, np.random.RandomState(0))


def test_batches():
    rows = np.arange(100, 110)
    found = list(generalization.batches(rows, 3, epochs=2, limit=2, seed=0))
    assert [len(batch) for batch in found] == [3, 3, 3, 3]
    for epoch in (found[:2], found[2:]):
        assert len(set(np.concatenate(epoch))) == 6
    assert not np.array_equal(found[0], found[2])
    assert len(list(generalization.batches(rows, 3, epochs=1, limit=300, seed=0))) == 3
    with pytest.raises(DataError, match="10 images to learn, expected 11 or more"):
        list(generalization.batches(rows, 11, 1, 1, 0))


# The chain -------------------------------------------------------------------------------------------------

CHAIN = Chain(3, 0.05, 0.02, high=0.9)


def expected_chain(noise: np.ndarray) -> np.ndarray:
    x = STARTS.astype(np.float64)
    at_start = slope("b", x)
    for first, second in noise.reshape(3, 2, *STARTS.shape):
        x = x + CHAIN.noise * first + CHAIN.noise * second
        x = np.clip(x - CHAIN.step_size * at_start, 0.0, 0.9)
        x = np.clip(x - CHAIN.step_size * slope("a", x), 0.0, 0.9)
    return x


def test_the_joint_chain():
    noise, starts = normals(6), tf.constant(STARTS)
    arithmetic = PlainArithmetic(CHAIN, sampler.given(tf.constant(noise)))
    found = generalization.joint_chain(starts, BOWLS["a"], BOWLS["b"], 3, arithmetic)
    np.testing.assert_allclose(found, expected_chain(noise), rtol=1e-5)


def test_the_fused_joint_chain():
    key = Key.create(0, "noise")
    drawn = np.stack([philox_normal(STARTS.shape, sampler.philox_seed(key), draw) for draw in range(6)])
    fused = FusedArithmetic(CHAIN, key)
    found = generalization.joint_chain(tf.constant(STARTS), BOWLS["a"], BOWLS["b"], 3, fused)
    np.testing.assert_allclose(found, expected_chain(drawn), rtol=1e-5)


# Training and test -----------------------------------------------------------------------------------------


def pair() -> Pair:
    factor, position = (
        small.network("DspritesNet", 2, seed=columns, side=16, label_columns=columns, swish=True) for columns in (1, 2)
    )
    return Pair(factor, position)


IMAGES = small.images(pair().factor).numpy()
LABELS = [np.array([[0.5], [1.0]], np.float32), np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)]


def training(networks: Pair, capacity: int = 8) -> JointTraining:
    return JointTraining(networks, dataclasses.replace(CHAIN, steps=2), 2, 1e-3, capacity, Key.create(0, "training"))


def test_gradient_goes_back_through_both_gradients_of_the_chain():
    """Against finite differences by a factor of each energy."""
    chain, noise = Chain(3, 0.05, 0.02, low=-10.0, high=10.0), sampler.given(tf.constant(normals(6)))

    def result(gains: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(gains)
            end = generalization.joint_chain(
                tf.constant(STARTS),
                lambda x: gains[0] * BOWLS["a"](x),
                lambda x: gains[1] * BOWLS["b"](x),
                3,
                PlainArithmetic(chain, noise),
            )
            total = tf.reduce_sum(end**2)
        return total, tape.gradient(total, gains)

    _, gradient = result(tf.ones(2))
    for index, step in enumerate(0.01 * np.eye(2, dtype=np.float32)):
        difference = (result(tf.constant(1 + step))[0] - result(tf.constant(1 - step))[0]) / 0.02
        assert float(gradient[index]) == pytest.approx(float(difference), rel=1e-2)


def test_loss():
    networks = pair()
    starts, arithmetic = small.images(networks.factor, seed=1), FusedArithmetic(CHAIN, Key.create(0, "chain"))
    weights = networks.normalized()
    loss, metrics, negatives = training(networks).loss(weights, tf.constant(IMAGES), LABELS, starts, arithmetic)
    factor, position = networks.energies(weights, LABELS)
    positive, negative = (factor(images) + position(images) for images in (IMAGES, negatives))
    # The energy of negatives is there twice: falling with the weights, and rising as a function of the chain.
    expected = tf.reduce_mean(positive) + tf.reduce_mean(positive**2) + tf.reduce_mean(negative**2)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["energy_negative"]) == pytest.approx(float(tf.reduce_mean(negative)), rel=1e-5)
    ends = generalization.joint_chain(starts, factor, position, 2, FusedArithmetic(CHAIN, Key.create(0, "chain")))
    np.testing.assert_allclose(negatives, ends, atol=1e-5)


@pytest.fixture
def eagerly():
    """Tracing the gradient of a gradient takes longer than two steps."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_steps_change_both_networks_and_fill_the_buffer(eagerly):
    networks = pair()
    joint = training(networks)
    before = [variable.numpy() for variable in networks.trained]
    vectors = networks.position.by_name["c1/c_u"].numpy()
    assert all(np.isfinite(float(value)) for value in joint.step(IMAGES, LABELS, 0).values())
    assert all(np.abs(variable - old).max() > 0 for variable, old in zip(networks.trained, before, strict=True))
    assert not np.array_equal(networks.position.by_name["c1/c_u"], vectors)
    assert int(joint.buffer.length) == 2
    joint.step(IMAGES, LABELS, 1)
    assert int(joint.buffer.length) == 4


class Bowls:
    """In place of a pair of networks: energies that are multiples of the distance from 0 and 1, quick to trace."""

    def __init__(self):
        self.trained = [tf.Variable(0.5), tf.Variable(0.25)]
        self.factor, self.stored = pair().factor, tf.Variable(0)

    def normalized(self) -> tuple[Weights, Weights]:
        return Weights({"gain": self.trained[0].read_value()}, {}), Weights({"gain": self.trained[1].read_value()}, {})

    def energies(self, weights, labels):
        del labels
        gains = [part.values["gain"] for part in weights]
        return [lambda x, g=g, c=c: g * tf.reduce_sum((x - c) ** 2, [1, 2, 3])[:, None] for c, g in enumerate(gains)]

    def store_vectors(self, weights) -> None:
        self.stored.assign_add(1)


def test_a_compiled_step():
    """The first update of the clipped Adam is the rate, against the sign of the gradient."""
    bowls = Bowls()
    joint = JointTraining(bowls, CHAIN, 2, 1e-3, 8, Key.create(0, "training"))
    metrics = joint.step(IMAGES, LABELS, 0)
    updated = np.array([float(variable) for variable in bowls.trained])
    before, key = [0.5, 0.25], Key.create(0, "training").fold(0)
    for variable, value in zip(bowls.trained, before, strict=True):
        variable.assign(value)
    starts, arithmetic = 0.5 + 0.5 * key.fold("starts").normal(IMAGES.shape), FusedArithmetic(CHAIN, key.fold("chain"))
    with tf.GradientTape() as tape:
        loss, _, negatives = joint.loss(bowls.normalized(), tf.constant(IMAGES), LABELS, starts, arithmetic)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-4)
    np.testing.assert_allclose(updated, before - 1e-3 * np.sign(tape.gradient(loss, bowls.trained)), rtol=1e-5)
    np.testing.assert_allclose(joint.buffer.images[:2], negatives, atol=1e-5)
    assert int(bowls.stored) == 1


def test_one_chain_in_twenty_begins_at_an_earlier_sample():
    joint = training(pair())
    key, shape = Key.create(0, "starts"), [2000, 16, 16, 1]
    fresh = joint.starts(key, shape).numpy()
    assert fresh.mean() == pytest.approx(0.5, abs=0.01)
    assert fresh.std() == pytest.approx(0.5, abs=0.01)
    joint.buffer.add(tf.fill([2, 16, 16, 1], 7.0))
    starts = joint.starts(key, shape).numpy()
    old = (starts == 7.0).all(axis=(1, 2, 3))
    assert 60 < old.sum() < 140
    np.testing.assert_array_equal(starts[~old], fresh[~old])


def test_a_tested_sample_is_three_chains_and_does_not_depend_on_the_batch(eagerly):
    networks, chain, key = pair(), Chain(2, 5.0, 0.005), Key.create(0, "test")
    test = Generalization(networks, chain)
    found = test.sample(LABELS, key)
    np.testing.assert_allclose(test.sample([label[1:] for label in LABELS], key.skip(1)), found[1:], atol=1e-5)
    x = 0.5 + key.fold("starts").normal([2, 16, 16, 1])
    for call in range(3):
        arithmetic = FusedArithmetic(chain, key.fold("chain", call))
        x = generalization.joint_chain(x, *networks.energies(networks.normalized(), LABELS), 2, arithmetic)
    np.testing.assert_allclose(found, x, atol=1e-5)
