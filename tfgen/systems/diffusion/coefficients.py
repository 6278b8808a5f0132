"""The numbers of a diffusion process that depend on its betas alone, as tables over its steps."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class Coefficients:
    """Tables in float64; `at` picks from them and rounds only then.

    In float32 from the start the cosine schedule would lose its last steps, where alphas_cumprod is 1e-10. Symbols are
    those of Ho et al. (2020): alpha = 1 - beta, abar = the product of the alphas so far.

    Attributes:
      betas: float64 [T].
    """

    betas: np.ndarray

    @property
    def steps(self) -> int:
        """T."""
        return len(self.betas)

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """abar_t."""
        return np.cumprod(1.0 - self.betas)

    @functools.cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        """abar_(t-1); 1 before the first step."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @functools.cached_property
    def alphas_cumprod_next(self) -> np.ndarray:
        """abar_(t+1); 0 after the last step."""
        return np.append(self.alphas_cumprod[1:], 0.0)

    @functools.cached_property
    def sqrt_alphas_cumprod(self) -> np.ndarray:
        return np.sqrt(self.alphas_cumprod)

    @functools.cached_property
    def one_minus_alphas_cumprod(self) -> np.ndarray:
        return 1.0 - self.alphas_cumprod

    @functools.cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> np.ndarray:
        return np.sqrt(self.one_minus_alphas_cumprod)

    @functools.cached_property
    def log_one_minus_alphas_cumprod(self) -> np.ndarray:
        return np.log(self.one_minus_alphas_cumprod)

    @functools.cached_property
    def sqrt_recip_alphas_cumprod(self) -> np.ndarray:
        return np.sqrt(1.0 / self.alphas_cumprod)

    @functools.cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> np.ndarray:
        """sqrt(1 / abar - 1): noise over signal, the sigma of Karras et al. (2022)."""
        return np.sqrt(1.0 / self.alphas_cumprod - 1.0)

    @functools.cached_property
    def half_log_snr(self) -> np.ndarray:
        """lambda = ln(sqrt(abar) / sqrt(1 - abar)) of Lu et al. (2022), DPM-Solver."""
        return np.log(self.sqrt_alphas_cumprod) - np.log(self.sqrt_one_minus_alphas_cumprod)

    @functools.cached_property
    def posterior_variance(self) -> np.ndarray:
        """Of q(x_(t-1) | x_t, x_0): Ho et al. (2020), equation 7. 0 at the first step."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / self.one_minus_alphas_cumprod

    @functools.cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """Its logarithm; at the first step, where that is minus infinity, the second step's stands in."""
        return np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))

    @functools.cached_property
    def posterior_mean_coef1(self) -> np.ndarray:
        """Factor of x_0 in the mean of q(x_(t-1) | x_t, x_0)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / self.one_minus_alphas_cumprod

    @functools.cached_property
    def posterior_mean_coef2(self) -> np.ndarray:
        """Factor of x_t in the mean of q(x_(t-1) | x_t, x_0)."""
        return (1.0 - self.alphas_cumprod_prev) * np.sqrt(1.0 - self.betas) / self.one_minus_alphas_cumprod

    @functools.cached_property
    def recip_posterior_mean_coef1(self) -> np.ndarray:
        return 1.0 / self.posterior_mean_coef1

    @functools.cached_property
    def posterior_mean_coef2_over_coef1(self) -> np.ndarray:
        return self.posterior_mean_coef2 / self.posterior_mean_coef1

    @functools.cached_property
    def log_betas(self) -> np.ndarray:
        return np.log(self.betas)

    @functools.cached_property
    def fixed_large_variance(self) -> np.ndarray:
        """The betas, but at the first step the posterior variance of the second."""
        return np.append(self.posterior_variance[1], self.betas[1:])

    @functools.cached_property
    def fixed_large_log_variance(self) -> np.ndarray:
        return np.log(self.fixed_large_variance)


def at(table: np.ndarray, t: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Entries of a table, one for each image.

    Args:
      table: float64 [T].
      t: int [B], steps.
      like: the images, float32 (or float64) [B, ...].

    Returns:
      [B, 1, ...] of the dtype and the rank of `like`.

    Raises:
      ValueError: images of another dtype: half precision has no room for these coefficients.
    """
    if like.dtype not in (tf.float32, tf.float64):
        raise ValueError(f"expected images as float32, found {like.dtype.name}; cast them with tf.cast(x, tf.float32)")
    column = table.reshape([-1] + [1] * (like.shape.rank - 1))  # [T, 1, 1, 1]
    return tf.cast(tf.gather(tf.constant(column, tf.float64), t), like.dtype)  # [B, 1, 1, 1]
