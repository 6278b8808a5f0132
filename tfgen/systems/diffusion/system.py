"""Improved diffusion as a `System`: configuration to network, process, loss, samplers, evaluation and export.

Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021, arXiv:2102.09672.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

import numpy as np
import tensorflow as tf

from tfgen.data.source import ImageSpec, Splits
from tfgen.monitor.window import Statistic
from tfgen.randomness import Key, StepDraws
from tfgen.settings import SettingsError
from tfgen.systems.base import Batch, Loss, SampleCallback, System
from tfgen.systems.diffusion import data, exported, published
from tfgen.systems.diffusion.config import Config
from tfgen.systems.diffusion.evaluation import TERMS_IN_TRAINING, EvaluateOptions, Evaluator, conditions_of
from tfgen.systems.diffusion.noise_schedules import betas
from tfgen.systems.diffusion.process import LossType, MeanType, Process, VarianceType
from tfgen.systems.diffusion.resizing import from_uint8
from tfgen.systems.diffusion.sampling import Conditions, SampleOptions, Sampler
from tfgen.systems.diffusion.timestep_samplers import LossSecondMomentSampler, UniformSampler
from tfgen.systems.diffusion.unet import UNet
from tfgen.training.optimizers import AdamW
from tfgen.training.recipe import LossScaleSettings, Recipe
from tfgen.training.schedules import Constant, LinearDecay
from tfgen.training.state import TrainState

GRID_STEPS = 50  # of the sample grids in training
_QUARTERS = 4
_ENDLESS = 10**9  # steps of a run that nobody gave an end


def process_of(config: Config) -> Process:
    """The process of all `diffusion_steps`. Raises `ValueError` for schedules that have no such process."""
    if config.learn_sigma:
        variance = VarianceType.LEARNED_RANGE
    else:
        variance = VarianceType.FIXED_SMALL if config.sigma_small else VarianceType.FIXED_LARGE
    if config.use_kl:
        loss = LossType.RESCALED_KL
    else:
        loss = LossType.RESCALED_MSE if config.rescale_learned_sigmas else LossType.MSE
    return Process.create(
        betas(config.noise_schedule, config.diffusion_steps),
        MeanType.START_X if config.predict_xstart else MeanType.EPSILON,
        variance,
        loss,
        rescale_timesteps=config.rescale_timesteps,
    )


class ImprovedDiffusion(System):
    """A network that takes noise out of images, step by step."""

    name = "diffusion"
    config_class = Config
    sample_options_class = SampleOptions
    evaluate_options_class = EvaluateOptions
    window_statistics: ClassVar[Mapping[str, Statistic]] = {}

    network: UNet

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        config.validate(spec)
        self.base_process = process_of(config)
        self.process = (
            self.base_process.respaced(config.timestep_respacing) if config.timestep_respacing else self.base_process
        )
        self.network = UNet(config.network_shape(tf.keras.mixed_precision.global_policy().compute_dtype), config.seed)
        steps = self.process.steps
        if config.schedule_sampler == "uniform":
            self.timestep_sampler: UniformSampler | LossSecondMomentSampler = UniformSampler(steps)
        else:
            self.timestep_sampler = LossSecondMomentSampler(steps)
            self.state.timestep_sampler = self.timestep_sampler
        # Labels of samples are drawn among the classes that the data have, which may be fewer than the table's.
        self.classes = spec.num_classes or config.num_classes
        self._sampler = Sampler(self)
        self._evaluator = Evaluator(self)

    # Before the network exists --------------------------------------------------------------------------

    @classmethod
    def image_spec(cls, config: Config) -> ImageSpec | None:
        return data.known_spec(config)

    @classmethod
    def open_data(cls, config: Config, data_dir: str) -> Splits:
        config.check()
        return data.open_splits(config, data_dir)

    @classmethod
    def half_precision(cls, config: Config) -> bool:
        return config.use_fp16

    # Training -------------------------------------------------------------------------------------------

    def recipe(self, train_size: int, ranks: int) -> Recipe:
        del train_size, ranks  # all is counted in updates
        config = self.config
        half = tf.keras.mixed_precision.global_policy().compute_dtype == "float16"
        steps = config.lr_anneal_steps
        return Recipe(
            seed=config.seed,
            batch_size=config.batch_size,
            microbatch=max(config.microbatch, 0),
            microbatches_add=not config.microbatch_average,
            steps=steps or _ENDLESS,
            optimizer=AdamW(0.9, 0.999, epsilon=1e-8, weight_decay=config.weight_decay),
            learning_rate=LinearDecay(config.lr, steps) if steps else Constant(config.lr),
            non_finite="skip",
            skipped_steps_count=True,
            ema_decays=config.ema_decays,
            # Gradients that are not finite halve the scale, whether the loss is or not.
            loss_scale=(
                LossScaleSettings(2.0**20, 2.0**-20, growth=2.0**config.fp16_scale_growth, loss_counts=True)
                if half
                else None
            ),
            log_every=config.log_interval,
            save_every=config.save_interval,
            sample_every=config.save_interval,
            restore_path=config.resume_checkpoint,
        )

    def prepare(self, batch: dict[str, np.ndarray], draws: StepDraws) -> dict[str, np.ndarray]:
        """Mirrors half of the images, where the settings ask for it, and leaves columns that nobody reads behind."""
        prepared = {"image": batch["image"]}
        if self.config.random_flip:
            mirrored = draws.mine(draws.generator("flip").randint(0, 2, draws.global_batch_size)) == 1
            prepared["image"] = np.where(mirrored[:, None, None, None], batch["image"][:, :, ::-1], batch["image"])
        if self.config.class_cond:
            prepared["label"] = batch["label"]
        return prepared

    def loss(self, batch: Batch, key: Key, training: bool) -> Loss:
        """One step of the process for each image (spec of the objective: `Process.training_losses`)."""
        x_start = from_uint8(batch["image"])  # [B, S, S, 3]
        t, weights, noise = self.draws(batch, key)
        x_t = self.process.q_sample(x_start, t, noise)
        given = conditions_of(self, batch, x_start)
        output = self.network(
            x_t,
            self.process.network_timesteps(t),
            labels=self._some_hidden(given.labels, key),
            low_res=given.low_res,
            training=training,
            dropout_key=key.fold("dropout"),
        )
        terms = self.process.training_losses(output, x_start, x_t, t, noise)

        # Loss by part of the process, as the original logs it; what a part has no sample of is not logged.
        metrics, partial = {}, {}
        quarter = _QUARTERS * t // self.process.steps
        for name, values in terms.items():
            weighted = values * weights
            # The weighted total is the objective, which the step logs under the same name.
            if name != "loss":
                metrics[name] = tf.reduce_mean(weighted)
            for number in range(_QUARTERS):
                inside = tf.cast(quarter == number, tf.float32)
                partial[f"{name}_q{number}"] = tf.stack(
                    [tf.reduce_sum(tf.where(inside > 0, weighted, 0.0)), tf.reduce_sum(inside)]
                )
        observations = {}
        if self.timestep_sampler.uses_losses:
            observations = {"t": t, "loss": tf.stop_gradient(terms["loss"])}
        return Loss(tf.reduce_mean(terms["loss"] * weights), metrics, partial, observations)

    def draws(self, batch: Batch, key: Key) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Steps int32 [B], their importance weights float32 [B], and noise [B, S, S, 3] of a batch."""
        size = tf.shape(batch["image"])[0]
        uniforms = key.fold("timestep").uniform([size, 1])[:, 0]
        t, weights = self.timestep_sampler.draw(tf.cast(uniforms, tf.float64))
        return t, weights, key.fold("noise").normal([size, *self.spec.shape])

    def _some_hidden(self, labels: tf.Tensor | None, key: Key) -> tf.Tensor | None:
        """Labels, some replaced by the row for "no class": Ho & Salimans (arXiv:2207.12598), algorithm 1, line 3."""
        if labels is None or not self.config.label_dropout:
            return labels
        drawn = key.fold("label dropout").uniform([tf.shape(labels)[0], 1])[:, 0]
        return tf.where(drawn < self.config.label_dropout, self.config.num_classes, labels)

    def observe(self, observations: dict[str, tf.Tensor]) -> None:
        """Hands the losses of all ranks to the timestep sampler."""
        assert isinstance(self.timestep_sampler, LossSecondMomentSampler)
        self.timestep_sampler.update(observations["t"], observations["loss"])

    # What the commands need -----------------------------------------------------------------------------

    def model(self, process: Process, conditions: Conditions) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        """The network as samplers and bounds call it; see `Sampler.model`."""
        return self._sampler.model(process, conditions)

    def check_data(self, spec: ImageSpec, options: SampleOptions | EvaluateOptions | None) -> None:
        """See `System.check_data`. Classes are numbered by the data: another number of them means other classes."""
        config, trained = self.config, self.spec.num_classes
        if not config.class_cond or getattr(options, "class_label", None) is not None:
            return
        # Published weights have the original's 1000 rows, which do not tell how many of them were trained.
        unknown = not config.dataset and trained == config.num_classes == Config.num_classes
        if spec.num_classes is None or (spec.num_classes != trained and not unknown):
            found = "no labels" if spec.num_classes is None else f"{spec.num_classes} classes"
            raise SettingsError(
                f"the run learned {trained} classes, and these data have {found}, which would be taken for others: "
                "expected images of all classes of the training set, named as there (--data_dir)"
            )

    def images_wanted(self, first: int, count: int, options: SampleOptions) -> np.ndarray:
        return self._sampler.images_wanted(first, count, options)

    def sample(
        self,
        count: int,
        key: Key,
        options: SampleOptions,
        callback: SampleCallback | None = None,
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples by the sampler that `options` name. See `System.sample`."""
        return self._sampler.sample(count, key, options, callback, images, labels)

    def sample_grid(self, samples: np.ndarray, originals: np.ndarray, options: SampleOptions) -> np.ndarray:
        return self._sampler.grid(samples, originals)

    def sample_files(
        self, samples: np.ndarray, key: Key, options: SampleOptions, labels: np.ndarray | None = None
    ) -> dict[str, dict[str, np.ndarray]]:
        """The original's `samples_NxHxWxC.npz`: `arr_0` images and, of a class-conditional model, `arr_1` labels."""
        arrays = {"arr_0": samples}
        classes = self._sampler.labels(len(samples), key, options, labels)
        if classes is not None:
            arrays["arr_1"] = classes
        return {f"samples_{'x'.join(map(str, samples.shape))}.npz": arrays}

    def default_sample_options(self) -> SampleOptions:
        """Few steps of DDIM: a grid during training should not take minutes."""
        return SampleOptions(sampler="ddim", steps=min(GRID_STEPS, self.base_process.steps))

    def default_evaluate_options(self) -> EvaluateOptions:
        return EvaluateOptions(terms=min(TERMS_IN_TRAINING, self.process.steps))

    def evaluate(
        self, batches: Iterable[dict[str, np.ndarray]], options: EvaluateOptions, folder: pathlib.Path
    ) -> Mapping[str, float | np.ndarray]:
        """The variational bound in bits per dimension. See `System.evaluate`."""
        return self._evaluator.evaluate(batches, options)

    def signatures(self) -> dict[str, tf.types.experimental.GenericFunction]:
        return exported.signatures(self)

    def load_published(self, path: str, state: TrainState) -> None:
        """See `System.load_published`. Averages and optimizer are read from the files beside `path`."""
        files = published.files_beside(path, self.config.ema_decays)
        logging.info("%s", files)
        averages = {average.decay: average.averages for average in state.averages}
        state.step.assign(published.load_into(files, self.network, averages, state.optimizer))
