"""Files of the original code: what is read comes back to the bit, and what does not fit changes nothing."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from tests import torch_files
from tests.torch_files import tensor
from tfgen.systems.diffusion import published
from tfgen.systems.diffusion.architecture import UNetShape
from tfgen.systems.diffusion.published import CheckpointError, Files
from tfgen.systems.diffusion.unet import UNet
from tfgen.torch_file import TorchFileError
from tfgen.training.optimizers import Adam, AdamW

SMALL = UNetShape(
    width=32, num_res_blocks=1, channel_mult=(1, 2), attention_rates=frozenset({2}), num_heads=2, num_classes=3
)
RATES = (0.9999, 0.5)


class Run:
    """A network with averages and moments of its own, none of them equal to what a file holds."""

    def __init__(self, seed: int, shape: UNetShape = SMALL):
        self.network = UNet(shape, seed)
        self.variables = self.network.trainable_variables
        self.averages = {rate: [tf.Variable(tf.zeros_like(v)) for v in self.variables] for rate in RATES}
        self.optimizer = AdamW(weight_decay=0.05)
        self.optimizer.build(self.variables)
        generator = np.random.RandomState(seed)
        for variable in self.everything():
            variable.assign(generator.normal(size=variable.shape).astype(np.float32))
        self.optimizer.updates.assign(seed + 7)

    def everything(self) -> list[tf.Variable]:
        averages = [variable for values in self.averages.values() for variable in values]
        moments = [*self.optimizer.first_moments, *self.optimizer.second_moments]
        return [*self.variables, *averages, *moments]

    def bits(self) -> list[bytes]:
        return [variable.numpy().tobytes() for variable in (*self.everything(), self.optimizer.updates)]

    def original(self, values) -> dict[str, np.ndarray]:
        """One value for each variable as the original's files have them."""
        return {
            item.name: np.ascontiguousarray(published.to_original(value.numpy(), item.layout))
            for item, value in zip(published.variables(self.network), values, strict=True)
        }


def write_optimizer(path: pathlib.Path, run: Run, step, flat: bool = False, **changes) -> str:
    """A file of AdamW moments; `changes` replace parts of it."""
    first, second = (
        list(run.original(moments).values()) for moments in (run.optimizer.first_moments, run.optimizer.second_moments)
    )
    if flat:
        first, second = ([np.concatenate([array.reshape(-1) for array in arrays])] for arrays in (first, second))
    storages = {f"{kind}{i}": a for kind, arrays in (("m", first), ("v", second)) for i, a in enumerate(arrays)}
    storages["step"] = np.array(step, np.float32)
    state = {
        index: {
            "step": tensor("step", storages["step"]) if isinstance(step, float) else step,
            "exp_avg": tensor(f"m{index}", m),
            "exp_avg_sq": tensor(f"v{index}", v),
        }
        for index, (m, v) in enumerate(zip(first, second, strict=True))
    }
    group = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05, "params": list(range(len(first)))}
    path.write_bytes(torch_files.zip_archive({"state": state, "param_groups": [group]} | changes, storages))
    return str(path)


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], container=torch_files.zip_archive) -> str:
    storages = {str(index): array for index, array in enumerate(arrays.values())}
    value = {name: tensor(key, storages[key]) for name, key in zip(arrays, storages, strict=True)}
    path.write_bytes(container(value, storages))
    return str(path)


@dataclasses.dataclass(frozen=True)
class Saved:
    run: Run
    folder: pathlib.Path
    model: str


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Saved:
    """A set of files as the original writes them; one of them in the container of old versions of PyTorch."""
    folder, run = tmp_path_factory.mktemp("model.checkpoints"), Run(seed=1)
    model = write(folder / "model000012.pt", run.original(run.variables))
    write(folder / "ema_0.9999_000012.pt", run.original(run.averages[0.9999]), torch_files.stream)
    write(folder / "ema_0.5_000012.pt", run.original(run.averages[0.5]))
    write_optimizer(folder / "opt000012.pt", run, step=13.0)
    return Saved(run, folder, model)


@pytest.fixture(scope="module")
def target() -> Run:
    """What the files of the failing tests are loaded into: each must leave it as it was."""
    return Run(seed=5)


# Names and layouts ---------------------------------------------------------------------------------------


