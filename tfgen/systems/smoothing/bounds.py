"""What both stages together say of an image, and the units of their densities.

Stage 1 has the density p(s) of smoothed images s = x + noise * e with standard normal e, stage 2 the density p(x | s).
By Meng et al., "Improved Autoregressive Modeling with Distribution Smoothing" (2021), with q(s | x) the density of the
smoothing,

    ln p(x) >= E_q[ ln p(x | s) + ln p(s) - ln q(s | x) ]

Densities of stage 2 are of x with its own slight noise, and so is the bound. All of them are densities: their bits per
dimension may be negative, and compare with those of 8-bit images only in the unit of a level, see `in_levels`, and then
with the bits of a dequantised model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVELS_PER_UNIT = 127.5  # of 8-bit images in [-1, 1]


def gaussian_entropy(noise: float, dims: int) -> float:
    """-E_q[ln q(s | x)]: entropy in nats of Gaussian noise on a whole image.

    Args:
      noise: standard deviation, above 0.
      dims: sub-pixels of an image.
    """
    return 0.5 * dims * math.log(2 * math.pi * math.e * noise**2)


def importance_weighted(log_weights: Sequence[np.ndarray]) -> np.ndarray:
    """The negative bound by several draws of s, in nats.

        -ln mean_k exp(log_weights[k])

    Burda et al., "Importance Weighted Autoencoders" (2016), equation 8. With one draw it is an estimate of the bound
    above; with more it comes closer to -ln p(x).

    Args:
      log_weights: for each draw ln p(x | s) + ln p(s) - ln q(s | x) of every image, float64 [B].

    Returns:
      float64 [B].

    Raises:
      ValueError: no draw.
    """
    if not len(log_weights):
        raise ValueError("expected the log-weights of at least one draw, found none")
    return math.log(len(log_weights)) - np.logaddexp.reduce(np.asarray(log_weights), axis=0)


def in_levels(bits_per_dim: np.ndarray | float) -> np.ndarray | float:
    """Bits per dimension of a density where pixels lie in [-1, 1], of the same one where they lie in [0, 255]."""
    return bits_per_dim + math.log2(LEVELS_PER_UNIT)
