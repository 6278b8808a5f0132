"""The system: its loss and what it keeps, samples, ranks, export and checkpoints of the original."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.ebm import small
from tfgen.data.source import ImageSpec
from tfgen.ops.library import plain_tensorflow
from tfgen.randomness import Key, StepDraws
from tfgen.settings import SettingsError
from tfgen.systems.ebm import objective
from tfgen.systems.ebm.config import Config
from tfgen.systems.ebm.networks import OFF
from tfgen.systems.ebm.sampling import SampleOptions, factor_labels
from tfgen.systems.ebm.system import EnergyBasedModel
from tfgen.training.state import TrainState

SPEC = ImageSpec(8, 8, 1, 10)
SMALL = Config(
    dataset="digits",
    num_filters=2,
    batch_size=4,
    num_steps=2,
    step_lr=10.0,
    zero_kl=True,
    replay_batch=True,
    replay_capacity=8,
)


def built(**changes) -> EnergyBasedModel:
    config = dataclasses.replace(SMALL, **changes)
    system = EnergyBasedModel(config, SPEC)
    trained = small.network("MnistNet", 2, side=8, channels=1, label_columns=config.label_columns(SPEC))
    for own, other in zip(system.network.variables, trained.variables, strict=True):
        own.assign(other)
    return system


def batch(count: int = 4, seed: int = 0, **options) -> dict[str, tf.Tensor]:
    generator = np.random.RandomState(seed)
    raw = {
        "image": generator.randint(0, 256, [count, 8, 8, 1], np.uint8),
        "label": generator.randint(0, 10, count).astype(np.int32),
    }
    prepared = built(**options).prepare(raw, StepDraws(seed, 0, 0, 1, count))
    return {name: tf.constant(value) for name, value in prepared.items()}


def key(seed: int = 0) -> Key:
    return Key.create(seed, "test")


def step(system: EnergyBasedModel, values: dict[str, tf.Tensor], seed: int = 0):
    """A step as the trainer takes it, without update: it counts where the loss is a number."""
    loss = system.loss(values, key(seed), training=True)
    loss.settle(tf.math.is_finite(loss.objective))
    return loss


# Training ----------------------------------------------------------------------------------------------------


def test_samples_of_a_step_are_where_later_chains_begin():
    system = built()
    buffer = system.chains.buffer
    for seed in range(3):
        before = buffer.images.numpy()
        step(system, batch(seed=seed), seed)
        assert int(buffer.length) == min(4 * (seed + 1), 8)
        assert not np.array_equal(buffer.images.numpy(), before)


def test_the_power_iteration_improves_by_one_in_a_step():
    system = built()
    expected = system.network.normalized().vectors
    step(system, batch())
    for name, vector in expected.items():
        np.testing.assert_allclose(system.network.by_name[name].numpy(), vector.numpy(), rtol=1e-5, atol=1e-6)


def test_a_step_above_the_limit_has_no_loss_and_leaves_nothing_behind():
    system = built(energy_limit=1e-6)
    vectors = [variable.numpy() for variable in system.network.variables]
    loss = step(system, batch())
    assert np.isnan(loss.objective.numpy())
    assert np.isfinite(loss.metrics["energy_pos"].numpy())  # what is logged tells why
    assert int(system.chains.buffer.length) == 0
    for before, variable in zip(vectors, system.network.variables, strict=True):
        np.testing.assert_array_equal(before, variable.numpy())


def test_a_step_that_other_ranks_do_not_take_leaves_nothing_behind():
    system = built(pcd=True, replay_batch=False, replay_capacity=10_000)
    before = [variable.numpy() for variable in system.network.variables]
    loss = system.loss(batch(), key(), training=True)
    assert np.isfinite(loss.objective.numpy())
    loss.settle(tf.constant(False))
    assert not bool(system.chains.begun)
    for array, variable in zip(before, system.network.variables, strict=True):
        np.testing.assert_array_equal(array, variable.numpy())


def test_images_that_are_not_numbers_leave_nothing_behind():
    system = built()
    poisoned = batch() | {"start": tf.fill([4, 8, 8, 1], np.float32(np.nan))}
    assert np.isnan(step(system, poisoned).objective.numpy())
    assert int(system.chains.buffer.length) == 0


def test_chains_go_on_where_the_last_ended():
    system = built(replay_batch=False, replay_capacity=10_000, pcd=True)
    assert not bool(system.chains.begun)
    step(system, batch())
    ends = system.chains.previous.numpy()
    fresh = tf.zeros([4, 8, 8, 1])
    np.testing.assert_array_equal(system.chains.starts(fresh, None, key()).images.numpy(), ends)


def test_microbatches_and_chains_that_go_on_do_not_agree():
    halves = {name: value[:2] for name, value in batch().items()}
    with pytest.raises(SettingsError, match=r"batches of --batch_size=4, found 2 images.*drop --grad_accumulation"):
        built().loss(halves, key(), training=True)
    assert np.isfinite(built(replay_batch=False).loss(halves, key(), training=True).objective.numpy())


@pytest.mark.parametrize(
    "options",
    [
        {"zero_kl": False},
        {"hmc": True, "hmc_step_size": 0.1, "hmc_leapfrogs": 2, "proposal_debug": True},
        {"cclass": True, "replay_labels": True},
        {"replay_float": True, "objective": "logsumexp", "rescale": 2.0},
        {"objective": "softplus", "proj_norm": 0.01, "proj_norm_type": "l2"},
    ],
)
def test_every_kind_of_step_gives_a_gradient(options):
    system = built(**options)

    @tf.function(autograph=False)
    def gradient(values):
        with tf.GradientTape() as tape:
            loss = system.loss(values, key(), training=True)
        return loss.objective, loss.metrics, tape.gradient(loss.objective, list(system.network.trained.values()))

    _, metrics, gradients = gradient(batch(**options))
    assert all(np.isfinite(gradient.numpy()).all() for gradient in gradients)
    assert sum(float(tf.reduce_sum(tf.abs(gradient))) for gradient in gradients) > 0
    assert ("loss_kl" in metrics) == (not system.config.zero_kl)
    assert ("acceptance" in metrics) == system.config.hmc


def test_samples_of_a_hamiltonian_run_are_hamiltonian():
    options = {"hmc": True, "hmc_step_size": 0.1, "hmc_leapfrogs": 2}
    one, other = built(**options), built(**options, step_lr=99.0)  # which no transition reads
    images = one.sample(2, key(), SampleOptions(num_steps=2))
    np.testing.assert_array_equal(images, other.sample(2, key(), SampleOptions(num_steps=2)))
    assert not np.array_equal(images, built().sample(2, key(), SampleOptions(num_steps=2)))


def test_energies_are_those_of_images_in_the_range_of_the_run(tmp_path):
    raw = [{"image": np.full([3, 8, 8, 1], 128, np.uint8), "label": np.zeros(3, np.int32)}]
    found = built(rescale=4.0).evaluate(raw, built().default_evaluate_options(), tmp_path)["energy"]
    system = built()
    expected = system.energy(system.normalized(), tf.fill([1, 8, 8, 1], 2.0)).numpy()[0, 0]
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_classes_of_images_are_drawn_from_their_energies():
    config = dataclasses.replace(SMALL, dataset="cifar10", filters=2, cclass=True, model_cclass=True)
    system = EnergyBasedModel(config, ImageSpec(8, 8, 3, 10))
    generator = np.random.RandomState(0)
    raw = {"image": generator.randint(0, 256, [4, 8, 8, 3], np.uint8), "label": np.zeros(4, np.int32)}
    prepared = system.prepare(raw, StepDraws(0, 0, 0, 1, 4))
    values = {name: tf.constant(value) for name, value in prepared.items()}
    entropy = system.loss(values, key(), training=True).metrics["label_entropy"].numpy()
    assert entropy > 0.1  # the labels of the data are all the same


def test_two_ranks_have_the_gradient_of_one():
    """The mean over ranks of gradients with the same negatives; chains and buffers are each rank's own."""
    system = built(cclass=True)
    network, weights = system.network, system.network.normalized
    images = small.images(network, 6)
    negatives, labels = small.images(network, 6, seed=1), small.labels(network, 6)

    def gradient(rows: slice) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            outcome = objective.evaluate(
                network,
                weights(),
                system.objective,
                images[rows],
                negatives[rows],
                lambda energy, x: x,
                labels[rows],
                labels[rows],
            )
        return [part.numpy() for part in tape.gradient(outcome.loss, list(network.trained.values()))]

    halves = [gradient(slice(0, 3)), gradient(slice(3, 6))]
    for whole, first, second in zip(gradient(slice(0, 6)), *halves, strict=True):
        np.testing.assert_allclose(whole, (first + second) / 2, rtol=1e-4, atol=1e-6)


