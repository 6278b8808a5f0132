"""Ways from noise to images, and from images to noise.

Samplers are functions of one signature, `SamplerFunction`; they differ in how they solve the reverse process. Their
steps are compiled functions of their own, so that beside the network's call Python has a few to make and not a hundred.
x stands for images float32 [B, H, W, C] at some noise level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfgen.systems.diffusion.coefficients import at
from tfgen.systems.diffusion.process import Prediction, Process

# model(x, t int32 [B] steps of the process) -> output of the network [B, H, W, Process.output_channels(C)].
Model = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# noise(i) -> draw number i of standard normal numbers [B, H, W, C]; i is 0 in the first step that a sampler makes.
Noise = Callable[[int], tf.Tensor]
# callback(steps done, steps in all, x after the step, prediction of x_0 in the step).
Callback = Callable[[int, int, tf.Tensor, tf.Tensor], None]
Transform = Callable[[tf.Tensor], tf.Tensor]


class SamplerFunction(Protocol):
    """Runs all steps of a process.

    Args:
      process: decides the steps.
      x: where to start: standard normal noise, for `reverse_ddim` images in [-1, 1]. Its shape is static.
      noise: asked once in each step by the samplers that need it, also in the last one, where it counts for nothing;
        by `ddim` only if eta is not 0.
      clip_denoised: clips predictions of x_0 to [-1, 1].
      denoised_fn: changes predictions of x_0 before that.
      eta: how much noise `ddim` adds; the others take 0 alone.
      callback: told of each step.

    Returns:
      x after the last step: images, for `reverse_ddim` noise. Not clipped.

    Raises:
      ValueError: an eta that the sampler does not take; an output of another number of channels.
    """

    def __call__(
        self,
        process: Process,
        model: Model,
        x: tf.Tensor,
        noise: Noise,
        *,
        clip_denoised: bool = True,
        denoised_fn: Transform | None = None,
        eta: float = 0.0,
        callback: Callback | None = None,
    ) -> tf.Tensor: ...


# Ancestral sampling ------------------------------------------------------------------------------------------


def ancestral_step(prediction: Prediction, t: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """x_(t-1) drawn from the predicted distribution; its mean at t = 0. Ho et al. (2020), algorithm 2.

    Args:
      prediction: of `Process.p_mean_variance` for x_t.
      t: int [B].
      noise: standard normal [B, H, W, C].
    """
    return prediction.mean + _not_first(t, noise) * tf.exp(0.5 * prediction.log_variance) * noise


def ancestral(process, model, x, noise, *, clip_denoised=True, denoised_fn=None, eta=0.0, callback=None):
    """Ho et al. (2020), DDPM, algorithm 2."""
    _require_no_eta("ancestral", eta)
    for done, step in enumerate(reversed(range(process.steps))):
        t = _everywhere(step, x)
        output, drawn = model(x, t), noise(done)
        x, pred_xstart = _advanced(_ancestral, process, output, x, t, clip_denoised, denoised_fn, drawn)
        _report(callback, done, process, x, pred_xstart)
    return x


def _ancestral(process: Process, prediction: Prediction, x: tf.Tensor, t: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    return ancestral_step(prediction, t, noise)


# DDIM --------------------------------------------------------------------------------------------------------


def ddim_step(
    process: Process, prediction: Prediction, x: tf.Tensor, t: tf.Tensor, noise: tf.Tensor | None, eta: float = 0.0
) -> tf.Tensor:
    """x_(t-1) from x_t: Song et al. (2021), DDIM, equations 12 and 16.

    Args:
      prediction: of `Process.p_mean_variance` for x; its x_0 alone counts, whatever the network predicts.
      x: x_t.
      t: int [B].
      noise: standard normal [B, H, W, C]; None for none, if eta is 0.
      eta: 0 adds no noise; 1 as much as the posterior variance, as `ancestral` does with a small fixed variance.

    Raises:
      ValueError: no noise, and an eta other than 0.
    """
    if noise is None and eta != 0:
        raise ValueError(f"expected noise [B, H, W, C] for eta {eta:g}, found None; pass standard normal numbers")
    eps = process.eps_from_xstart(x, t, prediction.pred_xstart)
    here = at(process.alphas_cumprod, t, x)
    there = at(process.alphas_cumprod_prev, t, x)
    sigma = eta * tf.sqrt((1 - there) / (1 - here)) * tf.sqrt(1 - here / there)
    # Rounding makes the difference slightly negative where eta is 1 and abar tiny: a root of it would be NaN.
    direction = tf.sqrt(tf.maximum(1 - there - tf.square(sigma), 0)) * eps
    mean = prediction.pred_xstart * tf.sqrt(there) + direction
    return mean if noise is None else mean + _not_first(t, x) * sigma * noise


def ddim(process, model, x, noise, *, clip_denoised=True, denoised_fn=None, eta=0.0, callback=None):
    """Song et al. (2021), DDIM."""
    for done, step in enumerate(reversed(range(process.steps))):
        t = _everywhere(step, x)
        output, drawn = model(x, t), noise(done) if eta else None
        x, pred_xstart = _advanced(ddim_step, process, output, x, t, clip_denoised, denoised_fn, drawn, eta)
        _report(callback, done, process, x, pred_xstart)
    return x


def reverse_ddim_step(process: Process, prediction: Prediction, x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """x_(t+1) from x_t: DDIM, equation 14 in the other direction. The last step's result is the predicted noise."""
    eps = process.eps_from_xstart(x, t, prediction.pred_xstart)
    there = at(process.alphas_cumprod_next, t, x)
    return prediction.pred_xstart * tf.sqrt(there) + tf.sqrt(1 - there) * eps


