"""Checkpoints of the original code of distribution smoothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests import torch_files
from tests.systems.smoothing import small
from tfgen.systems.smoothing import published
from tfgen.torch_weights import CheckpointError
from tfgen.training.state import TrainState

RANDOM = np.random.RandomState(0)


def state_of(**settings) -> tuple[object, TrainState]:
    system = small.system(**settings)
    return system, TrainState(system, system.recipe(100, 1))


def file_of(system, tmp_path, averages: bool, change=None, updates: int = 7):
    """A checkpoint of random numbers, and what the optimizer holds in it."""
    named = published.variables(system.network)
    storages, count = {}, 0

    def stored(array):
        nonlocal count
        count += 1
        storages[str(count)] = array
        return torch_files.tensor(str(count), array)

    drawn = {kind: [RANDOM.rand(*item.shape).astype(np.float32) for item in named] for kind in ("w", "m", "v", "a")}
    weights = {f"module.{item.name}": stored(array) for item, array in zip(named, drawn["w"], strict=True)}
    moments = {
        index: {"step": updates, "exp_avg": stored(mean), "exp_avg_sq": stored(square)}
        for index, (mean, square) in enumerate(zip(drawn["m"], drawn["v"], strict=True))
    }
    contents = [weights, {"state": moments, "param_groups": []}, {"last_epoch": updates}, 3]
    if averages:
        contents.append({item.name: stored(array) for item, array in zip(named, drawn["a"], strict=True)})
    if change:
        change(contents)
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(torch_files.zip_archive(contents, storages))
    return str(path), drawn, named


def test_weights_moments_averages_and_step_are_taken_over(tmp_path):
    system, state = state_of(ema=True, batch_size=5)
    path, drawn, named = file_of(system, tmp_path, averages=True)
    system.load_published(path, state)
    assert int(state.step) == int(state.optimizer.updates) == 7
    for index, item in enumerate(named):
        np.testing.assert_array_equal(item.variable, item.to_ours(drawn["w"][index]))
        np.testing.assert_array_equal(state.averages[0].averages[index], item.to_ours(drawn["a"][index]))
        # The original's gradients are those of sums over the batch of 5.
        mean, square = item.to_ours(drawn["m"][index]), item.to_ours(drawn["v"][index])
        np.testing.assert_allclose(state.optimizer.first_moments[index], mean / 5, rtol=1e-6)
        np.testing.assert_allclose(state.optimizer.second_moments[index], square / 25, rtol=1e-6)


def test_averages_begin_as_the_weights_where_the_file_has_none(tmp_path):
    system, state = state_of(ema=True)
    path, _, named = file_of(system, tmp_path, averages=False)
    system.load_published(path, state)
    for item, average in zip(named, state.averages[0].averages, strict=True):
        np.testing.assert_array_equal(average, item.variable)


def drop_one(contents):
    contents[0].pop("module.u_init.conv.bias")


def add_one(contents):
    contents[0]["module.u_init.conv.scale"] = contents[0]["module.u_init.conv.bias"]


def swap_shapes(contents):
    contents[0]["module.u_init.conv.bias"] = contents[0]["module.nin_out.lin_a.bias"]


def uneven_steps(contents):
    contents[1]["state"][3]["step"] = 8


def lose_moments(contents):
    del contents[1]["state"][3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_one, "lacks 1 of 171 tensors .u_init.conv.bias"),
        (add_one, "u_init.conv.scale"),
        (swap_shapes, r"u_init.conv.bias \[20\], expected \[6\]"),
        (uneven_steps, "one number of updates"),
        (lose_moments, "moments of 170 tensors, expected 171"),
        (lambda contents: contents.pop(), "expected a list of weights"),
        (lambda contents: contents.append("more"), "averaged weights are no tensors"),
    ],
    ids=["missing", "extra", "shape", "steps", "moments", "short", "text"],
)
def test_a_file_that_does_not_fit_changes_nothing(change, message, tmp_path):
    system, state = state_of()
    path, *_ = file_of(system, tmp_path, averages=False, change=change)
    before = [variable.numpy().tobytes() for variable in state.variables]
    with pytest.raises(CheckpointError, match=message):
        system.load_published(path, state)
    assert [variable.numpy().tobytes() for variable in state.variables] == before
