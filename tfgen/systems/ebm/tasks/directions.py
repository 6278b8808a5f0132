"""Directions in which an image can move: along the curvature of its energy, or along the features of the network.

An image of a run is moved along three of them, forwards and backwards, and lets chains settle after each move.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen.data.errors import DataError
from tfgen.monitor import grids
from tfgen.settings import SettingsError
from tfgen.systems.base import TaskRun
from tfgen.systems.ebm import preprocess, sampler
from tfgen.systems.ebm.networks import OFF, EnergyNetwork, Weights, activated
from tfgen.systems.ebm.prepare import levels_of
from tfgen.systems.ebm.tasks import calls
from tfgen.systems.ebm.tasks.calls import Call, Caller
from tfgen.systems.ebm.tasks.classes import own_images
from tfgen.systems.ebm.tasks.options import EvaluateOptions

if TYPE_CHECKING:
    from tfgen.systems.ebm.system import EnergyBasedModel

DIRECTIONS, ROUNDS = 3, 6
STEP_FACTOR = 4.0  # of --step_lr
LARGEST = 64 * 64  # numbers of an image: a Hessian of more takes minutes and gigabytes
_ROWS = 64  # of a Hessian or Jacobian at a time

# The direction vectors [D, 3] at an image [H, W, C].
Directions = Callable[[np.ndarray], np.ndarray]


def hessian(
    network: EnergyNetwork, weights: Weights, image: tf.Tensor, labels: tf.Tensor | None, rows: tf.Tensor
) -> tf.Tensor:
    """Products of the energy's Hessian with vectors, or rows of it: [n, D] for `rows` [n, D].

    Args:
      image: [1, H, W, C], or [1, H, W] of one channel.
      labels: [1, K]; None for an unconditional network.
      rows: vectors, rows of the identity for the Hessian's own.
    """
    count = tf.shape(rows)[0]
    # The energies of a batch do not depend on each other: every copy of the image has a product of its own.
    images = tf.repeat(image, count, axis=0)
    repeated = None if labels is None else tf.repeat(labels, count, axis=0)

    def energy(x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        del step
        return network.energy(weights, x, repeated, OFF)

    with tf.GradientTape() as tape:
        tape.watch(images)
        gradient = sampler.gradient_of(energy, images, tf.constant(0))
    products = tape.gradient(gradient, images, output_gradients=tf.reshape(rows, tf.shape(images)))
    return tf.reshape(products, tf.shape(rows))


def jacobian(
    network: EnergyNetwork, weights: Weights, image: tf.Tensor, labels: tf.Tensor | None, rows: tf.Tensor
) -> tf.Tensor:
    """Products of vectors with the Jacobian of the hidden layer, after its activation: [n, D] for `rows` [n, outputs].

    Arguments as of `hessian`; the network is a plain one.
    """
    count = tf.shape(rows)[0]
    images = tf.repeat(image, count, axis=0)
    repeated = None if labels is None else tf.repeat(labels, count, axis=0)
    assert network.shape.dense is not None
    with tf.GradientTape() as tape:
        tape.watch(images)
        hidden = network.activations(weights, images, repeated, OFF)[network.shape.dense.name]
        features = activated(hidden, network.shape.stem.activation)
    products = tape.gradient(features, images, output_gradients=rows)
    return tf.reshape(products, [count, -1])


def eigenvectors(matrix: np.ndarray) -> np.ndarray:
    """The eigenvectors of the lowest eigenvalues of a symmetric matrix [D, D], lowest first: [D, 3]."""
    _, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    return signed(vectors[:, :DIRECTIONS])


def singular_vectors(matrix: np.ndarray) -> np.ndarray:
    """The right singular vectors of the largest singular values of a matrix [n, D], largest first: [D, 3]."""
    _, _, vectors = np.linalg.svd(matrix, full_matrices=False)
    return signed(vectors[:DIRECTIONS].T)


def signed(vectors: np.ndarray) -> np.ndarray:
    """Vectors [D, n] with the sign that makes their largest entry positive: either is as good, one has to be chosen."""
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[np.newaxis], axis=0)
    return vectors * np.where(largest < 0, -1.0, 1.0)


def walked(image: np.ndarray, labels: np.ndarray | None, directions: Directions, call: Call) -> list[np.ndarray]:
    """The images after each call, 7 arrays [6, H, W, C]: against and along the first direction, the second, the third.

    After the first call directions are those at each image itself, which moves on along its own.

    Args:
      image: [H, W, C].
      labels: [1, K]; None for an unconditional network.
    """
    tiled = None if labels is None else labels.repeat(2 * DIRECTIONS, axis=0)
    signs = np.array([-1.0, 1.0] * DIRECTIONS)

    def moves(vectors: list[np.ndarray]) -> np.ndarray:
        """[6, H, W, C], of the directions at each of the six images."""
        chosen = [sign * at[:, index // 2] for index, (sign, at) in enumerate(zip(signs, vectors, strict=True))]
        return np.stack(chosen).reshape(-1, *image.shape)

    # The first move is not clipped: the original clips with the first step of the chain only.
    begin = image + moves([directions(image)] * len(signs))
    states = [call(begin, tiled, 0)]
    for number in range(1, ROUNDS + 1):
        moved = np.clip(states[-1] + moves([directions(x) for x in states[-1]]), 0.0, 1.0)
        states.append(call(moved, tiled, number))
    return states


def picture(image: np.ndarray, states: list[np.ndarray]) -> np.ndarray:
    """uint8 [6 (H + 2), 8 (W + 2), C]: a row for each direction, with the image itself first. Tiles have a border."""
    columns = [np.broadcast_to(image, states[0].shape), *states]
    tiles = preprocess.rounded_bytes(np.stack(columns, axis=1)).reshape(-1, *image.shape)
    framed = np.pad(tiles, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return grids.tile(framed, columns=len(columns), border=0)


def latent(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """The first image of the split, moved along directions: latent_comb.png.

    They are the eigenvectors of the energy's lowest curvatures or, without --hessian, the right singular vectors of the
    hidden layer's Jacobian.

    Raises:
      SettingsError: a network for which there are no such directions.
      DataError: no image.
    """
    check(system, options.hessian)
    source = own_images(system, options, job)
    if not len(source):
        raise DataError(f"--task=latent moves the first image, {source.name} has none: choose another --split")
    batch = source.read(np.arange(1))
    image, labels = system.scaled(levels_of(batch))[0], system.labels_of(batch)
    chain = calls.chain_of(options, system.config.rescale, times=STEP_FACTOR)
    caller = Caller(system, chain, job.key, 2 * DIRECTIONS, options.advance_vectors)
    states = walked(image, labels, directions_of(system, options, labels), caller)
    grids.save_png(job.folder / "latent_comb.png", picture(image, states))
    return {"directions": DIRECTIONS, "rounds": ROUNDS, "steps": chain.steps, "step_size": chain.step_size}


def check(system: EnergyBasedModel, of_energy: bool) -> None:
    """Raises `SettingsError` for a network for which there are no directions.

    Args:
      of_energy: they are eigenvectors of its Hessian; otherwise singular vectors of the hidden layer.
    """
    shape = system.network.shape
    size = system.spec.dims
    if size > LARGEST:
        raise SettingsError(
            f"--task=latent takes images of up to {LARGEST} numbers (64x64 grey), found {system.spec}: its matrices "
            "have a row and a column for each"
        )
    if of_energy and shape.stem.activation == "leaky":
        raise SettingsError(
            f"--task=latent: the energy of a {shape.kind} without --swish_act has no curvature, its Hessian is 0 "
            "almost everywhere: use --nohessian, or a run with --swish_act"
        )
    if not of_energy and not (shape.plain and shape.dense is not None):
        raise SettingsError(
            f"--nohessian is about the hidden layer of DspritesNet and MnistNet, found {shape.kind}: use --hessian"
        )


def directions_of(system: EnergyBasedModel, options: EvaluateOptions, labels: np.ndarray | None) -> Directions:
    """The directions at any image [H, W, C], under the labels [1, K]."""
    network, size, high = system.network, system.spec.dims, system.config.rescale
    fixed = None if labels is None else tf.constant(labels, tf.float32)
    product = hessian if options.hessian else jacobian

    @tf.function(autograph=False)
    def products(weights: dict[str, tf.Tensor], image: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        return product(network, Weights(weights, {}), image, fixed, rows)

    if options.hessian:
        outputs = size
    else:
        assert network.shape.dense is not None
        outputs = network.shape.dense.outputs

    numbers = itertools.count(1)

    def directions(image: np.ndarray) -> np.ndarray:
        # Without a GPU those of a 64x64 image take minutes.
        logging.info("directions at image %d of %d", next(numbers), 1 + ROUNDS * 2 * DIRECTIONS)
        at = tf.constant(high * image[np.newaxis], tf.float32)
        values = dict(system.normalized(options.advance_vectors).values)
        parts = [
            products(values, at, tf.one_hot(tf.range(first, min(first + _ROWS, outputs)), outputs)).numpy()
            for first in range(0, outputs, _ROWS)
        ]
        matrix = np.concatenate(parts).astype(np.float64)
        return eigenvectors(matrix) if options.hessian else singular_vectors(matrix)

    return directions