def reverse_ddim(process, model, x, noise, *, clip_denoised=True, denoised_fn=None, eta=0.0, callback=None):
    """Encodes images as noise, from which `ddim` with eta 0 leads back to them: DDIM, section 4.3."""
    del noise  # a deterministic map
    _require_no_eta("reverse_ddim", eta)
    for step in range(process.steps):
        t = _everywhere(step, x)
        x, pred_xstart = _advanced(reverse_ddim_step, process, model(x, t), x, t, clip_denoised, denoised_fn)
        _report(callback, step, process, x, pred_xstart)
    return x


# Solvers of higher order of the probability flow ODE ---------------------------------------------------------


def dpm_solver_pp_2m(process, model, x, noise, *, clip_denoised=True, denoised_fn=None, eta=0.0, callback=None):
    """Lu et al. (2022), DPM-Solver++ (arXiv 2211.01095), algorithm 2, at the steps of the process.

    Clipping is their static thresholding. The last step leads to abar = 1, where lambda is infinite: no line through
    two predictions reaches that far, and the result is the prediction itself. The step before is of first order too:
    where steps are even in t it is several times as long in lambda as its predecessor, and a line drawn so far beyond
    its two points costs more than it gains.
    """
    del noise
    _require_no_eta("dpm_solver_pp_2m", eta)
    lambdas, alphas = process.half_log_snr, process.sqrt_alphas_cumprod
    sigmas = process.sqrt_one_minus_alphas_cumprod
    previous = None  # the data prediction of the step before
    for done, step in enumerate(reversed(range(process.steps))):
        t = _everywhere(step, x)
        prediction = _predicted(process, model(x, t), x, t, clip_denoised, denoised_fn)
        pred_xstart = prediction.pred_xstart
        if step == 0:
            x = pred_xstart
        else:
            h = lambdas[step - 1] - lambdas[step]
            data = pred_xstart
            if previous is not None and step > 1:
                half_ratio = 0.5 * h / (lambdas[step] - lambdas[step + 1])  # 1 / (2 r)
                data = _scaled(1 + half_ratio, pred_xstart) - _scaled(half_ratio, previous)
            x = _scaled(sigmas[step - 1] / sigmas[step], x) - _scaled(alphas[step - 1] * np.expm1(-h), data)
        previous = pred_xstart
        _report(callback, done, process, x, pred_xstart)
    return x


def heun(process, model, x, noise, *, clip_denoised=True, denoised_fn=None, eta=0.0, callback=None):
    """Karras et al. (2022), algorithm 1 with s(t) = cos t and sigma(t) = tan t, at the noise levels of the process.

    So scaled, x = cos(t) x_0 + sin(t) noise is the process itself, sigma = sqrt((1 - abar) / abar) its noise level and
    dx/dt = cos(t) noise - sin(t) x_0. Their choice for other networks, s = 1 and sigma = t, makes the first step of a
    cosine schedule, from sigma = 1e4 to 100, so long that Heun's rule fails; angles are at most pi / 2.

    The last step leads to sigma = 0 and is Euler's, whose result in their scaling is the prediction of x_0. The network
    is asked twice in the others.
    """
    del noise
    _require_no_eta("heun", eta)
    cosines, sines = process.sqrt_alphas_cumprod, process.sqrt_one_minus_alphas_cumprod
    angles = np.arctan2(sines, cosines)

    def slope(x: tf.Tensor, step: int) -> tuple[tf.Tensor, Prediction]:
        t = _everywhere(step, x)
        prediction = _predicted(process, model(x, t), x, t, clip_denoised, denoised_fn)
        eps = process.eps_from_xstart(x, t, prediction.pred_xstart)
        return _scaled(cosines[step], eps) - _scaled(sines[step], prediction.pred_xstart), prediction

    for done, step in enumerate(reversed(range(process.steps))):
        here, prediction = slope(x, step)
        if step == 0:
            x = prediction.pred_xstart
        else:
            advance = angles[step - 1] - angles[step]
            there, _ = slope(x + _scaled(advance, here), step - 1)
            x += _scaled(advance / 2, here + there)
        _report(callback, done, process, x, prediction.pred_xstart)
    return x


