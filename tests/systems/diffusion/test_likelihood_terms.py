from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.seeds import SEED
from tests.systems.diffusion.processes import GaussianImages, process
from tfgen.systems.diffusion.likelihood_terms import bits_per_dim_loop
from tfgen.systems.diffusion.process import VarianceType


def test_terms_of_every_step_in_descending_order():
    ours = process(variance=VarianceType.LEARNED_RANGE, steps=60).respaced("6")
    random = np.random.RandomState(SEED)
    x_start = tf.constant((random.randint(0, 256, (3, 4, 4, 2)) / 127.5 - 1).astype(np.float32))
    noises = tf.constant(random.standard_normal((6, 3, 4, 4, 2)).astype(np.float32))
    model, told = GaussianImages().model(ours), []
    results = bits_per_dim_loop(
        ours, model, x_start, lambda i: noises[i], clip_denoised=False, callback=lambda *done: told.append(done)
    )
    assert told == [(done, 6) for done in range(1, 7)]
    for column, step in enumerate((5, 4, 3, 2, 1, 0)):
        t = tf.fill([3], step)
        x_t = ours.q_sample(x_start, t, noises[column])
        output = model(x_t, t)
        vb, pred_xstart = ours.variational_bound_term(output, x_start, x_t, t, clip_denoised=False)
        np.testing.assert_allclose(results["vb"][:, column], vb, rtol=1e-6)
        of_x_0 = np.mean((pred_xstart - x_start) ** 2, axis=(1, 2, 3))
        np.testing.assert_allclose(results["xstart_mse"][:, column], of_x_0, rtol=1e-5)
        # Unclipped, the noise behind the prediction of x_0 is the network's own.
        of_noise = np.mean((output[..., :2] - noises[column]) ** 2, axis=(1, 2, 3))
        np.testing.assert_allclose(results["mse"][:, column], of_noise, rtol=2e-3)
    np.testing.assert_allclose(results["prior_bpd"], ours.prior_bits_per_dim(x_start))
    total = np.sum(results["vb"], axis=1) + results["prior_bpd"]
    np.testing.assert_allclose(results["total_bpd"], total, rtol=1e-5)


def test_clipping_is_the_default():
    ours = process(steps=20).respaced("3")
    x_start, drawn = tf.ones([1, 2, 2, 1]), tf.ones([1, 2, 2, 1])
    results = bits_per_dim_loop(ours, lambda x, t: -100 * tf.ones_like(x), x_start, lambda i: drawn)
    np.testing.assert_array_equal(results["xstart_mse"], np.zeros((1, 3)))  # all predictions are clipped to 1
    wide = bits_per_dim_loop(ours, lambda x, t: -100 * tf.ones_like(x), x_start, lambda i: drawn, clip_denoised=False)
    assert (wide["xstart_mse"].numpy() > 1).all()
    np.testing.assert_allclose(wide["mse"], np.full((1, 3), 101.0**2), rtol=1e-3)
