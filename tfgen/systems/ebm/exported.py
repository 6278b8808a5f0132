"""The functions of an exported energy-based model, in plain TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from tfgen.randomness import Key
from tfgen.systems.ebm.chains import moves_of
from tfgen.systems.ebm.sampler import run_part
from tfgen.systems.ebm.sampling import SampleOptions

if TYPE_CHECKING:
    from tfgen.systems.ebm.system import EnergyBasedModel

_LEVELS, _LARGEST = 256.0, 255.0


def signatures(system: EnergyBasedModel) -> dict[str, tf.types.experimental.GenericFunction]:
    """`energy` and `sample`; any number of images.

    * energy(images) -> energy, float32 [B]: of images float32 [B, H, W, C] between 0 and the run's rescale. Runs that
      are conditioned on classes also take class_label, int32 [B], those conditioned on other labels label, float32
      [B, K].
    * sample(count, steps, seed) -> images, float32 [count, H, W, C] as `energy` takes them, and pixels, the same as
      uint8: chains from noise with the step size of the training. Conditional runs take class_label or label, as
      above, in place of count.
    """
    spec, config = system.spec, system.config
    chain = system.sampler.chain(SampleOptions())
    columns = system.label_columns
    images_spec = tf.TensorSpec([None, *spec.shape], tf.float32, name="images")
    scalars = [tf.TensorSpec([], tf.int32, name=name) for name in ("steps", "seed")]
    label_specs, first = [], tf.TensorSpec([], tf.int32, name="count")
    if columns:
        classes = tf.TensorSpec([None], tf.int32, name="class_label")
        label_specs = [
            classes if config.labels_are_classes else tf.TensorSpec([None, columns], tf.float32, name="label")
        ]
        first = label_specs[0]

    def rows_of(labels: tf.Tensor | None) -> tf.Tensor | None:
        """Labels as the network takes them, [B, K]."""
        if labels is None or labels.dtype == tf.float32:
            return labels
        known = tf.reduce_all((labels >= 0) & (labels < columns))
        text = f"expected class_label from 0 to {columns - 1}, found"
        with tf.control_dependencies([tf.debugging.Assert(known, [text, labels])]):
            return tf.one_hot(labels, columns)

    @tf.function(input_signature=[images_spec, *label_specs], autograph=False)
    def energy(images, labels=None):
        return {"energy": system.energy(system.normalized(), images, rows_of(labels))[:, 0]}

    @tf.function(input_signature=[first, *scalars], autograph=False)
    def sample(first, steps, seed):
        labels = rows_of(first) if columns else None
        count = tf.shape(first)[0] if columns else first
        weights, key = system.normalized(), Key(tf.stack([seed, 0]))
        shape = [count, *spec.shape]
        fresh = key.fold("starts")
        x = 0.5 + 0.5 * fresh.normal(shape) if config.is_sprites else config.rescale * fresh.uniform(shape)
        x = tf.ensure_shape(x, [None, *spec.shape])

        def descended(images: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
            del step
            return float(config.temperature) * system.energy(weights, images, labels)

        moves = moves_of(config, descended, chain, key)
        text = "expected steps of 1 or more, found"
        with tf.control_dependencies([tf.debugging.Assert(steps >= 1, [text, steps])]):
            x = run_part(x, tf.constant(0), tf.identity(steps), moves)
        pixels = tf.cast(tf.clip_by_value(x * (_LEVELS / config.rescale), 0.0, _LARGEST), tf.uint8)
        return {"images": x, "pixels": pixels}

    return {"energy": energy, "sample": sample}
