"""The UNet: its parts against NumPy, dropout, recomputation, precision, initial values, bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tfgen.ops import library
from tfgen.randomness import Key
from tfgen.systems.diffusion import unet
from tfgen.systems.diffusion.architecture import ShapeError, UNetShape
from tfgen.systems.diffusion.unet import UNet

RANDOM = np.random.default_rng(SEED)
SMALL = UNetShape(width=32, num_res_blocks=1, channel_mult=(1, 2), attention_rates=frozenset({2}), num_heads=2)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def trained(shape: UNetShape, seed: int = 0) -> UNet:
    """A network in which nothing is zero, as the last convolutions of fresh blocks are."""
    network = UNet(shape, seed)
    generator = np.random.RandomState(3)
    for variable in network.trainable_variables:
        variable.assign_add(generator.normal(0, 0.05, variable.shape).astype(np.float32))
    return network


# Parts against NumPy -------------------------------------------------------------------------------------


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_head_major(heads):
    qkv, size = normal(2, 5, 3 * 8), 8 // heads
    expected = np.zeros([2, 5, 8])
    for head in range(heads):
        query, key, value = np.split(qkv[:, :, 3 * size * head : 3 * size * (head + 1)], 3, axis=2)
        weights = softmax(query @ key.transpose(0, 2, 1) / np.sqrt(size))
        expected[:, :, size * head : size * (head + 1)] = weights @ value
    np.testing.assert_allclose(unet.qkv_attention(tf.constant(qkv), heads), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(("length", "heads", "size"), [(16, 1, 512), (64, 4, 24), (256, 2, 32), (49, 2, 32)])
def test_attention_by_the_operation_is_that_of_products(length, heads, size, dtype, caplog):
    """Results and gradients; 49 positions are no whole blocks, of which a user is not to be warned."""
    qkv, upstream = normal(2, length, 3 * heads * size), normal(2, length, heads * size)

    def results(dtype: tf.DType) -> list[np.ndarray]:
        x = tf.constant(qkv, dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = unet.qkv_attention(x, heads)
        gradient = tape.gradient(y, x, output_gradients=tf.constant(upstream, dtype))
        return [tf.cast(value, tf.float64).numpy() for value in (y, gradient)]

    with caplog.at_level("INFO"):
        found = results(dtype)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    with library.plain_tensorflow():
        expected, plain = results(tf.float32), results(dtype)
    for ours, truth, products in zip(found, expected, plain, strict=True):
        assert np.abs(ours - truth).max() <= 2 * np.abs(products - truth).max() + 1e-5


def test_attention_on_a_gpu_is_products_of_tensorflow(monkeypatch):
    monkeypatch.setattr(library, "gpu_visible", lambda: True)
    traced = tf.function(lambda x: unet.qkv_attention(x, 1)).get_concrete_function(tf.TensorSpec([1, 256, 3 * 512]))
    assert not [node.name for node in traced.graph.as_graph_def().node if node.op.startswith("Tfgen")]


def test_timestep_embedding():
    embedding = unet.timestep_embedding(tf.constant([0.0, 2.5]), 7)
    angles = np.outer([0.0, 2.5], 10000.0 ** (-np.arange(3) / 3))
    np.testing.assert_allclose(embedding, np.hstack([np.cos(angles), np.sin(angles), np.zeros([2, 1])]), atol=1e-6)
    whole = unet.timestep_embedding(tf.constant([3, 3999], tf.int64), 32)
    np.testing.assert_array_equal(whole, unet.timestep_embedding(tf.constant([3.0, 3999.0]), 32))


@pytest.mark.parametrize("sides", [(4, 6), (5, 7)])
def test_convolution_of_stride_2_pads_all_sides(sides):
    x, kernel, bias = normal(1, *sides, 2), normal(3, 3, 2, 3), normal(3)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    height, width = (-(-side // 2) for side in sides)
    expected = np.zeros([1, height, width, 3])
    for row in range(height):
        for column in range(width):
            window = padded[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected[0, row, column] = np.tensordot(window, kernel, 3) + bias
    np.testing.assert_allclose(unet.convolution(tf.constant(x), kernel, bias, stride=2), expected, atol=1e-5)


def test_enlarged_and_halved():
    x = normal(2, 3, 2, 4)
    np.testing.assert_allclose(unet.halved(unet.enlarged(tf.constant(x))), x, atol=1e-6)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("scale_shift", [True, False])
def test_residual_block(scale_shift):
    """Convolutions of 1x1 pixels are matrix products with the middle of the kernel."""
    inputs, outputs, rows = 128, 96, 3
    x, embedding = normal(rows, 1, 1, inputs), normal(rows, 5)
    middle1, middle2, skip = normal(inputs, outputs), normal(outputs, outputs), normal(inputs, outputs)
    kernels = [np.zeros([3, 3, *middle.shape], np.float32) for middle in (middle1, middle2)]
    kernels[0][1, 1], kernels[1][1, 1] = middle1, middle2
    projection = normal(5, outputs * (2 if scale_shift else 1))
    scale1, shift1, scale2, shift2 = normal(inputs), normal(inputs), normal(outputs), normal(outputs)
    biases = [normal(outputs), normal(projection.shape[1]), normal(outputs), normal(outputs)]

    def norm(h, scale, shift):
        grouped = h.reshape(rows, 32, -1)
        centred = grouped - grouped.mean(-1, keepdims=True)
        return (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)).reshape(h.shape) * scale + shift

    flat = x[:, 0, 0].astype(np.float64)
    h = silu(norm(flat, scale1, shift1)) @ middle1 + biases[0]
    conditioning = embedding @ projection + biases[1]
    if scale_shift:
        h = norm(h, scale2, shift2) * (1 + conditioning[:, :outputs]) + conditioning[:, outputs:]
    else:
        h = norm(h + conditioning, scale2, shift2)
    expected = flat @ skip + biases[3] + silu(h) @ middle2 + biases[2]
    weights = [scale1, shift1, kernels[0], biases[0], projection, biases[1], scale2, shift2, kernels[1], biases[2]]
    found = unet.residual_block(
        tf.constant(x), tf.constant(embedding), [tf.constant(weight) for weight in weights],
        [tf.constant(skip[None, None]), tf.constant(biases[3])], [], [], 0.0, scale_shift,
    )  # fmt: skip
    np.testing.assert_allclose(found[:, 0, 0], expected, atol=1e-4 * np.abs(expected).max())


# The whole network ---------------------------------------------------------------------------------------


def test_sides_that_are_no_squares_and_an_unknown_batch_size():
    network, x = trained(SMALL), normal(3, 4, 6, 3)
    served = tf.function(network, input_signature=[tf.TensorSpec([None, 4, 6, 3]), tf.TensorSpec([None], tf.int32)])
    timesteps = tf.constant([0, 5, 999])
    together = served(x, timesteps)
    assert together.shape == [3, 4, 6, 3]
    np.testing.assert_allclose(served(x[1:2], timesteps[1:2])[0], together[1], atol=1e-5)
    np.testing.assert_allclose(network(x, tf.cast(timesteps, tf.float32)), together, atol=1e-5)


def test_skip_connections_are_taken_newest_first():
    """The blocks by hand: each output block reads the state and then what the input blocks gave, newest first."""
    network, x = trained(SMALL), normal(1, 4, 4, 3)
    outputs = network.block_outputs(x, tf.constant([7]))
    assert list(outputs) == ["input_0", "input_1", "input_2", "input_3", "middle", *(f"output_{i}" for i in range(4))]
    embedding, state = tf.nn.silu(network.embed(tf.constant([7]))), outputs["middle"]
    for index, block in enumerate(network.output_blocks):
        state = tf.concat([state, outputs[f"input_{3 - index}"]], axis=3)
        for layer in block:
            state = layer(state, embedding, None, False, {})
        np.testing.assert_allclose(state, outputs[f"output_{index}"], atol=1e-5)
    np.testing.assert_allclose(network.head(state), network(x, tf.constant([7])), atol=1e-5)


@pytest.mark.skipif(library.load() is None, reason="the kernels are not built")
def test_prepared_kernels_change_no_bit():
    """Of all 3x3 convolutions of stride 1 between wide features, but for the first and the last layer's."""
    network, x, timesteps = trained(SMALL), normal(2, 8, 8, 3), tf.constant([7, 900])
    prepared = network.prepared_kernels()
    kernels = {layer.name: layer.kernel for layer in network.submodules if isinstance(layer, unet.Affine)}
    square = {name for name, kernel in kernels.items() if kernel.shape[:2] == (3, 3)}
    assert square - set(prepared) == {"input_blocks_0_0", "input_blocks_2_0_op", "out_2"}
    plain = network(x, timesteps)
    np.testing.assert_array_equal(network(x, timesteps, prepared=prepared), plain)
    for name in prepared:  # each is used
        changed = network(x, timesteps, prepared={**prepared, name: prepared[name][::-1]})
        assert np.abs(changed - plain).max() > 1e-3, name
    with library.plain_tensorflow():
        assert network.prepared_kernels() == {}
    assert trained(dataclasses.replace(SMALL, dtype="bfloat16")).prepared_kernels() == {}


