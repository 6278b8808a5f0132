from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfgen.ops import library
from tfgen.randomness import Key
from tfgen.systems.distaug import decode
from tfgen.systems.distaug.transformer import Transformer

KEY = Key.create(3, "sample")
ROWS = {"sos_rot": 4, "sos_c": 6}
CONDITIONING = tf.constant([[0, 0], [3, 5], [1, 0]])


def build(**arguments) -> Transformer:
    sizes = {"height": 4, "width": 3, "channels": 2, "vocab_size": 16, "n_embd": 16, "n_head": 2, "n_layer": 2}
    # Large enough for every draw to depend on everything that the network is fed.
    spread = {"w_embd_std": 0.7, "pos_embd_std": 0.7, "qk_w": 4.0, "v_w": 2.0, "post_w": 8.0, "logits_w": 4.0}
    return Transformer(**(sizes | spread | {"local_attn_ctx": 6, "conditioning_rows": ROWS} | arguments))


# s = 6 divides T = 24 for every mode; 5 does not, and 30 is more than T.
MIXES = [
    (("a",), 6),
    (("b",), 6),
    (("b",), 5),
    (("b",), 30),
    (("bT",), 6),
    (("bT",), 5),
    (("c",), 5),
    (("b0",), 6),
    (("bT", "b"), 6),
    (("a", "b0"), 4),
]


@pytest.mark.parametrize(("modes", "stride"), MIXES)
def test_cached_and_uncached_draw_the_same_tokens(modes, stride):
    network = build(attention_layers=modes, local_attn_ctx=stride)
    expected = decode.sample_uncached(network, KEY, conditioning=CONDITIONING).numpy()
    drawn = decode.sample(network, KEY, conditioning=CONDITIONING, chunk=7).numpy()
    np.testing.assert_array_equal(drawn, expected)
    assert drawn.shape == (3, 24)
    assert len(np.unique(drawn)) > 8, "the draws hardly vary, so that this test would show little"


def operations(sampler: decode.Sampler, batch: int) -> list[str]:
    """Of the graph of one chunk."""

    @tf.function
    def chunk(state):
        return sampler.steps(tf.constant(0), state, KEY, CONDITIONING[:batch], tf.constant(1.0))

    graph = chunk.get_concrete_function(sampler.initial_state(batch)).graph.as_graph_def()
    return [node.op for node in graph.node] + [node.op for f in graph.library.function for node in f.node_def]


@pytest.mark.skipif(library.load() is None, reason="the kernels are not built")
@pytest.mark.parametrize(("modes", "stride"), MIXES)
def test_the_compiled_operation_draws_the_same_tokens_as_plain_tensorflow(modes, stride):
    network = build(attention_layers=modes, local_attn_ctx=stride)
    assert operations(decode.Sampler(network, 7), 2).count("TfgenBlocksparseDecode") == network.n_layer
    drawn = decode.sample(network, KEY, conditioning=CONDITIONING, chunk=7).numpy()
    with library.plain_tensorflow():
        assert not [name for name in operations(decode.Sampler(network, 7), 2) if name.startswith("Tfgen")]
        np.testing.assert_array_equal(decode.sample(network, KEY, conditioning=CONDITIONING, chunk=7), drawn)


@pytest.mark.skipif(library.load() is None, reason="the kernels are not built")
def test_a_network_is_sampled_by_what_is_asked_for_now(monkeypatch):
    """The sampler that is kept from an earlier call was compiled for one of the two forms."""
    network, calls = build(attention_layers=("b",)), []
    compiled = library.load().operations.tfgen_blocksparse_decode

    def counted(*arguments, **attributes):
        calls.append(arguments)
        return compiled(*arguments, **attributes)

    monkeypatch.setattr(library.load().operations, "tfgen_blocksparse_decode", counted)
    with library.plain_tensorflow():
        decode.sample(network, KEY, 1)
    assert not calls
    decode.sample(network, KEY, 1)
    assert len(calls) == network.n_layer


def test_draws_follow_the_logits_of_the_whole_sequence():
    network = build(attention_layers=("bT", "b"), lookahead=True)
    tokens = decode.sample(network, KEY, conditioning=CONDITIONING, temperature=0.0)
    logits = network(tokens, network.identity_coordinates, CONDITIONING)
    np.testing.assert_array_equal(tokens, tf.argmax(logits, axis=-1))


def test_lookahead_embeddings_take_part():
    network = build(attention_layers=("bT", "b"), lookahead=True)
    drawn = decode.sample(network, KEY, conditioning=CONDITIONING)
    np.testing.assert_array_equal(drawn, decode.sample_uncached(network, KEY, conditioning=CONDITIONING))
    for table in network.embedding.lookahead_emb:
        table.assign(tf.zeros_like(table))
    assert (decode.sample(network, KEY, conditioning=CONDITIONING) != drawn).numpy().any()


