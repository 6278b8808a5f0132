"""Chains of labels."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.ebm import small
from tfgen.ops.philox import philox_normal
from tfgen.randomness import Key
from tfgen.systems.ebm import label_discovery, sampler
from tfgen.systems.ebm.label_discovery import Discovery


def network(columns: int = 1):
    return small.network("DspritesNet", 2, side=16, label_columns=columns)


def test_labels_descend_the_energy_of_their_image():
    net = network()
    images, start = small.images(net), np.array([[0.6], [0.9]], np.float32)
    noise = np.random.RandomState(0).normal(size=[2, 2, 1]).astype(np.float32)
    expected, weights = tf.constant(start), net.normalized()
    for n in noise:
        noised = expected + 0.03 * n
        with tf.GradientTape() as tape:
            tape.watch(noised)
            energy = tf.reduce_sum(net.energy(weights, images, noised))
        expected = tf.clip_by_value(noised - tape.gradient(energy, noised), 0.5, 1.0)
    found = Discovery(net, 2).run(images, tf.constant(start), sampler.given(tf.constant(noise)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - start).max() > 1e-3


def test_the_compiled_chain_is_the_plain_one():
    net, key = network(), Key.create(0, "labels")
    images, start = small.images(net, 3), np.full([3, 1], 0.75)
    drawn = tf.stack([philox_normal([3, 1], sampler.philox_seed(key), step) for step in range(4)])
    discovery, before = Discovery(net, 4, advance=True), net.by_name["c1/c_u"].numpy()
    plain = Discovery(net, 4).run(images, tf.constant(start, tf.float32), sampler.given(drawn))
    np.testing.assert_array_equal(net.by_name["c1/c_u"], before)
    np.testing.assert_allclose(discovery.find(images, start, key), plain, atol=1e-5)
    assert not np.array_equal(net.by_name["c1/c_u"], before)


def test_starts_error_and_other_labels():
    start = label_discovery.starts(np.random.RandomState(0), 1000)
    assert start.shape == (1000, 1)
    assert 0.5 <= start.min() < 0.51 < 0.99 < start.max() < 1.0
    assert label_discovery.mean_error(np.array([[0.5], [1.0]]), np.array([[0.7], [0.9]])) == pytest.approx(0.15)
    with pytest.raises(ValueError, match="labels of 3 values, expected 1, the size"):
        Discovery(network(3), 1)
