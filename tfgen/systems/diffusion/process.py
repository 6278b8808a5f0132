"""The diffusion process: what noise does to images, what a network's output means, and the losses.

Nichol & Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models, on top of Ho et al. (2020), DDPM.

Functions of tensors: images float32 [B, H, W, C] in [-1, 1], steps int [B] from 0 (the first noising step) to T - 1.
They take the output of the network and not the network, and work in graphs with any batch size.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfgen.likelihood import discretized_gaussian, gaussian
from tfgen.likelihood.bits import bits_per_dim
from tfgen.systems.diffusion.coefficients import Coefficients, at
from tfgen.systems.diffusion.noise_schedules import MIN_STEPS
from tfgen.systems.diffusion.respacing import kept_steps, respaced_betas

RESCALED_STEPS = 1000  # the range of rescaled timesteps, and the T for which RESCALED_MSE is MSE


class MeanType(enum.Enum):
    """What the first half of the network's output predicts."""

    EPSILON = "the noise in x_t"
    START_X = "x_0"
    PREVIOUS_X = "the mean of x_(t-1)"


class VarianceType(enum.Enum):
    """The variance of p(x_(t-1) | x_t)."""

    LEARNED = "the output is its logarithm"
    LEARNED_RANGE = "the output v in [-1, 1] interpolates its logarithm between the posterior variance and beta"
    FIXED_LARGE = "beta"
    FIXED_SMALL = "the posterior variance"

    @property
    def learned(self) -> bool:
        return self in (VarianceType.LEARNED, VarianceType.LEARNED_RANGE)


class LossType(enum.Enum):
    """What is minimised at a random step."""

    MSE = "squared error, plus the variational bound's term for a learned variance"
    RESCALED_MSE = "the same with the term times T / 1000: L_hybrid"
    KL = "the variational bound's term"
    RESCALED_KL = "the same times T, an estimate of the whole bound: L_vlb"

    @property
    def is_kl(self) -> bool:
        return self in (LossType.KL, LossType.RESCALED_KL)