def test_timestep_label_and_low_resolution_image_matter():
    network = trained(
        dataclasses.replace(SMALL, num_classes=3, null_class=True, low_res=True, use_scale_shift_norm=True)
    )
    x, low_res = normal(1, 4, 4, 3), normal(1, 2, 2, 3)

    def output(timestep=1, label=0, low_res=low_res):
        return network(x, tf.constant([timestep]), labels=tf.constant([label]), low_res=low_res).numpy()

    for changed in (output(timestep=900), output(label=network.shape.null_label), output(low_res=-low_res)):
        assert np.abs(changed - output()).max() > 1e-3


def test_fresh_networks():
    """Zero at the start; weights are a function of the seed and the name."""
    network, x = UNet(SMALL, seed=1), normal(1, 4, 4, 3)
    np.testing.assert_array_equal(network(x, tf.constant([3])), np.zeros([1, 4, 4, 3]))
    wider = UNet(dataclasses.replace(SMALL, num_classes=2), seed=1)
    values = {variable.name: variable.numpy() for variable in network.trainable_variables}
    others = {variable.name: variable.numpy() for variable in wider.trainable_variables}
    assert set(others) - set(values) == {"label_emb/rows:0"}
    assert all(np.array_equal(others[name], value) for name, value in values.items())
    assert not np.array_equal(UNet(SMALL, seed=2).time_in.kernel, network.time_in.kernel)
    assert not any(variable.numpy().any() for variable in UNet(SMALL, None).time_in.trainable_variables)


