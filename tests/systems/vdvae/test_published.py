"""Files of the original code: what is read comes back to the bit, and what does not fit changes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from tests import torch_files
from tests.systems.vdvae import small
from tests.test_torch_file_recorded import recorded
from tests.torch_files import Opcodes, tensor
from tfgen.data.source import ImageSpec
from tfgen.systems.vdvae import published
from tfgen.systems.vdvae.config import Config
from tfgen.systems.vdvae.published import CheckpointError, Files
from tfgen.systems.vdvae.system import VeryDeepVAE
from tfgen.torch_file import TorchFileError
from tfgen.training.optimizers import Adam
from tfgen.training.state import TrainState


class Run:
    """A network with averages and moments of its own, none of them equal to what a file holds."""

    def __init__(self, system: VeryDeepVAE | None = None, seed: int = 0):
        self.system = system or small.system()
        self.network = self.system.network
        self.state = TrainState(self.system, self.system.recipe(train_size=10, ranks=1))
        self.averages, self.optimizer = self.state.averages[0].averages, self.state.optimizer
        generator = np.random.RandomState(seed)
        for variable in [*self.averages, *self.optimizer.first_moments, *self.optimizer.second_moments]:
            variable.assign(generator.normal(size=variable.shape).astype(np.float32))
        self.optimizer.updates.assign(seed + 7)

    def parts(self):
        return self.network, self.averages, self.optimizer

    def bits(self) -> list[bytes]:
        variables = [*self.network.variables, *self.averages, *self.optimizer.variables, self.state.step]
        return [variable.numpy().tobytes() for variable in variables]

    def original(self, variables) -> dict[str, np.ndarray]:
        """Values of one variable for each trainable one, as the original's files have them."""
        place = {variable.ref(): index for index, variable in enumerate(self.network.trainable_variables)}
        return {
            item.name: np.ascontiguousarray(
                published.to_original(variables[place[item.variable.ref()]].numpy(), item.layout)
            )
            for item in published.variables(self.network)
        }


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], container=torch_files.zip_archive, prefix="") -> str:
    """A file of a state dictionary."""
    storages = {str(index): array for index, array in enumerate(arrays.values())}
    value = {prefix + name: tensor(key, storages[key]) for name, key in zip(arrays, storages, strict=True)}
    path.write_bytes(container(value, storages))
    return str(path)


def write_optimizer(path: pathlib.Path, first, second, step=3, **changes) -> str:
    """A file of AdamW moments; `changes` replace parts of it."""
    storages = {f"{kind}{i}": a for kind, arrays in (("m", first), ("v", second)) for i, a in enumerate(arrays)}
    state = {
        index: {"exp_avg": tensor(f"m{index}", m), "exp_avg_sq": tensor(f"v{index}", v)}
        for index, (m, v) in enumerate(zip(first, second, strict=True))
    }
    group = {"lr": 0.1, "betas": (0.9, 0.9), "eps": 1e-8, "step": step, "params": list(range(len(first)))}
    path.write_bytes(torch_files.zip_archive({"state": state, "param_groups": [group]} | changes, storages))
    return str(path)