def test_noise_of_the_second_rank_is_that_of_the_second_half_of_the_batch():
    system = built(replay_batch=False)
    starts = tf.zeros([4, 8, 8, 1])

    def energy(x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.square(x), axis=[1, 2, 3])[:, tf.newaxis]

    whole = system.chains.moved(energy, starts, key())
    second = system.chains.moved(energy, starts[:2], key().skip(2))
    np.testing.assert_array_equal(whole[2:].numpy(), second.numpy())


# Samples -----------------------------------------------------------------------------------------------------


def test_a_sample_depends_on_its_number_alone():
    system = built(cclass=True)
    options = SampleOptions(num_steps=3)
    whole = system.sample(7, key(), options)
    assert whole.shape == (7, 8, 8, 1)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(system.sample(3, key(), options), whole[:3])
    np.testing.assert_array_equal(system.sample(2, key().skip(5), options), whole[5:])


def test_parts_of_a_chain_are_the_chain(monkeypatch):
    seen = []
    system = built()
    parts = system.sample(4, key(), SampleOptions(num_steps=6), lambda done, total, preview: seen.append((done, total)))
    assert seen == [(number, 6) for number in range(1, 7)]
    monkeypatch.setattr("tfgen.systems.ebm.sampling._PARTS", 1)
    np.testing.assert_array_equal(built().sample(4, key(), SampleOptions(num_steps=6)), parts)


