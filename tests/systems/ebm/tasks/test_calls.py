"""Calls of the sampler: masked steps against NumPy, and calls on a run in any number of passes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.ebm.tasks import runs
from tfgen.randomness import Key
from tfgen.settings import SettingsError
from tfgen.systems.ebm import sampler
from tfgen.systems.ebm.sampler import Chain, FusedMoves
from tfgen.systems.ebm.tasks import calls
from tfgen.systems.ebm.tasks.calls import Caller, MaskedMoves
from tfgen.systems.ebm.tasks.options import EvaluateOptions

KEY = Key.create(1, "test")
STARTS = np.random.RandomState(0).uniform(0.3, 0.7, [3, 4, 2, 1]).astype(np.float32)
CURVATURE = np.random.RandomState(1).uniform(0.0, 9.0, [4, 2, 1]).astype(np.float32)


def quadratic(x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    del step
    return tf.reduce_sum(0.5 * CURVATURE * x**2, axis=[1, 2, 3])[:, tf.newaxis]


@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_masked_steps_against_numpy(clip):
    chain = calls.chain_of(EvaluateOptions(num_steps=3, step_lr=0.1, proj_norm=clip, noise_scale=0.05))
    normals = np.random.RandomState(2).normal(size=[3, *STARTS.shape]).astype(np.float32)
    mask = np.zeros([1, 4, 2, 1], np.float32)
    mask[:, 2:] = 1.0
    x = STARTS.astype(np.float64)
    for noise in normals:
        y = x + 0.05 * noise * mask
        gradient = np.clip(CURVATURE * y, -clip, clip) if clip else CURVATURE * y
        x = np.clip(y - 0.1 * gradient * mask, 0.0, 1.0)
    moves = MaskedMoves(quadratic, chain, KEY, tf.constant(mask), tf.constant(normals))
    found = sampler.run(tf.constant(STARTS), 3, moves).numpy()
    np.testing.assert_allclose(found, x, rtol=1e-5)
    np.testing.assert_array_equal(found[:, :2], STARTS[:, :2])


def test_without_a_mask_they_are_the_steps_of_the_sampler():
    chain = Chain(4, 0.1, 0.05)
    masked, plain = (
        sampler.run(tf.constant(STARTS), 4, kind(quadratic, chain, KEY)) for kind in (MaskedMoves, FusedMoves)
    )
    np.testing.assert_array_equal(masked, plain)


def test_noise_is_drawn_where_the_mask_is():
    mask = tf.constant([0.0, 1.0], shape=[1, 1, 2, 1])
    found = sampler.run(tf.constant(STARTS), 2, MaskedMoves(quadratic, Chain(2, 0.0, 0.05), KEY, mask)).numpy()
    assert (found[:, :, 0] == STARTS[:, :, 0]).all()
    assert (found[:, :, 1] != STARTS[:, :, 1]).all()


def test_a_chain_has_the_defaults_of_the_original_and_the_range_of_the_run():
    chain = calls.chain_of(EvaluateOptions(), rescale=8.0)
    assert chain == Chain(20, 80.0, 0.04, 0.0, 8.0)
    chain = calls.chain_of(EvaluateOptions(step_lr=2.0), steps=200, step_size=180.0, clip=0.05, times=4.0)
    assert chain == Chain(200, 8.0, 0.005, clip_mode="li", clip=0.05)


def caller(run, batch_size: int, **options) -> Caller:
    chain = calls.chain_of(EvaluateOptions(num_steps=2, step_lr=1.0, noise_scale=0.1), run.config.rescale)
    return Caller(run, chain, KEY, batch_size, **options)


def test_an_image_moves_the_same_in_any_pass():
    run = runs.system()
    images = np.random.RandomState(0).uniform(size=[7, *run.spec.shape])
    labels = np.eye(runs.CLASSES, dtype=np.float32)[np.arange(7) % runs.CLASSES]
    at_once, in_parts = caller(run, 50), caller(run, 3)
    whole = at_once(images, labels, 0)
    assert whole.dtype == np.float32
    assert whole.shape == images.shape
    np.testing.assert_allclose(in_parts(images, labels, 0), whole, atol=1e-5)
    np.testing.assert_allclose(at_once(images[5:], labels[5:], 0, first=5), whole[5:], atol=1e-5)
    assert np.abs(at_once(images, labels, 1) - whole).max() > 0.01


def test_a_call_improves_the_power_iteration_only_where_it_is_told_to():
    run = runs.system()
    vector = next(variable for name, variable in run.network.by_name.items() if name.endswith("_u"))
    before = vector.numpy()
    images, labels = np.zeros([1, *run.spec.shape]), np.eye(runs.CLASSES)[:1]
    caller(run, 1)(images, labels, 0)
    np.testing.assert_array_equal(vector, before)
    caller(run, 1, advance=True)(images, labels, 0)
    assert (vector.numpy() != before).any()


def test_images_of_a_rescaled_run_are_shown_between_0_and_1():
    run = runs.system(rescale=4.0)
    images = np.random.RandomState(0).uniform(size=[2, *run.spec.shape]).astype(np.float32)
    still = Caller(run, calls.chain_of(EvaluateOptions(num_steps=1, step_lr=0.0, noise_scale=0.0), 4.0), KEY, 2)
    np.testing.assert_allclose(still(images, np.eye(3, dtype=np.float32)[:2], 0), images, rtol=1e-6)


def test_labels_that_are_drawn():
    run = runs.system()
    labels = calls.random_labels(run, KEY, 300).numpy()
    assert labels.shape == (300, runs.CLASSES)
    assert (labels.sum(axis=1) == 1.0).all()
    assert (labels.sum(axis=0) > 60).all()
    assert calls.random_labels(runs.system(cclass=False), KEY, 5) is None


def test_classes_of_runs_without():
    np.testing.assert_array_equal(calls.classes(runs.system(), "democlass"), np.eye(3))
    with pytest.raises(SettingsError, match="--task=democlass needs a run that was trained with --cclass"):
        calls.classes(runs.system(cclass=False), "democlass")
    sprites = runs.system(dataset="dsprites", cond_pos=True, side=16)
    with pytest.raises(SettingsError, match="labels are the values of --cond_pos"):
        calls.classes(sprites, "democlass")
    assert calls.random_labels(sprites, KEY, 4).shape == (4, 2)
    starts = calls.starts(sprites, KEY, 50).numpy()
    assert starts.min() < 0.0
    assert starts.max() > 1.0
    assert abs(starts.mean() - 0.5) < 0.02
    starts = calls.starts(runs.system(), KEY, 50).numpy()
    assert starts.min() >= 0.0
    assert starts.max() < 1.0
