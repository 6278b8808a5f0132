"""Energies: what they depend on, their derivatives, dropout, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.ebm import small
from tfgen.ops import library
from tfgen.randomness import Key
from tfgen.systems.ebm import networks
from tfgen.systems.ebm.architecture import ShapeError, Variable, parameter_count
from tfgen.systems.ebm.catalog import network_shape
from tfgen.systems.ebm.networks import EnergyNetwork
from tfgen.systems.ebm.sampler import gradient_of


def energies(of: EnergyNetwork, images=None, labels=None, **more) -> np.ndarray:
    images = small.images(of) if images is None else images
    return of.energy(of.normalized(), images, small.labels(of) if labels is None else labels, **more).numpy()


SMALL = {
    "mnist": {"kind": "MnistNet"},
    "mnist by class": {"kind": "MnistNet", "label_columns": 4, "side": 8},
    "dsprites by position": {"kind": "DspritesNet", "label_columns": 2, "swish": True, "side": 16},
    "dsprites, means of 2x2": {"kind": "DspritesNet", "downsample": True, "side": 16},
    "resnet with attention": {"kind": "ResNet32", "use_attention": True},
    "large by class": {"kind": "ResNet32Large", "label_columns": 3},
}


@pytest.mark.parametrize("name", SMALL)
def test_an_energy_is_that_of_its_image_and_label_alone(name):
    network = small.network(**SMALL[name])
    both = energies(network)
    assert both.shape == (2, 1)
    assert abs(both[0, 0] - both[1, 0]) > 1e-7
    labels = small.labels(network)
    second = network.energy(network.normalized(), small.images(network)[1:], None if labels is None else labels[1:])
    np.testing.assert_allclose(second, both[1:], rtol=1e-5)
    if labels is not None:
        assert np.abs(energies(network, labels=labels[::-1]) - both).max() > 1e-7


@pytest.mark.parametrize("name", SMALL)
def test_what_has_a_gradient(name):
    network = small.network(**SMALL[name])
    with tf.GradientTape() as tape:
        energy = network.energy(network.normalized(), small.images(network), small.labels(network))
    gradients = tape.gradient(energy, network.trainable_variables)
    trained = {variable.ref() for variable in network.trained.values()}
    found = {v.ref() for v, g in zip(network.trainable_variables, gradients, strict=True) if g is not None}
    assert found == trained


@pytest.mark.parametrize("name", SMALL)
def test_variables_are_those_of_the_shape(name):
    network = small.network(**SMALL[name])
    trainable = [f"context_0/{v.name}:0" for v in network.shape.variables() if v.trainable]
    assert [variable.name for variable in network.trainable_variables] == trainable
    assert len(network.variables) == len(network.shape.variables())
    assert sum(v.shape.num_elements() for v in network.trainable_variables) == parameter_count(network.shape)


@pytest.mark.parametrize("name", SMALL)
def test_a_function_of_the_graph_takes_any_batch(name):
    network = small.network(**SMALL[name])
    images, labels = small.images(network, count=3), small.labels(network, count=3)
    arguments = [images] if labels is None else [images, labels]
    signature = [tf.TensorSpec([None, *argument.shape[1:]]) for argument in arguments]
    traced = tf.function(lambda *given: network.energy(network.normalized(), *given), input_signature=signature)
    for count in (1, 3):
        part = [argument[:count] for argument in arguments]
        np.testing.assert_allclose(traced(*part), network.energy(network.normalized(), *part), atol=1e-6)


def test_a_checkpoint_holds_the_vectors_as_well(tmp_path):
    network, other = small.network(seed=0), small.network(seed=1)
    path = tf.train.Checkpoint(network).write(str(tmp_path / "network"))
    tf.train.Checkpoint(other).read(path).assert_consumed()
    for name, variable in network.by_name.items():
        np.testing.assert_array_equal(variable, other.by_name[name])
    np.testing.assert_array_equal(energies(network), energies(other))


def test_stopped_weights_have_no_gradient_and_the_same_energy():
    network = small.network()
    images = small.images(network)
    with tf.GradientTape() as tape:
        tape.watch(images)
        weights = network.normalized().stopped()
        energy = network.energy(weights, images)
    by_image, *by_weight = tape.gradient(energy, [images, *network.trained.values()])
    assert np.abs(by_image).max() > 0
    assert all(gradient is None for gradient in by_weight)
    np.testing.assert_array_equal(energy, energies(network))


def test_second_derivatives_are_those_of_finite_differences():
    network = small.network("MnistNet", swish=True, side=8)
    images = small.images(network, count=1)
    direction = tf.constant(np.random.RandomState(2).normal(size=images.shape), tf.float32)

    def gradient(x: tf.Tensor) -> tf.Tensor:
        return gradient_of(lambda y, _: network.energy(network.normalized(), y), x, tf.constant(0))

    with tf.GradientTape() as tape:
        tape.watch(images)
        first = gradient(images)
    product = tape.gradient(first, images, output_gradients=direction)
    step = 1e-2
    expected = (gradient(images + step * direction) - gradient(images - step * direction)) / (2 * step)
    np.testing.assert_allclose(product, expected, atol=2e-2 * np.abs(expected).max())


def test_the_slope_of_the_leaky_rectifier():
    x = tf.constant([-2.0, 0.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = networks.leaky(x)
    np.testing.assert_allclose(y, [-0.4, 0.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(y, x), [0.2, 0.2, 1.0], rtol=1e-6)


def test_compiled_and_plain_convolutions_agree():
    network = small.network(filters=16)
    compiled = energies(network)
    with library.plain_tensorflow():
        plain = energies(network)
    np.testing.assert_allclose(compiled, plain, rtol=1e-4)


def test_the_norm_of_the_weights_is_the_one_asked_for():
    network = small.network(spec_iterations=50, spec_target=0.5)
    values = network.normalized().values
    for name in ("res_1_res_c1/cweight", "res_2_res_adaptive/cweight"):
        matrix = values[name].numpy().reshape(-1, values[name].shape[-1])
        assert np.linalg.norm(matrix, 2) == pytest.approx(0.5, rel=1e-3)


def test_vectors_move_only_when_they_are_stored():
    network = small.network()
    before = {name: variable.numpy() for name, variable in network.by_name.items()}
    weights = network.normalized()
    network.store_vectors(weights, take=tf.constant(False))
    assert all(np.array_equal(before[name], variable) for name, variable in network.by_name.items())
    network.store_vectors(weights, take=tf.constant(True))
    moved = {name for name, variable in network.by_name.items() if not np.array_equal(before[name], variable)}
    assert moved == set(weights.vectors)
    assert "fc_dense/w_u" not in moved  # no energy depends on it


def test_initial_values():
    shape = network_shape("ResNet32", 8)
    values = {v.name: networks.initial_value(v, seed=0) for v in shape.variables()}
    assert np.std(values["res_1_res_c1/cweight"]) == pytest.approx(1.0, rel=0.1)
    assert np.std(values["res_1_res_c2/cweight"]) == pytest.approx(1e-10, rel=0.1)
    assert np.all(values["res_1_res_c2/g"] == 1)
    assert not values["res_1_res_c2/gb"].any()
    bound = np.sqrt(6 / (16 + 1))
    assert 0.8 * bound < np.abs(values["fc5/wweight"]).max() <= bound
    again = Variable("res_1_res_c1/cweight", values["res_1_res_c1/cweight"].shape, "weight", True)
    np.testing.assert_array_equal(networks.initial_value(again, seed=0), values[again.name])
    assert not np.array_equal(networks.initial_value(again, seed=1), values[again.name])
    plain = {
        v.name: networks.initial_value(v, seed=0) for v in network_shape("ResNet32", 8, spec_norm=False).variables()
    }
    assert not plain["res_1_res_c2/cweight"].any()
    assert np.abs(plain["res_1_res_c1/cweight"]).max() <= np.sqrt(6 / (9 * 16))


def test_dropout_of_a_key_does_not_depend_on_the_batch():
    network = small.network("ResNet32Large", dropout=True)
    key = Key.create(0, "dropout")
    images = small.images(network, count=3)
    whole = energies(network, images, dropout=key)
    assert np.abs(whole - energies(network, images, dropout=key.fold(1))).max() > 1e-6
    rest = network.energy(network.normalized(), images[1:], dropout=key.skip(1))
    np.testing.assert_allclose(rest, whole[1:], atol=1e-6)


def test_dropout_keeps_one_half_and_doubles_it():
    network = small.network("ResNet32Large", dropout=True)
    layer = network.shape.blocks[1]
    ones = tf.ones([4, 16, 16, 3])
    mask = networks._mask(Key.create(0, "dropout"), 0, layer.name, ones)
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert np.mean(mask) == pytest.approx(0.5, abs=0.03)
    shapes = [output.shape for name, output in outputs_without_dropout(network).items() if name.startswith("res_")]
    # A block's mask has the side of its input: c1 stands before the pooling.
    sides = [shape[1] * (2 if block.pools else 1) for shape, block in zip(shapes, network.shape.blocks, strict=True)]
    halves = [
        np.full([2, side, side, block.outputs], 0.5) for side, block in zip(sides, network.shape.blocks, strict=True)
    ]
    without = small.network("ResNet32Large")
    np.testing.assert_allclose(energies(network, dropout=halves), energies(without), rtol=1e-6)


def outputs_without_dropout(network: EnergyNetwork) -> dict[str, tf.Tensor]:
    without = small.network(network.shape.kind, network.shape.filters)
    return without.activations(without.normalized(), small.images(without))


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"images": tf.zeros([2, 31, 32, 3])}, r"\(2, 31, 32, 3\), expected \[B, 32, 32, 3\] for ResNet32"),
        ({"label_columns": 3}, {"images": tf.zeros([2, 32, 32, 3])}, r"labels: none, expected \[B, 3\]"),
        (
            {"label_columns": 3},
            {"images": tf.zeros([2, 32, 32, 3]), "labels": tf.zeros([2, 4])},
            r"labels: shape \(2, 4\), expected \[B, 3\]",
        ),
        ({"kind": "ResNet32Large", "dropout": True}, {"images": tf.zeros([2, 32, 32, 3])}, "pass dropout=Key.create"),
        (
            {"kind": "ResNet32Large", "dropout": True},
            {"images": tf.zeros([2, 32, 32, 3]), "dropout": []},
            "0 dropout masks, expected 9",
        ),
    ],
)
def test_what_does_not_fit_is_refused(settings, arguments, message):
    network = small.network(**settings)
    with pytest.raises(ShapeError, match=message):
        network.energy(network.normalized(), **arguments)


def test_images_of_one_channel_need_no_axis_for_it():
    network = small.network("MnistNet", side=8)
    images = small.images(network)
    np.testing.assert_array_equal(energies(network, images[..., 0]), energies(network, images))
