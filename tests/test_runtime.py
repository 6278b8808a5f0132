"""Precision: which policy is chosen, and that a step runs under each."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.e2e import runs
from tfgen import runtime, settings
from tfgen.data import builtin
from tfgen.distribute import Ranks
from tfgen.randomness import StepDraws
from tfgen.systems.distaug.system import DistAug
from tfgen.training.state import TrainState
from tfgen.training.step import TrainStep


@pytest.mark.parametrize(
    ("asked", "half", "gpu", "policy"),
    [
        ("auto", False, False, "float32"),
        ("auto", False, True, "float32"),
        ("auto", True, True, "mixed_float16"),
        ("auto", True, False, "float32"),
        ("mixed_bfloat16", True, False, "mixed_bfloat16"),
        ("float32", True, True, "float32"),
    ],
)
def test_choice_of_precision(asked, half, gpu, policy):
    chosen, note = runtime.resolve_precision(asked, half, gpu)
    assert chosen == policy
    assert bool(note) == (asked == "auto" and half and not gpu)  # it says so when it departs from the settings
    if note:
        assert "no GPU: computing in float32" in note


@pytest.fixture
def policy(request):
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    tf.keras.mixed_precision.set_global_policy(before)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"], indirect=True)
def test_training_steps_under_each_policy(policy):
    """The loss falls, and only float16 brings a loss scale."""
    parsed = settings.parse([*runs.TINY, "--dynamic_loss_scaling", "--lr=0.01"])
    splits = builtin.digits()
    system = DistAug(parsed.config, splits.spec)
    assert system.network.compute_dtype == policy.removeprefix("mixed_")
    recipe = system.recipe(len(splits.train), 1)
    assert (recipe.loss_scale is not None) == (policy == "mixed_float16")
    state = TrainState(system, recipe)
    step = TrainStep(system, recipe, state, Ranks())
    losses = []
    for number in range(12):
        draws = StepDraws(0, number, 0, 1, recipe.batch_size)
        prepared = system.prepare(splits.train.read(np.arange(recipe.batch_size)), draws)
        outputs = step({name: tf.constant(value) for name, value in prepared.items()}, np.zeros(2, np.float32))
        losses.append(float(outputs["loss"]))
    assert losses[0] == pytest.approx(np.log(256), abs=1e-3)
    assert losses[-1] < losses[0] - 0.5
    assert all(variable.dtype == tf.float32 for variable in system.network.trainable_variables)
