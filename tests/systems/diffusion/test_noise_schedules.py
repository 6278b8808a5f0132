from __future__ import annotations

import numpy as np
import pytest

from tfgen.systems.diffusion import noise_schedules
from tfgen.systems.diffusion.coefficients import Coefficients

# Last alphas_cumprod and first posterior_log_variance_clipped, of the original code.
KNOWN = {
    ("linear", 1000): (4.035829765375676e-05, -9.81672513529567),
    ("linear", 4000): (4.246652275802249e-05, -11.26578194182123),
    ("cosine", 1000): (2.4287669070348567e-09, -10.734082532465003),
    ("cosine", 4000): (1.5179804688514517e-10, -12.204537145969704),
}


@pytest.mark.parametrize(("name", "steps"), KNOWN)
def test_known_values(name, steps):
    coefficients = Coefficients(noise_schedules.betas(name, steps))
    last, first = KNOWN[name, steps]
    assert coefficients.steps == steps
    assert coefficients.betas.dtype == np.float64
    assert coefficients.alphas_cumprod[-1] == pytest.approx(last, rel=1e-10)
    assert coefficients.posterior_log_variance_clipped[0] == pytest.approx(first, rel=1e-12)


@pytest.mark.parametrize(("name", "steps"), [("linear", 21), ("cosine", 2), ("cosine", 3), ("cosine", 50)])
def test_betas_are_variances_even_with_few_steps(name, steps):
    betas = noise_schedules.betas(name, steps)
    assert betas.shape == (steps,)
    assert (betas > 0).all()
    assert (betas < 1).all()


def test_the_cosine_schedule_follows_its_curve_up_to_the_last_step():
    """Paper, equation 17; only the last beta is capped."""
    steps = 200
    times = (np.arange(1, steps + 1) / steps + 0.008) / 1.008
    expected = (np.cos(times * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    betas = noise_schedules.betas("cosine", steps)
    np.testing.assert_allclose(np.cumprod(1 - betas)[:-1], expected[:-1], rtol=1e-9)
    assert (betas == noise_schedules.MAX_BETA).sum() == 1
    assert betas[-1] == noise_schedules.MAX_BETA


def test_the_linear_schedule_destroys_alike_with_any_number_of_steps():
    levels = [np.cumprod(1 - noise_schedules.betas("linear", steps))[-1] for steps in (1000, 4000, 16000)]
    np.testing.assert_allclose(levels, np.exp(-10.05), rtol=0.1)


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("quadratic", 1000, "linear or cosine, found 'quadratic'"),
        ("cosine", 1, "at least 2 diffusion steps, found 1"),
        ("linear", 0, "at least 2 diffusion steps, found 0"),
        ("linear", 20, "at least 21 .* found 20"),
    ],
)
def test_what_is_refused(name, steps, message):
    with pytest.raises(ValueError, match=message):
        noise_schedules.betas(name, steps)