def test_initial_values():
    network = UNet(dataclasses.replace(SMALL, num_classes=300), seed=0)
    zero = ("out_layers/3", "proj_out", "out/2")
    for variable in network.trainable_variables:
        path, _, kind = variable.name.removesuffix(":0").rpartition("/")
        values = variable.numpy()
        if kind in ("scale", "shift"):
            np.testing.assert_array_equal(values, 1.0 if kind == "scale" else 0.0)
        elif path.endswith(zero):
            assert not values.any(), path
        elif kind == "rows":
            assert values.std() == pytest.approx(1, abs=0.02)
        else:
            kernel = values if kind == "kernel" else next(
                v for v in network.trainable_variables if v.name == f"{path}/kernel:0"
            )  # fmt: skip
            bound = np.prod(kernel.shape[:-1]) ** -0.5
            assert np.abs(values).max() <= bound
            assert np.abs(values).max() > 0.8 * bound
            if values.size > 1000:
                assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


# Dropout and recomputation -------------------------------------------------------------------------------

DROPPING = dataclasses.replace(SMALL, channel_mult=(1,), attention_rates=frozenset({1}), dropout=0.4)


def test_dropout_of_a_sample_does_not_depend_on_the_batch():
    network, x, timesteps = trained(DROPPING), normal(3, 4, 4, 3), tf.constant([1, 2, 3])
    key = Key.create(0, "dropout")
    together = network(x, timesteps, training=True, dropout_key=key)
    alone = network(x[2:], timesteps[2:], training=True, dropout_key=key.skip(2))
    np.testing.assert_allclose(alone[0], together[2], atol=1e-5)
    other = network(x, timesteps, training=True, dropout_key=key.fold(1))
    assert np.abs(other - together).max() > 1e-3


def test_dropout_in_training_only():
    network, x, timesteps = trained(DROPPING), normal(1, 4, 4, 3), tf.constant([1])
    plain = network(x, timesteps)
    assert np.abs(network(x, timesteps, training=True, dropout_key=Key.create(0, "d")) - plain).max() > 1e-3
    np.testing.assert_array_equal(network(x, timesteps, dropout_key=Key.create(0, "d")), plain)
    with pytest.raises(ValueError, match="needs a random key"):
        network(x, timesteps, training=True)


