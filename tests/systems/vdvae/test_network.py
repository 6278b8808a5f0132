"""The network beyond the recordings: initial values, shared traces, independence of the batch, latents of all kinds."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.vdvae import small
from tfgen.randomness import Key
from tfgen.systems.vdvae import network as network_module
from tfgen.systems.vdvae import published, sampling
from tfgen.systems.vdvae.config import Config
from tfgen.systems.vdvae.network import VDVAE
from tfgen.systems.vdvae.system import VeryDeepVAE

DRAW = sampling.latent_noise(Key.create(3, "test"))


@pytest.fixture(scope="module")
def system():
    return small.system()


@pytest.fixture(scope="module")
def network(system) -> VDVAE:
    return system.network


def inputs(system, count=3, seed=0):
    return system.preprocessing.input_and_target(tf.constant(small.images(count, seed=seed)))[0]


def silent(layer, shape):
    return tf.zeros(shape)


# Initial values ------------------------------------------------------------------------------------------


def fresh(**settings) -> VDVAE:
    return VeryDeepVAE(Config(**(small.SMALL | settings)), small.SPEC).network


def test_initial_values():
    """Uniform within 1 / sqrt(fan in); the last kernel of a residual branch smaller with depth, the prior's zero."""
    encoder_blocks, decoder_blocks = 5, 3  # pooling blocks are blocks
    network = fresh(width=32, custom_width_str="1:48", zdim=8)
    zeros, ones = 0, 0
    for item in published.variables(network):
        values = published.to_original(item.variable.numpy(), item.layout)
        if item.name.endswith("prior.c4.weight") or item.layout in ("bias", "state") or item.name == "decoder.bias":
            assert not values.any(), item.name
            zeros += 1
            continue
        if item.name == "decoder.gain":
            assert (values == 1).all()
            ones += 1
            continue
        bound = 1 / np.sqrt(np.prod(values.shape[1:]))
        if item.name.startswith("encoder.enc_blocks") and item.name.endswith("c4.weight"):
            bound *= np.sqrt(1 / encoder_blocks)
        if item.name.endswith(("resnet.c4.weight", "z_proj.weight")):
            bound *= np.sqrt(1 / decoder_blocks)
        assert np.abs(values).max() <= bound * (1 + 1e-6), item.name
        assert np.abs(values).max() > 0.95 * bound, item.name
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.15), item.name
        assert abs(values.mean()) < 0.15 * bound, item.name
    assert ones == 1
    assert zeros == 1 + 4 * encoder_blocks + 13 * decoder_blocks + decoder_blocks + 1 + 3 + 1


def test_a_fresh_prior_is_standard_normal():
    network, x = fresh(), tf.constant(np.random.RandomState(0).normal(size=[2, 4, 4, 8]), tf.float32)
    for part in network_module.split_prior(network_module.bottleneck(x, network.decoder_blocks[1].prior.values), 2):
        assert not part.numpy().any()
    # The KL of the first layer, whose posterior does not depend on other draws, is that from a standard normal.
    images = tf.constant(np.random.RandomState(1).normal(size=[3, 8, 8, 3]), tf.float32)
    first, mean = network.infer(images, DRAW), network.infer(images, silent).latents[0].numpy()
    std = (first.latents[0].numpy() - mean) / DRAW(0, mean.shape).numpy()
    np.testing.assert_allclose(first.kls[0], 0.5 * (std**2 + mean**2 - 1) - np.log(std), atol=1e-4)


def test_initial_values_depend_on_the_seed_and_the_name_alone():
    one, again, other = fresh(seed=1), fresh(seed=1), fresh(seed=2)
    deeper = fresh(seed=1, dec_blocks="1x1,4m1,8m4,8x1")
    for mine, same, different, longer in zip(
        *(n.encoder_blocks[0].inner.values + n.decoder_blocks[0].posterior.values for n in (one, again, other, deeper)),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, same)
        np.testing.assert_array_equal(mine, longer)
        assert not mine.numpy().any() or (mine.numpy() != different.numpy()).any()
    kernels = [variable.numpy().ravel()[:8].tobytes() for variable in one.trainable_variables if variable.numpy().any()]
    assert len(set(kernels)) == len(kernels)


# Encoder -------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_last_block_that_ended_there(network, system):
    x = inputs(system)
    features = network.encode(x)
    assert {side: tuple(value.shape) for side, value in features.items()} == {
        side: (3, side, side, 8) for side in (8, 4, 1)
    }
    state = network_module.convolution(x, *network.stem.values)
    expected = {8: state}
    for block in network.encoder_blocks:
        state = state + network_module.bottleneck(state, block.inner.values)
        if block.shape.pool > 1:
            state = tf.nn.avg_pool2d(state, block.shape.pool, block.shape.pool, "VALID")
        expected[int(state.shape[1])] = state
    for side, value in features.items():
        np.testing.assert_allclose(value, expected[side], rtol=1e-5, atol=1e-5)