# The list of samplers ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One entry of `SAMPLERS`.

    Attributes:
      function: see `SamplerFunction`.
      description: one line for users.
      needs_noise: asks for noise in each step, whatever eta is.
      takes_eta: other values of eta than 0.
      from_images: starts from images and ends in noise.
      evaluations_per_step: of the network, in every step but the last, which takes one.
    """

    function: SamplerFunction
    description: str
    needs_noise: bool = False
    takes_eta: bool = False
    from_images: bool = False
    evaluations_per_step: int = 1

    def evaluations(self, steps: int) -> int:
        """Evaluations of the network for all steps of a process."""
        return self.evaluations_per_step * (steps - 1) + 1

    def deterministic(self, eta: float = 0.0) -> bool:
        """The result is a function of the start alone."""
        return eta == 0 and not self.needs_noise


SAMPLERS = {
    "ancestral": Sampler(ancestral, "draws every step from the learned reverse process (DDPM)", needs_noise=True),
    "ddim": Sampler(ddim, "implicit sampling, deterministic unless eta is set (DDIM)", takes_eta=True),
    "reverse_ddim": Sampler(reverse_ddim, "encodes images as the noise that ddim decodes", from_images=True),
    "dpm_solver_pp_2m": Sampler(dpm_solver_pp_2m, "second order in one evaluation per step (DPM-Solver++(2M))"),
    "heun": Sampler(heun, "second order in two evaluations per step (Karras et al.)", evaluations_per_step=2),
}


# What samplers share -----------------------------------------------------------------------------------------


_compiled_prediction = tf.function(Process.p_mean_variance, autograph=False)


def _predicted(
    process: Process, output: tf.Tensor, x: tf.Tensor, t: tf.Tensor, clip: bool, denoised_fn: Transform | None
) -> Prediction:
    """`Process.p_mean_variance`, compiled unless there is a function of the caller's in it."""
    if denoised_fn is not None:
        return process.p_mean_variance(output, x, t, clip, denoised_fn)
    return _compiled_prediction(process, output, x, t, clip)


def _step(
    rule: Callable[..., tf.Tensor],
    process: Process,
    output: tf.Tensor,
    x: tf.Tensor,
    t: tf.Tensor,
    clip: bool,
    denoised_fn: Transform | None,
    *arguments: Any,
) -> tuple[tf.Tensor, tf.Tensor]:
    prediction = process.p_mean_variance(output, x, t, clip, denoised_fn)
    return rule(process, prediction, x, t, *arguments), prediction.pred_xstart


_compiled_step = tf.function(_step, autograph=False)


def _advanced(
    rule: Callable[..., tf.Tensor],
    process: Process,
    output: tf.Tensor,
    x: tf.Tensor,
    t: tf.Tensor,
    clip: bool,
    denoised_fn: Transform | None,
    *arguments: Any,
) -> tuple[tf.Tensor, tf.Tensor]:
    """x after a step, and the prediction of x_0 in it: compiled unless there is a function of the caller's in it.

    Args:
      rule: called with process, prediction, x, t and `arguments`.
      output: of the network for x and t.
    """
    step = _compiled_step if denoised_fn is None else _step
    return step(rule, process, output, x, t, clip, denoised_fn, *arguments)


def _everywhere(step: int, x: tf.Tensor) -> tf.Tensor:
    """int32 [B]."""
    return tf.constant(step, tf.int32, [x.shape[0]])


def _not_first(t: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """0 where t is 0, else 1: [B, 1, 1, 1]."""
    return tf.reshape(tf.cast(t != 0, like.dtype), [-1] + [1] * (like.shape.rank - 1))


def _scaled(factor: float, x: tf.Tensor) -> tf.Tensor:
    """A factor formed in float64, rounded once to the dtype of x."""
    return tf.constant(factor, x.dtype) * x


def _report(callback: Callback | None, done: int, process: Process, x: tf.Tensor, pred_xstart: tf.Tensor) -> None:
    if callback is not None:
        callback(done + 1, process.steps, x, pred_xstart)


def _require_no_eta(name: str, eta: float) -> None:
    if eta != 0:
        raise ValueError(f"expected eta 0 for the sampler {name}, found {eta:g}; eta belongs to the sampler ddim")
