"""Real checkpoints of the original code, beside the recordings: read as PyTorch reads them."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from tests.parity.harness import default_folder
from tfgen import torch_file


def recorded(system: str, *names: str):
    """Paths of recorded files; the test is skipped where the recordings are not at hand."""
    paths = [default_folder(system) / name for name in names]
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        pytest.skip(f"no recording {', '.join(absent)} here")
    return paths


def assert_same(actual, expected):
    """Equal trees, arrays to the bit."""
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        actual, expected = list(actual.values()), list(expected.values())
    if isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for mine, theirs in zip(actual, expected, strict=True):
            assert_same(mine, theirs)
    else:
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("name", "group"),
    [("latest-model.th", "model/"), ("latest-model-ema.th", "ema/"), ("legacy-model-ema.th", "ema/")],
)
def test_vdvae_weights(name, group):
    path, npz = recorded("vdvae", f"checkpoint/{name}", "checkpoint_expected.npz")
    expected = np.load(npz)
    names = [str(key).removeprefix("module.") for key in expected["param_order"]]
    tensors = {
        key.removeprefix(group).removeprefix("module."): expected[key]
        for key in expected.files
        if key.startswith(group)
    }
    weights = torch_file.state_dict(path)
    assert list(weights) == names
    assert all(array.dtype == np.float32 for array in weights.values())
    assert_same(weights, {key: tensors[key] for key in names})


def test_vdvae_optimizer():
    path, npz = recorded("vdvae", "checkpoint/latest-opt.th", "checkpoint_expected.npz")
    expected = np.load(npz)
    saved = torch_file.load(path)
    assert json.loads(json.dumps(saved["param_groups"])) == json.loads(str(expected["opt_param_groups"]))
    assert list(saved["state"]) == saved["param_groups"][0]["params"]
    for index, moments in saved["state"].items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert_same(moments[name], expected[f"opt_{name}/{index}"])


def assert_summary(tensors, expected, group):
    """Names, heads of the values, and (L2 norm, sum, product with a random probe) of a recorded set of tensors."""
    assert list(tensors) == list(expected[f"{group}/names"])
    for (name, array), stats, head in zip(
        tensors.items(), expected[f"{group}/stats"], expected[f"{group}/head"], strict=True
    ):
        probe = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(array.size).astype(np.float32)
        flat = array.ravel().astype(np.float64)
        np.testing.assert_allclose([np.sqrt((flat**2).sum()), flat.sum(), flat @ probe], stats, rtol=1e-6, atol=1e-12)
        np.testing.assert_array_equal(flat[: head.size].astype(np.float32), head[: flat.size])


def test_diffusion_checkpoint():
    folder, npz = recorded("diffusion", "checkpoint", "checkpoint_expected.npz")
    expected = np.load(npz)
    model = torch_file.state_dict(folder / "model000003.pt")
    assert_summary(model, expected, "model")
    assert_summary(torch_file.state_dict(folder / "ema_0.9999_000003.pt"), expected, "ema")
    optimizer = torch_file.load(folder / "opt000003.pt")
    for name in ("exp_avg", "exp_avg_sq"):
        moments = [entry[name] for entry in optimizer["state"].values()]
        assert_summary(dict(zip(model, moments, strict=True)), expected, name)
    assert all(entry["step"] == expected["opt_step"] for entry in optimizer["state"].values())
    old = torch_file.state_dict(folder / "legacy_format_first4.pt")
    assert_same(old, {name: model[name] for name in list(model)[:4]})


@pytest.mark.parametrize("name", ["stage1_gray_ema", "stage2_rgb_noema"])
def test_smoothing_checkpoint(name):
    path, npz = recorded("smoothing", f"ckpt/{name}_checkpoint.pth", f"ckpt_{name}_check.npz")
    expected = np.load(npz)
    model, optimizer, schedule, epoch, *average = torch_file.load(path)
    assert list(model) == list(expected["module_keys"])
    assert epoch == expected["epoch"]
    assert schedule == json.loads(str(expected["scheduler_json"]))
    order = list(expected["param_order"])
    groups = {"param": {key.removeprefix("module."): array for key, array in model.items()}}
    groups |= {
        field: {order[index]: entry[field] for index, entry in optimizer["state"].items()}
        for field in ("exp_avg", "exp_avg_sq", "step")
    }
    if average:  # its keys have no prefix
        groups["ema"] = average[0]
    probes = [key for key in expected.files if key.startswith("probe/")]
    assert probes
    for key in probes:
        _, group, parameter = key.split("/")
        np.testing.assert_array_equal(groups[group][parameter], expected[key])


def test_smoothing_stream_equals_zip():
    new, old = recorded(
        "smoothing", "ckpt/stage1_gray_ema_checkpoint.pth", "ckpt/stage1_gray_ema_checkpoint_legacy.pth"
    )
    assert_same(torch_file.load(old), torch_file.load(new))
