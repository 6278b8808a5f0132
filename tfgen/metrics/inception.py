"""The Inception score (Salimans et al., arXiv:1606.03498, section 4), and the network that it is made of.

Scores can be compared where they are of the same network, the graph of 2015-12-05 that everybody uses, and of as many
images. Its weights are not part of this library: the frozen graph, `classify_image_graph_def.pb`, is a file that the
user has.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

IMAGES_PER_SPLIT = 5000
FEATURES_BATCH = 50  # images of a Fréchet distance come in whole batches of these

# Tensors of the frozen graph. Images are fed as floats 0 to 255, before the network resizes them.
_IMAGES, _FEATURES, _PRODUCT = "ExpandDims:0", "pool_3:0", "softmax/logits/MatMul"


class InceptionError(ValueError):
    """A file that is not the Inception graph."""


def inception_score(probabilities: np.ndarray, splits: int = 1) -> tuple[float, float]:
    """exp of the mean of KL(p(class | image) || p(class)), mean and standard deviation (/ N) over the splits.

    Split i has the rows from i N // splits to (i + 1) N // splits, and a p(class) of its own.

    Args:
      probabilities: [N, K], rows that sum to 1.
      splits: at most N.

    Raises:
      ValueError: another shape, numbers below 0 or not finite, or more splits than images.
    """
    rows = np.asarray(probabilities, np.float64)
    if rows.ndim != 2 or not 1 <= splits <= len(rows):
        raise ValueError(
            f"expected probabilities [N, K] with at least one row for each of the {splits} splits, found {rows.shape}"
        )
    if not (np.isfinite(rows).all() and (rows >= 0.0).all()):
        raise ValueError("expected probabilities of at least 0, found others: look at the images they are of")
    scores = []
    for index in range(splits):
        part = rows[index * len(rows) // splits : (index + 1) * len(rows) // splits]
        # Where p is 0 its term is 0.
        logs = np.log(np.where(part > 0.0, part, 1.0)) - np.log(np.where(part > 0.0, part.mean(axis=0), 1.0))
        scores.append(np.exp((part * logs).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def default_splits(images: int) -> int:
    """Splits of that many images, as in the original: of 5000 each."""
    return max(1, images // IMAGES_PER_SPLIT)


def whole_batches(features: np.ndarray) -> np.ndarray:
    """The rows [N, D] that the original's distance is of: those of whole batches of 50.

    Raises:
      ValueError: there is no whole batch.
    """
    count = len(features) // FEATURES_BATCH * FEATURES_BATCH
    if not count:
        raise ValueError(f"a Fréchet distance takes batches of {FEATURES_BATCH} images, found {len(features)} images")
    return features[:count]


class InceptionGraph:
    """The frozen Inception graph.

    Args:
      path: `classify_image_graph_def.pb`.

    Raises:
      InceptionError: no such file, or a file of something else.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = pathlib.Path(path)
        try:
            definition = tf.compat.v1.GraphDef.FromString(self._path.read_bytes())
        except OSError as error:
            raise InceptionError(f"{path}: cannot be read ({error}); name the frozen Inception graph") from error
        except Exception as error:  # protobuf's own exception has no public name
            raise InceptionError(f"{path}: not a frozen graph of TensorFlow ({error})") from error
        known = {node.name: node for node in definition.node}
        for name in (_IMAGES, _FEATURES, _PRODUCT):
            if name.partition(":")[0] not in known:
                raise InceptionError(
                    f"{path}: a graph without {name.partition(':')[0]!r}, expected classify_image_graph_def.pb of the "
                    "Inception network of 2015-12-05"
                )
        weights = _tensor(known[_PRODUCT].input[1])
        imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
        self._network = imported.prune(_IMAGES, (_FEATURES, weights))
        self._compiled = tf.function(self._of_images, reduce_retracing=True, autograph=False)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features of `pool_3`, float32 [N, 2048], and probabilities of the 1008 classes, float32 [N, 1008].

        The probabilities are of logits without their biases, as the published scores are.

        Args:
          images: uint8 [N, H, W, 3], of any size: the network resizes them.

        Raises:
          ValueError: images of another type or shape.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
            raise ValueError(f"expected uint8 images [N, H, W, 3], found {images.dtype} {list(images.shape)}")
        parts = [self._compiled(tf.constant(part)) for part in _parts(images)]
        features, probabilities = (np.concatenate([part[i].numpy() for part in parts]) for i in (0, 1))
        return features, probabilities

    def _of_images(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def one(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            features, weights = self._network(tf.cast(image, tf.float32)[tf.newaxis])
            features = tf.reshape(features, [1, -1])
            return features[0], tf.nn.softmax(tf.matmul(features, weights))[0]

        # One at a time, as the published scores: the graph is made for single images.
        return tf.map_fn(one, images, fn_output_signature=(tf.float32, tf.float32))


def _tensor(name: str) -> str:
    """Name of a tensor that a node names as its input."""
    return name if ":" in name else f"{name}:0"


def _parts(images: np.ndarray) -> Sequence[np.ndarray]:
    return [images[start : start + FEATURES_BATCH] for start in range(0, len(images), FEATURES_BATCH)]
