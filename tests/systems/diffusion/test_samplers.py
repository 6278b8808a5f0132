"""Samplers with the best network for normal images, of which every result is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tests.systems.diffusion.processes import GaussianImages, process
from tfgen.systems.diffusion import samplers
from tfgen.systems.diffusion.guidance import guided
from tfgen.systems.diffusion.process import MeanType, VarianceType
from tfgen.systems.diffusion.samplers import SAMPLERS

IMAGES = GaussianImages()
SHAPE = (2, 3, 3, 2)
# DPM-Solver++ reaches its order with more steps than the others: with fewer it has two errors of opposite signs.
STEPS = {"ddim": (20, 80), "dpm_solver_pp_2m": (80, 320), "heun": (20, 80)}
SOLVERS = ("ddim", "dpm_solver_pp_2m", "heun")  # of the probability flow ODE


def normal(seed=SEED, shape=SHAPE, dtype=np.float64):
    return tf.constant(np.random.RandomState(seed).standard_normal(shape).astype(dtype))


def noise(i):
    return normal(SEED + 1 + i)


def sample(name, ours, x, **options):
    return SAMPLERS[name].function(ours, IMAGES.model(ours), x, noise, **{"clip_denoised": False, **options})


def flow(ours, x):
    """The exact solution of the ODE from x_(T-1) to x_0, and the best guess of the image there.

    Every point keeps its distance from the mean in units of the standard deviation.
    """
    spread, alphas = IMAGES.spread(ours), ours.sqrt_alphas_cumprod
    distance = (x - alphas[-1] * IMAGES.mean) / spread[-1]
    return IMAGES.pred_xstart(ours, alphas[0] * IMAGES.mean + spread[0] * distance, 0)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("ddim", 0.9, 1.1), ("dpm_solver_pp_2m", 1.5, 3), ("heun", 1.8, 2.2)]
)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_order_of_convergence(name, least, most, schedule):
    """Four times as many steps divide the error by 4 or by 16."""
    base = process(schedule=schedule, steps=4000)
    x = normal()
    errors = []
    for steps in STEPS[name]:
        ours = base.respaced(str(steps))
        errors.append(np.abs(sample(name, ours, x) - flow(ours, x)).max())
    assert least < np.log(errors[0] / errors[1]) / np.log(4) < most, errors


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_higher_order_needs_fewer_evaluations(schedule):
    base = process(schedule=schedule, steps=4000)
    x = normal()
    errors = {}
    for name, steps in (("ddim", 39), ("dpm_solver_pp_2m", 39), ("heun", 20)):
        assert SAMPLERS[name].evaluations(steps) == 39
        ours = base.respaced(str(steps))
        errors[name] = np.abs(sample(name, ours, x) - flow(ours, x)).max()
    assert errors["dpm_solver_pp_2m"] < errors["ddim"] / 10
    assert errors["heun"] < errors["ddim"] / 5


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_parametrisation_of_the_network_serves(name):
    samples = [sample(name, process(mean, steps=30).respaced("5"), normal()) for mean in MeanType]
    np.testing.assert_allclose(samples[1], samples[0], atol=1e-5)
    np.testing.assert_allclose(samples[2], samples[0], atol=1e-5)


def test_the_second_order_step_against_the_formula_of_the_paper():
    """DPM-Solver++, algorithm 2, line 7 and 8, in the second of four steps."""
    ours = process(steps=1000).respaced("4")
    states, x = [normal()], normal()
    sample("dpm_solver_pp_2m", ours, x, callback=lambda done, total, x, pred_xstart: states.append(x))
    lambdas = 0.5 * np.log(ours.alphas_cumprod / (1 - ours.alphas_cumprod))
    first, second = (IMAGES.pred_xstart(ours, states[done], 3 - done) for done in (0, 1))
    h_before, h = lambdas[2] - lambdas[3], lambdas[1] - lambdas[2]
    data = (1 + h / (2 * h_before)) * second - h / (2 * h_before) * first
    alpha, sigma, sigma_before = np.sqrt(ours.alphas_cumprod[1]), *np.sqrt(1 - ours.alphas_cumprod[[1, 2]])
    expected = sigma / sigma_before * states[1] - alpha * (np.exp(-h) - 1) * data
    np.testing.assert_allclose(states[2], expected, rtol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_process_of_two_steps(name):
    """The first step is of first order, the last one the prediction itself."""
    ours = process(schedule="cosine", steps=1000).respaced([10, 500])
    x = normal()
    first, second = ours.sqrt_alphas_cumprod
    sigmas = ours.sqrt_one_minus_alphas_cumprod
    data = IMAGES.pred_xstart(ours, x, 1)
    eps = (x - second * data) / sigmas[1]
    middle = first * data + sigmas[0] * eps  # DDIM and the first step of DPM-Solver++ alike
    if name == "heun":
        start, end = np.arctan2(sigmas[1], second), np.arctan2(sigmas[0], first)
        slope = np.cos(start) * eps - np.sin(start) * data
        there = x + (end - start) * slope
        data = IMAGES.pred_xstart(ours, there, 0)
        eps = (there - first * data) / sigmas[0]
        middle = x + (end - start) * (slope + np.cos(end) * eps - np.sin(end) * data) / 2
    np.testing.assert_allclose(sample(name, ours, x), IMAGES.pred_xstart(ours, middle, 0), rtol=1e-9)


def moments(ours, name, eta):
    """Mean and standard deviation of the samples: steps are linear in x, and noise adds its variance."""
    mean, variance = 0.0, 1.0
    for step in reversed(range(ours.steps)):
        gain, before = IMAGES.gain(ours)[step], ours.alphas_cumprod_prev[step]
        data = IMAGES.pred_xstart(ours, mean, step)
        if name == "ancestral":
            added = {
                VarianceType.FIXED_SMALL: ours.posterior_variance,
                VarianceType.FIXED_LARGE: ours.betas,
                VarianceType.LEARNED_RANGE: np.sqrt(ours.posterior_variance * ours.betas),  # v = 0
            }[ours.variance_type][step]
            slope = ours.posterior_mean_coef1[step] * gain + ours.posterior_mean_coef2[step]
            mean = ours.posterior_mean_coef1[step] * data + ours.posterior_mean_coef2[step] * mean
        else:
            added = eta**2 * ours.posterior_variance[step]
            alpha, sigma = ours.sqrt_alphas_cumprod[step], ours.sqrt_one_minus_alphas_cumprod[step]
            direction = np.sqrt(1 - before - added) / sigma
            slope = np.sqrt(before) * gain + direction * (1 - alpha * gain)
            mean = np.sqrt(before) * data + direction * (mean - alpha * data)
        variance = slope**2 * variance + (added if step else 0.0)
    return mean, np.sqrt(variance)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("name", "eta", "variance"),
    [
        ("ancestral", 0.0, VarianceType.FIXED_SMALL),
        ("ancestral", 0.0, VarianceType.FIXED_LARGE),
        ("ancestral", 0.0, VarianceType.LEARNED_RANGE),
        ("ddim", 0.0, VarianceType.FIXED_SMALL),
        ("ddim", 0.5, VarianceType.FIXED_SMALL),
    ],
)
def test_the_mean_and_the_spread_of_samples(schedule, name, eta, variance):
    base = process(variance=variance, schedule=schedule, steps=1000)
    ours = base.respaced("20")
    x = normal(shape=(20_000, 1, 1, 1))
    drawn = SAMPLERS[name].function(
        ours, IMAGES.model(ours), x, lambda i: normal(SEED + 1 + i, x.shape), clip_denoised=False, eta=eta
    )
    mean, std = moments(ours, name, eta)
    assert np.mean(drawn) == pytest.approx(mean, abs=5 * std / np.sqrt(20_000))
    assert np.std(drawn) == pytest.approx(std, rel=5 / np.sqrt(2 * 20_000))
    # With all steps these are the mean and the spread of the images.
    np.testing.assert_allclose(moments(base, name, eta), (IMAGES.mean, IMAGES.std), atol=0.01)


def test_full_eta_is_ancestral_sampling_with_the_small_variance():
    """DDIM, section 4.1."""
    ours = process(variance=VarianceType.FIXED_SMALL, steps=40)
    np.testing.assert_allclose(sample("ddim", ours, normal(), eta=1.0), sample("ancestral", ours, normal()), atol=1e-6)


def test_full_eta_is_a_number_where_float32_rounds_below_zero():
    """Of 1 - abar - sigma^2, which is 1e-9 here, float32 leaves -6e-8."""
    ours = process(steps=1000).respaced("3")
    x = tf.cast(normal(), tf.float32)
    here, there = (np.float32(table[-1]) for table in (ours.alphas_cumprod, ours.alphas_cumprod_prev))
    one = np.float32(1)
    sigma = np.sqrt((one - there) / (one - here)) * np.sqrt(one - here / there)
    assert one - there - sigma * sigma < 0
    drawn = samplers.ddim(ours, IMAGES.model(ours), x, lambda i: tf.cast(noise(i), tf.float32), eta=1.0)
    assert np.isfinite(drawn).all()
    assert np.abs(drawn).max() <= 1


def test_noise_that_is_encoded_comes_back():
    base = process(schedule="linear", steps=1000)
    images = IMAGES.mean + IMAGES.std * normal()
    errors = []
    for steps in (40, 160):
        ours = base.respaced(str(steps))
        encoded = sample("reverse_ddim", ours, images)
        errors.append(np.abs(sample("ddim", ours, encoded) - images).max())
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.1
    # The last step ends in the predicted noise: the images in units of their spread.
    np.testing.assert_allclose(encoded, (images - IMAGES.mean) / IMAGES.std, atol=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_are_reported_and_noise_and_network_asked_as_said(name):
    ours = process(steps=50).respaced("5")
    told, asked, seen = [], [], []
    model = IMAGES.model(ours)

    def counted(x, t):
        assert t.dtype == tf.int32
        seen.append(int(t[0]))
        return model(x, t)

    def drawn(i):
        asked.append(i)
        return noise(i)

    result = SAMPLERS[name].function(ours, counted, normal(), drawn, callback=lambda *arguments: told.append(arguments))
    entry = SAMPLERS[name]
    assert [arguments[:2] for arguments in told] == [(done, 5) for done in range(1, 6)]
    np.testing.assert_array_equal(told[-1][2], result)
    assert all(np.abs(pred_xstart).max() <= 1 for *_, pred_xstart in told)
    assert asked == (list(range(5)) if entry.needs_noise else [])
    expected = {"reverse_ddim": [0, 1, 2, 3, 4], "heun": [4, 3, 3, 2, 2, 1, 1, 0, 0]}.get(name, [4, 3, 2, 1, 0])
    assert seen == expected
    assert len(seen) == entry.evaluations(5)
    again = entry.function(ours, model, normal(), lambda i: noise(i + 100))
    if entry.takes_eta:
        entry.function(ours, model, normal(), drawn, eta=0.5)
        assert asked == list(range(5))
    assert entry.deterministic() == np.array_equal(again, result)
    if not entry.from_images:  # the last step ends in a prediction, whose noise is masked
        np.testing.assert_allclose(result, told[-1][3], atol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_predictions_of_x_0_are_changed_and_then_clipped(name):
    ours = process(steps=50).respaced("5")
    seen = []

    def changed(x):
        seen.append(x)
        return 0 * x + 3

    told = []
    sample(
        name,
        ours,
        normal(),
        clip_denoised=True,
        denoised_fn=changed,
        callback=lambda *arguments: told.append(arguments),
    )
    assert len(seen) == SAMPLERS[name].evaluations(5)
    for *_, pred_xstart in told:
        np.testing.assert_array_equal(pred_xstart, np.ones(SHAPE))


@pytest.mark.parametrize("name", SAMPLERS)
def test_eta_belongs_to_ddim(name):
    ours = process(steps=20).respaced("3")
    if SAMPLERS[name].takes_eta:
        assert SAMPLERS[name].deterministic()
        assert not SAMPLERS[name].deterministic(0.5)
        assert not np.array_equal(sample(name, ours, normal(), eta=0.5), sample(name, ours, normal()))
    else:
        with pytest.raises(ValueError, match=f"eta 0 for the sampler {name}, found 0.5"):
            sample(name, ours, normal(), eta=0.5)


def test_single_steps_are_told_apart_by_their_image():
    """A batch of images at different steps, in a graph, as against one at a time."""
    ours = process(variance=VarianceType.LEARNED_RANGE, steps=20)
    steps = tf.constant([0, 1, 10, 19])
    x, drawn, output = normal(1, (4, 3, 3, 2)), normal(2, (4, 3, 3, 2)), normal(3, (4, 3, 3, 4))

    @tf.function
    def advance(output, x, t, drawn):
        prediction = ours.p_mean_variance(output, x, t, clip_denoised=True)
        return (
            samplers.ancestral_step(prediction, t, drawn),
            samplers.ddim_step(ours, prediction, x, t, drawn, 0.7),
            samplers.reverse_ddim_step(ours, prediction, x, t),
        )

    together = advance(output, x, steps, drawn)
    for i in range(4):
        one = slice(i, i + 1)
        for whole, part in zip(together, advance(output[one], x[one], steps[one], drawn[one]), strict=True):
            np.testing.assert_allclose(whole[one], part, rtol=1e-9)
    prediction = ours.p_mean_variance(output, x, steps, clip_denoised=True)
    np.testing.assert_array_equal(together[0][0], prediction.mean[0])  # no noise at t = 0
    np.testing.assert_allclose(together[1][0], prediction.pred_xstart[0])
    assert (together[0][1:] != prediction.mean[1:]).numpy().any(axis=(1, 2, 3)).all()
    np.testing.assert_allclose(  # abar after the last step is 0
        together[2][3], ours.eps_from_xstart(x, steps, prediction.pred_xstart)[3], rtol=1e-9
    )


def test_guidance_extrapolates_the_mean_alone():
    conditional, unconditional = normal(1, (2, 3, 3, 4), np.float32), normal(2, (2, 3, 3, 4), np.float32)
    np.testing.assert_array_equal(guided(conditional, unconditional, 1.0, 2), conditional)
    np.testing.assert_array_equal(guided(conditional, unconditional, 0.0, 2)[..., :2], unconditional[..., :2])
    result = guided(conditional, unconditional, 3.0, 2)
    expected = unconditional + 3 * (conditional - unconditional)
    np.testing.assert_allclose(result[..., :2], expected[..., :2], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result[..., 2:], conditional[..., 2:])
    np.testing.assert_allclose(guided(conditional, unconditional, 3.0, 4), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"of 3 or 6 channels, found shapes \[2, 3, 3, 4\]"):
        guided(conditional, unconditional, 3.0, 3)
    with pytest.raises(ValueError, match=r"and \[2, 3, 3, 2\]"):
        guided(conditional, unconditional[..., :2], 3.0, 2)


def test_no_noise_is_zero_noise_and_for_eta_0_alone():
    ours, x = process(steps=20), normal()
    t = tf.constant([0, 7])
    prediction = ours.p_mean_variance(IMAGES.model(ours)(x, t), x, t, clip_denoised=True)
    without = samplers.ddim_step(ours, prediction, x, t, None)
    np.testing.assert_array_equal(without, samplers.ddim_step(ours, prediction, x, t, noise(0), 0.0))
    with pytest.raises(ValueError, match=r"expected noise .* for eta 0.5, found None"):
        samplers.ddim_step(ours, prediction, x, t, None, 0.5)