def test_wider_features_are_filled_up_with_zeros():
    system = small.system(enc_blocks="8x1,8d2,4d4", custom_width_str="4:12,1:20")
    features = system.network.encode(inputs(system))
    assert [features[side].shape[-1] for side in (8, 4, 1)] == [8, 12, 20]
    for side, width in ((4, 8), (1, 12)):
        assert not features[side][..., width:].numpy().any()
        assert features[side][..., :width].numpy().all()


def test_kernels_are_1x1_where_a_feature_map_is_hardly_larger():
    network = fresh(enc_blocks="8d2,4d2,2d2,1x1", dec_blocks="1x1,2m1,4m2,8m4")
    for block, side in zip(network.decoder_blocks, (1, 1, 3, 3), strict=True):
        assert block.prior.c2.kernel.shape[:2] == block.residual.c3.kernel.shape[:2] == (side, side)
        assert block.prior.c1.kernel.shape[:2] == block.prior.c4.kernel.shape[:2] == (1, 1)
    assert [block.inner.c2.kernel.shape[0] for block in network.encoder_blocks] == [3, 3, 1, 1]


def test_enlarging_repeats_pixels():
    x = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    np.testing.assert_array_equal(network_module.enlarged(tf.constant(x), 3), x.repeat(3, axis=1).repeat(3, axis=2))


# Shared traces -------------------------------------------------------------------------------------------


def graph_of_the_gradient(**settings):
    system = small.system(**settings)

    @tf.function(autograph=False)
    def gradients(images):
        with tf.GradientTape() as tape:
            objective = system.loss({"image": images}, Key.create(0, "train"), training=True).objective
        return tape.gradient(objective, system.network.trainable_variables)

    graph = gradients.get_concrete_function(tf.TensorSpec([2, 8, 8, 3], tf.uint8)).graph
    return graph.as_graph_def()


def test_the_number_of_traces_grows_with_the_shapes_not_the_blocks():
    shallow = graph_of_the_gradient(enc_blocks="8x1,8d8,1x1", dec_blocks="1x1,8m1,8x1")
    deep = graph_of_the_gradient(enc_blocks="8x4,8d8,1x2", dec_blocks="1x2,8m1,8x4")
    assert len(shallow.library.function) == len(deep.library.function) > 0
    # A block costs the graph its reads of weights and a call forward and back, however much it computes.
    for graph in (shallow, deep):
        assert sum(node.op == "Conv2D" for node in graph.node) == 1  # the stem; the 1x1 head is a matrix product
    assert len(deep.library.function) < 40


def test_gradients_through_shared_traces_are_those_of_plain_code(monkeypatch):
    system = small.system(dec_blocks="1x1,4m1,8m4,8x1")
    batch = {"image": tf.constant(small.images(2))}

    def gradients():
        with tf.GradientTape() as tape:
            loss = system.loss(batch, Key.create(0, "train"), training=True)
        return [loss.objective, *tape.gradient(loss.objective, system.network.trainable_variables)]

    shared = gradients()
    for name in ("residual_block", "inference_layer"):
        monkeypatch.setattr(network_module, name, getattr(network_module, name).__wrapped__)
    for one, two in zip(shared, gradients(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4 * np.abs(two).max())


def test_every_variable_gets_a_gradient(system):
    with tf.GradientTape() as tape:
        batch = {"image": tf.constant(small.images(3))}
        objective = system.loss(batch, Key.create(0, "train"), training=True).objective
    variables = system.network.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(objective, variables), strict=True):
        assert gradient is not None, variable.name
        assert np.isfinite(gradient).all(), variable.name
        assert np.abs(gradient).max() > 0, variable.name


# Inference and generation --------------------------------------------------------------------------------


def test_an_image_is_inferred_alike_in_any_batch(network, system):
    x, first = inputs(system, 5), Key.create(3, "test")
    whole = network.infer(x, sampling.latent_noise(first))
    for start, stop in ((0, 1), (1, 3), (4, 5)):
        part = network.infer(x[start:stop], sampling.latent_noise(first.skip(start)))
        for mine, all_of_them in zip(
            [part.features, *part.latents, *part.kls], [whole.features, *whole.latents, *whole.kls], strict=True
        ):
            np.testing.assert_allclose(mine, all_of_them[start:stop], rtol=1e-4, atol=1e-4)


def test_calling_the_network_is_inference(network, system):
    parameters, kls = network(inputs(system), DRAW)
    inferred = network.infer(inputs(system), DRAW)
    assert parameters.shape == (3, 8, 8, 20)
    np.testing.assert_allclose(parameters, network.mixture_parameters(inferred.features), atol=1e-5)
    assert [tuple(kl.shape) for kl in kls] == [(3, side, side, 2) for side in (1, 4, 8)]


