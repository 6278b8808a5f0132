"""Processes for tests, and a distribution of images for which the best network is known."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfgen.systems.diffusion import noise_schedules
from tfgen.systems.diffusion.process import LossType, MeanType, Process, VarianceType


def process(
    mean: MeanType = MeanType.EPSILON,
    variance: VarianceType = VarianceType.FIXED_SMALL,
    loss: LossType = LossType.MSE,
    *,
    schedule: str = "cosine",
    steps: int = 100,
    rescale_timesteps: bool = False,
) -> Process:
    return Process.create(noise_schedules.betas(schedule, steps), mean, variance, loss, rescale_timesteps)


class GaussianImages:
    """Sub-pixels that are independent and normal: x_t is normal as well, and E[x_0 | x_t] linear in x_t."""

    def __init__(self, mean: float = 0.3, std: float = 0.5):
        self.mean, self.std = mean, std

    def spread(self, process: Process) -> np.ndarray:
        """Standard deviation of x_t: float64 [T]."""
        return np.sqrt(process.alphas_cumprod * self.std**2 + process.one_minus_alphas_cumprod)

    def gain(self, process: Process) -> np.ndarray:
        """d E[x_0 | x_t] / d x_t: float64 [T]."""
        return process.sqrt_alphas_cumprod * self.std**2 / self.spread(process) ** 2

    def pred_xstart(self, process: Process, x: np.ndarray, step: int) -> np.ndarray:
        """E[x_0 | x_t]."""
        return self.mean + self.gain(process)[step] * (x - process.sqrt_alphas_cumprod[step] * self.mean)

    def model(self, process: Process):
        """The best network of a process, whatever its mean type is; learned variances get zeros."""

        def model(x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
            step = int(t[0])
            pred_xstart = self.pred_xstart(process, x, step)
            if process.mean_type is MeanType.START_X:
                mean = pred_xstart
            elif process.mean_type is MeanType.EPSILON:
                mean = process.eps_from_xstart(x, t, pred_xstart)
            else:
                mean, _, _ = process.q_posterior_mean_variance(pred_xstart, x, t)
            return tf.concat([mean, tf.zeros_like(mean)], axis=-1) if process.variance_type.learned else mean

        return model
