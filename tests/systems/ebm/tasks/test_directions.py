"""Second derivatives and features of small networks, the walk along given directions, and the task."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.systems.ebm import small
from tests.systems.ebm.tasks import runs
from tfgen.settings import SettingsError
from tfgen.systems.ebm.tasks import directions, load
from tfgen.systems.ebm.tasks.options import EvaluateOptions


@pytest.fixture(scope="module")
def network():
    return small.network("MnistNet", 2, swish=True, side=4, channels=1, label_columns=2, spec_target=3.0)


def test_hessian_against_differences_of_the_energy(network):
    weights, image, labels = network.normalized(), small.images(network, 1), small.labels(network, 1)
    found = directions.hessian(network, weights, image, labels, tf.eye(16)).numpy()
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    step = 0.05
    gradients = []
    for sign in (1.0, -1.0):
        moved = image + tf.reshape(sign * step * tf.eye(16), [16, 4, 4, 1])
        with tf.GradientTape() as tape:
            tape.watch(moved)
            energy = network.energy(weights, moved, tf.repeat(labels, 16, axis=0))
        gradients.append(tf.reshape(tape.gradient(energy, moved), [16, 16]).numpy())
    expected = (gradients[0] - gradients[1]) / (2 * step)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_jacobian_against_differences_of_the_features(network):
    weights, image, labels = network.normalized(), small.images(network, 1), small.labels(network, 1)
    outputs = network.shape.dense.outputs
    found = directions.jacobian(network, weights, image, labels, tf.eye(outputs)).numpy()
    assert found.shape == (outputs, 16)
    step = 0.01
    features = []
    for sign in (1.0, -1.0):
        moved = image + tf.reshape(sign * step * tf.eye(16), [16, 4, 4, 1])
        hidden = network.activations(weights, moved, tf.repeat(labels, 16, axis=0))["fc_dense"]
        features.append((hidden * tf.sigmoid(hidden)).numpy())
    expected = ((features[0] - features[1]) / (2 * step)).T
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


def test_the_lowest_eigenvalues_come_first():
    basis, _ = np.linalg.qr(np.random.RandomState(0).normal(size=[6, 6]))
    matrix = basis * [3.0, -5.0, 0.5, -1.0, 7.0, 2.0] @ basis.T
    expected = basis[:, [1, 3, 2]]
    found = directions.eigenvectors(matrix)
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=0)), 1.0)
    largest = np.abs(found).argmax(axis=0)
    assert (found[largest, range(3)] > 0).all()
    np.testing.assert_allclose(directions.eigenvectors(matrix.T), found)


def test_the_largest_singular_values_come_first():
    left, _ = np.linalg.qr(np.random.RandomState(0).normal(size=[4, 4]))
    right, _ = np.linalg.qr(np.random.RandomState(1).normal(size=[6, 4]))
    found = directions.singular_vectors(left * [1.0, 4.0, 2.0, 3.0] @ right.T)
    np.testing.assert_allclose(np.abs((found * right[:, [1, 3, 2]]).sum(axis=0)), 1.0)


def test_walk():
    """Unit vectors of three pixels; the chain adds nothing but a mark of its number."""
    image = np.full([2, 2, 1], 0.5)
    asked, numbers = [], []

    def at(x: np.ndarray) -> np.ndarray:
        asked.append(x.copy())
        return np.eye(4)[:, :3]

    def call(images: np.ndarray, labels: np.ndarray | None, number: int) -> np.ndarray:
        assert labels.shape == (6, 2)
        numbers.append(number)
        return images

    states = directions.walked(image, np.array([[0.0, 1.0]]), at, call)
    assert len(states) == 7
    assert numbers == list(range(7))
    assert len(asked) == 1 + 6 * 6
    moved = states[0].reshape(6, 4) - 0.5
    np.testing.assert_array_equal(moved, np.eye(4)[[0, 0, 1, 1, 2, 2]] * np.array([[-1], [1]] * 3))
    # The first move is not clipped, later ones are.
    assert states[0].min() == -0.5
    assert states[1].min() == 0.0
    assert states[1].max() == 1.0
    np.testing.assert_array_equal(asked[1], states[0][0])
    picture = directions.picture(image, states)
    assert picture.shape == (6 * 4, 8 * 4, 1)
    assert picture[0].max() == 0
    assert picture[1, 1, 0] == 128


@pytest.mark.parametrize("hessian", [True, False])
def test_task(hessian, tmp_path, monkeypatch):
    monkeypatch.setattr(directions, "ROUNDS", 1)
    run = runs.system(swish_act=True)
    result = load("latent")(run, EvaluateOptions(num_steps=1, step_lr=0.5, hessian=hessian), runs.job(run, tmp_path))
    assert result["step_size"] == 2.0
    with Image.open(tmp_path / "latent_comb.png") as picture:
        assert picture.size == (3 * (runs.SIDE + 2), 6 * (runs.SIDE + 2))
        assert np.asarray(picture).std() > 10


def test_networks_without_directions():
    leaky = runs.system()
    with pytest.raises(SettingsError, match=r"without --swish_act has no curvature.*use --nohessian"):
        directions.check(leaky, of_energy=True)
    directions.check(leaky, of_energy=False)
    residual = runs.system(channels=3)
    with pytest.raises(SettingsError, match="hidden layer of DspritesNet and MnistNet, found ResNet32"):
        directions.check(residual, of_energy=False)
    with pytest.raises(SettingsError, match=r"up to 4096 numbers \(64x64 grey\), found 128x128x1"):
        directions.check(runs.system(dataset="dsprites", side=128), of_energy=True)