def test_a_sample_is_the_same_in_any_batch():
    network = build(attention_layers=("bT", "b"))
    whole = decode.sample(network, KEY, conditioning=CONDITIONING).numpy()
    for i in range(3):
        alone = decode.sample(network, KEY.skip(i), conditioning=CONDITIONING[i : i + 1])
        np.testing.assert_array_equal(alone, whole[i : i + 1])


@pytest.mark.parametrize("modes", [("bT", "b"), ("a", "b0")])
def test_the_chunk_changes_nothing(modes):
    network = build(attention_layers=modes)
    draws = [decode.sample(network, KEY, conditioning=CONDITIONING, chunk=chunk).numpy() for chunk in (1, 24, 100)]
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[0], draws[2])


def test_progress_is_reported_with_the_tokens_so_far():
    network, reports = build(attention_layers=("b",)), []
    drawn = decode.sample(network, KEY, 2, callback=lambda *report: reports.append(report), chunk=10).numpy()
    assert [report[:2] for report in reports] == [(10, 24), (20, 24), (24, 24)]
    for done, _, preview in reports:
        np.testing.assert_array_equal(preview[:, :done], drawn[:, :done])
        assert not preview[:, done:].any()


def test_no_conditioning_means_the_identity():
    network = build(attention_layers=("b",))
    given = decode.sample(network, KEY, conditioning=tf.zeros([2, 2], tf.int32))
    np.testing.assert_array_equal(decode.sample(network, KEY, 2), given)


def test_tokens_are_drawn_from_the_tempered_distribution():
    network = build(attention_layers=("b",), conditioning_rows=None)
    logits = network(tf.zeros([1, 24], tf.int32), network.identity_coordinates)[0, 0]
    for temperature in (1.0, 3.0):
        tokens = decode.Sampler(network, 1).run(
            0, decode.Sampler(network, 1).initial_state(4000), KEY, tf.zeros([4000, 0], tf.int32), temperature
        )["tokens"][:, 0]
        shares = np.bincount(tokens, minlength=16) / 4000
        # Standard deviation of a share is at most 0.008.
        np.testing.assert_allclose(shares, tf.nn.softmax(logits / temperature), atol=0.03)


def test_the_state_holds_what_can_still_be_seen_and_no_more():
    network = build(attention_layers=("a", "b", "bT", "b0"), n_layer=4, local_attn_ctx=6)
    sampler = decode.Sampler(network, 8)
    state = sampler.initial_state(1)
    for first in (0, 8):
        state = sampler.run(first, state, KEY, tf.zeros([1, 2], tf.int32), 1.0)
    shapes = [tuple(kept["key"].shape) for kept in state["caches"]]
    assert shapes == [
        (1, 2, 16, 8),  # [B, heads, positions so far, D]
        (6, 1, 16),  # the last s
        (6, 4, 1, 16),  # s classes of T / s
        (4, 1, 16),  # one chunk of T / s
    ]


def test_half_precision_draws_from_half_precision_caches():
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        network = build(attention_layers=("bT", "b"))
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    sampler = decode.Sampler(network)
    assert {spec.dtype for kept in sampler.state_specs()["caches"] for spec in kept.values()} == {tf.bfloat16}
    drawn = decode.sample(network, KEY, conditioning=CONDITIONING).numpy()
    assert ((drawn >= 0) & (drawn < 16)).all()


def test_the_exported_function_runs_without_this_library(tmp_path):
    network = build(attention_layers=("bT", "a"))
    function = decode.sample_function(network, chunk=7)
    module = tf.Module()
    module.weights = network.variables
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"sample": function})
    program = f"""
import numpy as np, tensorflow as tf
sample = tf.saved_model.load({str(tmp_path / "model")!r}).signatures["sample"]
for count in (3, 1):
    rows = tf.constant({CONDITIONING.numpy().tolist()})[:count]
    drawn = sample(seed=tf.constant(9), conditioning=rows, temperature=tf.constant(0.9))
    np.save({str(tmp_path)!r} + f"/{{count}}.npy", list(drawn.values())[0])
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True)
    expected = function(9, CONDITIONING, 0.9).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "3.npy"), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "1.npy"), expected[:1])
    key = Key(tf.constant([9, 0])).fold("sample")
    np.testing.assert_array_equal(decode.sample(network, key, 3, CONDITIONING, 0.9), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass count or conditioning"),
        ({"count": 2, "conditioning": CONDITIONING}, r"must have shape \[2, 2\] \(sos_rot, sos_c\), found \(3, 2\)"),
        ({"conditioning": CONDITIONING[:, :1]}, r"must have shape \[B, 2\]"),
        ({"count": 2, "temperature": -1.0}, "temperature must be 0 or more"),
        ({"count": 2, "chunk": 0}, "chunk must be 1 or more"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(decode.DecodeError, match=message):
        decode.sample(build(attention_layers=("b",)), KEY, **arguments)


def test_a_network_that_looks_ahead_cannot_be_sampled_from():
    network = build(attention_layers=("b", "a_all"))
    for draw in (decode.sample, decode.sample_uncached):
        with pytest.raises(decode.DecodeError, match="attention mode a_all looks at later positions"):
            draw(network, KEY, 1)
