"""DistAug as a `System`: configuration to network, loss, sampler, evaluation and export.

Jun et al., "Distribution Augmentation for Generative Modeling", ICML 2020.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from tfgen.data.source import ImageSpec, Splits
from tfgen.likelihood.bits import bits_per_dim
from tfgen.randomness import Key, StepDraws
from tfgen.settings import SettingsError, flag
from tfgen.systems.base import Batch, Loss, SampleCallback, System
from tfgen.systems.distaug import data, decode, published
from tfgen.systems.distaug.augment import Augmentations
from tfgen.systems.distaug.augmented_evaluation import evaluate_combinations
from tfgen.systems.distaug.config import Config
from tfgen.systems.distaug.randaugment import RandAugment
from tfgen.systems.distaug.transformer import Transformer, token_losses
from tfgen.training.optimizers import Adafactor, Adam
from tfgen.training.recipe import LossScaleSettings, Recipe
from tfgen.training.schedules import WarmupDecay
from tfgen.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Extra flags of `tfgen.sample`."""

    temperature: float | None = flag(
        None, "logits are divided by it, 0 takes the most likely value; default: --temperature of the run", minimum=0.0
    )
    tokens: str = flag("", "conditioning tokens as name=row, comma separated (sos_rot=1,sos_tr=0); default: all 0")
    sample_batch: int | None = flag(None, "images drawn together; default: --sample_batch of the run", minimum=1)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Extra flags of `tfgen.evaluate`."""

    aug_eval: bool = flag(False, "evaluate every combination of conditioning tokens on images augmented accordingly")
    aug_eval_images: bool = flag(True, "with --aug_eval: also write the augmented images")


class DistAug(System):
    """Autoregressive block-sparse transformer over sub-pixels, conditioned on the augmentation of each image."""

    name = "distaug"
    config_class = Config
    sample_options_class = SampleOptions
    evaluate_options_class = EvaluateOptions

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        config.validate(spec)
        self.augmentations = Augmentations(config, spec)
        self.rand_augment = (
            RandAugment(config.rand_augment_n, config.rand_augment_m, spec) if config.rand_augment else None
        )
        self.network = Transformer(
            height=spec.height,
            width=spec.width,
            channels=spec.channels,
            vocab_size=config.vocabulary,
            n_embd=config.n_embd,
            n_head=config.n_head,
            n_layer=config.n_layer,
            attention_layers=config.modes,
            local_attn_ctx=config.local_attn_ctx,
            blocksize=config.blocksize,
            blocksparse_op=config.blocksparse_op,
            mlp_multiple=config.mlp_multiple,
            qk_ratio=config.qk_ratio,
            conditioning_rows=config.conditioning_types,
            lookahead=config.randomly_determined_order_use_lookahead,
            embd_pdrop=config.embd_pdrop,
            resid_pdrop=config.resid_pdrop,
            pos_embd_std=config.pos_embd_std,
            w_embd_std=config.w_embd_std,
            mlp_w1=config.mlp_w1,
            mlp_w2=config.mlp_w2,
            qk_w=config.qk_w,
            v_w=config.v_w,
            post_w=config.post_w,
            logits_w=config.logits_w,
            seed=config.seed,
            recompute=config.recompute,
        )
        self._coordinates = tf.constant(self.augmentations.identity_coordinates)  # [1, 3, T]

    # Before the network exists --------------------------------------------------------------------------

    @classmethod
    def image_spec(cls, config: Config) -> ImageSpec | None:
        return data.known_spec(config.dataset)

    @classmethod
    def open_data(cls, config: Config, data_dir: str) -> Splits:
        config.check()
        return data.open_splits(config, data_dir)

    @classmethod
    def half_precision(cls, config: Config) -> bool:
        return config.float16

    # Training -------------------------------------------------------------------------------------------

    def recipe(self, train_size: int, ranks: int) -> Recipe:
        config = self.config
        per_epoch = max(train_size // (ranks * config.n_batch), 1)
        total_steps = config.total_epochs * per_epoch
        steps = min(total_steps, (config.exit_after_n_epochs or config.total_epochs) * per_epoch)
        eval_every, save_every = config.epochs_per_eval * per_epoch, config.epochs_per_save * per_epoch
        if config.eval_after_n_examples:
            # The original then neither evaluates nor saves nor ends per epoch.
            eval_every = save_every = max(config.eval_after_n_examples // (ranks * config.n_batch), 1)
            steps = total_steps
        half = tf.keras.mixed_precision.global_policy().compute_dtype == "float16"
        if config.optimizer == "bs_adam":
            optimizer = Adam(beta2=config.beta2, weight_decay=config.l2_loss, packed_moments=config.fp16_mean_var)
        else:
            optimizer = Adafactor(beta2=config.beta2, weight_decay=config.l2_loss)
        return Recipe(
            seed=config.seed,
            batch_size=config.n_batch,
            steps=steps,
            optimizer=optimizer,
            learning_rate=WarmupDecay(
                peak=config.lr,
                warmup_steps=config.warmup_iters,
                total_steps=total_steps,
                offset=config.lr_offset,
                shape="linear" if config.decay_lr_linearly else "cosine",
            ),
            max_grad_norm=config.max_grad_norm,
            ema_decays=() if config.disable_ema_vars else (config.weights_beta,),
            # Without float16 a scale changes nothing but the exponent of the gradients.
            loss_scale=LossScaleSettings(config.fp16_loss_scale, config.min_loss_scale, config.dynamic_loss_scaling)
            if half
            else None,
            log_every=config.iters_per_log,
            eval_every=eval_every,
            save_every=save_every,
            sample_every=eval_every if config.sample_during_eval else 0,
            sample_count=config.samples_to_generate,
            initial_evaluation=not config.skip_initial_evals
            or config.eval_test
            or config.eval_and_exit
            or config.aug_eval is not None,
            initial_samples=config.sample_and_exit or config.sample_during_eval,
            stop_before_training=config.sample_and_exit
            or config.eval_and_exit
            or config.eval_test
            or config.aug_eval is not None,
            eval_split=config.aug_eval or ("test" if config.eval_test else "valid"),
            restore_path=config.restore_path,
            wire_dtype=tf.float16 if config.fp16_allreduce and half else tf.float32,
            gradient_groups=self._gradient_groups(),
        )

    def _gradient_groups(self) -> tuple[tuple[int, ...], ...] | None:
        """`merge_layer_allreduce` layers a group, from the top of the network; all that is no layer comes last."""
        size = self.config.merge_layer_allreduce
        if not size:
            return None
        position = {variable.ref(): index for index, variable in enumerate(self.network.trainable_variables)}
        layers = [
            [position[variable.ref()] for variable in block.trainable_variables] for block in self.network.blocks
        ][::-1]
        groups = [list(itertools.chain(*layers[first : first + size])) for first in range(0, len(layers), size)]
        in_layers = {index for group in groups for index in group}
        groups.append([index for index in range(len(position)) if index not in in_layers])
        return tuple(tuple(group) for group in groups)

    def prepare(self, batch: dict[str, np.ndarray], draws: StepDraws) -> dict[str, np.ndarray]:
        """Augments a batch: flips, then one permutation of each type in use, then RandAugment (spec of Jun et al.,
        section 3). Input and target are the augmented image.

        Returns:
          "tokens" uint8 [B, T], "coordinates" int32 [B or 1, 3, T], "conditioning" int32 [B, K].
        """
        images = batch["image"]
        generator = draws.generator("augmentation", self.config.aug_seed)
        if self.config.aug:
            flips = draws.mine(self.augmentations.horizontal_flips(generator, draws.global_batch_size))
            images = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
        conditioning = self.augmentations.draw_tokens(
            generator, draws.global_batch_size, batch.get("dataset"), keep=draws.mine
        )
        tokens, coordinates = self.augmentations.apply(images.reshape(len(images), -1), conditioning)
        if self.rand_augment is not None:
            applied = np.ones(len(images), bool)
            for index, kind in enumerate(self.augmentations.types):
                if kind.name == "sos_aa":
                    applied = conditioning[:, index] == 1
            drawn = self.rand_augment.draw(
                draws.generator("rand_augment", self.config.aug_seed), draws.global_batch_size
            )
            changed = self.rand_augment.apply(tokens.reshape(images.shape), drawn.rows(draws.mine), applied)
            tokens = changed.reshape(tokens.shape)
        return {"tokens": tokens, "coordinates": coordinates, "conditioning": conditioning}

    def loss(self, batch: Batch, key: Key, training: bool) -> Loss:
        tokens = tf.cast(batch["tokens"], tf.int32)
        logits = self.network(
            tokens,
            batch["coordinates"],
            batch["conditioning"] if self.config.conditioning_types else None,
            key=key.fold("dropout"),
            training=training,
        )
        objective = tf.reduce_mean(token_losses(logits, tokens))
        return Loss(objective, {"bits_per_dim": bits_per_dim(objective)})

    # What the commands need -----------------------------------------------------------------------------

    def default_evaluate_options(self) -> EvaluateOptions:
        return EvaluateOptions(
            aug_eval=self.config.aug_eval is not None, aug_eval_images=self.config.aug_eval != "test"
        )

    def sample(
        self,
        count: int,
        key: Key,
        options: SampleOptions,
        callback: SampleCallback | None = None,
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """Ancestral sampling. See `System.sample`."""
        del images, labels
        size = options.sample_batch or self.config.sample_batch
        temperature = self.config.temperature if options.temperature is None else options.temperature
        row = self._conditioning_row(options.tokens)
        parts = []
        total = -(-count // size) * self.spec.dims
        for first in range(0, count, size):

            def progress(done: int, _: int, tokens: np.ndarray, first: int = first) -> None:
                if callback is not None:
                    callback(first // size * self.spec.dims + done, total, lambda: self._images(tokens))

            # A short last batch is drawn whole: one compiled sampler serves all.
            conditioning = None if row is None else tf.constant(np.tile(row, [size, 1]))
            tokens = decode.sample(
                self.network, key.skip(first), size, conditioning, temperature=temperature, callback=progress
            )
            parts.append(self._images(np.asarray(tokens))[: count - first])
        return np.concatenate(parts)

    def _images(self, tokens: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, C] from the levels of sub-pixels [B, H W C]."""
        return tokens.astype(np.uint8).reshape(len(tokens), *self.spec.shape)

    def _conditioning_row(self, text: str) -> np.ndarray | None:
        """int32 [K] from "sos_rot=1,sos_tr=0"; the types that are not named get 0. None without conditioning."""
        rows = self.config.conditioning_types
        chosen = dict.fromkeys(rows, 0)
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            if name not in rows or not value.isdigit() or int(value) >= rows[name]:
                allowed = ", ".join(f"{known}=0..{count - 1}" for known, count in rows.items()) or "none in this run"
                raise SettingsError(f"--tokens={text}: cannot use {item!r}; conditioning tokens are {allowed}")
            chosen[name] = int(value)
        return np.array(list(chosen.values()), np.int32) if rows else None

    def evaluate(
        self, batches: Iterable[dict[str, np.ndarray]], options: EvaluateOptions, folder: pathlib.Path
    ) -> dict[str, float]:
        """Exact likelihood of the images under the identity augmentation. See `System.evaluate`."""
        if options.aug_eval:
            return evaluate_combinations(self, batches, folder, write_images=options.aug_eval_images)
        nats, examples = 0.0, 0
        identity = np.zeros([1, len(self.config.conditioning_types)], np.int32)
        for batch in batches:
            images = batch["image"]
            losses = self.token_losses(
                tf.constant(images.reshape(len(images), -1)),
                self._coordinates,
                tf.constant(identity.repeat(len(images), axis=0)),
            )
            nats += float(tf.reduce_sum(tf.reduce_mean(losses, axis=1)))
            examples += len(images)
        mean = nats / examples if examples else 0.0
        return {"nats_per_dim": mean, "bits_per_dim": bits_per_dim(mean), "examples": examples}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.uint8, name="tokens"),
            tf.TensorSpec([None, 3, None], tf.int32, name="coordinates"),
            tf.TensorSpec([None, None], tf.int32, name="conditioning"),
        ]
    )
    def token_losses(self, tokens: tf.Tensor, coordinates: tf.Tensor, conditioning: tf.Tensor) -> tf.Tensor:
        """float32 [B, T], nats of each sub-pixel."""
        tokens = tf.ensure_shape(tf.cast(tokens, tf.int32), [None, self.spec.dims])
        coordinates = tf.ensure_shape(coordinates, [None, 3, self.spec.dims])
        conditioning = tf.ensure_shape(conditioning, [None, len(self.config.conditioning_types)])
        logits = self.network(tokens, coordinates, conditioning if self.config.conditioning_types else None)
        return token_losses(logits, tokens)

    def signatures(self) -> dict[str, tf.types.experimental.GenericFunction]:
        height, width, channels = self.spec.shape
        conditioned = len(self.config.conditioning_types)
        sampler = decode.sample_function(self.network)

        @tf.function(input_signature=[tf.TensorSpec([None, height, width, channels], tf.uint8, name="images")])
        def log_prob(images):
            """Log-likelihood of each image in nats, under the identity augmentation."""
            count = tf.shape(images)[0]
            losses = self.token_losses(
                tf.reshape(images, [count, height * width * channels]),
                self._coordinates,
                tf.zeros([count, conditioned], tf.int32),
            )
            return {"log_prob": -tf.reduce_sum(losses, axis=1)}

        @tf.function(
            input_signature=[
                tf.TensorSpec([], tf.int32, name="count"),
                tf.TensorSpec([], tf.int32, name="seed"),
                tf.TensorSpec([], tf.float32, name="temperature"),
            ]
        )
        def sample(count, seed, temperature):
            """Images drawn with the identity conditioning; image i is a function of the seed and i."""
            tokens = sampler(seed, tf.zeros([count, conditioned], tf.int32), temperature)
            return {"images": tf.reshape(tf.cast(tokens, tf.uint8), [count, height, width, channels])}

        return {"log_prob": log_prob, "sample": sample}

    def load_published(self, path: str, state: TrainState) -> None:
        averages = state.averages[0].averages if state.averages else None
        state.step.assign(published.load_into(path, self.network, averages, state.optimizer).step)