def test_names_order_and_shapes():
    named = published.variables(UNet(SMALL, seed=None))
    assert [(item.name, item.shape) for item in named[:12]] == [
        ("time_embed.0.weight", (128, 32)),
        ("time_embed.0.bias", (128,)),
        ("time_embed.2.weight", (128, 128)),
        ("time_embed.2.bias", (128,)),
        ("label_emb.weight", (3, 128)),
        ("input_blocks.0.0.weight", (32, 3, 3, 3)),
        ("input_blocks.0.0.bias", (32,)),
        ("input_blocks.1.0.in_layers.0.weight", (32,)),
        ("input_blocks.1.0.in_layers.0.bias", (32,)),
        ("input_blocks.1.0.in_layers.2.weight", (32, 32, 3, 3)),
        ("input_blocks.1.0.in_layers.2.bias", (32,)),
        ("input_blocks.1.0.emb_layers.1.weight", (32, 128)),
    ]
    names = [item.name for item in named]
    for name, shape in {
        "input_blocks.2.0.op.weight": (32, 32, 3, 3),
        "input_blocks.3.0.skip_connection.weight": (64, 32, 1, 1),
        "input_blocks.3.1.qkv.weight": (192, 64, 1),
        "middle_block.1.proj_out.weight": (64, 64, 1),
        "output_blocks.1.2.conv.weight": (64, 64, 3, 3),
        "out.2.weight": (3, 32, 3, 3),
    }.items():
        assert named[names.index(name)].shape == shape
    assert names[-1] == "out.2.bias"


@pytest.mark.parametrize("shape", [(3, 3, 2, 5), (2, 5), (7,)])
def test_layouts_are_undone(shape):
    ours = np.random.RandomState(0).standard_normal(shape)
    for layout in {4: ["convolution"], 2: ["attention", "matrix", "same"], 1: ["same"]}[len(shape)]:
        np.testing.assert_array_equal(published.to_ours(published.to_original(ours, layout), layout), ours)


# Finding files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("model000012.pt", 12),
        ("runs/model.old/model1200000.pt", 1200000),
        ("model000000.pt", 0),
        ("ema_0.9999_000012.pt", 0),
        ("/models/ema_0.9999_000012.pt", 0),
        ("model.pt", 0),
        ("model-7.pt", 0),
        ("imagenet64_uncond_100M_1500K.pt", 0),
        ("model000500", 500),
    ],
)
def test_step_of_a_name(path, step):
    assert published.step_of(path) == step


def test_files_are_found_beside_the_weights(saved):
    files = published.files_beside(saved.model, RATES)
    names = {rate: str(saved.folder / f"ema_{rate}_000012.pt") for rate in RATES}
    assert files == Files(saved.model, names, str(saved.folder / "opt000012.pt"), 12)


def test_files_that_are_not_there_are_logged(saved, caplog):
    with caplog.at_level(logging.INFO):
        files = published.files_beside(saved.model, [0.5, 0.99])
    assert files.averages == {0.5: str(saved.folder / "ema_0.5_000012.pt"), 0.99: ""}
    assert "ema_0.99_000012.pt is not beside" in caplog.text
    assert "this average begins as the weights" in caplog.text


def test_nothing_is_looked_for_at_step_0(saved, tmp_path):
    for name in ("model000000.pt", "opt000000.pt", "ema_0.5_000000.pt"):
        (tmp_path / name).touch()
    assert published.files_beside(str(tmp_path / "model000000.pt"), [0.5]) == Files(
        str(tmp_path / "model000000.pt"), {0.5: ""}
    )


# Loading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [13, 13.0], ids=["number", "tensor"])
@pytest.mark.parametrize("flat", [False, True])
def test_everything_comes_back(saved, tmp_path, step, flat):
    run = Run(seed=2)
    files = published.files_beside(saved.model, RATES)
    optimizer = write_optimizer(tmp_path / "opt.pt", saved.run, step, flat)
    files = dataclasses.replace(files, optimizer=optimizer)
    assert published.load_into(files, run.network, run.averages, run.optimizer) == 12
    assert int(run.optimizer.updates) == 13
    saved.run.optimizer.updates.assign(13)
    assert run.bits() == saved.run.bits()


def test_without_averages_and_optimizer(saved):
    run = Run(seed=2)
    moments = [moment.numpy() for moment in run.optimizer.first_moments]
    assert published.load_into(Files(saved.model), run.network, run.averages, run.optimizer) == 0
    for ours, *averages, theirs in zip(run.variables, *run.averages.values(), saved.run.variables, strict=True):
        assert all(np.array_equal(value, theirs) for value in (ours, *averages))
    assert all(np.array_equal(*pair) for pair in zip(run.optimizer.first_moments, moments, strict=True))
    assert int(run.optimizer.updates) == 9


def test_optimizer_that_made_no_update(saved, tmp_path):
    run = Run(seed=2)
    path = write_optimizer(tmp_path / "opt.pt", saved.run, 1, state={})
    files = Files(saved.model, optimizer=path)
    published.load_into(files, run.network, {}, run.optimizer)
    assert int(run.optimizer.updates) == 0


def test_other_settings_of_the_optimizer_are_logged(saved, tmp_path, caplog):
    run = Run(seed=2)
    path = write_optimizer(tmp_path / "opt.pt", saved.run, 1, param_groups=[{"weight_decay": 0.0, "eps": 1e-8}])
    with caplog.at_level(logging.INFO):
        published.load_into(Files(saved.model, optimizer=path), run.network, {}, run.optimizer)
    assert "written with weight_decay 0.0; this run goes on with 0.05" in caplog.text
    assert "eps" not in caplog.text


