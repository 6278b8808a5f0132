"""Checkpoints of the original code: what is read comes back to the bit, and what does not fit changes nothing."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.ebm import small
from tfgen.systems.ebm import published
from tfgen.systems.ebm.networks import EnergyNetwork
from tfgen.systems.ebm.published import CheckpointError
from tfgen.training.clipped_adam import ClippedAdam
from tfgen.training.optimizers import Adam


class Run:
    """A network with averages and moments of its own, none of them equal to what a file holds."""

    def __init__(self, seed: int, **settings):
        self.network = small.network(**{"kind": "MnistNet", "side": 8} | settings, seed=seed)
        self.averages = [tf.Variable(tf.zeros_like(variable)) for variable in self.network.trainable_variables]
        self.optimizer = ClippedAdam()
        self.optimizer.build(self.network.trainable_variables)
        generator = np.random.RandomState(seed)
        for variable in (*self.optimizer.first_moments, *self.optimizer.second_moments):
            variable.assign(generator.uniform(size=variable.shape).astype(np.float32))
        self.optimizer.beta2_power.assign(0.999**seed)

    def bits(self) -> list[bytes]:
        variables = [*self.network.all_variables, *self.averages, *self.optimizer.variables]
        return [variable.numpy().tobytes() for variable in variables]

    def arrays(self) -> dict[str, np.ndarray]:
        """What the original would write: of variables without a gradient no moments."""
        place = {variable.ref(): index for index, variable in enumerate(self.optimizer.targets)}
        arrays = {f"context_0/{name}": variable.numpy() for name, variable in self.network.by_name.items()}
        for name, variable in self.network.trained.items():
            for slot, moments in (("Adam", self.optimizer.first_moments), ("Adam_1", self.optimizer.second_moments)):
                arrays[f"context_0/{name}/{slot}"] = moments[place[variable.ref()]].numpy()
        powers = {"beta1_power": self.optimizer.beta1_power, "beta2_power": self.optimizer.beta2_power}
        return arrays | {name: power.numpy() for name, power in powers.items()}


def write(arrays: dict[str, np.ndarray], path: pathlib.Path) -> str:
    """A checkpoint in the format of the original's TensorFlow."""
    names = list(arrays)
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(arrays[name]) for name in names],
    )
    return str(path)


@pytest.mark.parametrize("ending", ["", ".index", ".meta"])
def test_what_was_written_is_read(tmp_path, ending):
    source, target = Run(3), Run(4)
    path = write(source.arrays() | {"e_bias": np.zeros(10, np.float32)}, tmp_path / "model_300")
    loaded = published.load_into(path + ending, target.network, target.averages, target.optimizer)
    assert (loaded.step, loaded.missing, loaded.ignored) == (300, (), ("e_bias",))
    for name, array in source.arrays().items():
        np.testing.assert_array_equal(target.arrays()[name], array)
    for variable, average in zip(target.network.trainable_variables, target.averages, strict=True):
        np.testing.assert_array_equal(variable, average)


def test_weights_alone_leave_the_optimizer_as_it_is():
    source, target = Run(3), Run(4)
    before = [variable.numpy() for variable in target.optimizer.variables]
    arrays = {name: value for name, value in source.arrays().items() if "Adam" not in name and "power" not in name}
    assert published.load_into(arrays, target.network).step == 0
    for old, variable in zip(before, target.optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, variable)
    np.testing.assert_array_equal(target.network.by_name["c1/cweight"], source.network.by_name["c1/cweight"])


def test_what_is_missing_is_named_and_nothing_changes():
    source, target = Run(3), Run(4)
    arrays = source.arrays()
    del arrays["context_0/c2/c_u"], arrays["context_0/fc5/b/Adam"]
    before = target.bits()
    message = (
        r"lacks 2 of .*\(context_0/c2/c_u, context_0/fc5/b/Adam\); it looks like --network=MnistNet --num_filters=3$"
    )
    with pytest.raises(CheckpointError, match=message):
        published.load_into(arrays, target.network, optimizer=target.optimizer)
    assert target.bits() == before


def test_what_is_missing_may_be_passed_over():
    source, target = Run(3), Run(4)
    arrays = source.arrays() | {"context_0/fc5/b": np.zeros(2, np.float32)}
    del arrays["context_0/c2/c_u"]
    kept = target.network.by_name["c2/c_u"].numpy()
    loaded = published.load_into(arrays, target.network, strict=False)
    assert loaded.missing == ("context_0/c2/c_u", "context_0/fc5/b")
    np.testing.assert_array_equal(target.network.by_name["c2/c_u"], kept)
    np.testing.assert_array_equal(target.network.by_name["c1/c_u"], source.network.by_name["c1/c_u"])


def checkpoint_of(network: EnergyNetwork) -> dict[str, np.ndarray]:
    return {f"context_0/{name}": variable.numpy() for name, variable in network.by_name.items()}


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"kind": "ResNet32", "filters": 5}, "--network=ResNet32 --filters=5$"),
        ({"kind": "ResNet32", "label_columns": 10}, r"--network=ResNet32 --filters=3 --cclass \(10 label columns\)$"),
        ({"kind": "ResNet32Large", "spec_norm": False}, "--network=ResNet32Large --filters=3 --nospec_norm$"),
        ({"kind": "ResNet32Larger"}, "--network=ResNet32Larger --filters=3$"),
        ({"kind": "ResNet32Wider", "filters": 6}, "--network=ResNet32Wider --filters=6$"),
        (
            {"kind": "DspritesNet", "label_columns": 2},
            r"--network=DspritesNet --num_filters=3 --cclass \(2 label columns",
        ),
        ({"kind": "MnistNet", "filters": 7}, "--network=MnistNet --num_filters=7$"),
    ],
)
def test_another_network_is_told_by_its_flags(settings, flags):
    target = small.network("ResNet32", filters=4)
    with pytest.raises(CheckpointError, match=f"it looks like {flags}"):
        published.load_into(checkpoint_of(small.network(**settings)), target)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"w": np.zeros(2, np.float32)}, "no checkpoint of the original code: nothing in it is named context_0/"),
        ({"context_0/w": np.zeros(2, np.float32)}, "it looks like none of the published networks"),
    ],
)
def test_something_else_is_told(arrays, message):
    with pytest.raises(CheckpointError, match=message):
        published.load_into(arrays, small.network("MnistNet"))


def test_other_errors(tmp_path):
    run = Run(3)
    arrays = run.arrays()
    write(arrays, tmp_path / "model_6")
    with pytest.raises(CheckpointError, match=r"model_7.index does not exist.*there are model_6$"):
        published.read(str(tmp_path / "model_7"))
    (tmp_path / "model_8.index").write_bytes(b"not a table")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint of TensorFlow"):
        published.read(str(tmp_path / "model_8"))
    with pytest.raises(CheckpointError, match="c1/cweight has type float64, expected float32"):
        published.load_into(arrays | {"context_0/c1/cweight": np.zeros([4, 4, 64, 3])}, run.network)
    other = Adam()
    other.build(run.network.trainable_variables)
    with pytest.raises(CheckpointError, match="hold moments of its clipped Adam, but the optimizer is Adam"):
        published.load_into(arrays, run.network, optimizer=other)


def test_step_of_a_name():
    assert published.step_of("cachedir/cifar10_cond/model_74700") == 74700
    assert published.step_of("cachedir/model_6.data-00000-of-00001") == 6
    assert published.step_of("cachedir/model_best") == 0