def write_log(path: pathlib.Path, *records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@dataclasses.dataclass(frozen=True)
class Saved:
    run: Run
    files: Files


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Saved:
    """A checkpoint of four files, written the way the original writes them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    run = Run(seed=1)
    moments = [list(run.original(m).values()) for m in (run.optimizer.first_moments, run.optimizer.second_moments)]
    return Saved(
        run,
        Files(
            write(folder / "iter-9-model.th", run.original(run.network.trainable_variables), prefix="module."),
            write(folder / "iter-9-model-ema.th", run.original(run.averages), torch_files.stream),
            write_optimizer(folder / "iter-9-opt.th", *moments, step=8),
            write_log(
                folder / "iter-9-log.jsonl",
                {"type": "hparam", "key": "lr", "value": 0.1},
                {"type": "train_loss", "epoch": 2, "step": 9},
                {"type": "eval_loss", "elbo": 3.5},
                {"message": "no type"},
                {"type": "eval_loss", "elbo": 4.5},
                {"type": "train_loss", "epoch": 1, "step": 4},
            ),
        ),
    )


@pytest.fixture(scope="module")
def target() -> Run:
    """What the files of the failing tests are loaded into: each must leave it as it was."""
    return Run(small.system(seed=5))


# What fits -----------------------------------------------------------------------------------------------


def test_all_files_come_back_to_the_bit(saved):
    fresh = Run(small.system(seed=5))
    fresh.state.step.assign(saved.run.state.step)
    assert fresh.bits() != saved.run.bits()
    assert published.load_into(saved.files, *fresh.parts()) == 9
    saved_updates = int(saved.run.optimizer.updates)
    assert int(fresh.optimizer.updates) == 8
    fresh.optimizer.updates.assign(saved_updates)
    assert fresh.bits() == saved.run.bits()


def test_weights_alone_are_averages_too_and_the_other_way_round(saved):
    fresh = Run()
    moments = [variable.numpy() for variable in fresh.optimizer.variables]
    for files in (Files(weights=saved.files.weights), Files(averages=saved.files.averages)):
        assert published.load_into(files, *fresh.parts()) == 0
        source = saved.run.network.trainable_variables if files.weights else saved.run.averages
        for expected, weight, average in zip(source, fresh.network.trainable_variables, fresh.averages, strict=True):
            np.testing.assert_array_equal(weight, expected)
            np.testing.assert_array_equal(average, expected)
        for before, after in zip(moments, fresh.optimizer.variables, strict=True):
            np.testing.assert_array_equal(before, after)


def test_without_a_log_the_step_is_the_number_of_updates(saved):
    assert published.load_into(dataclasses.replace(saved.files, log=""), *Run().parts()) == 8


def test_an_optimizer_that_never_stepped_has_no_moments(saved, tmp_path):
    """Those of ours are kept: they are zero in a new run."""
    fresh = Run()
    path = write_optimizer(tmp_path / "new-opt.th", [], [], step=0)
    before = fresh.optimizer.first_moments[0].numpy()
    published.load_into(Files(weights=saved.files.weights, optimizer=path), *fresh.parts())
    assert int(fresh.optimizer.updates) == 0
    np.testing.assert_array_equal(fresh.optimizer.first_moments[0], before)


def test_names_and_their_order():
    names = [item.name for item in published.variables(small.system().network)]
    convolutions = [f"c{index}.{part}" for index in range(1, 5) for part in ("weight", "bias")]
    expected = ["encoder.in_conv.weight", "encoder.in_conv.bias"]
    expected += [f"encoder.enc_blocks.{index}.{name}" for index in range(5) for name in convolutions]
    expected += ["decoder.gain", "decoder.bias"]
    for index in range(small.LAYERS):
        start = f"decoder.dec_blocks.{index}"
        expected += [f"{start}.{part}.{name}" for part in ("enc", "prior") for name in convolutions]
        expected += [f"{start}.z_proj.weight", f"{start}.z_proj.bias"]
        expected += [f"{start}.resnet.{name}" for name in convolutions]
    expected += [f"decoder.bias_xs.{index}" for index in range(3)]
    assert names == [*expected, "decoder.out_net.out_conv.weight", "decoder.out_net.out_conv.bias"]


@pytest.mark.parametrize(
    ("layout", "original", "ours"),
    [("kernel", (5, 4, 3, 2), (3, 2, 4, 5)), ("state", (1, 6, 4, 3), (1, 4, 3, 6)), ("gain", (1, 6, 1, 1), (6,)),
     ("bias", (6,), (6,))],
)  # fmt: skip
def test_layouts(layout, original, ours):
    array = np.arange(np.prod(original), dtype=np.float32).reshape(original)
    converted = published.to_ours(array, layout)
    assert converted.shape == ours
    np.testing.assert_array_equal(published.to_original(converted, layout), array)
    if layout == "kernel":
        assert converted[2, 1, 3, 4] == array[4, 3, 2, 1]
    if layout == "state":
        assert converted[0, 3, 2, 5] == array[0, 5, 3, 2]


def test_recorded_checkpoint():
    """Written by the original's training program. The numbers are compared in tests/parity."""
    weights, averages, _, log = recorded(
        "vdvae", *(f"checkpoint/latest{end}" for end in ("-model.th", "-model-ema.th", "-opt.th", "-log.jsonl"))
    )
    records = [json.loads(line) for line in log.read_text().splitlines()]
    hparams = {record["key"]: record["value"] for record in records if record.get("type") == "hparam"}
    known = {field.name for field in dataclasses.fields(Config) if not field.name.startswith("restore")}
    config = Config(**{name: hparams[name] for name in known & set(hparams) if hparams[name] is not None})
    run = Run(VeryDeepVAE(config, ImageSpec(32, 32, 3)))
    step = published.load_into(published.files_beside(str(weights)), *run.parts())
    assert step == max(record["step"] for record in records if record.get("type") == "train_loss") == 12
    assert int(run.optimizer.updates) == 12
    for path, variables in ((weights, run.network.trainable_variables), (averages, run.averages)):
        stored = published.read_weights(str(path))
        found = run.original(variables)
        assert list(found) == list(stored)
        for name, array in stored.items():
            np.testing.assert_array_equal(found[name], array, name)


# What does not -------------------------------------------------------------------------------------------


def refused(target: Run, files: Files, message: str, error: type[Exception] = CheckpointError) -> None:
    before = target.bits()
    with pytest.raises(error, match=message):
        published.load_into(files, *target.parts())
    assert target.bits() == before


def without(name: str):
    return lambda arrays: {key: array for key, array in arrays.items() if key != name}


def changed(name: str, change):
    return lambda arrays: arrays | {name: change(arrays[name]) if name in arrays else change(None)}


DAMAGES = {
    "missing": (without("decoder.gain"), r"lacks 1 of \d+ tensors \(decoder\.gain\): compare --enc_blocks"),
    "many missing": (
        lambda arrays: {key: array for key, array in arrays.items() if "enc_blocks.4" not in key},
        r"lacks 8 of \d+ tensors \(encoder\.enc_blocks\.4\.c1\.weight, .* and 2 more\)",
    ),
    "unexpected": (
        changed("decoder.extra", lambda _: np.zeros(3, np.float32)),
        r"has 1 that this network has not \(decoder\.extra\)",
    ),
    "renamed": (
        lambda arrays: {key.replace("gain", "gian"): array for key, array in arrays.items()},
        r"lacks 1 of \d+ tensors \(decoder\.gain\) and has 1 that this network has not \(decoder\.gian\)",
    ),
    "wrong shape": (
        changed("decoder.bias_xs.1", lambda array: np.zeros((1, 8, 4, 3), np.float32)),
        r"1 shapes differ: decoder\.bias_xs\.1 \[1, 8, 4, 3\], expected \[1, 8, 4, 4\]; compare --width",
    ),
    "transposed": (
        changed("encoder.in_conv.weight", lambda array: np.ascontiguousarray(array.transpose(2, 3, 1, 0))),
        r"encoder\.in_conv\.weight \[3, 3, 3, 8\], expected \[8, 3, 3, 3\]",
    ),
    "wrong type": (
        changed("decoder.bias", lambda array: array.astype(np.float64)),
        r"decoder\.bias has type float64, expected float32",
    ),
    "nothing": (lambda arrays: {}, r"lacks (\d+) of \1 tensors"),
}


@pytest.mark.parametrize("which", ["weights", "averages"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_files_of_other_networks(saved, target, tmp_path, damage, which):
    """Also where the weights fit and only what is read after them does not."""
    change, message = DAMAGES[damage]
    arrays = published.read_weights(getattr(saved.files, which))
    path = write(tmp_path / "bad.th", change(arrays))
    refused(target, dataclasses.replace(saved.files, **{which: path}), message)


@pytest.mark.parametrize("which", ["weights", "averages", "optimizer"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files(saved, target, tmp_path, which, share):
    content = pathlib.Path(getattr(saved.files, which)).read_bytes()
    path = tmp_path / "short.th"
    path.write_bytes(content[: int(share * len(content))])
    refused(target, dataclasses.replace(saved.files, **{which: str(path)}), r"short\.th", TorchFileError)


@pytest.mark.parametrize("which", ["weights", "averages", "optimizer"])
@pytest.mark.parametrize("container", torch_files.CONTAINERS)
def test_nothing_in_a_file_is_executed(saved, target, tmp_path, which, container):
    evidence = tmp_path / "executed"
    bomb = torch_files.call("builtins.open", str(evidence), "w")
    path = tmp_path / "bomb.th"
    path.write_bytes(torch_files.CONTAINERS[container]({"decoder.gain": Opcodes(bomb)}, {}))
    refused(target, dataclasses.replace(saved.files, **{which: str(path)}), r"builtins\.open", TorchFileError)
    assert not evidence.exists()


def test_optimizers_of_other_networks(saved, target, tmp_path):
    first, second = (
        list(saved.run.original(moments).values())
        for moments in (saved.run.optimizer.first_moments, saved.run.optimizer.second_moments)
    )
    count = len(first)
    reshaped = [*second[:-1], np.zeros(7, np.float32)]
    double = [first[0].astype(np.float64), *first[1:]]
    name = f"new-opt.th: exp_avg_sq of tensor {count - 1} (decoder.out_net.out_conv.bias)"
    cases = {
        f"new-opt.th has moments of {count - 1} tensors, expected {count}: is it of": (first[1:], second[1:], {}),
        f"{name} is float32 [7], expected float32 [20]": (first, reshaped, {}),
        "exp_avg of tensor 0 (encoder.in_conv.weight) is float64 [8, 3, 3, 3], expected float32": (double, second, {}),
        "exp_avg of tensor 0 (encoder.in_conv.weight) is nothing": (
            first, second, {"state": dict.fromkeys(range(count), 1)},
        ),
        "new-opt.th is no optimizer file: expected 'state' and 'param_groups' with a": ([], [], {"param_groups": []}),
        "is no optimizer file": ([], [], {"param_groups": {"step": 3}}),
        "new-opt.th: 'step' is 3, expected a whole number from 0 to 9007199254740991": (
            [], [], {"param_groups": [{"step": "3"}]},
        ),
        "is no optimizer file: expected": ([], [], {"state": [1]}),
    }  # fmt: skip
    for message, (m, v, changes) in cases.items():
        path = write_optimizer(tmp_path / "new-opt.th", m, v, **changes)
        refused(target, dataclasses.replace(saved.files, optimizer=path), re.escape(message))
    refused(target, dataclasses.replace(saved.files, optimizer=saved.files.weights), "is no optimizer file")


@pytest.mark.parametrize("step", [2**70, 2**53, -5, True, 1.5, math.nan, math.inf, None])
def test_an_optimizer_of_an_impossible_number_of_updates(saved, target, tmp_path, step):
    path = write_optimizer(tmp_path / "new-opt.th", [], [], step=step)
    message = rf"new-opt\.th: 'step' is {re.escape(str(step))}, expected a whole number"
    refused(target, dataclasses.replace(saved.files, optimizer=path, log=""), message)


def test_another_kind_of_optimizer(saved, target):
    adam = Adam()
    adam.build(target.network.trainable_variables)
    before = target.bits()
    with pytest.raises(CheckpointError, match="holds AdamW moments, but the optimizer is Adam"):
        published.load_into(saved.files, target.network, target.averages, adam)
    assert target.bits() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no train_loss record, which would say at which step to start"),
        (b'{"type": "eval_loss", "elbo": 1.0}\n', "has no train_loss record"),
        (
            b'{"type": "train_loss", "epoch": 1, "step": 2}\nnonsense\n',
            r"bad-log\.jsonl, line 2: expected a JSON record",
        ),
        (b'{"type": "train_loss", "epoch": 1}\n', "line 1: expected a JSON record of the log, found KeyError.'step'"),
        (b"[1, 2]\n", "line 1: expected a JSON record"),
        (b"[" * 100_000 + b"\n", "line 1: expected a JSON record"),
        (b'{"type": "eval_loss", "elbo": 1' + b"0" * 400 + b"}\n", "line 1: expected a JSON record"),
        *(
            (b'{"type": "train_loss", "epoch": 1, "step": %s}\n' % step, "line 1: 'step' is .*, expected a whole")
            for step in (b"Infinity", b"NaN", b"1e25", b"-5", b"true", b"2.5", b'"7"', b"null", b"[]", b"9" * 400)
        ),
        (b'{"type": "train_loss", "epoch": -1, "step": 2}\n', "line 1: 'epoch' is -1, expected a whole number"),
        (b"\xff\xfe\x00\n", "line 1: expected a JSON record"),
    ],
)
def test_logs_that_say_no_step(saved, target, tmp_path, content, message):
    path = tmp_path / "bad-log.jsonl"
    path.write_bytes(content)
    refused(target, dataclasses.replace(saved.files, log=str(path)), message)


def test_a_log_that_is_absent(saved, target, tmp_path):
    refused(
        target, dataclasses.replace(saved.files, log=str(tmp_path / "no-log.jsonl")), r"no-log\.jsonl does not exist"
    )


def test_positions(saved):
    position = published.read_log(saved.files.log)
    assert (position.epoch, position.step, position.best_elbo) == (2, 9, 3.5)


def test_bare_nan_in_a_log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"type": "train_loss", "epoch": 0, "step": 1, "elbo": NaN}\n{"type": "eval_loss", "elbo": NaN}\n')
    assert published.read_log(str(path)) == published.LogPosition(0, 1, np.inf)


def test_files_beside(saved, tmp_path):
    assert published.files_beside(saved.files.weights) == saved.files
    assert published.files_beside(saved.files.averages) == Files(averages=saved.files.averages)
    alone = tmp_path / "alone-model.th"
    alone.touch()
    assert published.files_beside(str(alone)) == Files(weights=str(alone))
    with pytest.raises(CheckpointError, match=r"weights\.th: expected a file whose name ends in -model\.th or -model-"):
        published.files_beside("weights.th")


def test_the_system_takes_the_step_and_restarts_the_warmup_when_asked(saved):
    """Its first step has the rate that was saved with the optimizer, 0.1, the next ones go by --lr."""
    for restart, expected in ((False, [0.18, 0.2, 0.2]), (True, [0.1, 0.02, 0.04])):
        system = small.system(lr=0.2, warmup_iters=10.0, restart_warmup=restart)
        state = TrainState(system, system.recipe(train_size=10, ranks=1))
        system.load_published(saved.files.weights, state)
        assert int(state.step) == 9
        assert int(state.optimizer.updates) == 8
        np.testing.assert_allclose(system.learning_rate(tf.constant([9, 10, 11], tf.int64)), expected, rtol=1e-6)


def test_a_warmup_that_restarts_without_an_optimizer_file_is_that_of_a_new_run(saved):
    named = {"restore_path": saved.files.weights, "restore_log_path": saved.files.log}
    system = small.system(lr=0.2, warmup_iters=10.0, restart_warmup=True, **named)
    state = TrainState(system, system.recipe(train_size=10, ranks=1))
    system.load_published(saved.files.weights, state)
    np.testing.assert_allclose(system.learning_rate(tf.constant([9, 10, 11], tf.int64)), [0, 0.02, 0.04], rtol=1e-6)


@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf, 10**50, True, "0.1", None])
def test_a_rate_that_is_none(saved, target, tmp_path, lr):
    """Is refused where it is needed, and nowhere else."""
    path = write_optimizer(tmp_path / "new-opt.th", [], [], param_groups=[{"step": 3, "lr": lr}])
    files, rate = dataclasses.replace(saved.files, optimizer=path), tf.Variable(-1.0)
    before, shown = target.bits(), re.escape(str(lr)[:40])
    with pytest.raises(CheckpointError, match=rf"new-opt\.th: 'lr' is {shown}, expected the learning rate"):
        published.load_into(files, *target.parts(), rate)
    assert target.bits() == before
    assert float(rate) == -1
    assert published.read_optimizer(path, target.network, target.optimizer)
