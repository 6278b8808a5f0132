from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfgen.ops.blocksparse import PatternError
from tfgen.randomness import Key
from tfgen.systems.distaug.transformer import Transformer, TransformerError, dropout, lookup, token_losses

SIZES = {"height": 4, "width": 4, "channels": 3, "vocab_size": 16, "n_embd": 16, "n_head": 2, "n_layer": 2}


def build(**arguments) -> Transformer:
    spread = {"w_embd_std": 0.5, "pos_embd_std": 0.5, "qk_w": 1.0, "v_w": 1.0, "logits_w": 1.0}
    return Transformer(**(SIZES | spread | {"attention_layers": ("bT", "b"), "local_attn_ctx": 12} | arguments))


def draw_tokens(batch: int = 3, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.RandomState(seed).randint(0, 16, [batch, 48]), tf.int32)


def gradients(network: Transformer, tokens: tf.Tensor, key: Key | None, conditioning=None) -> list[np.ndarray]:
    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            logits = network(tokens, network.identity_coordinates, conditioning, key=key, training=True)
            objective = tf.reduce_mean(token_losses(logits, tokens))
        return tape.gradient(objective, network.trainable_variables)

    return [gradient.numpy() for gradient in compute()]


def test_variables_have_the_published_names_in_the_published_order():
    names = [v.name for v in build(conditioning_rows={"sos_rot": 4, "sos_c": 6}, lookahead=True).trainable_variables]
    layer = [f"{part}/{w}" for part in ("q_proj", "k_proj", "v_proj", "post_proj") for w in "wb"]
    layer = ["attn_input/g", "attn_input/b", *layer, "mlp/g", "mlp/b"]
    layer += [f"{part}/{w}" for part in ("mlp_proj1", "mlp_proj2") for w in "wb"]
    expected = ["we", "pos_emb_0", "pos_emb_1", "pos_emb_2", "sos_token/sos_rot", "sos_token/sos_c"]
    expected += [f"lookahead_embedding/pos_emb_{axis}" for axis in range(3)]
    expected += [f"h{i}/{name}" for i in range(2) for name in layer]
    expected += ["final_norm/g", "final_norm/b", "gen_logits/logits_proj"]
    assert names == [f"{name}:0" for name in expected]


@pytest.mark.parametrize("modes", [("a",), ("bT", "b"), ("b0", "c")])
@pytest.mark.parametrize("lookahead", [False, True])
def test_logits_depend_on_earlier_tokens_only(modes, lookahead):
    network = build(attention_layers=modes, lookahead=lookahead)
    tokens, coordinates = draw_tokens(), network.identity_coordinates
    changed = tf.tensor_scatter_nd_update(tokens, [[0, 20]], [(int(tokens[0, 20]) + 1) % 16])
    before, after = network(tokens, coordinates).numpy(), network(changed, coordinates).numpy()
    np.testing.assert_array_equal(before[0, :21], after[0, :21])
    assert (before[0, 21] != after[0, 21]).any()
    np.testing.assert_allclose(before[1:], after[1:], atol=1e-6)


def test_the_start_vector_is_the_sum_of_the_selected_rows():
    network = build(conditioning_rows={"sos_rot": 4, "sos_tr": 2})
    x = network.embedding(draw_tokens(), network.identity_coordinates, tf.constant([[0, 0], [3, 1], [2, 0]]))
    rotation, transposition = (table.numpy() for table in network.embedding.sos)
    np.testing.assert_allclose(x[:, 0], rotation[[0, 3, 2]] + transposition[[0, 1, 0]], rtol=1e-6)


def test_position_embeddings_describe_the_fed_token_and_lookahead_the_predicted_one():
    network = build(lookahead=True)
    tokens, coordinates = draw_tokens(1), np.random.RandomState(1).permutation(48)
    coordinates = network.identity_coordinates[:, :, coordinates]
    x = network.embedding(tokens, coordinates, None)[0].numpy()
    embedding = network.embedding
    ahead = sum(table.numpy()[coordinates[0, axis]] for axis, table in enumerate(embedding.lookahead_emb))
    here = sum(table.numpy()[coordinates[0, axis]] for axis, table in enumerate(embedding.pos_emb))
    fed = embedding.we.numpy()[tokens[0].numpy()] + here
    np.testing.assert_allclose(x[0], embedding.single_sos.numpy()[0, 0] + ahead[0], atol=1e-6)
    np.testing.assert_allclose(x[1:], fed[:-1] + ahead[1:], atol=1e-6)