def test_output_is_that_of_the_saved_network(saved):
    network = UNet(SMALL, seed=None)
    published.load_arrays(network, published.read_weights(saved.model))
    x = np.random.RandomState(0).standard_normal([1, 4, 4, 3]).astype(np.float32)
    inputs = x, tf.constant([5]), tf.constant([1])
    np.testing.assert_allclose(network(*inputs), saved.run.network(*inputs), rtol=1e-5)


# What does not fit ---------------------------------------------------------------------------------------


def changed(arrays: dict[str, np.ndarray], name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    return {key: array for key, array in (arrays | {name: value}).items() if array is not None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("out.2.weight", None, r"lacks 1 of \d+ tensors \(out.2.weight\): compare --image_size"),
        ("input_blocks.9.0.op.weight", np.zeros(3, np.float32), r"has 1 that this network has not \(input_blocks.9"),
        ("out.2.weight", np.zeros([6, 2], np.float32), r"out.2.weight \[6, 2\], expected \[3, 32, 3, 3\]"),
        ("out.2.bias", np.zeros(3, np.float16), "out.2.bias has type float16, expected float32"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("which", ["model", "average"])
def test_weights_that_do_not_fit(saved, target, tmp_path, name, value, message, which):
    before = target.bits()
    arrays = changed(saved.run.original(saved.run.variables), name, value)
    path = write(tmp_path / "model000012.pt", arrays)
    good = published.files_beside(saved.model, RATES)
    if which == "model":
        files = dataclasses.replace(good, model=path)
    else:
        files = dataclasses.replace(good, averages={**good.averages, 0.5: path})
    with pytest.raises(CheckpointError, match=f"{re.escape(path)}.*{message}"):
        published.load_into(files, target.network, target.averages, target.optimizer)
    assert target.bits() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": [1]}, "no optimizer file"),
        ({"param_groups": []}, "expected 'state' and 'param_groups' with one group"),
        ({"state": {0: {"step": 1}, 1: {"step": 1}}}, r"has moments of 2 tensors, expected \d+"),
        ({"state": {0: {"step": 1}}}, "exp_avg of all tensors in a row is nothing, expected float32"),
    ],
)
def test_optimizer_files_that_do_not_fit(saved, target, tmp_path, changes, message):
    before = target.bits()
    path = write_optimizer(tmp_path / "opt.pt", saved.run, 1, **changes)
    files = dataclasses.replace(published.files_beside(saved.model, RATES), optimizer=path)
    with pytest.raises(CheckpointError, match=message):
        published.load_into(files, target.network, target.averages, target.optimizer)
    assert target.bits() == before


@pytest.mark.parametrize(
    ("step", "found"),
    [(-1, "-1"), (1.5, "1.5"), ("four", "'four'"), (10**400, "1000"), (True, "True"), (float("nan"), "nan")],
)
def test_steps_that_are_none(saved, target, tmp_path, step, found):
    path = write_optimizer(tmp_path / "opt.pt", saved.run, 1)
    path = write_step(pathlib.Path(path), step, saved.run)
    with pytest.raises(CheckpointError, match=f"step of tensor 0 is {found}.*, expected a whole number"):
        published.read_optimizer(path, target.network, target.optimizer)


def write_step(path: pathlib.Path, step, run: Run) -> str:
    state = {index: {"step": step} for index in range(len(run.variables))}
    path.write_bytes(torch_files.zip_archive({"state": state, "param_groups": [{}]}, {}))
    return str(path)


def test_moments_of_another_network(saved, tmp_path):
    other = Run(seed=0, shape=dataclasses.replace(SMALL, out_channels=6))
    path = write_optimizer(tmp_path / "opt.pt", saved.run, 1)
    with pytest.raises(CheckpointError, match=r"\(out.2.weight\) is float32 \[3, 32, 3, 3\], expected float32 \[6, 32"):
        published.read_optimizer(path, other.network, other.optimizer)


def test_moments_for_another_optimizer(saved, target):
    with pytest.raises(CheckpointError, match="holds AdamW moments, but the optimizer is Adam"):
        published.read_optimizer(str(saved.folder / "opt000012.pt"), target.network, Adam())


def test_files_that_are_no_checkpoints(target, tmp_path):
    before = target.bits()
    (tmp_path / "model000001.pt").write_bytes(b"<html>")
    with pytest.raises(TorchFileError, match="a web page"):
        published.load_into(Files(str(tmp_path / "model000001.pt")), target.network, {}, target.optimizer)
    with pytest.raises(OSError, match="model000002"):
        published.load_into(Files(str(tmp_path / "model000002.pt")), target.network, {}, target.optimizer)
    assert target.bits() == before
