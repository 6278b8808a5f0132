"""Energy-based models as a `System`: configuration to network, loss, chains, evaluation and export.

Du & Mordatch, "Implicit Generation and Generalization in Energy Based Models", 2019, arXiv:1903.08689. A network gives
each image an energy, low where images are likely. Samples come from Langevin dynamics on it, in training as well.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tfgen.data.source import ImageSpec, Splits
from tfgen.monitor.window import Statistic
from tfgen.randomness import Key, StepDraws
from tfgen.settings import SettingsError
from tfgen.systems.base import Batch, Loss, SampleCallback, System, TaskRun
from tfgen.systems.ebm import data, exported, objective, preprocess, published, tasks
from tfgen.systems.ebm.chains import Chains
from tfgen.systems.ebm.config import Config
from tfgen.systems.ebm.networks import OFF, EnergyNetwork, Weights
from tfgen.systems.ebm.prepare import labels_of, levels_of, prepared
from tfgen.systems.ebm.sampling import SampleOptions, Sampler
from tfgen.systems.ebm.tasks.options import EvaluateOptions
from tfgen.systems.ebm.training_settings import objective_of
from tfgen.training.clipped_adam import ClippedAdam
from tfgen.training.recipe import Recipe
from tfgen.training.schedules import Constant
from tfgen.training.state import TrainState

_GRID_IMAGES = 20
_LAST_STEP_OF_MNIST = 60_000  # the original's programs stop there
# Logged for every single step: what tells a run that is about to diverge.
_EVERY_STEP = ("loss", "energy_pos", "energy_neg", "energy_diff", "grad_norm", "sample_mean", "sample_std")


class EnergyBasedModel(System):
    """An energy network, trained on images and on the ends of Langevin chains."""

    name = "ebm"
    config_class = Config
    sample_options_class = SampleOptions
    evaluate_options_class = EvaluateOptions
    window_statistics: ClassVar[Mapping[str, Statistic]] = {"energy_largest": "largest"}

    network: EnergyNetwork

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        config.validate(spec)
        precision = tf.keras.mixed_precision.global_policy().name
        if precision != "float32":
            raise SettingsError(f"energies are computed in float32, found --precision={precision}: leave the flag out")
        self.label_columns = config.label_columns(spec)
        self.network = EnergyNetwork(config.network_shape(spec), config.seed)
        self.chains = Chains(config, spec, self.label_columns)
        self.rank_state = self.chains
        self.objective = objective_of(config)
        self.sampler = Sampler(self)

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
        return False

    # Energies -------------------------------------------------------------------------------------------

    def normalized(self, advance: bool = False) -> Weights:
        """Weights to compute energies with.

        Args:
          advance: keep what this improves of the power iteration, as every call of the original does.
        """
        weights = self.network.normalized()
        if advance:
            self.network.store_vectors(weights)
        return weights

    def energy(self, weights: Weights, images: tf.Tensor, labels: tf.Tensor | None = None) -> tf.Tensor:
        """float32 [B, 1], without dropout; arguments of `EnergyNetwork.energy`."""
        return self.network.energy(weights, images, labels, OFF)

    def scaled(self, images: np.ndarray) -> np.ndarray:
        """float32 images between 0 and 1 as evaluations have them, without noise, of levels [B, H, W, C].

        What computes energies brings them to the range of the run first, of which the original's evaluations know
        nothing.
        """
        return preprocess.scaled(images, preprocess.scaling_of(self.config.dataset), None)

    def labels_of(self, batch: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """float32 [B, K] of a batch as a source gives it; None for an unconditional network."""
        return labels_of(batch, self.config, self.spec)

    # Training -------------------------------------------------------------------------------------------

    def recipe(self, train_size: int, ranks: int) -> Recipe:
        config = self.config
        per_epoch = max(train_size // (ranks * config.batch_size), 1)
        steps = config.epoch_num * per_epoch
        return Recipe(
            seed=config.seed,
            batch_size=config.batch_size,
            steps=min(steps, _LAST_STEP_OF_MNIST + 1) if config.dataset == "mnist" else steps,
            optimizer=ClippedAdam(),
            learning_rate=Constant(config.lr),
            non_finite="skip",
            ema_decays=(config.ema_rate,) if config.ema_rate else (),
            log_every=config.log_interval,
            every_step=_EVERY_STEP,
            save_every=config.save_interval,
            sample_every=config.test_interval,
            sample_count=_GRID_IMAGES,
            eval_split="test",
            initial_samples=not config.train,
            stop_before_training=not config.train,
            max_rollbacks=1 if config.on_divergence == "rollback" else 0,
            advice=_advice(config),
            restore_path=config.restore_path,
        )

    def prepare(self, batch: dict[str, np.ndarray], draws: StepDraws) -> dict[str, np.ndarray]:
        """Images, starts of chains and labels of a step. See `System.prepare`."""
        return prepared(batch, draws, self.config, self.spec)

    def loss(self, batch: Batch, key: Key, training: bool) -> Loss:
        """Energies of images against those of samples; see `objective`. Samples and power iteration are kept when it is
        settled that the step counts.

        Args:
          batch: of `prepare`: "image" and "start", float32 [B, H, W, C], and, where conditional, "label", [B, K].
        """
        del training  # dropout, where there is any, is in every forward pass
        config, network, chains = self.config, self.network, self.chains
        images, labels = batch["image"], batch.get("label")
        if chains.batch_size not in (None, images.shape[0]):
            raise SettingsError(
                f"chains go on in batches of --batch_size={chains.batch_size}, found {images.shape[0]} images at a "
                "time: drop --grad_accumulation, or --replay_batch and --pcd"
            )

        def dropout(name: str, step: tf.Tensor | None = None) -> Key:
            passed = key.fold("dropout", name)
            return passed if step is None else passed.fold(step)

        weights = network.normalized()
        starts, chain_labels = chains.starts(batch["start"], labels, key)
        positives, positive_labels, last_labels = images, labels, None
        if config.model_cclass:
            positives, positive_labels = objective.with_every_class(images, self.label_columns)
            chain_labels, last_labels = self._inferred(weights, positives, positive_labels, key, dropout), labels

        outcome = objective.evaluate(
            network,
            weights,
            self.objective,
            positives,
            starts,
            lambda energy, x: chains.moved(energy, x, key),
            chain_labels,
            positive_labels,
            last_labels,
            dropout,
        )
        loss = objective.limited(outcome.loss, outcome.positive, outcome.negative, config.energy_limit)

        def settle(take: tf.Tensor) -> None:
            chains.keep(outcome.negatives, chain_labels, take)
            if not config.spec_eval:
                network.store_vectors(weights, take)

        metrics = objective.statistics(outcome, images, chain_labels if config.labels_are_classes else None)
        if "atten/gamma" in weights.values:
            metrics["gamma"] = tf.reduce_mean(weights.values["atten/gamma"])
        if config.hmc and config.proposal_debug:

            def energy(x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
                return config.temperature * network.energy(weights, x, chain_labels, dropout("chain", step))

            metrics["acceptance"] = chains.acceptance(energy, outcome.negatives, key)
        return Loss(loss, metrics, settle=settle)

    def _inferred(self, weights: Weights, images, labels, key: Key, dropout: objective.Passes) -> tf.Tensor:
        """Classes [B, K] of images, drawn from their energies [B K, 1] with each of the classes."""
        energies = self.network.energy(weights, images, labels, dropout("positive"))
        table = tf.reshape(energies, [-1, self.label_columns])
        return objective.inferred_labels(table, key.fold("classes").uniform(tf.unstack(tf.shape(table))))

    # What the commands need -----------------------------------------------------------------------------

    def sample(
        self,
        count: int,
        key: Key,
        options: SampleOptions,
        callback: SampleCallback | None = None,
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """The ends of chains that begin at noise, or in the replay buffer. See `System.sample`."""
        del images, labels
        return self.sampler.sample(count, key, options, callback)

    def default_sample_options(self) -> SampleOptions:
        """While a run is trained its samples go on from the buffer, as the original's do."""
        return SampleOptions(from_replay=self.chains.buffered > 0)

    def evaluate(
        self, batches: Iterable[dict[str, np.ndarray]], options: EvaluateOptions, folder: pathlib.Path
    ) -> dict[str, float]:
        """Energies of images with their own labels, mean and mean square. See `System.evaluate`."""
        del folder
        total, squares, count = 0.0, 0.0, 0
        for batch in batches:
            energies = self._energies(self.scaled(levels_of(batch)), self.labels_of(batch)).numpy().astype(np.float64)
            total, squares, count = total + energies.sum(), squares + np.square(energies).sum(), count + len(energies)
        del options
        seen = max(count, 1)
        return {"energy": total / seen, "squared_energy": squares / seen, "examples": count}

    @tf.function(reduce_retracing=True, autograph=False)
    def _energies(self, images: tf.Tensor, labels: tf.Tensor | None) -> tf.Tensor:
        return self.energy(self.normalized(), self.config.rescale * images, labels)

    def run_task(self, task: str, options: Any, job: TaskRun) -> dict[str, float]:
        """See `System.run_task`; the tasks are those of `tasks.NAMES`."""
        return tasks.load(task)(self, options, job)

    def signatures(self) -> dict[str, tf.types.experimental.GenericFunction]:
        return exported.signatures(self)

    def load_published(self, path: str, state: TrainState) -> None:
        """See `System.load_published`."""
        averages = state.averages[0].averages if state.averages else ()
        loaded = published.load_into(path, self.network, averages, state.optimizer)
        state.step.assign(loaded.step)


def _advice(config: Config) -> str:
    limit = f"energies above --energy_limit={config.energy_limit:g} count as trouble; " if config.energy_limit else ""
    again = "" if config.on_divergence == "rollback" else "go back by itself with --on_divergence=rollback, "
    return (
        f"{limit}{again}begin at an earlier checkpoint with another --seed, lower --lr, take more --num_steps, or use "
        "--swish_act"
    )
