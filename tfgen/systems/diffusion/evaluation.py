"""Bits per dimension of images under a diffusion model: the variational bound, whole or from some of its terms.

Ho et al. (2020), equation 5; Nichol & Dhariwal (2021), section 2.1 and appendix B.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen.data.pipeline import filled_up
from tfgen.randomness import Key
from tfgen.settings import SettingsError, check_values, flag
from tfgen.systems.diffusion.likelihood_terms import bits_per_dim_loop
from tfgen.systems.diffusion.process import Process
from tfgen.systems.diffusion.resizing import area, from_uint8
from tfgen.systems.diffusion.samplers import Model
from tfgen.systems.diffusion.sampling import Conditions, step_noise

if TYPE_CHECKING:
    from tfgen.systems.diffusion.system import ImprovedDiffusion

TERMS_IN_TRAINING = 8  # of the bound, for each image


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Extra flags of `tfgen.evaluate`."""

    terms: int | None = flag(
        None,
        "terms of the bound computed for each image, drawn at random from equal parts of the process; their mean "
        "stands for all: the bound on average, from a fraction of the work. Default: all of them, exact",
        minimum=1,
    )
    timestep_respacing: str = flag(
        "", "the bound of the process with these steps only (250, ddim50, ...); default: those of the training"
    )
    clip_denoised: bool = flag(True, "clip the images predicted at each step to the range of pixels")
    noise_seed: int = flag(0, "image i is evaluated with noise that is a function of this seed and i")

    def __post_init__(self) -> None:
        check_values(self)


class Evaluator:
    """Evaluates a system. All batches share one compiled network."""

    def __init__(self, system: ImprovedDiffusion):
        self._system = system

    def evaluate(
        self, batches: Iterable[dict[str, np.ndarray]], options: EvaluateOptions
    ) -> Mapping[str, float | np.ndarray]:
        """Means over the images, and "examples". See `System.evaluate`.

        * "bits_per_dim_bound": the variational bound. "prior_bits_per_dim": its last term.
        * Of the whole bound also the means by step: "vb_terms" (bits per dimension), "xstart_mse_terms" and
          "mse_terms" (of the image and of the noise predicted), float32 [steps], the LAST step of the process first,
          as the original has them.
        """
        system = self._system
        process = system.process
        if options.timestep_respacing:
            try:
                process = system.base_process.respaced(options.timestep_respacing)
            except ValueError as error:
                raise SettingsError(f"--timestep_respacing={options.timestep_respacing}: {error}") from error
        steps = process.steps
        if options.terms is not None and options.terms > steps:
            raise SettingsError(f"--terms={options.terms}: the process has {steps} steps; leave it out for all of them")
        examples, size = 0, 0
        columns: dict[str, list[np.ndarray]] = {"bits_per_dim_bound": [], "prior_bits_per_dim": []}
        if options.terms is None:
            columns |= {"vb_terms": [], "xstart_mse_terms": [], "mse_terms": []}
        for batch in batches:
            count = len(batch["image"])
            examples += count
            size = max(size, count)  # a short last batch is filled up: one compiled network serves all
            rows = {name: filled_up(np.asarray(value), size) for name, value in batch.items()}
            key = Key.create(options.noise_seed, "evaluation", first_sample=int(batch["index"][0]))
            values = self._image_values(process, rows, key, options)
            for name, column in columns.items():
                column.append(values[name][:count])
        # A rank without images counts as none of them in the mean over ranks, whatever it reports.
        absent = {name: np.zeros(steps if name.endswith("_terms") else (), np.float64) for name in columns}
        means = {
            name: np.concatenate(column).mean(axis=0, dtype=np.float64) if column else absent[name]
            for name, column in columns.items()
        }
        return {name: value if value.ndim else float(value) for name, value in means.items()} | {"examples": examples}

    def _image_values(
        self, process: Process, rows: dict[str, np.ndarray], key: Key, options: EvaluateOptions
    ) -> dict[str, np.ndarray]:
        """By name, [B] or [B, steps]."""
        system = self._system
        x_start = from_uint8(rows["image"])
        model = system.model(process, conditions_of(system, rows, x_start))
        if options.terms is None:
            noise = functools.partial(step_noise, key, list(x_start.shape))
            loop = bits_per_dim_loop(process, model, x_start, noise, clip_denoised=options.clip_denoised)
            return {
                "bits_per_dim_bound": loop["total_bpd"].numpy(),
                "prior_bits_per_dim": loop["prior_bpd"].numpy(),
                "vb_terms": loop["vb"].numpy(),
                "xstart_mse_terms": loop["xstart_mse"].numpy(),
                "mse_terms": loop["mse"].numpy(),
            }
        prior = process.prior_bits_per_dim(x_start).numpy()
        shares = [
            bound_term(process, model, x_start, key, part, options.terms, options.clip_denoised).numpy()
            for part in range(options.terms)
        ]
        return {"bits_per_dim_bound": prior + np.sum(shares, axis=0, dtype=np.float64), "prior_bits_per_dim": prior}


def bound_term(
    process: Process,
    model: Model,
    x_start: tf.Tensor,
    key: Key,
    part: int | tf.Tensor,
    terms: int | tf.Tensor,
    clip_denoised: bool = True,
) -> tf.Tensor:
    """A share of the bound, without the prior: float32 [B], whose sum over all parts is the bound on average.

    The process is cut into `terms` equal parts, and a step drawn from number `part` for each image. With as many terms
    as steps every step is computed once, and the sum is the whole bound.
    """
    part, terms = tf.cast(part, tf.int32), tf.cast(terms, tf.float64)
    x_t, t = _drawn_step(process, x_start, key.seed, key.first_sample, part, terms)
    term, _ = _bound_term(process, model(x_t, t), x_start, x_t, t, clip_denoised)
    return term * tf.cast(process.steps / terms, tf.float32)


_bound_term = tf.function(Process.variational_bound_term, autograph=False)


@tf.function(autograph=False)
def _drawn_step(
    process: Process, x_start: tf.Tensor, seed: tf.Tensor, first_sample: tf.Tensor, part: tf.Tensor, terms: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """x_t and t for `bound_term`."""
    count, steps = tf.shape(x_start)[0], process.steps
    stream = Key(seed, first_sample).fold("term", part)
    uniform = tf.cast(stream.uniform([count, 1])[:, 0], tf.float64)
    t = tf.minimum(tf.cast((tf.cast(part, tf.float64) + uniform) * (steps / terms), tf.int32), steps - 1)
    return process.q_sample(x_start, t, stream.fold("noise").normal([count, *x_start.shape[1:]])), t


def conditions_of(system: ImprovedDiffusion, rows: dict, x_start: tf.Tensor) -> Conditions:
    """What the network is given beside the noisy versions of the images `x_start` (float32 [B, S, S, 3])."""
    config = system.config
    labels = tf.cast(rows["label"], tf.int32) if config.class_cond else None
    low_res = area(x_start, config.small_size, config.small_size) if config.super_resolution else None
    return Conditions(labels, low_res)