def test_sampled_kls_average_to_the_closed_form(network, system):
    """Over many draws of the last layer, whose posterior depends on the draws of the others."""
    x = tf.repeat(inputs(system, 1), 400, axis=0)

    def draw(layer, shape):
        return DRAW(layer, shape) if layer == 2 else tf.repeat(DRAW(layer, [1, *shape[1:]]), 400, axis=0)

    closed, sampled = (network.infer(x, draw, sampled_kl=kind).kls[2].numpy() for kind in (False, True))
    np.testing.assert_allclose(closed, np.broadcast_to(closed[:1], closed.shape), rtol=1e-3, atol=1e-4)
    totals = sampled.sum(axis=(1, 2, 3))
    error = abs(totals.mean() - closed[0].sum())
    assert error < 4 * totals.std() / np.sqrt(400)
    assert totals.std() > 0.01


def test_all_latents_given_reproduce_the_features(network, system):
    inferred = network.infer(inputs(system), DRAW)
    np.testing.assert_allclose(network.generate(3, DRAW, inferred.latents), inferred.features, rtol=1e-4, atol=1e-4)
    # Their temperature and the noise do not matter.
    again = network.generate(3, silent, inferred.latents, temperatures=0.2)
    np.testing.assert_allclose(again, inferred.features, rtol=1e-4, atol=1e-4)


def test_temperature_scales_the_noise_and_zero_leaves_the_mean(network):
    drawn = network.generate(2, DRAW)
    assert np.abs(network.generate(2, DRAW, temperatures=0.5) - drawn).max() > 1e-3
    mean = network.generate(2, silent)
    np.testing.assert_allclose(network.generate(2, DRAW, temperatures=0.0), mean, atol=1e-5)
    halved = network.generate(2, lambda layer, shape: 0.5 * DRAW(layer, shape))
    np.testing.assert_allclose(network.generate(2, DRAW, temperatures=0.5), halved, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(network.generate(2, DRAW, temperatures=tf.constant(0.5)), halved, rtol=1e-4, atol=1e-4)


def test_each_layer_has_its_temperature(network):
    temperatures = [0.0, 1.0, 0.3]

    def scaled(layer, shape):
        return temperatures[layer] * DRAW(layer, shape)

    expected = network.generate(2, scaled)
    np.testing.assert_allclose(network.generate(2, DRAW, temperatures=temperatures), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(network.generate(2, DRAW, temperatures=temperatures[::-1]) - expected).max() > 1e-3


def test_latents_of_some_layers(network, system):
    """None draws, and so does what is not in the list; `leading` says how many count where a graph leaves it open."""
    latents = network.infer(inputs(system), DRAW).latents
    other = functools.partial(network.generate, 3, sampling.latent_noise(Key.create(4, "test")))
    np.testing.assert_array_equal(other([]), other([None] * 3))
    np.testing.assert_array_equal(other(latents[:1]), other([latents[0], None]))
    assert np.abs(other(latents[:1]) - other([None, latents[1]])).max() > 1e-3
    for leading in range(4):
        expected = other(latents[:leading])
        np.testing.assert_allclose(other(latents, leading=tf.constant(leading)), expected, rtol=1e-4, atol=1e-4)


def test_lists_that_do_not_fit(network):
    with pytest.raises(ValueError, match="4 latents given for the 3 stochastic layers"):
        network.generate(1, DRAW, [None] * 4)
    with pytest.raises(ValueError, match="2 temperatures given, expected 1 or one for each of the 3 layers"):
        network.generate(1, DRAW, temperatures=[1.0, 1.0])


def test_without_initial_states_any_number_of_samples_can_be_drawn():
    """The original took their number from the initial states."""
    system = small.system(no_bias_above=0)
    assert not system.network.initial_states
    inferred = system.network.infer(inputs(system, 2), DRAW)
    np.testing.assert_allclose(
        system.network.generate(2, DRAW, inferred.latents), inferred.features, rtol=1e-4, atol=1e-4
    )
    count = tf.function(lambda n: system.network.generate(n, DRAW), autograph=False)
    for number in (1, 5):
        assert count(tf.constant(number)).shape == (number, 8, 8, 8)


def test_the_state_of_a_resolution_starts_from_its_own_map_and_the_one_mixed_in():
    network = small.system(custom_width_str="4:12,1:12").network
    states = network.starting_states(2)
    assert [tuple(states[side].shape) for side in (1, 4, 8)] == [(2, 1, 1, 12), (2, 4, 4, 12), (2, 8, 8, 8)]
    block = network.decoder_blocks[2].shape
    found = network.input_state(states, block, 2)
    expected = states[8].numpy() + states[4].numpy()[..., :8].repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    del states[8]
    np.testing.assert_allclose(network.input_state(states, block, 2), expected - network.initial_states[2], atol=1e-6)
