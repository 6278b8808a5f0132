"""Bits per dimension: the whole bound, a few of its terms, and what they must not depend on."""

from __future__ import annotations

import functools
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.diffusion import small
from tests.systems.diffusion.processes import process
from tfgen import evaluation
from tfgen.data.arrays import ArraySource
from tfgen.data.pipeline import EvaluationBatches
from tfgen.distribute import Ranks
from tfgen.randomness import Key
from tfgen.settings import SettingsError
from tfgen.systems.diffusion.evaluation import EvaluateOptions, bound_term
from tfgen.systems.diffusion.likelihood_terms import bits_per_dim_loop
from tfgen.systems.diffusion.process import VarianceType
from tfgen.systems.diffusion.resizing import from_uint8
from tfgen.systems.diffusion.sampling import Conditions

STEPS = 8
SOURCE = ArraySource(small.images(5), "pictures")
NOWHERE = pathlib.Path("nowhere")
WHOLE = EvaluateOptions()


@pytest.fixture(scope="module")
def system():
    return small.system(diffusion_steps=STEPS)


def evaluated(system, options=WHOLE, batch_size=3, source=SOURCE, rank=0, ranks=1):
    return system.evaluate(EvaluationBatches(source, batch_size, rank, ranks), options, NOWHERE)


def key(seed: int = 0, first: int = 0) -> Key:
    return Key.create(seed, "evaluation", first_sample=first)


def loop(system, noise_seed: int = 0, **options) -> dict[str, np.ndarray]:
    """The bound of all images at once."""
    x_start = from_uint8(small.images(5))

    def noise(step):
        return key(noise_seed).fold("noise", step).normal(x_start.shape)

    model = system.model(system.process, Conditions(None, None))
    return {name: value.numpy() for name, value in bits_per_dim_loop(system.process, model, x_start, noise).items()}


# The whole bound ---------------------------------------------------------------------------------------------


def test_the_whole_bound(system):
    expected, found = loop(system), evaluated(system)
    assert found["examples"] == 5
    assert found["bits_per_dim_bound"] == pytest.approx(expected["total_bpd"].mean(), rel=1e-5)
    assert found["prior_bits_per_dim"] == pytest.approx(expected["prior_bpd"].mean(), rel=1e-5)
    for name in ("vb", "xstart_mse", "mse"):
        assert found[f"{name}_terms"].shape == (STEPS,)
        np.testing.assert_allclose(found[f"{name}_terms"], expected[name].mean(axis=0), rtol=1e-4, atol=1e-6)
    total = found["vb_terms"].sum() + found["prior_bits_per_dim"]
    assert found["bits_per_dim_bound"] == pytest.approx(total, rel=1e-5)


def test_the_last_step_of_the_process_comes_first(system):
    """Its images are next to noise: an error of the predicted image there is far above that near the images."""
    terms = evaluated(system)["xstart_mse_terms"]
    assert terms[:3].mean() > 2 * terms[-3:].mean()
    # The last column belongs to t = 0, whose noise is the last that is drawn.
    x_start, t = from_uint8(small.images(5)), tf.zeros([5], tf.int32)
    x_t = system.process.q_sample(x_start, t, key().fold("noise", STEPS - 1).normal(x_start.shape))
    output = system.model(system.process, Conditions(None, None))(x_t, t)
    first, _ = system.process.variational_bound_term(output, x_start, x_t, t)
    assert evaluated(system)["vb_terms"][-1] == pytest.approx(float(tf.reduce_mean(first)), rel=1e-4)


@pytest.mark.parametrize("options", [EvaluateOptions(), EvaluateOptions(terms=3)], ids=["whole", "terms"])
def test_neither_batches_nor_ranks_change_it(system, options):
    one = evaluated(system, options, batch_size=5)
    for other in (
        evaluated(system, options, batch_size=2),
        evaluation.evaluate(system, SOURCE, 3, Ranks(), options, NOWHERE),
    ):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    # Images 0, 1, 4 on the first of two ranks and 2, 3 on the second.
    parts = [evaluated(system, options, batch_size=2, rank=rank, ranks=2) for rank in (0, 1)]
    assert [part["examples"] for part in parts] == [3, 2]
    for name, value in one.items():
        if name != "examples":
            mean = (3 * np.asarray(parts[0][name]) + 2 * np.asarray(parts[1][name])) / 5
            np.testing.assert_allclose(mean, value, rtol=1e-4, atol=1e-6, err_msg=name)
    # A rank without images reports the same names and shapes.
    idle = evaluated(system, options, batch_size=5, rank=1, ranks=2)
    assert idle["examples"] == 0
    assert {name: np.shape(value) for name, value in idle.items()} == {n: np.shape(v) for n, v in one.items()}


