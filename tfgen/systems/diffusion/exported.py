"""The functions of an exported diffusion model, in plain TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from tfgen.randomness import Key
from tfgen.systems.diffusion.evaluation import bound_term, conditions_of
from tfgen.systems.diffusion.resizing import from_uint8, to_uint8
from tfgen.systems.diffusion.sampling import Conditions

if TYPE_CHECKING:
    from tfgen.systems.diffusion.system import ImprovedDiffusion


def signatures(system: ImprovedDiffusion) -> dict[str, tf.types.experimental.GenericFunction]:
    """`sample` and `bits_per_dim`; any number of images. Numbers drawn for image i are functions of the seed and i.

    * sample(count, steps, seed) -> images, uint8 [count, S, S, 3], by DDIM with that many evaluations of the network,
      2 to all. Class-conditional models also take class_label, where -1 draws one for each image, and give labels.
      Super-resolution models take low_res, uint8 [count, s, s, 3], in place of count.
    * bits_per_dim(images uint8 [B, S, S, 3], terms, seed) -> bits_per_dim_bound, float32 [B]: the variational bound
      from that many of its terms for each image, drawn from equal parts of the process; from as many as the process
      has steps it is exact. Class-conditional models also take labels, int32 [B].
    """
    config, process, network, side = system.config, system.process, system.network, system.spec.height
    scalar = {
        name: tf.TensorSpec([], tf.int32, name=name) for name in ("count", "steps", "terms", "seed", "class_label")
    }
    small = tf.TensorSpec([None, config.small_size, config.small_size, 3], tf.uint8, name="low_res")
    images_spec = tf.TensorSpec([None, side, side, 3], tf.uint8, name="images")
    labels_spec = tf.TensorSpec([None], tf.int32, name="labels")
    classes = [scalar["class_label"]] if config.class_cond else []
    begin = small if config.super_resolution else scalar["count"]

    def output(x: tf.Tensor, t: tf.Tensor, conditions: Conditions) -> tf.Tensor:
        times = tf.cast(process.network_timesteps(t), tf.float32)
        return network(x, times, labels=conditions.labels, low_res=conditions.low_res, training=False)

    def labels_of(count: tf.Tensor, key: Key, class_label: tf.Tensor) -> tf.Tensor:
        drawn = tf.cast(key.fold("labels").uniform([count, 1])[:, 0] * system.classes, tf.int32)
        with _expected("class_label", class_label, -1, config.num_classes - 1):
            chosen = tf.fill([count], class_label)
        return tf.where(class_label < 0, tf.minimum(drawn, system.classes - 1), chosen)

    @tf.function(input_signature=[begin, scalar["steps"], scalar["seed"], *classes], autograph=False)
    def sample(first, steps, seed, class_label=None):
        key = _key(seed)
        count = tf.shape(first)[0] if config.super_resolution else first
        labels = labels_of(count, key, class_label) if config.class_cond else None
        low_res = from_uint8(first) if config.super_resolution else None
        conditions = Conditions(labels, low_res)
        with _expected("steps", steps, 2, process.steps):
            kept = evenly_spaced(process.steps, steps)
        alphas_cumprod = tf.gather(tf.constant(process.alphas_cumprod), kept)  # float64 [steps]
        # abar of the step that each leads to; 1 where that is the image.
        leads_to = tf.cast(tf.concat([[1.0], alphas_cumprod[:-1]], 0), tf.float32)

        def step(index, x):
            t = tf.fill([count], kept[index])
            prediction = process.p_mean_variance(output(x, t, conditions), x, t, clip_denoised=True)
            eps = process.eps_from_xstart(x, t, prediction.pred_xstart)
            there = leads_to[index]  # DDIM, equation 12 with sigma = 0
            return index - 1, tf.sqrt(there) * prediction.pred_xstart + tf.sqrt(1 - there) * eps

        noise = key.fold("start").normal([count, side, side, system.spec.channels])
        noise = tf.ensure_shape(noise, [None, side, side, system.spec.channels])
        _, x = tf.while_loop(lambda index, x: index >= 0, step, [steps - 1, noise])
        return {"images": to_uint8(x)} | ({"labels": labels} if config.class_cond else {})

    label_specs = [labels_spec] if config.class_cond else []

    @tf.function(input_signature=[images_spec, scalar["terms"], scalar["seed"], *label_specs], autograph=False)
    def bits_per_dim(images, terms, seed, labels=None):
        x_start, key = from_uint8(images), _key(seed).fold("bits_per_dim")
        conditions = conditions_of(system, {"label": labels}, x_start)
        with _expected("terms", terms, 1, process.steps):
            total = process.prior_bits_per_dim(x_start)

        def add(part, total):
            term = bound_term(process, lambda x, t: output(x, t, conditions), x_start, key, part, terms)
            return part + 1, total + term

        _, total = tf.while_loop(lambda part, total: part < terms, add, [tf.constant(0), total])
        return {"bits_per_dim_bound": total}

    return {"sample": sample, "bits_per_dim": bits_per_dim}


def evenly_spaced(steps: int, wanted: tf.Tensor) -> tf.Tensor:
    """int32 [wanted]: the steps that `respacing.kept_steps(steps, str(wanted))` gives, in a graph."""
    stride = tf.cast(steps - 1, tf.float64) / tf.cast(wanted - 1, tf.float64)
    return tf.cast(tf.round(tf.cumsum(tf.fill([wanted], stride), exclusive=True)), tf.int32)


def _expected(name: str, value: tf.Tensor, least: int, most: int):
    """Operations inside the block fail with a message where the value is out of range."""
    text = f"expected {name} from {least} to {most}, found"
    return tf.control_dependencies([tf.debugging.Assert((value >= least) & (value <= most), [text, value])])


def _key(seed: tf.Tensor) -> Key:
    return Key(tf.stack([seed, 0]))
