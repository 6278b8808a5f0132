"""Samples, reconstructions, partial reconstructions, interpolations: what each depends on, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.vdvae import small
from tfgen import evaluation
from tfgen.distribute import Ranks
from tfgen.randomness import Key
from tfgen.settings import SettingsError
from tfgen.systems.vdvae import sampling
from tfgen.systems.vdvae.sampling import SampleOptions

KEY = Key.create(5, "sample")
KINDS = {
    "samples": SampleOptions(temperature="0.8"),
    "reconstructions": SampleOptions("reconstructions"),
    "partial": SampleOptions("partial", latents=2),
    "interpolation": SampleOptions("interpolation", steps=3),
}


@pytest.fixture(scope="module")
def system():
    return small.system()


@pytest.fixture(scope="module")
def source():
    return small.source(12)


def drawn(system, count, options, source=None, key=KEY):
    return evaluation.sample(system, count, key, Ranks(), options, source=source)


class OneOfTwo(Ranks):
    """A rank of two, alone in this process: it gets back what it drew."""

    size = 2

    def __init__(self, rank):
        self.rank = rank

    def gather(self, array):
        return array


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_depends_on_its_number_alone(system, source, kind):
    """Not on the number of images, the batch size or the ranks."""
    options = KINDS[kind]
    whole = drawn(system, 7, options, source)
    assert whole.shape == (7, 8, 8, 3)
    assert whole.dtype == np.uint8
    assert len({image.tobytes() for image in whole}) == 7
    np.testing.assert_array_equal(drawn(system, 3, options, source), whole[:3])
    by_ranks = [evaluation.sample(system, 7, KEY, OneOfTwo(rank), options, source=source) for rank in (0, 1)]
    assert [len(part) for part in by_ranks] == [4, 3]
    np.testing.assert_array_equal(np.concatenate(by_ranks), whole)
    other_batch = dataclasses.replace(options, sample_batch=5)
    # Another batch size may round another way, which moves a value by a level where it is truncated.
    difference = drawn(system, 7, other_batch, source).astype(int) - whole
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01
    assert (drawn(system, 7, options, source, Key.create(6, "sample")) != whole).any()


def test_nothing_is_traced_again(system, source):
    functions = [system._sampler._from_prior, system._sampler._from_images, system._sampler._between]
    for options in KINDS.values():
        drawn(system, 5, options, source)
    traces = [function.experimental_get_tracing_count() for function in functions]
    for temperature in ("1", "0.3", "1,0.5,0"):
        drawn(system, 6, SampleOptions(temperature=temperature))
        drawn(system, 6, SampleOptions("partial", temperature, latents=2), source)
    drawn(system, 8, KINDS["interpolation"], source)
    assert [function.experimental_get_tracing_count() for function in functions] == traces


def test_partial_from_no_layer_to_all(system, source):
    """All layers are reconstructions. With none an image depends on the image it belongs to no more."""
    whole = drawn(system, 4, KINDS["reconstructions"], source)
    difference = drawn(system, 4, SampleOptions("partial", latents=small.LAYERS), source).astype(int) - whole
    assert np.abs(difference).max() <= 1
    none = SampleOptions("partial", latents=0)
    np.testing.assert_array_equal(
        system.sample(4, KEY, none, images=small.images(4)), system.sample(4, KEY, none, images=small.images(4, seed=1))
    )
    np.testing.assert_array_equal(drawn(system, 4, none, source), drawn(system, 4, SampleOptions()))
    some = KINDS["partial"]
    of_these, of_others = (system.sample(4, KEY, some, images=small.images(4, seed=seed)) for seed in (0, 1))
    assert (of_these != of_others).any()


def test_a_reconstruction_is_drawn_from_the_posterior_latents(system):
    images = small.images(4)
    inputs, _ = system.preprocessing.input_and_target(images)
    latents = system.network.infer(inputs, sampling.posterior_noise(KEY)).latents
    noise = sampling.Noise.of(KEY)
    features = system.network.generate(4, noise.latents, latents)
    expected = sampling.draw_images(system.network, features, noise.uniform).numpy().astype(int)
    assert np.abs(system.sample(4, KEY, KINDS["reconstructions"], images=images) - expected).max() <= 1


def test_temperatures_scale_the_layers_they_stand_for(system):
    same = drawn(system, 3, SampleOptions(temperature="0.7"))
    np.testing.assert_array_equal(drawn(system, 3, SampleOptions(temperature="0.7, 0.7,0.7")), same)
    assert (drawn(system, 3, SampleOptions(temperature="0.7,0.7,0.2")) != same).any()

    # At temperature 0 the latents are those of the mean: only the noise of the head is left.
    mean = system.network.generate(1, lambda layer, shape: tf.zeros(shape))
    expected = sampling.draw_images(system.network, tf.repeat(mean, 4, axis=0), sampling.Noise.of(KEY).uniform)
    assert np.abs(drawn(system, 4, SampleOptions(temperature="0")).astype(int) - expected).max() <= 1


def test_an_interpolation_goes_from_one_image_to_the_next(system):
    """With the noise of the head along a row, its ends are pictures of the posterior latents of the two images."""
    images, steps = small.images(4), 5
    rows = system.sample(2 * steps, KEY, SampleOptions("interpolation", steps=steps), images=images)
    inputs, _ = system.preprocessing.input_and_target(images)
    ends = system.network.infer(inputs, sampling.posterior_noise(KEY)).latents
    noise = sampling.Noise.of(KEY)
    for step in range(steps):
        share = step / (steps - 1)
        latents = [(1 - share) * z[0::2] + share * z[1::2] for z in ends]  # of both rows
        features = system.network.generate(2, noise.latents, latents)
        expected = sampling.draw_images(system.network, features, noise.uniform).numpy()
        assert np.abs(rows[step::steps].astype(int) - expected).max() <= 1, step


def test_a_column_of_the_picture_grid_depends_on_its_image_alone(system, source):
    """Not on the number of images, the batch size or the ranks, one of which has none; the grid is that of training."""
    options = SampleOptions("pictures")
    whole = drawn(system, 7, options, source)
    assert whole.shape == (7, *system.sample_shape(options)) == (7, (1 + 6 + 3) * 8, 8, 3)
    np.testing.assert_array_equal(whole[:, :8], small.images(12)[:7])
    np.testing.assert_array_equal(drawn(system, 3, options, source), whole[:3])
    by_ranks = [evaluation.sample(system, 1, KEY, OneOfTwo(rank), options, source=source) for rank in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(by_ranks), whole[:1])
    difference = drawn(system, 7, dataclasses.replace(options, sample_batch=5), source).astype(int) - whole
    assert np.abs(difference).max() <= 1
    grid = system.sample_grid(whole[:4], small.images(4), options)
    np.testing.assert_array_equal(grid, system.pictures(small.images(4), KEY)["pictures"])
    assert (drawn(system, 4, options, source, Key.create(6, "sample")) != whole[:4]).any()


def test_the_picture_grid_has_the_latents_of_the_other_kinds():
    """Its only row keeps those of half the layers, as a partial reconstruction of as many does."""
    system = small.system(num_variables_visualize=1, num_temperatures_visualize=0)
    inputs, _ = system.preprocessing.input_and_target(small.images(4))
    latents = system.network.infer(inputs, sampling.posterior_noise(KEY)).latents
    noise = sampling.Noise.of(KEY.fold(1))
    features = system.network.generate(4, noise.latents, latents[:1], 0.1)
    expected = sampling.draw_images(system.network, features, noise.uniform).numpy()
    columns = system.sample(4, KEY, SampleOptions("pictures"), images=small.images(4))
    assert np.abs(columns[:, 8:].astype(int) - expected).max() <= 1


def test_a_network_without_initial_states():
    system = small.system(no_bias_above=0)
    assert not system.network.initial_states
    images = drawn(system, 5, SampleOptions())
    assert len({image.tobytes() for image in images}) == 5
    assert system.pictures(small.images(2), KEY)["pictures"].shape[1] == 16


def test_progress_is_reported_in_images(system):
    reports = []
    system.sample(10, KEY, SampleOptions(), lambda *report: reports.append(report))
    assert reports == [(4, 10, None), (8, 10, None), (10, 10, None)]


def test_which_images_are_wanted():
    wanted = sampling.images_wanted
    assert wanted(3, 4, KINDS["samples"]).tolist() == []
    assert wanted(3, 4, KINDS["partial"]).tolist() == [3, 4, 5, 6]
    assert wanted(0, 7, KINDS["interpolation"]).tolist() == [0, 1, 2, 3, 4, 5]  # 3 rows, the last has one image
    assert wanted(4, 2, KINDS["interpolation"]).tolist() == [2, 3]
    assert wanted(2, 2, KINDS["interpolation"]).tolist() == [0, 1, 2, 3]


def test_grids(system):
    originals, samples = small.images(4), small.images(4, seed=1)
    scale, border = 8, 2

    def cell(grid, row, column, width=8):
        top, left = border + row * (8 * scale + border), border + column * (width * scale + border)
        return grid[top : top + 8 * scale : scale, left : left + width * scale : scale]

    grid = system.sample_grid(samples, originals, KINDS["reconstructions"])
    np.testing.assert_array_equal(cell(grid, 1, 0, 16), np.concatenate([originals[2], samples[2]], axis=1))
    grid = system.sample_grid(samples, originals, KINDS["interpolation"])  # rows of 3
    np.testing.assert_array_equal(cell(grid, 0, 2), samples[2])
    np.testing.assert_array_equal(cell(grid, 1, 0), samples[3])
    assert system.sample_grid(samples, originals[:0], KINDS["samples"]).shape == (2 * 66 + 2, 2 * 66 + 2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "partial"}, "needs --latents=K"),
        ({"latents": 2}, "--latents=2 belongs to --kind=partial, found --kind=samples"),
        ({"kind": "reconstructions", "steps": 3}, "--steps=3 belongs to --kind=interpolation"),
        ({"kind": "partial", "latents": 4}, "--latents=4: the network has 3 stochastic layers"),
        *(
            (
                {"kind": kind, "temperature": "0.8"},
                f"--temperature=0.8 belongs to --kind=samples, partial or given, found --kind={kind}",
            )
            for kind in ("reconstructions", "interpolation", "pictures")
        ),
        ({"temperature": "1,1"}, "one for each of the 3 layers"),
        ({"temperature": "warm"}, "--temperature=warm: expected one number"),
        ({"temperature": "-1"}, "of at least 0"),
        ({"temperature": "nan"}, "of at least 0"),
        ({"kind": "interpolation"}, r"4 images of --kind=interpolation are made from 2, found 0"),
    ],
)
def test_what_is_refused(system, options, message):
    with pytest.raises(SettingsError, match=message):
        system.sample(4, KEY, SampleOptions(**options))