def test_initial_values_follow_the_published_scales():
    network = Transformer(**(SIZES | {"n_embd": 128, "vocab_size": 256}), mlp_w2=0.5, logits_w=0.0)
    values = {variable.name: variable.numpy() for variable in network.trainable_variables}
    width, hidden, layers = 128, 512, 2
    expected = {
        "we:0": 0.013,
        "h1/q_proj/w:0": np.sqrt(0.125 / width),
        "h1/v_proj/w:0": np.sqrt(0.125 / width),
        "h1/post_proj/w:0": np.sqrt(0.125 / (2 * width * layers)),
        "h1/mlp_proj1/w:0": np.sqrt(0.125 / width),
        "h1/mlp_proj2/w:0": np.sqrt(0.5 / (2 * hidden * layers)),
    }
    for name, std in expected.items():
        assert values[name].std() == pytest.approx(std, rel=0.05), name
        assert abs(values[name]).max() > 3.2 * std, f"{name} is truncated"
    positions = np.concatenate([values[f"pos_emb_{axis}:0"].ravel() for axis in range(3)])
    assert positions.std() == pytest.approx(0.007 / np.sqrt(3), rel=0.1)
    assert not values["gen_logits/logits_proj:0"].any()
    assert not values["h0/q_proj/b:0"].any()
    assert (values["final_norm/g:0"] == 1).all()
    losses = token_losses(network(draw_tokens(), network.identity_coordinates), draw_tokens())
    np.testing.assert_allclose(losses, np.log(256), rtol=1e-6)


def test_initial_values_are_a_function_of_seed_and_name():
    plain, other = build(), build(conditioning_rows={"sos_rot": 4}, lookahead=True, n_layer=4)
    theirs = {variable.name: variable.numpy() for variable in other.variables}
    for variable in plain.variables:
        if "post_proj" not in variable.name and "mlp_proj2" not in variable.name and "/sos" not in variable.name:
            np.testing.assert_array_equal(variable, theirs[variable.name])
    assert (build(seed=43).embedding.we.numpy() != plain.embedding.we.numpy()).any()


def test_recomputation_changes_no_gradient():
    tokens, key = draw_tokens(), Key.create(1, "dropout")
    options = {"resid_pdrop": 0.3, "embd_pdrop": 0.2}
    kept = gradients(build(**options), tokens, key)
    for one, other in zip(kept, gradients(build(recompute=True, **options), tokens, key), strict=True):
        np.testing.assert_array_equal(one, other)
    without = gradients(build(), tokens, None)
    assert any((one != other).any() for one, other in zip(kept, without, strict=True))


def test_recomputation_evaluates_each_layer_twice():
    def softmaxes(recompute: bool) -> int:
        network, tokens = build(recompute=recompute), draw_tokens()

        @tf.function
        def compute():
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(network(tokens, network.identity_coordinates, training=True))
            return tape.gradient(total, network.trainable_variables)

        return sum(op.type == "Softmax" for op in compute.get_concrete_function().graph.get_operations())

    assert softmaxes(False) == SIZES["n_layer"]
    assert softmaxes(True) == 2 * SIZES["n_layer"]


def test_dropout_masks_belong_to_samples():
    network = build(resid_pdrop=0.4, embd_pdrop=0.3, lookahead=True)
    tokens, key = draw_tokens(4), Key.create(7, "dropout")

    def logits(rows: slice) -> np.ndarray:
        return network(tokens[rows], network.identity_coordinates, key=key.skip(rows.start), training=True).numpy()

    whole = logits(slice(0, 4))
    np.testing.assert_allclose(np.concatenate([logits(slice(0, 1)), logits(slice(1, 4))]), whole, atol=1e-5)
    np.testing.assert_array_equal(logits(slice(0, 4)), whole)
    other = network(tokens, network.identity_coordinates, key=key.fold(1), training=True)
    assert abs(other - whole).numpy().max() > 1e-2
    evaluated = network(tokens, network.identity_coordinates, key=key)
    np.testing.assert_array_equal(evaluated, network(tokens, network.identity_coordinates))


def test_dropout_keeps_the_mean():
    dropped = dropout(tf.ones([200, 500]), 0.25, Key.create(0, "dropout")).numpy()
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert dropped.mean() == pytest.approx(1.0, abs=0.01)
    assert dropout(tf.ones([2, 3], tf.float16), 0.5, Key.create(0, "dropout")).dtype == tf.float16