class Prediction(NamedTuple):
    """p(x_(t-1) | x_t), all [B, H, W, C].

    Attributes:
      mean, variance, log_variance: of x_(t-1). A small fixed variance is 0 at t = 0 and its logarithm finite: that of
        the next step.
      pred_xstart: the prediction of x_0 behind the mean.
    """

    mean: tf.Tensor
    variance: tf.Tensor
    log_variance: tf.Tensor
    pred_xstart: tf.Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Process(Coefficients):
    """A diffusion process of T steps, and how a network parametrises its reverse.

    Attributes:
      mean_type, variance_type: what the network's output means.
      loss_type: what `training_losses` computes.
      rescale_timesteps: the network sees steps as numbers from 0 to 1000, whatever their number.
      timestep_map: int64 [T], the step of the base process that each step is.
      base_steps: steps of the base process.
    """

    mean_type: MeanType
    variance_type: VarianceType
    loss_type: LossType
    rescale_timesteps: bool
    timestep_map: np.ndarray
    base_steps: int

    @classmethod
    def create(
        cls,
        betas: np.ndarray,
        mean_type: MeanType,
        variance_type: VarianceType,
        loss_type: LossType,
        rescale_timesteps: bool = False,
    ) -> Process:
        """A base process.

        Args:
          betas: [T], at least 2, each in (0, 1); see `noise_schedules.betas`.

        Raises:
          ValueError: other betas.
        """
        betas = np.array(betas, np.float64)
        if betas.ndim != 1 or len(betas) < MIN_STEPS:
            raise ValueError(f"expected the betas of at least {MIN_STEPS} steps, found shape {list(betas.shape)}")
        if not ((betas > 0) & (betas < 1)).all():
            raise ValueError(
                f"expected betas above 0 and below 1, found {betas.min():g} to {betas.max():g}; a linear schedule "
                "needs more than 20 steps"
            )
        steps = len(betas)
        return cls(betas, mean_type, variance_type, loss_type, rescale_timesteps, np.arange(steps), steps)

    def respaced(self, kept: str | Sequence[int] | np.ndarray) -> Process:
        """The process that visits some of the steps. One text gives one object, for which functions are compiled once.

        Args:
          kept: steps, ascending, or a text that names them: see `respacing.kept_steps`.

        Raises:
          ValueError: fewer than two steps; a process that is already respaced (steps are those of the base process);
            steps or texts that `respacing` refuses.
        """
        if self.steps != self.base_steps:
            raise ValueError(
                f"expected a process of all its steps, found one respaced from {self.base_steps} to {self.steps}; "
                "respace the base process instead"
            )
        if isinstance(kept, str) and kept in self._named:
            return self._named[kept]
        chosen = kept_steps(self.steps, kept) if isinstance(kept, str) else np.asarray(kept, np.int64)
        if len(chosen) < MIN_STEPS:
            raise ValueError(f"expected a respacing that keeps at least {MIN_STEPS} steps, found {kept!r}")
        made = dataclasses.replace(self, betas=respaced_betas(self.betas, chosen), timestep_map=chosen)
        if isinstance(kept, str):
            self._named[kept] = made
        return made

    @functools.cached_property
    def _named(self) -> dict[str, Process]:
        """By the text that `respaced` was given."""
        return {}

    def output_channels(self, image_channels: int) -> int:
        """Channels that the network must have: twice those of the images for a learned variance."""
        return image_channels * (2 if self.variance_type.learned else 1)

    def network_timesteps(self, t: tf.Tensor) -> tf.Tensor:
        """What the network is told of steps [B]: steps of the base process, or float32 in [0, 1000) if rescaled."""
        original = tf.gather(tf.constant(self.timestep_map, t.dtype), t)
        if not self.rescale_timesteps:
            return original
        return tf.cast(original, tf.float32) * np.float32(RESCALED_STEPS / self.base_steps)

    # The forward process -------------------------------------------------------------------------------------

    def q_mean_variance(self, x_start: tf.Tensor, t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Mean [B, H, W, C], variance and log-variance [B, 1, 1, 1] of q(x_t | x_0): DDPM, equation 4."""
        return (
            at(self.sqrt_alphas_cumprod, t, x_start) * x_start,
            at(self.one_minus_alphas_cumprod, t, x_start),
            at(self.log_one_minus_alphas_cumprod, t, x_start),
        )

    def q_sample(self, x_start: tf.Tensor, t: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """x_t from x_0 and standard normal noise, all [B, H, W, C]."""
        signal = at(self.sqrt_alphas_cumprod, t, x_start) * x_start
        return signal + at(self.sqrt_one_minus_alphas_cumprod, t, x_start) * noise

    def q_posterior_mean_variance(
        self, x_start: tf.Tensor, x_t: tf.Tensor, t: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Mean [B, H, W, C], variance and log-variance [B, 1, 1, 1] of q(x_(t-1) | x_t, x_0): DDPM, equations 6 and 7.

        At t = 0 the variance is 0 and the log-variance that of t = 1.
        """
        return (
            at(self.posterior_mean_coef1, t, x_t) * x_start + at(self.posterior_mean_coef2, t, x_t) * x_t,
            at(self.posterior_variance, t, x_t),
            at(self.posterior_log_variance_clipped, t, x_t),
        )

    # The reverse process -------------------------------------------------------------------------------------

    def p_mean_variance(
        self,
        output: tf.Tensor,
        x_t: tf.Tensor,
        t: tf.Tensor,
        clip_denoised: bool,
        denoised_fn: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> Prediction:
        """p(x_(t-1) | x_t).

        Args:
          output: of the network for x_t and `network_timesteps(t)`, [B, H, W, `output_channels(C)`]; for a learned
            variance the last C channels are its part.
          clip_denoised: clips the prediction of x_0 to [-1, 1].
          denoised_fn: changes the prediction of x_0 before that.

        Raises:
          ValueError: an output of another number of channels.
        """
        mean_output, variance_output = self._split(output, x_t)
        pred_xstart = self._pred_xstart(mean_output, x_t, t)
        if denoised_fn is not None:
            pred_xstart = denoised_fn(pred_xstart)
        if clip_denoised:
            pred_xstart = tf.clip_by_value(pred_xstart, -1, 1)
        if self.mean_type is MeanType.PREVIOUS_X:
            mean = mean_output  # a changed x_0 changes nothing here: so do published models
        else:
            mean, _, _ = self.q_posterior_mean_variance(pred_xstart, x_t, t)
        variance, log_variance = self._variance(variance_output, x_t, t)
        shape = tf.shape(x_t)
        return Prediction(mean, tf.broadcast_to(variance, shape), tf.broadcast_to(log_variance, shape), pred_xstart)

    def eps_from_xstart(self, x_t: tf.Tensor, t: tf.Tensor, pred_xstart: tf.Tensor) -> tf.Tensor:
        """The noise in x_t if x_0 is as predicted, all [B, H, W, C]."""
        noisy = at(self.sqrt_recip_alphas_cumprod, t, x_t) * x_t
        return (noisy - pred_xstart) / at(self.sqrt_recipm1_alphas_cumprod, t, x_t)

    def _split(self, output: tf.Tensor, x_t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The parts of the output for the mean and for a learned variance (else None), each [B, H, W, C]."""
        channels = x_t.shape[-1]
        if output.shape[-1] != self.output_channels(channels):
            raise ValueError(
                f"expected a network with {self.output_channels(channels)} output channels for images of {channels} "
                f"channels and the variance {self.variance_type.name}, found an output of shape {list(output.shape)}"
            )
        if not self.variance_type.learned:
            return output, None
        mean_output, variance_output = tf.split(output, 2, axis=-1)
        return mean_output, variance_output

    def _pred_xstart(self, mean_output: tf.Tensor, x_t: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        if self.mean_type is MeanType.START_X:
            return mean_output
        if self.mean_type is MeanType.EPSILON:  # DDPM, equation 4 solved for x_0
            noise = at(self.sqrt_recipm1_alphas_cumprod, t, x_t) * mean_output
            return at(self.sqrt_recip_alphas_cumprod, t, x_t) * x_t - noise
        # DDPM, equation 7 solved for x_0.
        known = at(self.posterior_mean_coef2_over_coef1, t, x_t) * x_t
        return at(self.recip_posterior_mean_coef1, t, x_t) * mean_output - known

    def _variance(self, variance_output: tf.Tensor, x_t: tf.Tensor, t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Variance and log-variance, [B, H, W, C] or [B, 1, 1, 1]."""
        if self.variance_type is VarianceType.FIXED_LARGE:
            return at(self.fixed_large_variance, t, x_t), at(self.fixed_large_log_variance, t, x_t)
        if self.variance_type is VarianceType.FIXED_SMALL:
            return at(self.posterior_variance, t, x_t), at(self.posterior_log_variance_clipped, t, x_t)
        if self.variance_type is VarianceType.LEARNED:
            return tf.exp(variance_output), variance_output
        share = 0.5 * (variance_output + 1)  # equation 15; v is not held in [-1, 1]
        smallest = at(self.posterior_log_variance_clipped, t, x_t)
        log_variance = share * at(self.log_betas, t, x_t) + (1 - share) * smallest
        return tf.exp(log_variance), log_variance

    # Likelihood and losses -----------------------------------------------------------------------------------

    def variational_bound_term(
        self, output: tf.Tensor, x_start: tf.Tensor, x_t: tf.Tensor, t: tf.Tensor, clip_denoised: bool = True
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The term of the variational bound that belongs to step t: equations 4 to 7.

        Returns:
          [B], bits per dimension: L_0, the negative log-likelihood of x_0, at t = 0; else L_t, a divergence. Then the
          prediction of x_0, [B, H, W, C].
        """
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start, x_t, t)
        prediction = self.p_mean_variance(output, x_t, t, clip_denoised)
        divergence = gaussian.kl_divergence_of_log_variances(
            true_mean, true_log_variance, prediction.mean, prediction.log_variance
        )
        log_likelihood = discretized_gaussian.log_prob(x_start, prediction.mean, 0.5 * prediction.log_variance)
        nats = tf.where(t == 0, -mean_over_image(log_likelihood), mean_over_image(divergence))
        return bits_per_dim(nats), prediction.pred_xstart

    def prior_bits_per_dim(self, x_start: tf.Tensor) -> tf.Tensor:
        """L_T, the divergence of q(x_T | x_0) from a standard normal: [B], bits per dimension."""
        t = tf.fill([tf.shape(x_start)[0]], self.steps - 1)
        mean, _, log_variance = self.q_mean_variance(x_start, t)
        zero = tf.zeros([], x_start.dtype)
        return bits_per_dim(mean_over_image(gaussian.kl_divergence_of_log_variances(mean, log_variance, zero, zero)))

    def training_losses(
        self, output: tf.Tensor, x_start: tf.Tensor, x_t: tf.Tensor, t: tf.Tensor, noise: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The loss of each image, and its parts.

        Args:
          output: of the network for x_t and `network_timesteps(t)`.
          x_t: `q_sample(x_start, t, noise)`.

        Returns:
          [B] each: "loss"; unless it is a KL also "mse", and for a learned variance "vb", as it enters the loss.
        """
        if self.loss_type.is_kl:
            loss, _ = self.variational_bound_term(output, x_start, x_t, t, clip_denoised=False)
            return {"loss": loss * self.steps if self.loss_type is LossType.RESCALED_KL else loss}
        mean_output, variance_output = self._split(output, x_t)
        target = self._target(x_start, x_t, t, noise)
        losses = {"mse": mean_over_image(tf.math.squared_difference(target, mean_output))}
        losses["loss"] = losses["mse"]
        if variance_output is not None:
            # Section 3.1: the bound teaches the variance alone; the mean learns from the squared error.
            frozen = tf.concat([tf.stop_gradient(mean_output), variance_output], axis=-1)
            vb, _ = self.variational_bound_term(frozen, x_start, x_t, t, clip_denoised=False)
            if self.loss_type is LossType.RESCALED_MSE:
                vb *= self.steps / RESCALED_STEPS  # of 0.001 L_vlb, which T times this term estimates
            losses["vb"] = vb
            losses["loss"] += vb
        return losses

    def _target(self, x_start: tf.Tensor, x_t: tf.Tensor, t: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        if self.mean_type is MeanType.EPSILON:
            return noise
        if self.mean_type is MeanType.START_X:
            return x_start
        return self.q_posterior_mean_variance(x_start, x_t, t)[0]


def mean_over_image(values: tf.Tensor) -> tf.Tensor:
    """[B, ...] to [B]."""
    return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))
