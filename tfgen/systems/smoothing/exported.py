"""The functions of an exported model of distribution smoothing, in plain TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import tensorflow as tf

from tfgen.randomness import Key
from tfgen.settings import flag
from tfgen.systems.smoothing import data
from tfgen.systems.smoothing.config import STAGE1_HELP, Stage

if TYPE_CHECKING:
    from tfgen.systems.smoothing.system import DistributionSmoothing


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Extra flags of `tfgen.export`."""

    stage1_run: str = flag("", STAGE1_HELP)


def signatures(system: DistributionSmoothing) -> dict[str, tf.types.experimental.GenericFunction]:
    """`log_prob`, `sample` and, of stage 2, `reverse`. Numbers drawn for image i are functions of the seed and i.

    * log_prob -> log_prob, float32 [B], nats of an image. Of a plain model it takes images, uint8 [B, H, W, C]; of
      stage 1 smoothed, float32 [B, H, W, C] in [-1, 1] and beyond; of stage 2 smoothed and images, both float32: the
      density of images given smoothed.
    * sample(count, seed) -> images, uint8 [count, H, W, C]; of stage 1 and 2 also smoothed, float32, the draw of stage
      1. Of stage 2 only where stage 1 is there (`--stage1_run`).
    * reverse(smoothed, seed) -> images, uint8, and samples, float32: a draw of stage 2 given smoothed images.
    """
    shape = [None, *system.spec.shape]
    seed_spec, count_spec = (tf.TensorSpec([], tf.int32, name=name) for name in ("seed", "count"))
    smoothed_spec = tf.TensorSpec(shape, tf.float32, name="smoothed")
    options = system.sample_options_class()

    @tf.function(input_signature=[count_spec, seed_spec], autograph=False)
    def sample(count, seed):
        key = Key(tf.stack([seed, 0]))
        first = (system.stage1 or system).sampler.draw_in_graph(count, key.fold("stage 1"), options)
        if system.stage is Stage.PLAIN:
            return {"images": system.sampler.shown_in_graph(first, options)}
        last = first
        if system.stage is Stage.REVERSE:
            last = system.sampler.draw_in_graph(count, key.fold("stage 2"), options, first)
        return {"images": system.sampler.shown_in_graph(last, options), "smoothed": first}

    if system.stage is Stage.PLAIN:

        @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8, name="images")], autograph=False)
        def log_prob(images):
            return {"log_prob": tf.reduce_sum(system.log_prob(data.scaled(images)), axis=[1, 2])}

        return {"log_prob": log_prob, "sample": sample}

    if system.stage is Stage.SMOOTHED:

        @tf.function(input_signature=[smoothed_spec], autograph=False)
        def log_density(smoothed):
            return {"log_prob": tf.reduce_sum(system.log_prob(smoothed), axis=[1, 2])}

        return {"log_prob": log_density, "sample": sample}

    @tf.function(input_signature=[smoothed_spec, tf.TensorSpec(shape, tf.float32, name="images")], autograph=False)
    def log_conditional(smoothed, images):
        return {"log_prob": tf.reduce_sum(system.log_prob(images, smoothed), axis=[1, 2])}

    @tf.function(input_signature=[smoothed_spec, seed_spec], autograph=False)
    def reverse(smoothed, seed):
        key = Key(tf.stack([seed, 0])).fold("stage 2")
        last = system.sampler.draw_in_graph(tf.shape(smoothed)[0], key, options, smoothed)
        return {"images": system.sampler.shown_in_graph(last, options), "samples": last}

    functions = {"log_prob": log_conditional, "reverse": reverse}
    return functions | ({"sample": sample} if system.stage1 is not None else {})