@pytest.mark.parametrize("rate", [0.3, 0.5, 1e-3, 0.999])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_dropout_passes_gradients_through_its_mask(rate, dtype):
    """The share of what is dropped: within five standard errors."""
    key = Key.create(1, "dropout")
    x = tf.ones([2, 100, 50, 33], dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = unet.dropout(x, rate, [key.seed, key.first_sample])
    upstream = tf.cast(tf.random.stateless_normal(x.shape, [1, 2]), dtype)
    gradient = tape.gradient(y, x, output_gradients=upstream)
    np.testing.assert_array_equal(gradient, tf.where(y > 0, upstream * tf.reduce_max(y), 0))
    zeros = np.mean(y == 0)
    assert abs(zeros - rate) < 5 * (rate * (1 - rate) / 330_000) ** 0.5
    assert {float(value) for value in np.unique(tf.cast(y, tf.float32))} == {0.0, float(tf.cast(1 / (1 - rate), dtype))}


def test_dropout_keeps_a_share_and_the_mean():
    key = Key.create(0, "dropout")
    dropped = unet.dropout(tf.ones([64, 8, 8, 4]), 0.25, [key.seed, key.first_sample]).numpy()
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.75], rtol=1e-6)
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.02)


def gradients(network: UNet, x: np.ndarray) -> list[np.ndarray]:
    @tf.function
    def differentiated():
        key = Key.create(0, "dropout")
        with tf.GradientTape() as tape:
            output = network(x, tf.constant([1, 900]), training=True, dropout_key=key)
            total = tf.reduce_sum(tf.cos(output))
        return tape.gradient(total, network.trainable_variables)

    return [gradient.numpy() for gradient in differentiated()]


def test_recomputation_draws_the_same_masks():
    x = normal(2, 4, 4, 3)
    kept = gradients(trained(DROPPING), x)
    again = gradients(trained(dataclasses.replace(DROPPING, recompute=True)), x)
    for ours, expected in zip(again, kept, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max() + 1e-6)


def test_recomputation_keeps_less():
    """Tensors of the size of the features that the backward pass reads from the forward pass."""

    def kept(shape: UNetShape) -> int:
        network = UNet(shape, seed=0)
        layer = network.middle_block[0]

        @tf.function
        def block(x, embedding):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, embedding, None, shape.recompute, {})
            return tape.gradient(y, x)

        graph = block.get_concrete_function(tf.TensorSpec([2, 4, 4, 64]), tf.TensorSpec([2, 128])).graph
        calls = [node for node in graph.as_graph_def().node if "PartitionedCall" in node.op]
        forward = calls[0]
        return len(forward.attr["Tout"].list.type)

    assert kept(dataclasses.replace(SMALL, recompute=True)) == 1 < kept(SMALL)


# Precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.02), ("bfloat16", 0.1)])
def test_half_precision(dtype, tolerance):
    x, timesteps = normal(2, 4, 4, 3), tf.constant([3, 700])
    exact = trained(SMALL)(x, timesteps)
    network = trained(dataclasses.replace(SMALL, dtype=dtype))
    outputs = network.block_outputs(x, timesteps)
    assert {output.dtype for output in outputs.values()} == {tf.as_dtype(dtype)}
    assert {variable.dtype for variable in network.variables} == {tf.float32}
    found = network(x, timesteps)
    assert found.dtype == tf.float32
    error = np.abs(found - exact).max()
    assert 0 < error < tolerance * np.abs(exact).max()


# Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sides", "given", "message"),
    [
        ({}, (5, 4), {}, "5x4, but 2 levels .* need sides that are multiples of 2"),
        ({"channel_mult": (1, 1, 1)}, (4, 6), {}, "multiples of 4"),
        ({}, (4, 4), {"labels": [0]}, "its network has no classes"),
        ({"num_classes": 3}, (4, 4), {}, r"expected labels: \[B\] below 3; found none"),
        ({}, (4, 4), {"low_res": np.zeros([1, 2, 2, 3], np.float32)}, "this network reads no second image"),
        ({"low_res": True}, (4, 4), {}, "expected low_res"),
        ({"in_channels": 1}, (4, 4), {}, r"expected \[B, height, width, 1\]"),
    ],
)
def test_inputs_that_do_not_fit(changes, sides, given, message):
    network = UNet(dataclasses.replace(SMALL, **changes), seed=None)
    with pytest.raises(ShapeError, match=message):
        network(np.zeros([1, *sides, 3], np.float32), tf.constant([1]), **given)