def test_samples_of_a_class_are_others_than_those_of_another():
    system = built(cclass=True)
    ones, twos = (system.sample(2, key(), SampleOptions(num_steps=3, label=label)) for label in ("1", "2"))
    assert not np.array_equal(ones, twos)
    np.testing.assert_array_equal(system.sample(2, key(), SampleOptions(num_steps=3))[1], ones[1])  # classes in turn


def test_chains_may_begin_in_the_buffer():
    system = built()
    stored = np.random.RandomState(0).randint(0, 255, [4, 8, 8, 1], np.uint8)
    system.chains.buffer.add(tf.constant(stored))
    images = system.sample(4, key(), SampleOptions(num_steps=1, step_lr=0.0, noise_scale=0.0, from_replay=True))
    for image in images:
        assert min(np.abs(image.astype(int) - other).max() for other in stored) <= 1


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {"label": "1"}, "--label=1: the run is unconditional"),
        ({"cclass": True}, {"label": "10"}, "--label=10: expected a class from 0 to 9"),
        ({"cclass": True}, {"label": "one"}, "--label=one: expected a class from 0 to 9"),
        ({"replay_batch": False}, {"from_replay": True}, "--from_replay: the run has no replay buffer"),
        ({}, {"from_replay": True}, "--from_replay: the run's replay buffer is empty as yet"),
    ],
)
def test_options_that_a_run_cannot_have(config, options, message):
    with pytest.raises(SettingsError, match=message):
        built(**config).sample(2, key(), SampleOptions(num_steps=1, **options))


def test_labels_of_factors_lie_where_those_of_images_do():
    uniforms = tf.constant(np.linspace(0, 1, 11, endpoint=False), tf.float32)
    assert factor_labels("cond_size", uniforms).shape == (11, 1)
    assert 0.5 <= factor_labels("cond_size", uniforms).numpy().min() < factor_labels("cond_size", uniforms)[-1] <= 1.0
    np.testing.assert_allclose(tf.norm(factor_labels("cond_rot", uniforms), axis=1), 1.0, rtol=1e-6)
    positions = factor_labels("cond_pos", uniforms).numpy()
    assert positions.shape == (11, 2)
    assert positions.min() >= 0.0
    assert positions.max() < 1.0


# Commands ----------------------------------------------------------------------------------------------------


def test_the_energy_of_a_split_is_a_mean_over_images(tmp_path):
    system = built(cclass=True)
    generator = np.random.RandomState(0)
    raw = {
        "image": generator.randint(0, 256, [5, 8, 8, 1], np.uint8),
        "label": generator.randint(0, 10, 5).astype(np.int32),
    }
    parts = [{name: value[rows] for name, value in raw.items()} for rows in (slice(0, 3), slice(3, 5))]
    result = system.evaluate(parts, system.default_evaluate_options(), tmp_path)
    images, labels = raw["image"].astype(np.float32) / 256, tf.one_hot(raw["label"], 10)
    energies = system.network.energy(system.network.normalized(), tf.constant(images), labels, OFF).numpy()
    assert result["examples"] == 5
    assert result["energy"] == pytest.approx(energies.mean(), rel=1e-4)
    assert result["squared_energy"] == pytest.approx(np.square(energies).mean(), rel=1e-4)


def test_exported_functions_are_those_of_the_system():
    system = built(cclass=True)
    images, classes = small.images(system.network, 3), tf.constant([0, 1, 9])
    with plain_tensorflow():
        functions = system.signatures()
        energy = functions["energy"](images, classes)["energy"].numpy()
        once = functions["sample"](classes, tf.constant(3), tf.constant(5))
        again = functions["sample"](classes[:2], tf.constant(3), tf.constant(5))
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected class_label from 0 to 9"):
            functions["energy"](images, tf.constant([0, 1, 10]))
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected steps of 1 or more"):
            functions["sample"](classes, tf.constant(0), tf.constant(5))
    own = system.energy(system.normalized(), images, tf.one_hot(classes, 10)).numpy()[:, 0]
    np.testing.assert_allclose(energy, own, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(once["images"][:2], again["images"], atol=1e-6)
    assert once["pixels"].dtype == tf.uint8
    assert once["pixels"].shape == (3, 8, 8, 1)


def test_a_checkpoint_of_another_class_says_which_flags_fit(tmp_path):
    system = built()
    other = small.network("DspritesNet", 2, label_columns=3)
    saver = tf.compat.v1.train.Saver({v.name.removesuffix(":0"): v for v in other.all_variables})
    path = saver.save(None, str(tmp_path / "model_7"), write_meta_graph=False)
    state = TrainState(system, system.recipe(100, 1))
    before = [variable.numpy() for variable in system.network.variables]
    with pytest.raises(ValueError, match=r"--network=DspritesNet --num_filters=2 --cclass \(3 label columns\)"):
        system.load_published(path, state)
    for array, variable in zip(before, system.network.variables, strict=True):
        np.testing.assert_array_equal(array, variable.numpy())


def test_half_precision_is_refused():
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        with pytest.raises(SettingsError, match="--precision=mixed_bfloat16: leave the flag out"):
            built()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