def test_options_count(system):
    values = {
        evaluated(system, options)["bits_per_dim_bound"]
        for options in (
            EvaluateOptions(),
            EvaluateOptions(noise_seed=1),
            EvaluateOptions(clip_denoised=False),
            EvaluateOptions(timestep_respacing="4"),
            EvaluateOptions(terms=STEPS),
            EvaluateOptions(terms=4),
        )
    }
    assert len(values) == 6
    assert all(np.isfinite(list(values)))
    assert evaluated(system, EvaluateOptions(timestep_respacing="ddim4"))["vb_terms"].shape == (4,)
    assert evaluated(system, EvaluateOptions(terms=4)).keys() == {
        "bits_per_dim_bound", "prior_bits_per_dim", "examples",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": 9}, "--terms=9: the process has 8 steps"),
        ({"timestep_respacing": "9"}, "--timestep_respacing=9: expected at most 8"),
        ({"timestep_respacing": "5", "terms": 6}, "--terms=6: the process has 5 steps"),
        ({"terms": 0}, "--terms=0: expected"),
    ],
)
def test_options_that_do_not_fit(system, options, message):
    with pytest.raises(SettingsError, match=message):
        evaluated(system, EvaluateOptions(**options))


def test_models_of_classes_and_of_small_images():
    labelled = small.system(small.LABELLED, **small.OF_CLASSES, diffusion_steps=4)
    sources = [
        ArraySource(small.images(3), "pictures", labels=np.array(labels), num_classes=3)
        for labels in ([0, 1, 2], [0, 1, 1])
    ]
    bounds = [evaluated(labelled, source=source)["bits_per_dim_bound"] for source in sources]
    assert bounds[0] != bounds[1]
    larger = small.system(**small.SUPER_RESOLUTION)
    assert np.isfinite(evaluated(larger, EvaluateOptions(terms=2))["bits_per_dim_bound"])


# Some of its terms -------------------------------------------------------------------------------------------

REPEATED = 4000  # the same image, with noise of its own each time


def learned(steps: int):
    return process(variance=VarianceType.LEARNED_RANGE, steps=steps)


def nothing(x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    return tf.zeros([*x.shape[:3], 6])


def test_as_many_terms_as_steps_are_the_whole_bound():
    seen, steps = [], 7
    bound = learned(steps)
    x_start = from_uint8(small.images(5))

    def model(x, t):
        seen.append(t.numpy())
        return nothing(x, t)

    terms = [bound_term(bound, model, x_start, key(), part, steps) for part in range(steps)]
    np.testing.assert_array_equal(seen, np.repeat(np.arange(steps)[:, None], 5, axis=1))
    for part, term in enumerate(terms):
        t = tf.fill([5], part)
        x_t = bound.q_sample(x_start, t, key().fold("term", part).fold("noise").normal(x_start.shape))
        np.testing.assert_allclose(term, bound.variational_bound_term(nothing(x_t, t), x_start, x_t, t)[0], rtol=1e-6)


@pytest.mark.parametrize("terms", [1, 3])
def test_terms_are_right_on_average(terms):
    """Also where the parts are not whole numbers of steps: then some steps belong to two."""
    steps = 7
    bound = learned(steps)
    x_start = tf.repeat(from_uint8(small.images(1)), REPEATED, axis=0)
    drawn = sum(bound_term(bound, nothing, x_start, key(), part, terms).numpy() for part in range(terms))
    noise = functools.partial(_noise, x_start.shape)
    whole = bits_per_dim_loop(bound, nothing, x_start, noise)["vb"].numpy().sum(axis=1)
    error = np.std(drawn) / np.sqrt(REPEATED)
    assert 0 < error < 0.1 * whole.mean()
    assert abs(drawn.mean() - whole.mean()) < 4 * error
    assert np.std(drawn) > np.std(whole)


def _noise(shape, step: int) -> tf.Tensor:
    return Key.create(1, "other").fold(step).normal(shape)
