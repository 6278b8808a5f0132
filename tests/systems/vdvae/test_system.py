"""VDVAE as a system: what a loss reports, and which steps change what."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.vdvae import small
from tfgen.distribute import Ranks
from tfgen.randomness import Key
from tfgen.systems.vdvae.config import Config
from tfgen.systems.vdvae.sampling import latent_noise
from tfgen.systems.vdvae.system import VeryDeepVAE
from tfgen.training.state import TrainState
from tfgen.training.step import TrainStep

NO_REQUEST = np.zeros(2, np.float32)
KEY = Key.create(0, "train")
BATCH = {"image": tf.constant(small.images(4))}
TINY = {"enc_blocks": "8x1,8d8", "dec_blocks": "1x1,8m1", "n_batch": 4}  # steps of few operations


def numbers(metrics) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


class Trainer:
    """A run of a system, step by step."""

    def __init__(self, system: VeryDeepVAE, **changes):
        self.system = system
        recipe = dataclasses.replace(system.recipe(train_size=100, ranks=1), **changes)
        self.state = TrainState(system, recipe)
        self._step = TrainStep(system, recipe, self.state, Ranks())

    def step(self) -> dict[str, float]:
        outputs = self._step(BATCH, NO_REQUEST)
        return numbers({name: value for name, value in outputs.items() if name != "requests"})

    def bits(self) -> list[bytes]:
        """Of all that only an update may change."""
        averages, optimizer = self.state.averages[0].averages, self.state.optimizer
        return [
            variable.numpy().tobytes()
            for variable in [*self.system.network.trainable_variables, *averages, *optimizer.variables]
        ]


@pytest.fixture(scope="module")
def system():
    return small.system(rate_per_resolution=True, rate_weight=0.25)


# The loss ------------------------------------------------------------------------------------------------


def test_the_loss_is_distortion_plus_rate_in_nats_per_dimension(system):
    inputs, targets = system.preprocessing.input_and_target(BATCH["image"])
    bound = system.bound(inputs, targets, latent_noise(KEY))
    metrics = numbers(system.loss(BATCH, KEY, training=True).metrics)
    assert metrics["distortion"] == pytest.approx(float(tf.reduce_mean(bound.distortion)), rel=1e-5)
    assert metrics["rate"] == pytest.approx(float(tf.reduce_mean(bound.rate)), rel=1e-5)
    assert metrics["elbo"] == pytest.approx(metrics["distortion"] + metrics["rate"], rel=1e-6)
    assert metrics["bits_per_dim_bound"] == pytest.approx(metrics["elbo"] / np.log(2), rel=1e-6)
    assert metrics["distortion_nans"] == metrics["rate_nans"] == 0


def test_the_weight_of_the_rate_changes_the_objective_alone(system):
    weighted, plain = system.loss(BATCH, KEY, training=True), small.system().loss(BATCH, KEY, training=True)
    metrics = numbers(weighted.metrics)
    for name, value in numbers(plain.metrics).items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    assert float(plain.objective) == pytest.approx(metrics["elbo"], rel=1e-5)
    assert float(weighted.objective) == pytest.approx(metrics["distortion"] + 0.25 * metrics["rate"], rel=1e-5)


def test_rates_of_resolutions_add_up(system):
    metrics = numbers(system.loss(BATCH, KEY, training=True).metrics)
    rates = {name: value for name, value in metrics.items() if name.startswith("rate_at_")}
    assert rates.keys() == {"rate_at_1", "rate_at_4", "rate_at_8"}
    assert all(value > 0 for value in rates.values())
    assert sum(rates.values()) == pytest.approx(metrics["rate"], rel=1e-5)


def test_layers_of_one_resolution_share_a_rate():
    system = small.system(dec_blocks="1x2,4m1,8m4,8x1", rate_per_resolution=True)
    metrics = numbers(system.loss(BATCH, KEY, training=True).metrics)
    assert sum(metrics[f"rate_at_{side}"] for side in (1, 4, 8)) == pytest.approx(metrics["rate"], rel=1e-5)


def test_noise_is_a_function_of_the_key(system):
    first, again, other = (float(system.loss(BATCH, key, training=True).objective) for key in (KEY, KEY, KEY.fold(1)))
    assert first == again != other


def test_what_is_nan_is_flagged():
    system = small.system()
    system.network.bias.assign(tf.fill([8], np.nan))
    metrics = numbers(system.loss(BATCH, KEY, training=True).metrics)
    assert metrics["distortion_nans"] == 1
    assert metrics["rate_nans"] == 0
    assert np.isnan(metrics["elbo"])


# Steps ---------------------------------------------------------------------------------------------------


@pytest.fixture
def _eager():
    """Few steps of many settings: compiling each takes longer."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_training_lowers_the_loss():
    system = VeryDeepVAE(Config(**(small.SMALL | TINY), lr=0.005, ema_rate=0.5), small.SPEC)
    trainer = Trainer(system)
    losses = [trainer.step()["elbo"] for _ in range(25)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    assert int(trainer.state.skipped_steps) == 0
    # The averages have followed.
    key = KEY.fold(1000)
    with trainer.state.averages[0].swapped_in():
        averaged = float(system.loss(BATCH, key, training=False).objective)
    assert averaged < np.mean(losses[:5]) - 0.1


@pytest.mark.usefixtures("_eager")
def test_the_first_step_of_a_warmup_changes_no_weight():
    """Its rate is 0, also for the decay; moments and their count move on."""
    trainer = Trainer(small.system(**TINY, warmup_iters=2.0, lr=0.1, wd=0.5, skip_threshold=-1.0))
    weights = [variable.numpy() for variable in trainer.system.network.trainable_variables]
    assert trainer.step()["learning_rate"] == 0
    for before, after in zip(weights, trainer.system.network.trainable_variables, strict=True):
        np.testing.assert_array_equal(before, after)
    assert int(trainer.state.optimizer.updates) == 1
    assert all(moment.numpy().any() for moment in trainer.state.optimizer.first_moments)
    assert [trainer.step()["learning_rate"] for _ in range(3)] == pytest.approx([0.05, 0.1, 0.1])
    assert (weights[0] != trainer.system.network.trainable_variables[0].numpy()).any()


@pytest.mark.usefixtures("_eager")
def test_the_first_step_without_warmup_has_the_full_rate():
    trainer = Trainer(small.system(**TINY, lr=0.1))
    assert trainer.step()["learning_rate"] == pytest.approx(0.1)


@pytest.mark.usefixtures("_eager")
def test_a_step_whose_loss_is_nan_changes_nothing_but_the_schedule():
    trainer = Trainer(small.system(**TINY, warmup_iters=10.0, lr=0.1, skip_threshold=-1.0))
    trainer.step()
    bias = trainer.system.network.bias.numpy()
    trainer.system.network.bias.assign(tf.fill([8], np.nan))
    before = trainer.bits()
    outputs = trainer.step()
    assert outputs["skipped"] == outputs["distortion_nans"] == 1
    assert trainer.bits() == before
    trainer.system.network.bias.assign(bias)
    outputs = trainer.step()
    assert outputs["skipped"] == 0
    assert outputs["learning_rate"] == pytest.approx(0.02)  # of the third step, although it is the second update
    assert int(trainer.state.optimizer.updates) == 2
    assert int(trainer.state.step) == 3
    assert trainer.bits() != before


@pytest.mark.usefixtures("_eager")
def test_the_threshold_itself_is_skipped():
    """A norm that reaches it, before clipping."""
    norm = Trainer(small.system(**TINY)).step()["grad_norm"]
    above = float(np.nextafter(np.float32(norm), np.float32(np.inf)))
    for threshold, skipped in ((norm, 1), (above, 0), (0.9 * norm, 1), (-1.0, 0)):
        trainer = Trainer(small.system(**TINY, skip_threshold=threshold, grad_clip=0.1 * norm))
        before = trainer.bits()
        outputs = trainer.step()
        assert outputs["grad_norm"] == norm
        assert outputs["skipped"] == skipped, threshold
        assert (trainer.bits() == before) == bool(skipped), threshold
        assert int(trainer.state.step) == 1


@pytest.mark.usefixtures("_eager")
def test_a_gradient_that_is_not_finite_is_skipped_without_a_threshold_too():
    """The original would take the step where the loss is finite."""
    system = small.system(**TINY, skip_threshold=-1.0)
    # A standard deviation of exp(-25): the KL divides by its square, the gradient by its fourth power.
    bias = system.network.decoder_blocks[0].prior.c4.bias
    bias.assign(tf.tensor_scatter_nd_update(bias, [[2], [3]], [-25.0, -25.0]))
    trainer = Trainer(system)
    before = trainer.bits()
    outputs = trainer.step()
    assert np.isfinite(outputs["elbo"])
    assert not np.isfinite(outputs["grad_norm"])
    assert outputs["skipped"] == 1
    assert trainer.bits() == before


def test_recipe():
    config = Config(
        **small.SMALL, n_batch=3, num_epochs=7, epochs_per_eval=2, iters_per_print=11, iters_per_save=12,
        iters_per_ckpt=13, iters_per_images=14, adam_beta1=0.8, adam_beta2=0.7, wd=0.3, grad_clip=5.0, ema_rate=0.6,
    )  # fmt: skip
    recipe = VeryDeepVAE(config, small.SPEC).recipe(train_size=20, ranks=2)
    assert (recipe.batch_size, recipe.steps, recipe.eval_every) == (3, 7 * 3, 2 * 3)  # 3 full batches of 6 an epoch
    assert (recipe.log_every, recipe.save_every, recipe.keep_every, recipe.sample_every) == (11, 12, 13, 14)
    assert (recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.weight_decay) == (0.8, 0.7, 0.3)
    assert (recipe.max_grad_norm, recipe.clip_epsilon, recipe.max_update_norm) == (5.0, 1e-6, 400.0)
    assert (recipe.ema_decays, recipe.ema_rounded_rate, recipe.skipped_steps_count) == ((0.6,), True, True)
    assert recipe.eval_split == "valid"
    tested = VeryDeepVAE(dataclasses.replace(config, test_eval=True, skip_threshold=-1.0), small.SPEC)
    recipe = tested.recipe(train_size=2, ranks=2)
    assert (recipe.eval_split, recipe.stop_before_training, recipe.max_update_norm) == ("test", True, None)
    assert recipe.steps == 7  # a set smaller than a batch has an epoch of one step
