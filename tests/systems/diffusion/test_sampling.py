"""Samples of small systems: every sampler, classes, guidance, reconstructions, and which options are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.diffusion import small
from tests.systems.diffusion.processes import GaussianImages
from tfgen.settings import SettingsError
from tfgen.systems.diffusion.samplers import SAMPLERS
from tfgen.systems.diffusion.sampling import SampleOptions

FEW = SampleOptions(steps=4, sample_batch=3)
DRAWN = [name for name, sampler in SAMPLERS.items() if not sampler.from_images]
DDIM = dataclasses.replace(FEW, sampler="ddim")


@pytest.fixture(scope="module")
def plain():
    return small.system()


@pytest.fixture(scope="module")
def labelled():
    return small.system(small.LABELLED, **small.OF_CLASSES, label_dropout=0.1)


def assert_alike(one: np.ndarray, other: np.ndarray) -> None:
    """Equal but for the rounding of sums in another order, which truncation to bytes may show."""
    assert one.shape == other.shape
    difference = np.abs(one.astype(int) - other)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


# Samplers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWN)
def test_samples_do_not_depend_on_the_batch(plain, name):
    options = dataclasses.replace(FEW, sampler=name)
    told = []
    whole = plain.sample(5, small.KEY, options, lambda *news: told.append(news))
    assert (whole.shape, whole.dtype) == ((5, 8, 8, 3), np.uint8)
    assert len({image.tobytes() for image in whole}) == 5
    np.testing.assert_array_equal(whole, plain.sample(5, small.KEY, options))
    assert_alike(whole, plain.sample(5, small.KEY, dataclasses.replace(options, sample_batch=16)))
    assert_alike(whole[2:4], plain.sample(2, small.KEY.skip(2), options))
    # Two batches of four steps; previews are of the first batch, the last one its samples.
    assert [news[:2] for news in told] == [(done + 1, 8) for done in range(8)]
    assert [news[2] is not None for news in told] == [True] * 4 + [False] * 4
    assert told[0][2]().shape == (3, 8, 8, 3)
    if name != "ancestral":  # which ends in a mean, not in the prediction
        assert_alike(told[3][2](), whole[:3])


def test_samplers_differ(plain):
    options = [dataclasses.replace(FEW, sampler=name) for name in DRAWN]
    options += [dataclasses.replace(DDIM, eta=1.0), dataclasses.replace(FEW, steps=5), SampleOptions()]
    drawn = {plain.sample(2, small.KEY, choice).tobytes() for choice in options}
    assert len(drawn) == len(options)
    # The original's words for the same things.
    same = SampleOptions(use_ddim=True, timestep_respacing="4", sample_batch=3)
    np.testing.assert_array_equal(plain.sample(2, small.KEY, same), plain.sample(2, small.KEY, DDIM))
    every = dataclasses.replace(SampleOptions(), steps=20)
    np.testing.assert_array_equal(plain.sample(2, small.KEY, every), plain.sample(2, small.KEY, SampleOptions()))


def test_samples_are_of_the_weights_as_they_are(plain):
    """Also those that are kept in another form while samples are drawn, and in what was traced before."""
    before = plain.sample(2, small.KEY, DDIM)
    kernels = [v for v in plain.network.trainable_variables if v.shape[:2] == (3, 3) and min(v.shape[2:]) >= 16]
    values = [kernel.numpy() for kernel in kernels]
    for kernel in kernels:
        kernel.assign(kernel * 1.5)
    after = plain.sample(2, small.KEY, DDIM)
    for kernel, value in zip(kernels, values, strict=True):
        kernel.assign(value)
    assert (after != before).mean() > 0.1
    np.testing.assert_array_equal(plain.sample(2, small.KEY, DDIM), before)


def test_parts_of_a_batch_are_put_together_in_order(labelled):
    """Of odd and even sizes: each row is what it is alone, under its own step and label."""
    sampler = labelled._sampler
    for count in (1, 2, 5):
        x = tf.random.stateless_normal([count, 8, 8, 3], [0, 1])
        times, labels = tf.range(count, dtype=tf.float32) * 3, tf.range(count) % 3
        together = sampler._compiled(x, times, labels, None, sampler._prepared())
        expected = labelled.network(x, times, labels=labels)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(together, expected, atol=1e-5)


def test_a_run_of_some_steps_is_sampled_with_them():
    system = small.system(timestep_respacing="5,3")
    assert system.process.steps == 8
    told = []
    system.sample(2, small.KEY, SampleOptions(), lambda *news: told.append(news[:2]))
    assert told[-1] == (8, 8)
    # Other steps are chosen among all, not among those.
    system.sample(2, small.KEY, SampleOptions(steps=20), lambda *news: told.append(news[:2]))
    assert told[-1] == (20, 20)


def test_reconstructions_are_about_the_originals():
    """With the best network of independent normal pixels."""
    system, gaussian = small.system(diffusion_steps=100), GaussianImages()
    system._sampler.model = lambda process, conditions, guidance_scale, prepared: gaussian.model(process)
    options = SampleOptions(sampler="ddim", reconstruct=True, sample_batch=2)
    np.testing.assert_array_equal(system.images_wanted(3, 2, options), [3, 4])
    originals = small.images(2)
    decoded = system.sample(2, small.KEY, options, images=originals)
    error = np.abs(decoded.astype(int) - originals).mean()
    assert error < 4
    assert (
        system.sample_grid(decoded, originals, options).shape[1]
        > system.sample_grid(decoded, originals[:0], options).shape[1]
    )


# Classes -----------------------------------------------------------------------------------------------------


def test_labels_of_samples(labelled):
    labels = labelled._sampler.labels(300, small.KEY, FEW)
    assert set(labels) == {0, 1, 2}
    np.testing.assert_array_equal(labelled._sampler.labels(2, small.KEY.skip(7), FEW), labels[7:9])
    chosen = dataclasses.replace(FEW, class_label=1)
    (name,), (arrays,) = zip(*labelled.sample_files(small.images(4), small.KEY, chosen).items(), strict=True)
    assert name == "samples_4x8x8x3.npz"
    np.testing.assert_array_equal(arrays["arr_1"], [1, 1, 1, 1])
    # Another class from the same noise is another image; the drawn labels are what they are said to be.
    drawn = labelled.sample(3, small.KEY, FEW)
    for label in range(3):
        of_class = labelled.sample(3, small.KEY, dataclasses.replace(FEW, class_label=label))
        for index in range(3):
            assert (of_class[index] == drawn[index]).all() == (labels[index] == label)


def test_classes_are_drawn_among_those_of_the_data():
    system = small.system(small.LABELLED, class_cond=True, num_classes=1000)
    assert set(system._sampler.labels(200, small.KEY, FEW)) == {0, 1, 2}
    assert system.sample(1, small.KEY, dataclasses.replace(FEW, class_label=999)).shape == (1, 8, 8, 3)


def test_files_of_samples_without_classes(plain):
    (arrays,) = plain.sample_files(small.images(2), small.KEY, FEW).values()
    assert arrays.keys() == {"arr_0"}


def test_guidance(labelled):
    chosen = dataclasses.replace(DDIM, class_label=2)
    conditional = labelled.sample(2, small.KEY, chosen)
    network, calls = labelled._sampler._compiled, []
    labelled._sampler._compiled = lambda *arguments: calls.append(arguments[2].numpy()) or network(*arguments)
    try:
        one = labelled.sample(2, small.KEY, dataclasses.replace(chosen, guidance_scale=1.0))
        assert len(calls) == 4
        none = labelled.sample(2, small.KEY, dataclasses.replace(chosen, guidance_scale=0.0))
        labelled.sample(2, small.KEY, dataclasses.replace(chosen, guidance_scale=3.0))
    finally:
        labelled._sampler._compiled = network
    np.testing.assert_array_equal(one, conditional)
    # The row after the classes stands for none of them.
    np.testing.assert_array_equal(calls[4:6], [[2, 2], [3, 3]])
    assert (none != conditional).any()


# What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_ddim": True, "sampler": "heun"}, "name two samplers"),
        ({"steps": 4, "timestep_respacing": "4"}, "both choose the steps"),
        ({"steps": 1}, "--steps=1: expected"),
        ({"eta": 0.5}, "--eta=0.5 belongs to --sampler=ddim, found --sampler=ancestral"),
        ({"eta": 0.5, "sampler": "dpm_solver_pp_2m"}, "found --sampler=dpm_solver_pp_2m"),
        ({"reconstruct": True}, "add --sampler=ddim"),
        ({"reconstruct": True, "sampler": "ddim", "eta": 0.5}, "no --eta"),
        ({"sampler": "reverse_ddim"}, "--sampler=reverse_ddim: expected"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(SettingsError, match=message):
        SampleOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 21}, "--steps=21: expected at most 20"),
        ({"timestep_respacing": "ddim13"}, "--timestep_respacing=ddim13: no stride"),
        ({"timestep_respacing": "1"}, "--timestep_respacing=1: .*at least 2"),
        ({"class_label": 0}, "--class_label=0: this model has no classes"),
        ({"guidance_scale": 2.0}, "not trained for guidance"),
        ({"base_samples": "a.npz"}, "--base_samples belongs to super-resolution"),
    ],
)
def test_options_that_do_not_fit_the_model(plain, options, message):
    with pytest.raises(SettingsError, match=message):
        plain.sample(2, small.KEY, SampleOptions(**options))


def test_a_class_that_there_is_not(labelled):
    with pytest.raises(SettingsError, match="--class_label=3: the model has classes 0 to 2"):
        labelled.sample(2, small.KEY, SampleOptions(class_label=3))
