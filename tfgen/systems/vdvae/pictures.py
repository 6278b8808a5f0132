"""The grid of pictures that shows how a VDVAE is doing: originals, partial reconstructions, samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfgen.monitor import grids
from tfgen.systems.vdvae.network import VDVAE
from tfgen.systems.vdvae.sampling import Noise, draw_images

TEMPERATURES = (1.0, 0.9, 0.8, 0.7)  # of the rows of samples
PARTIAL_TEMPERATURE = 0.1  # of the layers of a partial reconstruction that draw


def partial_points(rows: int, layers: int) -> np.ndarray:
    """How many leading layers keep their latents in each row of partial reconstructions: int64 [rows].

    Evenly spread without the ends, floor(linspace(0, 1, rows + 2) layers)[1:-1]; a shallow network repeats some.
    """
    return np.floor(np.linspace(0, 1, rows + 2) * layers).astype(np.int64)[1:-1]


def picture_rows(partial_rows: int, sample_rows: int) -> int:
    """Rows of a `picture_grid`."""
    return 1 + partial_rows + len(TEMPERATURES[:sample_rows])


def picture_grid(
    network: VDVAE, images: np.ndarray, inputs: tf.Tensor, noises: Iterator[Noise], partial_rows: int, sample_rows: int
) -> np.ndarray:
    """The grid of the original code, without borders: uint8 [rows R, B R, 3].

    From top to bottom: the images; their partial reconstructions, with ever more latents of one posterior pass and the
    others drawn at temperature 0.1; samples at temperatures 1.0, 0.9, 0.8 and 0.7. Runs eagerly: only the blocks of
    the network are compiled, and the rows share them.

    Args:
      images: uint8 [B, R, R, 3].
      inputs: the same, preprocessed, float32.
      noises: one for the posterior pass, then one for each row that is drawn.
      partial_rows: rows of partial reconstructions.
      sample_rows: rows of samples; there are at most four temperatures.
    """
    batch = len(images)
    latents = network.infer(inputs, next(noises).latents).latents
    drawn = [(latents[:point], PARTIAL_TEMPERATURE) for point in partial_points(partial_rows, len(latents))]
    drawn += [([], temperature) for temperature in TEMPERATURES[:sample_rows]]
    rows = [images]
    for given, temperature in drawn:
        noise = next(noises)
        features = network.generate(batch, noise.latents, given, temperature)
        rows.append(draw_images(network, features, noise.uniform).numpy())
    return grids.tile(np.concatenate(rows), columns=batch, border=0)
