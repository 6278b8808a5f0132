"""The units of likelihood.

A *dimension* is one sub-pixel: an image of height H, width W and C channels has D = H * W * C of them.
With a discrete distribution over the 256 levels of each sub-pixel,

    nats per dimension = -ln p(image) / D        bits per dimension = -log2 p(image) / D

and the uniform distribution has 8 bits per dimension. A bound on -ln p(image), such as a negative ELBO,
is expressed in the same units.
"""

from __future__ import annotations

import math
from typing import Any


def nats_per_dim(total_nats: Any, dims: int) -> Any:
    """-ln p of a whole image in nats, spread over its sub-pixels.

    Args:
      total_nats: number, array or floating-point tensor of any shape.
      dims: sub-pixels of one image (`ImageSpec.dims`).

    Raises:
      ValueError: dims < 1.
    """
    if dims < 1:
        raise ValueError(f"expected the number of sub-pixels of one image, at least 1, found {dims}")
    return total_nats / dims


def bits_per_dim(nats_per_dim: Any) -> Any:
    """Nats per dimension in bits per dimension: number, array or floating-point tensor of any shape."""
    return nats_per_dim / math.log(2.0)
