"""Losses against their formulas, and which way their gradients go."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.ebm import small
from tfgen.randomness import Key
from tfgen.systems.ebm import objective as objectives
from tfgen.systems.ebm import sampler
from tfgen.systems.ebm.catalog import network_shape
from tfgen.systems.ebm.networks import EnergyNetwork
from tfgen.systems.ebm.objective import Objective
from tfgen.systems.ebm.replay import ReplayBuffer, to_bytes
from tfgen.systems.ebm.sampler import Chain, PlainMoves
from tfgen.training.clipped_adam import ClippedAdam

POSITIVE = np.array([[0.5], [-1.0], [2.0]], np.float32)
NEGATIVE = np.array([[1.5], [0.25], [-0.75]], np.float32)
CHAIN = Chain(2, 0.5, 0.05)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_contrasts(temperature):
    p, n = temperature * POSITIVE.astype(np.float64), temperature * NEGATIVE.astype(np.float64)
    weights = np.exp(n.min() - n)
    expected = {
        "cd": p.mean() - n.mean(),
        "logsumexp": p.mean() - (weights * n).sum() / (weights.sum() + 1e-4),
        "softplus": np.log1p(np.exp(p - n)),
    }
    for kind, value in expected.items():
        settings = Objective(kind, ml_coeff=3.0, temperature=temperature)
        found = objectives.contrast(tf.constant(POSITIVE), tf.constant(NEGATIVE), settings)
        np.testing.assert_allclose(found, 3.0 * value, rtol=1e-5)


def test_weights_of_logsumexp_are_constants():
    negative = tf.constant(NEGATIVE)
    with tf.GradientTape() as tape:
        tape.watch(negative)
        loss = objectives.contrast(tf.constant(POSITIVE), negative, Objective("logsumexp"))
    weights = np.exp(NEGATIVE.min() - NEGATIVE)
    np.testing.assert_allclose(tape.gradient(loss, negative), -weights / (weights.sum() + 1e-4), rtol=1e-5)


def test_the_total_is_contrast_squares_and_energy_of_the_chain():
    settings = Objective(l2_coeff=0.5, temperature=2.0)
    loss, likelihood = objectives.total_loss(
        tf.constant(POSITIVE), tf.constant(NEGATIVE), tf.constant([[4.0]]), settings
    )
    assert float(likelihood) == pytest.approx(2 * (POSITIVE.mean() - NEGATIVE.mean()))
    squares = (POSITIVE**2).mean() + (NEGATIVE**2).mean()
    assert float(loss) == pytest.approx(float(likelihood) + 0.5 * squares + 4.0)


def gradients(network: EnergyNetwork, settings: Objective, graph: bool = True) -> list[np.ndarray]:
    """Of the loss of one step with fixed noise, one for each trained variable."""
    images, starts = small.images(network, seed=1), small.images(network, seed=2)
    noise = sampler.given(tf.constant(np.random.RandomState(3).normal(size=[2, *starts.shape]), tf.float32))

    def sample(energy: sampler.StepEnergy, x: tf.Tensor) -> tf.Tensor:
        return sampler.run(x, CHAIN.steps, PlainMoves(energy, CHAIN, noise))

    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            weights = network.normalized()
            labels = small.labels(network)
            outcome = objectives.evaluate(network, weights, settings, images, starts, sample, labels, labels)
        return tape.gradient(outcome.loss, list(network.trained.values()))

    return [gradient.numpy() for gradient in (tf.function(step) if graph else step)()]


@pytest.mark.parametrize("zero_kl", [False, True])
def test_loop_of_the_graph_and_eager_steps_give_the_same_gradients(zero_kl):
    network = small.network("MnistNet", swish=True, side=8)
    settings = Objective(zero_kl=zero_kl)
    for compiled, eager in zip(gradients(network, settings), gradients(network, settings, graph=False), strict=True):
        np.testing.assert_allclose(compiled, eager, atol=1e-5 * np.abs(eager).max())


def test_the_way_back_through_the_chain_is_that_of_finite_differences():
    """Only the negatives move: the gradient of the last energy by a weight acts through the chain alone."""
    network = small.network("MnistNet", swish=True, side=8)
    settings = [Objective(ml_coeff=0.0, l2_coeff=0.0, zero_kl=zero_kl) for zero_kl in (False, True)]
    through, without = (gradients(network, each, graph=False) for each in settings)
    assert all(np.abs(gradient).max() == 0 for gradient in without)
    place = list(network.trained).index("fc5/wweight")
    variable = network.trained["fc5/wweight"]
    starts = small.images(network, seed=2)
    noise = sampler.given(tf.constant(np.random.RandomState(3).normal(size=[2, *starts.shape]), tf.float32))
    fixed = network.normalized()

    def energy_of_end(change: float) -> float:
        variable.assign_add([[change]] + [[0.0]] * (variable.shape[0] - 1))
        weights = network.normalized()
        variable.assign_sub([[change]] + [[0.0]] * (variable.shape[0] - 1))
        moves = PlainMoves(lambda x, _: network.energy(weights, x), CHAIN, noise)
        return float(tf.reduce_mean(network.energy(fixed, sampler.run(starts, CHAIN.steps, moves))))

    expected = (energy_of_end(0.5) - energy_of_end(-0.5)) / 1.0
    assert through[place][0, 0] == pytest.approx(expected, rel=0.02)


def test_classes_are_drawn_by_their_energies():
    energies = np.array([0.0, 1.0, 2.0], np.float32)
    uniforms = np.random.RandomState(0).uniform(size=[20_000, 3])
    drawn = objectives.inferred_labels(tf.tile(energies[None], [20_000, 1]), tf.constant(uniforms, tf.float32))
    expected = np.exp(-energies) / np.exp(-energies).sum()
    np.testing.assert_allclose(np.mean(drawn, axis=0), expected, atol=0.012)


def test_each_image_with_each_class():
    images, labels = objectives.with_every_class(tf.constant([[1.0], [2.0]]), 3)
    np.testing.assert_array_equal(images[:, 0], [1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(np.argmax(labels, 1), [0, 1, 2, 0, 1, 2])


def test_entropy_of_labels():
    assert float(objectives.label_entropy(tf.eye(4))) == pytest.approx(np.log(4), abs=1e-5)
    assert float(objectives.label_entropy(tf.constant([[0.0, 1.0], [0.0, 1.0]]))) == pytest.approx(0.0, abs=1e-5)


def test_gradient_at_the_end_has_the_temperature():
    network = small.network("MnistNet", side=8)
    images = small.images(network)
    once, twice = (
        objectives.gradient_at_end(network, network.normalized(), Objective(temperature=t), images) for t in (1.0, 2.0)
    )
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)


def test_a_step_of_diverging_energies_is_skipped():
    loss, near, far = tf.constant(1.5), tf.constant([[1.0], [-1.0]]), tf.constant([[11.0], [-11.0]])
    assert float(objectives.limited(loss, near, near, 10.0)) == 1.5
    assert float(objectives.limited(loss, far, far, 0.0)) == 1.5
    for pair in ((near, far), (far, near), (near, np.nan * near)):
        assert np.isnan(objectives.limited(loss, *pair, 10.0))


def test_training_tells_images_from_samples():
    """All parts of a step together, compiled: network, buffer, sampler, loss, optimizer."""
    network = EnergyNetwork(network_shape("MnistNet", 4, side=8), seed=0)
    chain, batch = Chain(5, 1.0, 0.005, clip_mode="li", clip=0.1), 8
    buffer, optimizer = ReplayBuffer(32, batch, [8, 8, 1]), ClippedAdam()
    optimizer.build(list(network.trained.values()))
    key = Key.create(0, "train")
    bars = np.zeros([batch, 8, 8, 1], np.float32)
    bars[:, :, 2:4] = 0.9

    @tf.function
    def step(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        own = key.fold(number)
        starts, _ = buffer.starts(own.fold("fresh").uniform(bars.shape), None, own, high=1.0, restart=0.05)

        def sample(energy: sampler.StepEnergy, x: tf.Tensor) -> tf.Tensor:
            return sampler.run(x, chain.steps, PlainMoves(energy, chain, sampler.drawn(own.fold("noise"))))

        images = bars + 0.05 * own.fold("images").uniform(bars.shape)
        with tf.GradientTape() as tape:
            weights = network.normalized()
            outcome = objectives.evaluate(network, weights, Objective(zero_kl=True), images, starts, sample)
        optimizer.apply(tape.gradient(outcome.loss, list(network.trained.values())), 1e-3)
        network.store_vectors(weights)
        buffer.add(to_bytes(outcome.negatives, 1.0))
        return tf.reduce_mean(outcome.positive), tf.reduce_mean(outcome.negative)

    differences = [float(tf.subtract(*step(tf.constant(number)))) for number in range(40)]
    assert np.mean(differences[-5:]) < np.mean(differences[:3]) - 0.008
    assert int(buffer.length) == 32


def test_what_is_refused():
    with pytest.raises(ValueError, match="objective 'kl', expected one of cd, logsumexp, softplus"):
        Objective("kl")
    with pytest.raises(ValueError, match="compares pairs, found 3 positives and 2 negatives"):
        objectives.contrast(tf.constant(POSITIVE), tf.constant(NEGATIVE[:2]), Objective("softplus"))