def test_lookup_has_a_dense_gradient():
    table, indices = tf.constant(np.arange(12.0, dtype=np.float32).reshape(4, 3)), tf.constant([[1, 3], [1, 1]])
    with tf.GradientTape() as tape:
        tape.watch(table)
        rows = lookup(table, indices)
        objective = tf.reduce_sum(rows * tf.constant([[[1.0], [2.0]], [[3.0], [4.0]]]))
    np.testing.assert_array_equal(rows, table.numpy()[indices.numpy()])
    np.testing.assert_array_equal(tape.gradient(objective, table)[:, 0], [0.0, 8.0, 0.0, 2.0])


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_float16", 0.02), ("mixed_bfloat16", 0.15)])
def test_mixed_precision(policy, tolerance):
    exact = build()
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        mixed = build()
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    assert {variable.dtype for variable in mixed.variables} == {tf.float32}
    tokens = draw_tokens()
    embedded = mixed.embedding(tokens, mixed.identity_coordinates, None)
    assert embedded.dtype == mixed.blocks[0](embedded).dtype == tf.as_dtype(policy.removeprefix("mixed_"))
    logits = mixed(tokens, mixed.identity_coordinates)
    assert logits.dtype == tf.float32
    difference = abs(logits - exact(tokens, exact.identity_coordinates)).numpy()
    assert 0 < difference.max() < tolerance
    assert all(np.isfinite(gradient).all() for gradient in gradients(mixed, tokens, None))


def test_grey_images_and_few_coordinates():
    network = build(channels=1, height=8, width=6, local_attn_ctx=6, conditioning_rows={"sos_rev": 2})
    tokens = draw_tokens()
    shared = network(tokens, network.identity_coordinates, tf.zeros([3, 1], tf.int32))
    separate = network(tokens, tf.tile(network.identity_coordinates, [3, 1, 1]), tf.zeros([3, 1], tf.int32))
    np.testing.assert_array_equal(shared, separate)
    assert network.embedding.pos_emb[2].shape == (1, 16)


def test_configuration_and_weights_survive(tmp_path):
    network = build(conditioning_rows={"sos_rot": 4}, lookahead=True, resid_pdrop=0.1, seed=5)
    same = Transformer.from_config(network.get_config())
    assert same.get_config() == network.get_config()
    other = Transformer.from_config(network.get_config() | {"seed": 6})
    path = tf.train.Checkpoint(network=network).save(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(network=other).restore(path).assert_consumed()
    for one, two in zip(network.variables, other.variables, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_head": 3}, TransformerError, "n_embd must be a multiple of n_head, found 16 and 3"),
        ({"qk_ratio": 0.2}, TransformerError, r"n_embd \* qk_ratio must be a multiple of n_head, found 3 and 2"),
        ({"n_layer": 3}, TransformerError, "found 3 and 2: bT,b"),
        ({"mlp_multiple": 0.0}, TransformerError, "at least 1, found 0"),
        ({"attention_layers": ("b", "x")}, PatternError, "unknown attention mode 'x'"),
        ({"blocksparse_op": True, "blocksize": 32}, PatternError, "found 48 and 32"),
    ],
)
def test_sizes_that_do_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        build(**arguments)


def test_inputs_that_do_not_fit():
    network = build(conditioning_rows={"sos_rot": 4, "sos_c": 6}, resid_pdrop=0.1)
    tokens, coordinates, conditioning = draw_tokens(), network.identity_coordinates, tf.zeros([3, 2], tf.int32)
    with pytest.raises(TransformerError, match=r"tokens must have shape \[B, 48\]"):
        network(tokens[:, :40], coordinates, conditioning)
    with pytest.raises(TransformerError, match=r"coordinates must have shape \[B or 1, 3, 48\]"):
        network(tokens, coordinates[:, :2], conditioning)
    with pytest.raises(TransformerError, match="one column for each of sos_rot, sos_c, found None"):
        network(tokens, coordinates)
    with pytest.raises(TransformerError, match="one column for each of sos_rot, sos_c, found shape"):
        network(tokens, coordinates, conditioning[:, :1])
    with pytest.raises(TransformerError, match="needs a random key"):
        network(tokens, coordinates, conditioning, training=True)
