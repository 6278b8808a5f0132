"""The variational bound of given images, term by term: Nichol & Dhariwal (2021), equations 4 to 7."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfgen.systems.diffusion.process import Process, mean_over_image
from tfgen.systems.diffusion.samplers import Model, Noise

# Compiled, so that beside the network's call Python has two to make for each step and not a hundred.
_diffused = tf.function(Process.q_sample, autograph=False)


@tf.function(autograph=False)
def _terms(
    process: Process,
    output: tf.Tensor,
    x_start: tf.Tensor,
    x_t: tf.Tensor,
    t: tf.Tensor,
    noise: tf.Tensor,
    clip_denoised: bool,
) -> dict[str, tf.Tensor]:
    """[B] by name, of one step."""
    vb, pred_xstart = process.variational_bound_term(output, x_start, x_t, t, clip_denoised)
    eps = process.eps_from_xstart(x_t, t, pred_xstart)
    return {
        "vb": vb,
        "xstart_mse": mean_over_image(tf.math.squared_difference(pred_xstart, x_start)),
        "mse": mean_over_image(tf.math.squared_difference(eps, noise)),
    }


def bits_per_dim_loop(
    process: Process,
    model: Model,
    x_start: tf.Tensor,
    noise: Noise,
    clip_denoised: bool = True,
    callback: Callable[[int, int], None] | None = None,
) -> dict[str, tf.Tensor]:
    """Evaluates every step once, from the last (t = T - 1) down to the first, each with noise of its own.

    Args:
      model: model(x, t int32 [B] steps of the process) -> output of the network.
      x_start: images float32 [B, H, W, C] in [-1, 1], on the grid of the 256 levels.
      noise: noise(i) -> standard normal [B, H, W, C] for step t = T - 1 - i.
      clip_denoised: clips predictions of x_0 to [-1, 1].
      callback: callback(steps done, steps in all).

    Returns:
      In bits per dimension "total_bpd" [B], a stochastic upper bound of the negative log-likelihood, which is the sum
      of "vb" [B, T] and "prior_bpd" [B]; mean squared errors of the predicted x_0, "xstart_mse" [B, T], and noise,
      "mse" [B, T]. Columns are in the order of evaluation, of DESCENDING t: column 0 is t = T - 1.
    """
    terms: dict[str, list[tf.Tensor]] = {"vb": [], "xstart_mse": [], "mse": []}
    for done, step in enumerate(reversed(range(process.steps))):
        t = tf.fill([tf.shape(x_start)[0]], step)
        drawn = noise(done)
        x_t = _diffused(process, x_start, t, drawn)
        for name, value in _terms(process, model(x_t, t), x_start, x_t, t, drawn, clip_denoised).items():
            terms[name].append(value)
        if callback is not None:
            callback(done + 1, process.steps)
    results = {name: tf.stack(values, axis=1) for name, values in terms.items()}  # [B, T]
    results["prior_bpd"] = process.prior_bits_per_dim(x_start)
    results["total_bpd"] = tf.reduce_sum(results["vb"], axis=1) + results["prior_bpd"]
    return results
