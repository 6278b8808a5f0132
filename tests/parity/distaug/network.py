"""Checkers of the network: forward pass, updates, checkpoints, half precision, greedy samples."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tempfile

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.data.source import ImageSpec
from tfgen.likelihood.bits import bits_per_dim
from tfgen.ops import blocksparse
from tfgen.randomness import Key
from tfgen.systems.distaug import decode, published
from tfgen.systems.distaug.augment import Augmentations
from tfgen.systems.distaug.config import Config
from tfgen.systems.distaug.transformer import Transformer, token_losses
from tfgen.training.ema import Ema
from tfgen.training.gradients import clip_by_global_norm
from tfgen.training.optimizers import Adam
from tfgen.training.schedules import WarmupDecay

# Advised in the description of the recordings.
ACTIVATIONS, LOSS, GRADIENTS, PARAMETERS, MOMENTS = 1e-4, 1e-5, 1e-6, 2e-4, 1e-6
OF_THE_LOOP = "the loss scale and the best loss belong to the training loop; the recording leaves both at their start"
BITS = LOSS / np.log(2)


class Recorded:
    """What a recording says about its network: settings, image size, and the network itself."""

    def __init__(self, case: Case, shapes: dict[str, np.ndarray]):
        settings = case.json("config")
        known = {field.name for field in dataclasses.fields(Config)}
        self.config = Config(**{name: value for name, value in settings.items() if name in known})
        self.total_updates = settings.get("n_updates_total_override")
        height, width = settings["image_hw"]
        self.spec = ImageSpec(height, width, shapes["model/pos_emb_2:0"].shape[0])
        self.vocabulary = shapes["model/we:0"].shape[0]
        self.block_form = self.config.float16 and self.config.blocksparse_op

    def network(self) -> Transformer:
        config = self.config
        return Transformer(
            height=self.spec.height,
            width=self.spec.width,
            channels=self.spec.channels,
            vocab_size=self.vocabulary,
            n_embd=config.n_embd,
            n_head=config.n_head,
            n_layer=config.n_layer,
            attention_layers=config.modes,
            local_attn_ctx=config.local_attn_ctx,
            blocksparse_op=self.block_form,
            blocksize=config.blocksize,
            mlp_multiple=config.mlp_multiple,
            qk_ratio=config.qk_ratio,
            conditioning_rows=config.conditioning_types,
            lookahead=config.randomly_determined_order_use_lookahead,
        )

    def conditioning(self, case: Case, name: str) -> tf.Tensor | None:
        """The tokens that the network is told: those of array `name`, unless it is unconditional."""
        if self.config.conditioning_types:
            return tf.constant(case[name], tf.int32)
        case.leave_unread(name, "the network is unconditional")
        return None


@checker("distaug", "*.forward.npz")
def check_forward(case: Case) -> None:
    weights = case.under("var/")
    recorded = Recorded(case, weights)
    network = recorded.network()
    published.load_into(weights, network)
    _check_inputs(case, recorded)
    tokens, coordinates = tf.constant(case["in/X"], tf.int32), tf.constant(case["in/X_emb"], tf.int32)
    conditioning = recorded.conditioning(case, "in/aug_tokens")

    _check_outputs(case, "train", network(tokens, coordinates, conditioning), tokens)
    if case.matching("act/*"):
        _check_activations(case, recorded, network, network.embedding(tokens, coordinates, conditioning))
    published.load_into(case.under("ema/") or weights, network)
    _check_outputs(case, "eval_ema", network(tokens, coordinates, conditioning), tokens)


def _check_inputs(case: Case, recorded: Recorded) -> None:
    """The augmented inputs, from the raw images and the augmentation tokens."""
    raw, types = case["in/raw_images"], len(recorded.config.augmentation_types)
    drawn = case["in/aug_tokens"] if types else np.zeros([len(raw), 0], np.int32)
    if recorded.config.aug or recorded.config.rand_augment:
        return  # flips and RandAugment are in no token: the raw images alone do not determine the inputs
    tokens, coordinates = Augmentations(recorded.config, recorded.spec).apply(raw, drawn)
    case.equal("in/X", tokens)
    shape = np.broadcast_shapes(coordinates.shape, case["in/X_emb"].shape)  # either may be shared by the batch
    fed = np.broadcast_to(case["in/X_emb"], shape)
    case.equal("in/X_emb", np.broadcast_to(coordinates, shape), expected=fed)


def _check_outputs(case: Case, suffix: str, logits: tf.Tensor, tokens: tf.Tensor) -> None:
    losses = token_losses(logits, tokens)
    loss = float(tf.reduce_mean(losses))
    if f"out/logits_{suffix}" in case:
        case.close(f"out/logits_{suffix}", logits, ACTIVATIONS)
    case.close(f"out/losses_{suffix}", losses, ACTIVATIONS)
    case.close(f"out/loss_{suffix}", loss, LOSS)
    case.close(f"out/bits_{suffix}", bits_per_dim(loss), BITS)


def _check_activations(case: Case, recorded: Recorded, network: Transformer, x: tf.Tensor) -> None:
    computed = {}
    for block in network.blocks:
        name = f"act/model/h{block.index}"
        computed[f"{name}.in"] = x
        n = block.attn_input(x)
        q, k, v = block.q_proj(n), block.k_proj(n), block.v_proj(n)
        # The block-sparse kernels of the original work on the reordered sequence.
        order = block.pattern.token_order() if recorded.block_form else np.arange(block.pattern.n_ctx)
        for part, tensor in (("q", q), ("k", k), ("v", v)):
            computed[f"{name}/{part}_proj.out"] = tf.gather(tensor, order, axis=1)
        attended = blocksparse.attention(q, k, v, block.pattern, block.n_head)
        branch = block.post_proj(attended)
        m = block.mlp(x + branch)
        hidden = block.mlp_proj1(m)
        computed |= {
            f"{name}/attn_input.out": n,
            f"{name}/post_proj.in": attended,
            f"{name}/post_proj.out": branch,
            f"{name}/mlp.out": m,
            f"{name}/mlp_proj1.out": hidden,
            f"{name}/mlp_proj2.out": block.mlp_proj2(hidden),
        }
        x = block(x)
        computed[f"{name}.out"] = x
    computed["act/model/final_norm.out"] = network.final_norm(x)
    for name in case.matching("act/*"):
        case.close(name, computed[name], ACTIVATIONS)


class Run:
    """Updates of a recorded training run, from the weights that stand beside it."""

    def __init__(self, case: Case):
        forward = case.sibling(case.path.name.replace(".train.", ".forward."))
        weights = forward.under("var/")
        self.case, self.recorded = case, Recorded(case, weights)
        self.averaged = not self.recorded.config.disable_ema_vars
        config = self.recorded.config
        self.network = self.recorded.network()
        published.load_into(weights, self.network)
        self.variables = self.network.trainable_variables
        self.optimizer = Adam(beta2=config.beta2, weight_decay=config.l2_loss, packed_moments=config.fp16_mean_var)
        self.ema = Ema(config.weights_beta)
        self.optimizer.build(self.variables)
        self.ema.build(self.variables)
        # The recorded averages do not start as copies of the weights.
        started = forward.under("ema/")
        for variable, average in zip(self.variables, self.ema.averages, strict=True):
            average.assign(started.get(published.published_name(variable), variable))
        self.schedule = WarmupDecay(
            peak=config.lr,
            warmup_steps=config.warmup_iters,
            total_steps=self.recorded.total_updates,
            offset=config.lr_offset,
            shape="linear" if config.decay_lr_linearly else "cosine",
        )
        static_scale = config.float16 and not config.dynamic_loss_scaling
        self.non_finite = "clamp" if static_scale else "zero"

    def update(self, step: int) -> tuple[list[float], list[tf.Tensor]]:
        """Makes update `step` (from 1). Returns loss, learning rate and gradient norm, and the raw gradients."""
        inputs = self.case.under(f"in/step{step}/")
        tokens = tf.constant(inputs["X"], tf.int32)
        conditioning = self.recorded.conditioning(self.case, f"in/step{step}/aug_tokens")
        with tf.GradientTape() as tape:
            logits = self.network(tokens, tf.constant(inputs["X_emb"], tf.int32), conditioning)
            loss = tf.reduce_mean(token_losses(logits, tokens))
        gradients = tape.gradient(loss, self.variables)
        clipped = clip_by_global_norm(gradients, self.recorded.config.max_grad_norm, non_finite=self.non_finite)
        rate = self.schedule(step - 1)
        self.optimizer.apply(clipped.gradients, rate)
        self.ema.update()
        return [float(loss), float(rate), float(clipped.norm)], gradients

    def check_state(self, case: Case, prefix: str) -> None:
        """Compares weights, averages and moments with the arrays of `case` under `prefix`, as far as they are there.

        The gradient of a key bias is zero but for rounding, which Adam turns into steps of the size of the rate:
        the recording marks the entries that are not of this kind.
        """
        powers = (self.optimizer.beta1_power, self.optimizer.beta2_power)
        for name, power in zip(("beta1_power", "beta2_power"), powers, strict=True):
            case.close(f"{prefix}adam_beta/{name}:0", power, 1e-6)
        slots = zip(
            self.variables, self.ema.averages, self.optimizer.first_moments, self.optimizer.second_moments, strict=True
        )
        for variable, average, mean, variance in slots:
            name = published.published_name(variable)
            where = self.case[f"wellcond/{name}"]
            stem = prefix + name.removesuffix(":0")
            if f"{stem}:0" in case:
                case.close(f"{stem}:0", variable, PARAMETERS, where=where)
            if f"{stem}/Ema/ema:0" in case:
                case.close(f"{stem}/Ema/ema:0", average, PARAMETERS, where=where)
            if f"{stem}/Adam:0" in case:
                self._check_moment(case, f"{stem}/Adam:0", mean, where)
            if f"{stem}/Adam_1:0" in case:
                self._check_moment(case, f"{stem}/Adam_1:0", variance, where, square=True)

    @staticmethod
    def _check_moment(case: Case, name: str, moment: tf.Variable, where: np.ndarray, square: bool = False) -> None:
        recorded = case[name]
        if moment.dtype == tf.float16:  # 16-bit words; a few may be off by more than one
            words = [array.view(np.uint16).astype(np.int64)[where] for array in (moment.numpy(), recorded)]
            case.close(name, (np.abs(words[0] - words[1]) > 1).sum() / max(where.sum(), 1), 0.005, expected=0.0)
        elif square:
            # Relative to the largest entry; and as a root, which has the scale and so the error of the gradients.
            case.close(name, moment / recorded.max(), 1e-3, expected=recorded / recorded.max(), where=where)
            case.close(name, np.sqrt(moment), MOMENTS, expected=np.sqrt(recorded), where=where)
        else:
            case.close(name, moment, MOMENTS, where=where)


@checker("distaug", "*.train.npz")
def check_train(case: Case) -> None:
    run = Run(case)
    names = [published.published_name(variable) for variable in run.variables]
    case.equal("trace/trainable_order", np.array(names))
    case.equal("trace/var_order", np.array(published.array_names(run.network, run.averaged)))
    trace = case["trace/loss_lr_gnorm"]  # [steps, 3]
    made = []
    for step in range(1, len(trace) + 1):
        numbers, gradients = run.update(step)
        made.append(numbers)
        if step == 1:
            for name, gradient in zip(names, gradients, strict=True):
                case.close(f"grad/{name}", gradient, GRADIENTS)
        if case.matching(f"step{step}/*"):
            run.check_state(case, f"step{step}/")
    case.close("trace/loss_lr_gnorm", np.array(made), LOSS)
    for scalar in ("curr_loss_scale", "best_val_loss"):
        case.leave_unread(f"step*/{scalar}:0", OF_THE_LOOP)


@checker("distaug", "*.checkpoint_after*.npz")
def check_checkpoint(case: Case) -> None:
    """Reading and writing it again changes nothing; it also holds what the recorded updates lead to."""
    train = Run(case.sibling(re.sub(r"\.checkpoint_after\d+\.", ".train.", case.path.name)))
    read = published.read(case.path)
    steps = int(case["global_step:0"])
    for step in range(1, steps + 1):
        train.update(step)
    train.check_state(case, "")

    averages = train.ema.averages if train.averaged else None
    loaded = published.load_into(case.path, train.network, averages, train.optimizer)
    case.equal("global_step:0", loaded.step)
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / case.path.name
        counters = {name: read[name] for name in published.COUNTERS}
        published.write(copy, train.network, averages, train.optimizer, steps, counters)
        written = published.read(copy)
    case.equal("(names of all arrays)", np.array(list(written)), expected=np.array(list(read)))
    case.leave_unread("Entropy:0", "state of the original's dropout generator")
    for name in sorted(set(read) - {"Entropy:0"}):
        same = read[name].dtype == written[name].dtype and read[name].tobytes() == written[name].tobytes()
        case.close(name, 0.0 if same else 1.0, 0.0, expected=0.0)
        _ = case[name]


@checker("distaug", "*.checkpoint_after*_expect.npz")
def check_checkpoint_losses(case: Case) -> None:
    path = case.path.with_name(case.path.name.replace("_expect.npz", ".npz"))
    arrays = published.read(path)
    recorded = Recorded(case, arrays)
    network = recorded.network()
    averages = [tf.Variable(variable) for variable in network.trainable_variables]
    published.load_into(arrays, network, averages)
    tokens = tf.constant(case["X"], tf.int32)
    inputs = (tokens, tf.constant(case["X_emb"], tf.int32), recorded.conditioning(case, "Y_gen"))
    case.close("loss_raw", tf.reduce_mean(token_losses(network(*inputs), tokens)), LOSS)
    for variable, average in zip(network.trainable_variables, averages, strict=True):
        variable.assign(average)
    losses = token_losses(network(*inputs), tokens)
    case.close("losses_eval_ema", losses, ACTIVATIONS)
    case.close("loss_eval_ema", tf.reduce_mean(losses), LOSS)


@checker("distaug", "*mixed_precision*.npz")
def check_mixed_precision(case: Case) -> None:
    """Half precision: the recording is an emulation, so that only the size of the difference is comparable."""
    forward = case.sibling(f"{case['source']}.forward.npz")
    weights = forward.under("var/")
    recorded = Recorded(case, weights)
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        network = recorded.network()
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    published.load_into(weights, network)
    tokens = tf.constant(forward["in/X"], tf.int32)
    conditioning = recorded.conditioning(forward, "in/aug_tokens")
    logits = network(tokens, tf.constant(forward["in/X_emb"], tf.int32), conditioning)
    losses = token_losses(logits, tokens)
    case.close("logits_fp16", logits, 3e-2)
    case.close("losses", losses, 3e-2)
    case.close("loss", tf.reduce_mean(losses), 1e-3)
    difference = logits.numpy() - forward["out/logits_train"]
    case.close("max_abs_diff_vs_fp32", np.abs(difference).max(), 3e-2)
    case.close("rms_diff_vs_fp32", np.sqrt(np.mean(np.square(difference))), 3e-3)


@checker("distaug", "*sample_greedy*.npz")
def check_greedy_samples(case: Case) -> None:
    weights = case.under("var/") if case.json("config").get("disable_ema_vars") else case.under("ema/")
    recorded = Recorded(case, weights)
    network = recorded.network()
    published.load_into(weights, network)
    tokens = tf.constant(case["out/greedy_tokens"], tf.int32)
    conditioning = tf.zeros([len(tokens), len(network.conditioning_rows)], tf.int32)
    logits = network(tokens, network.identity_coordinates, conditioning)
    case.close("out/teacher_forced_logits_eval", logits, ACTIVATIONS)
    highest = np.sort(logits.numpy(), axis=-1)[..., -2:]
    case.close("out/argmax_margin", (highest[..., 1] - highest[..., 0]).min(), ACTIVATIONS)

    for table in network.embedding.lookahead_emb:  # the original leaves these out when it samples
        table.assign(tf.zeros_like(table))
    key = Key.create(0, "greedy")
    for draw in (decode.sample, decode.sample_uncached):
        case.equal("out/greedy_tokens", draw(network, key, conditioning=conditioning, temperature=0.0))
    case.leave_unread("var/*", "sampling uses the averaged weights")
    case.leave_unread("ema/*", "sampling uses the raw weights where averages are off")
