"""A run as a TensorBoard server answers for it, and as a browser draws it."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.e2e import tensorboard_page
from tests.e2e.tensorboard_page import get, post_json, serve, wait_for
from tfgen.monitor import grids
from tfgen.monitor.tensorboard import RunSummaries

SAMPLE_COLOUR = (10, 200, 170)  # one that TensorBoard itself does not use
CURVE_COLOUR = (255, 112, 67)  # TensorBoard's for the first run
BAR_COLOUR = (245, 124, 0)  # of TensorBoard's own bars


def samples() -> np.ndarray:
    return np.full((4, 8, 8, 3), SAMPLE_COLOUR, np.uint8)


def train(folder: pathlib.Path, first: int, last: int, loss: float) -> None:
    """The steps first .. last - 1 of a run, with grids at step 6."""
    summaries = RunSummaries(folder, first)
    summaries.settings({"n_layer": 4, "optimizer": "bs_adam"})
    for step in range(first, last):
        summaries.scalars({"train/loss": loss, "train/grad_norm": 1.0, "valid/bits_per_dim": loss}, step)
        if step == 6:
            summaries.image("samples/raw", grids.display_grid(samples()), step)
            summaries.image("samples/ema", grids.display_grid(samples()), step)
    summaries.close()


@pytest.mark.parametrize("fast", [True, False], ids=["data_server", "python_loader"])
def test_the_server_answers_through_a_kill_and_a_resume(tmp_path, fast):
    train(tmp_path / "demo", 0, 8, loss=1.0)
    with serve(tmp_path, fast=fast) as address:

        def curve() -> list[tuple[int, float]]:
            if "train/loss" not in json.loads(get(address, "data/plugin/scalars/tags")).get("demo", {}):
                return []
            points = json.loads(get(address, "data/plugin/scalars/scalars", tag="train/loss", run="demo"))
            return [(step, value) for _, step, value in points]

        wait_for(lambda: curve() == [(step, 1.0) for step in range(8)], 12, "the killed process' curve")
        train(tmp_path / "demo", 5, 10, loss=2.0)
        wait_for(lambda: curve() == [(step, 1.0 if step < 5 else 2.0) for step in range(10)], 12, "the resumed curve")

        (picture,) = json.loads(get(address, "data/plugin/images/images", tag="samples/ema", run="demo", sample=0))
        assert picture["step"] == 6
        contents = get(address, "data/plugin/images/individualImage?" + picture["query"])
        assert contents == grids.encode_png(grids.display_grid(samples()))

        experiment = post_json(address, "data/plugin/hparams/experiment", {})
        assert {info["name"] for info in experiment["hparamInfos"]} == {"n_layer", "optimizer"}
        metrics = {(info["name"]["group"], info["name"]["tag"]) for info in experiment["metricInfos"]}
        assert ("", "valid/bits_per_dim") in metrics
        query = {"startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_RUNNING"]}
        answer = post_json(
            address,
            "data/plugin/hparams/session_groups",
            query | {"colParams": [{"metric": {"group": "", "tag": "valid/bits_per_dim"}}]},
        )
        (row,) = answer["sessionGroups"]
        assert row["name"] == "demo"
        assert row["hparams"] == {"n_layer": 4.0, "optimizer": "bs_adam"}
        (value,) = (metric["value"] for metric in row["metricValues"] if metric["name"]["tag"] == "valid/bits_per_dim")
        assert value == 2.0


def share(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    """The part of a picture that has nearly this colour."""
    return float((np.abs(picture.astype(int) - colour).max(axis=-1) <= 8).mean())


@pytest.mark.skipif(tensorboard_page.browser() is None, reason="needs chromium (apt-get install -y chromium)")
def test_a_browser_shows_curves_grids_and_settings(tmp_path):
    train(tmp_path / "demo", 0, 10, loss=1.0)
    pictures = {}
    with serve(tmp_path) as address:
        wait_for(lambda: json.loads(get(address, "data/plugin/scalars/tags")), 12, "the run")
        for tab in ("scalars", "images", "hparams"):
            tensorboard_page.screenshot(address, tab, tmp_path / f"{tab}.png", width=1600, height=1200)
            with Image.open(tmp_path / f"{tab}.png") as picture:
                pictures[tab] = np.asarray(picture.convert("RGB"))
    charts, table = pictures["scalars"][130:, 360:], pictures["hparams"][64:, 330:]  # without the side panels
    assert share(charts, CURVE_COLOUR) > 0.0005
    assert share(pictures["images"], SAMPLE_COLOUR) > 0.05  # two grids, each large enough to judge
    # The bar above the table of settings; without settings there is a text instead ("No hparams data was found").
    assert share(table[10:50], BAR_COLOUR) > 0.8
    assert (table[70:].max(axis=-1) < 110).sum() > 500  # its text
