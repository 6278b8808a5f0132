"""The recorded picture grid and evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tests.parity.vdvae.model import OBJECTIVE, PREPROCESSED, channels_last, load, recorded_system
from tfgen.systems.vdvae.pictures import partial_points, picture_grid
from tfgen.systems.vdvae.sampling import Noise
from tfgen.systems.vdvae.system import VeryDeepVAE


class Replay:
    """Recorded draws, handed out in the order in which the original used them."""

    def __init__(self, case: Case, normals: str, uniforms: str | None = None):
        self._normals = iter([channels_last(case[name]) for name in case.matching(normals)])
        self._uniforms = iter([case[name] for name in case.matching(uniforms)] if uniforms else [])
        self.noise = Noise(
            lambda layer, shape: self._next(self._normals, shape),
            lambda purpose, shape: self._next(self._uniforms, shape),
        )

    @staticmethod
    def _next(arrays, shape: Sequence[int]) -> tf.Tensor:
        array = next(arrays)
        assert array.shape == tuple(int(extent) for extent in shape), (array.shape, shape)
        return tf.constant(array)

    @property
    def left(self) -> int:
        """Draws that nobody asked for."""
        return len(list(self._normals)) + len(list(self._uniforms))


@checker("vdvae", "viz_eval*.npz")
def check(case: Case) -> None:
    system = recorded_system(case)
    load(system, case)
    check_grid(case, system)
    check_evaluation(case, system)


def check_grid(case: Case, system: VeryDeepVAE) -> None:
    config = system.config
    images = case["dataset_uint8"][: config.num_images_visualize]
    case.equal("viz_original", images)
    inputs, _ = system.preprocessing.input_and_target(images)
    case.close("viz_processed", inputs, PREPROCESSED)
    rows = config.num_variables_visualize
    case.equal("lv_points", partial_points(rows, len(system.architecture.decoder)))
    replay = Replay(case, "draw_*", "uniform_*")
    noises = itertools.repeat(replay.noise)
    grid = picture_grid(system.network, images, inputs, noises, rows, config.num_temperatures_visualize)
    case.equal("montage", grid, within=1, except_share=1e-3)
    case.equal("draws of the grid that are left", replay.left, expected=0)


def check_evaluation(case: Case, system: VeryDeepVAE) -> None:
    """Means over the recorded batches, which are full ones of the set in another order."""
    batches, stored = case["eval_batches_uint8"], case["eval_dataset_uint8"]
    shown = [image.tobytes() for batch in batches for image in batch]
    case.equal("images that are not in the set", len(set(shown) - {image.tobytes() for image in stored}), expected=0)
    replay = Replay(case, "eval_draw_*")
    distortions, rates = [], []
    for images in batches:
        bound = system.bound(*system.preprocessing.input_and_target(images), replay.noise.latents)
        distortions.append(np.mean(bound.distortion))
        rates.append(np.mean(bound.rate))
    elbos = np.add(distortions, rates)
    computed = {
        "n_batches": len(batches),
        "filtered_elbo": elbos[np.isfinite(elbos)].mean(),
        "elbo": elbos.mean(),
        "distortion": np.mean(distortions),
        "rate": np.mean(rates),
    }
    recorded = case.json("eval_stats")
    case.equal("names of eval_stats", sorted(recorded), expected=sorted(computed))
    for name, value in computed.items():
        case.close(f"eval_stats {name}", value, OBJECTIVE, expected=recorded[name], relative=True)
    case.equal("draws of the evaluation that are left", replay.left, expected=0)
