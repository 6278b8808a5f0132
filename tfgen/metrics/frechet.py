"""Fréchet distance between two sets of feature vectors, each taken for a Gaussian.

Dowson & Landau, "The Fréchet distance between multivariate normal distributions", 1982. With features of
the Inception network it is the FID of Heusel et al. (arXiv:1706.08500), with pixels a distance for small images. A
value means something only beside the kind of features and the sizes of both sets: fewer vectors give larger distances.
"""

from __future__ import annotations

import numpy as np


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of the means m and covariances C (divided by N - 1).

    Args:
      first, second: floating point or uint8 [N, D] and [M, D], two or more vectors each.

    Raises:
      ValueError: other shapes, or values that are not finite.
    """
    means, covariances = zip(*(_moments(features) for features in (first, second)), strict=True)
    if means[0].shape != means[1].shape:
        raise ValueError(f"expected vectors of the same length, found {len(means[0])} and {len(means[1])} entries")
    # tr (C1 C2)^(1/2) = tr (S C2 S)^(1/2) with S = C1^(1/2): symmetric, so that rounding gives no complex numbers.
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    cross = np.sqrt(np.maximum(product, 0.0)).sum()
    distance = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0]) + np.trace(covariances[1]) - 2.0 * cross
    return float(max(distance, 0.0))


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D], float64."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected feature vectors [N, D] with N of at least 2, found shape {list(features.shape)}")
    if not np.isfinite(features).all():
        raise ValueError("the feature vectors are not all finite: look at the images they come from")
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))
