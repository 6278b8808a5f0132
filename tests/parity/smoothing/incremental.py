"""Recorded autoregressive samples, drawn pixel by pixel with the recorded uniform numbers.

Inverse-CDF samples lie on a grid, and rounding of any float32 network decides between neighbours of the grid in about
one of 300 colours; what follows depends on it. The recordings are those where the original came to the same images in
float32 and float64. So whole images are drawn in float64, and in float32 every pixel given the recorded ones before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tests.parity.smoothing.network import TEACHER_FORCED, channels_first, channels_last, recorded_network
from tfgen.likelihood import mixture_sampling
from tfgen.systems.smoothing.incremental import Draw, IncrementalSampler
from tfgen.systems.smoothing.pixelcnn import PixelCNN

# Advised in the description of the recordings.
GUMBEL = 1e-4
INVERSE_CDF = {3: 1e-3, 1: 1e-4}  # by the number of colours


@checker("smoothing", "ar_*.npz")
def check(case: Case) -> None:
    config = case.json("config")
    network = recorded_network(case)
    samples = channels_last(case["samples"])
    given = channels_last(case["noisy"]) if "noisy" in case else samples[:, :0]
    final = samples[:, given.shape[1] :]
    draw, uniforms = pixel(config, network), numbers(case, config)
    drawn = draw_images(network, tf.float64, final.shape, draw, uniforms, given)
    images = channels_first(np.concatenate([given, drawn], axis=1))
    tolerance = GUMBEL if config["sampler"] == "gumbel" else INVERSE_CDF[network.channels]
    case.close("samples", images, tolerance)
    if "samples_f64" in case:
        case.close("samples_f64", images, tolerance)
    case.leave_unread("x_init", "pixels that are not drawn yet are not read")

    case.close("net_out_at_final", channels_first(network(samples)), TEACHER_FORCED)
    parameters, pixels = teacher_forced(network, final, draw, uniforms, given)
    recorded = channels_last(case["net_out_at_final"])[:, given.shape[1] :]
    case.close("net_out_at_final (incremental)", parameters, TEACHER_FORCED, expected=recorded)
    case.close("samples (each pixel given those before)", pixels, tolerance, expected=final)


def draw_images(
    network: PixelCNN,
    dtype: tf.DType,
    shape: tuple[int, ...],
    draw: Draw,
    uniforms: np.ndarray,
    given: np.ndarray,
) -> np.ndarray:
    """[B, H, W, C]; the numbers come in the dtype of the computation."""
    batch, height, width, _ = shape
    above = tf.constant(given) if given.shape[1] else None
    uniforms = tf.constant(uniforms, dtype)
    return IncrementalSampler(network, dtype).sample(height, width, batch, draw, (uniforms,), above).numpy()


def numbers(case: Case, config: Mapping[str, Any]) -> np.ndarray:
    """The uniform numbers of each pixel, [B, H, W, n]."""
    if config["sampler"] == "gumbel":
        return case["u_effective"]
    used = channels_last(case["u_effective"])
    every = case["u_all"]  # [H W, B, all numbers drawn for the pixel], for all pixels of the tall image
    _, height, width, channels = used.shape
    shape = (case["samples"].shape[2], width, channels)
    first = shape[0] - height
    ordered = [mixture_sampling.published_inverse_cdf_order(drawn, shape) for drawn in every]
    picked = [ordered[i * width + j][:, first + i, j] for i in range(height) for j in range(width)]  # of [B, C]
    found = np.reshape(np.stack(picked, axis=1), used.shape)
    case.close("u_effective", channels_first(found), 0.0)
    return used


def pixel(config: Mapping[str, Any], network: PixelCNN) -> Draw:
    """How the file says that a pixel is drawn."""
    clip = config["clamp"]
    if config["sampler"] == "gumbel":

        def gumbel(parameters, row, column, uniforms):
            mixture, logistic = tf.split(uniforms[:, row, column], [network.mixtures, network.channels], axis=-1)
            return mixture_sampling.gumbel(parameters, mixture, logistic, clip)

        return gumbel
    bound = 1.0 if clip else mixture_sampling.SEARCH_BOUNDS[network.channels]
    assert config["bound"] == bound, f"recorded with the bound {config['bound']}, and not {bound}"

    def inverse_cdf(parameters, row, column, uniforms):
        logits = mixture_sampling.logit(uniforms[:, row, column])
        return mixture_sampling.inverse_cdf(parameters, logits, clip, config["bisection_iter"])

    return inverse_cdf


def teacher_forced(
    network: PixelCNN, images: np.ndarray, draw: Draw, uniforms: np.ndarray, given: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn in float32 where every pixel before is that of `images`.

    Returns:
      Parameters of the mixtures, [B, H, W, 10 K or 3 K], and pixels, [B, H, W, C].
    """
    batch, height, width, channels = images.shape
    seen = tf.Variable(tf.zeros([height, width, batch, network.nin_out.bias.shape[0] + channels]))
    final = tf.constant(images)

    def forced(parameters, row, column, uniforms):
        drawn = draw(parameters, row, column, uniforms)
        seen.scatter_nd_update([[row, column]], tf.concat([parameters, drawn], axis=-1)[tf.newaxis])
        return final[:, row, column]

    draw_images(network, tf.float32, images.shape, forced, uniforms, given)
    parameters, pixels = np.split(seen.numpy().transpose(2, 0, 1, 3), [-channels], axis=-1)
    return parameters, pixels
