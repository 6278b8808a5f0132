"""The Inception score by its definition, and a small frozen graph with the tensors of the Inception network."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfgen.metrics import inception
from tfgen.metrics.inception import InceptionError, InceptionGraph, inception_score

WEIGHTS = np.array([[1.0, 0.0, -2.0, 0.5], [0.0, 3.0, 1.0, -1.0], [-1.0, 0.5, 0.0, 2.0]], np.float32) / 50


def frozen(path, image_name: str = "ExpandDims") -> str:
    """A graph whose features are the mean colour."""
    with tf.Graph().as_default() as graph:
        images = tf.compat.v1.placeholder(tf.float32, [1, None, None, 3], name=image_name)
        features = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
        features = tf.identity(features, name="pool_3")
        product = tf.matmul(tf.reshape(features, [1, 3]), tf.constant(WEIGHTS), name="softmax/logits/MatMul")
        tf.nn.bias_add(product, tf.constant([9.0, 0.0, 0.0, 0.0]), name="softmax/logits")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return str(path)


def test_certain_and_uncertain_rows():
    assert inception_score(np.eye(5)) == pytest.approx((5.0, 0.0))
    assert inception_score(np.full([7, 4], 0.25)) == pytest.approx((1.0, 0.0))


def test_splits_have_classes_of_their_own():
    rows = np.random.RandomState(0).dirichlet([0.3] * 6, size=11)
    expected = []
    for part in (rows[:3], rows[3:7], rows[7:]):
        mean = part.mean(axis=0)
        expected.append(np.exp((part * np.log(part / mean)).sum(axis=1).mean()))
    assert inception_score(rows, 3) == pytest.approx((np.mean(expected), np.std(expected)))
    assert [inception.default_splits(count) for count in (53, 9999, 50_000)] == [1, 1, 10]


@pytest.mark.parametrize(
    ("rows", "splits", "message"),
    [
        (np.zeros([4]), 1, r"expected probabilities \[N, K\]"),
        (np.eye(3), 4, "at least one row for each of the 4 splits"),
        (np.full([2, 2], np.nan), 1, "found others"),
        (np.array([[1.5, -0.5]]), 1, "found others"),
    ],
)
def test_bad_rows(rows, splits, message):
    with pytest.raises(ValueError, match=message):
        inception_score(rows, splits)


def test_whole_batches():
    features = np.arange(240).reshape(120, 2)
    np.testing.assert_array_equal(inception.whole_batches(features), features[:100])
    with pytest.raises(ValueError, match="takes batches of 50 images, found 49"):
        inception.whole_batches(features[:49])


def test_a_frozen_graph(tmp_path):
    """Features are those of the graph; logits leave the bias out."""
    images = np.random.RandomState(0).randint(0, 256, [53, 4, 5, 3]).astype(np.uint8)
    features, probabilities = InceptionGraph(frozen(tmp_path / "graph.pb"))(images)
    colours = images.reshape(53, -1, 3).mean(axis=1)
    np.testing.assert_allclose(features, colours, rtol=1e-5)
    odds = np.exp(colours @ WEIGHTS)
    np.testing.assert_allclose(probabilities, odds / odds.sum(axis=1, keepdims=True), rtol=1e-4)


def test_other_files(tmp_path):
    with pytest.raises(InceptionError, match="cannot be read"):
        InceptionGraph(tmp_path / "nothing.pb")
    (tmp_path / "text.pb").write_text("this is not a graph")
    with pytest.raises(InceptionError, match="not a frozen graph"):
        InceptionGraph(tmp_path / "text.pb")
    with pytest.raises(InceptionError, match=r"without 'ExpandDims', expected classify_image_graph_def\.pb"):
        InceptionGraph(frozen(tmp_path / "other.pb", image_name="input"))
    graph = InceptionGraph(frozen(tmp_path / "graph.pb"))
    with pytest.raises(ValueError, match=r"expected uint8 images \[N, H, W, 3\], found uint8 \[2, 4, 4, 1\]"):
        graph(np.zeros([2, 4, 4, 1], np.uint8))
