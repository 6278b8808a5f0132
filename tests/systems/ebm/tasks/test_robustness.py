"""Attacks on a classifier whose gradient is known, the refinement after them, and the accuracy of small networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tests.systems.ebm.tasks import small
from tfgen.randomness import Key
from tfgen.settings import SettingsError
from tfgen.systems.ebm import sampler
from tfgen.systems.ebm.sampler import Chain
from tfgen.systems.ebm.tasks import robustness
from tfgen.systems.ebm.tasks.robustness import Attack, Refinement

KEY = Key.create(SEED, "attack")
RANDOM = np.random.default_rng(SEED)
WEIGHTS = tf.constant(RANDOM.normal(size=[3, 5]).astype(np.float32))
IMAGES = tf.constant(RANDOM.uniform(0.3, 0.7, [4, 5]).astype(np.float32))
LABELS = tf.one_hot([0, 1, 2, 1], 3)


def linear(x, labels):
    """Energies [B, 1] of points [B, 5] in three classes."""
    return -tf.reduce_sum(tf.matmul(labels, WEIGHTS) * x, axis=1, keepdims=True)


def softmax_gradient(x) -> np.ndarray:
    logits = x @ WEIGHTS.numpy().T
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return (share - LABELS.numpy()) @ WEIGHTS.numpy()


def test_logits_and_gradient():
    logits, gradient = robustness.logits_and_gradient(linear, IMAGES, LABELS)
    np.testing.assert_allclose(logits, IMAGES.numpy() @ WEIGHTS.numpy().T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, softmax_gradient(IMAGES.numpy()), rtol=1e-4, atol=1e-6)


def test_random_starts():
    images = tf.zeros([300, 5])
    whole = Attack(1, False, 8, start=8, original=True).offsets(KEY, images)
    np.testing.assert_array_equal(np.unique(whole), np.arange(-8, 9))
    part = Attack(1, False, 8, start=8, original=True).offsets(KEY.skip(7), images[:3])
    np.testing.assert_array_equal(part, whole[7:10])
    real = Attack(1, False, 3, start=3).offsets(KEY, images)
    assert -3 <= np.min(real) < -2.95
    assert 2.95 < np.max(real) <= 3


def offsets(start: float) -> tf.Tensor:
    return tf.constant(RANDOM.uniform(-start, start, IMAGES.shape).astype(np.float32))


@pytest.mark.parametrize("original", [False, True])
def test_random_starts_lie_in_the_ball(original):
    draws = offsets(8)
    found = Attack(1, True, 5, start=8, original=original).begin(IMAGES, draws) - IMAGES
    norms = np.linalg.norm(draws, axis=1)
    assert norms.max() > 5
    expected = norms if original else np.minimum(norms, 5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1) * 255, expected, rtol=1e-4)


def attacked(attack: Attack, images=IMAGES) -> np.ndarray:
    draws = offsets(attack.start)
    return tf.function(lambda: robustness.attacked(linear, images, LABELS, attack, draws))().numpy()


def test_the_largest_norm():
    """The cross-entropy of a linear classifier rises along signs that hardly change."""
    found = attacked(Attack(20, False, 6, start=6))
    expected = IMAGES.numpy() + 6 / 255 * np.sign(softmax_gradient(IMAGES.numpy()))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.array_equal(attacked(Attack(0, False, 6, start=6)), IMAGES)
    assert np.array_equal(attacked(Attack(3, False, 0, start=0)), IMAGES)


@pytest.mark.parametrize("original", [False, True])
def test_the_euclidean_norm(original):
    """The ball of the original moves with the image."""
    found = attacked(Attack(6, True, 3, start=0, original=original))
    distances = np.linalg.norm(found - IMAGES.numpy(), axis=1) * 255
    # Steps of 2 / 255 in five entries are longer than 3 / 255.
    np.testing.assert_allclose(distances, 18 if original else 3, rtol=1e-4)


@pytest.mark.parametrize("original", [False, True])
def test_the_range_of_images(original):
    found = attacked(Attack(8, False, 8, start=8, original=original), images=tf.round(IMAGES))
    outside = np.abs(found - 0.5).max() > 0.5
    assert outside == original


def test_refinement_by_hand():
    """Two steps of every class, within a box; the noise comes first."""
    noise = RANDOM.normal(size=[2, 12, 5]).astype(np.float32)
    chain = Chain(2, step_size=0.02, noise=0.005, clip_mode="li", clip=0.5)
    found = robustness.refined(linear, IMAGES, 3, Refinement(chain, 8), sampler.given(tf.constant(noise)))
    centres = IMAGES.numpy().repeat(3, axis=0)
    x = centres
    for n in noise:
        x = x + 0.005 * n + 0.02 * np.clip(np.tile(WEIGHTS, [4, 1]), -0.5, 0.5)
        x = np.clip(x, centres - 8 / 255, centres + 8 / 255)
    np.testing.assert_allclose(found, x, atol=1e-6)
    logits = robustness.logits_of(linear, found, 3)
    np.testing.assert_allclose(logits, (x.reshape(4, 3, 5) * WEIGHTS.numpy()).sum(axis=2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("high", "largest"), [(1.0, 1.0), (math.inf, 1.0 + 8 / 255)])
def test_the_range_of_a_refinement(high, largest):
    chain = Chain(3, step_size=1.0, noise=0.0, low=-high, high=high)
    noise = sampler.given(tf.zeros([3, 12, 5]))
    found = robustness.refined(
        lambda x, _: -tf.reduce_sum(x, 1)[:, None], 0 * IMAGES + 1, 3, Refinement(chain, 8), noise
    )
    np.testing.assert_allclose(found, largest, rtol=1e-6)


def test_without_a_box_nothing_moves():
    refinement = Refinement(Chain(3, step_size=1.0, noise=1.0), 0)
    found = robustness.refined(linear, IMAGES, 3, refinement, sampler.drawn(KEY))
    np.testing.assert_array_equal(found, IMAGES.numpy().repeat(3, axis=0))


# The task ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system():
    return small.system(seed=3)


def clean_hits(system, source) -> np.ndarray:
    batch = source.read(np.arange(len(source)))
    table = [
        system.energy(system.normalized(), system.scaled(batch["image"]), tf.one_hot([k] * len(source), 4))[:, 0]
        for k in range(4)
    ]
    return np.argmin(table, axis=0) == batch["label"]


def test_accuracy_and_what_an_attack_makes_of_it(system, tmp_path):
    """On labels that the network gives: all right without an attack, and some wrong with a large one."""
    source = small.source(8)
    batch = source.read(np.arange(8))
    hits = clean_hits(system, source)
    job = small.job(tmp_path, batch_size=8, images=source)
    clean = robustness.label(system, small.options("label", lival=0.0), job)
    assert clean == {"accuracy": pytest.approx(hits.mean()), "images": 8}
    assert 0 < hits.mean() < 1
    images = system.scaled(batch["image"])
    labels = system.labels_of(batch)
    energy = robustness.energy_of(system, advance=False)

    def loss(x):
        logits, _ = robustness.logits_and_gradient(energy, x, labels)
        return tf.nn.softmax_cross_entropy_with_logits(labels, logits).numpy()

    attack = Attack(10, False, 20, start=0)
    moved = robustness.attacked(energy, tf.constant(images), tf.constant(labels), attack, tf.zeros_like(images))
    assert (loss(moved) > loss(tf.constant(images))).all()
    assert np.abs(moved - images).max() == pytest.approx(20 / 255, rel=1e-4)


def test_a_grid_of_budgets(monkeypatch, system, tmp_path):
    monkeypatch.setattr(robustness, "_GRIDS", {-1: [0, 60]})
    job = small.job(tmp_path)
    options = small.options("label", labelgrid=True, pgd=2, num_steps=1)
    results = robustness.label(system, options, job)
    found = np.load(job.folder / "result_-1_pixels.npy")
    np.testing.assert_array_equal(found, [results["accuracy_0"], results["accuracy_60"]])
    assert found[0] == pytest.approx(clean_hits(system, job.source).mean())
    assert found[1] <= found[0]
    with pytest.raises(SettingsError, match="--labelgrid compares budgets of attacks: say how many steps"):
        robustness.label(system, small.options("label", labelgrid=True), job)


@pytest.mark.parametrize("lnorm", [-1, 2])
def test_settings_of_the_original(lnorm):
    """Its budgets, start and box do not follow the flags; ours do."""
    values = {"lnorm": lnorm, "lival": 3.0, "l2val": 20.0, "pgd": 5, "proj_norm": 0.01}
    options = small.options("label", original_attack=True, **values)
    budget = robustness._own_budget(options)
    assert robustness._attack(options, budget) == Attack(5, lnorm == 2, 40 if lnorm == 2 else 8, 8, original=True)
    refinement = robustness._refinement(options, budget)
    assert (refinement.budget, refinement.chain.high, refinement.chain.clip) == (8, math.inf, 0.01)
    assert (refinement.chain.steps, refinement.chain.step_size, refinement.chain.noise) == (20, 10.0, 0.005)
    options = small.options("label", **values)
    budget = robustness._own_budget(options)
    assert robustness._attack(options, budget) == Attack(5, lnorm == 2, 20.0 if lnorm == 2 else 3.0, 3.0)
    assert robustness._refinement(options, budget).budget == 3.0
    assert robustness._refinement(options, budget).chain.high == 1.0


def test_a_network_without_classes(tmp_path):
    for task in (robustness.label, robustness.labelfinetune):
        with pytest.raises(SettingsError, match=f"--task={task.__name__} chooses among classes, and this run has none"):
            task(small.system(cclass=False), small.options(task.__name__), small.job(tmp_path))
