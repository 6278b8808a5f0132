"""The functions of an exported VDVAE, in plain TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from tfgen.randomness import Key
from tfgen.systems.vdvae.sampling import Noise, draw_images, latent_noise, posterior_noise

if TYPE_CHECKING:
    from tfgen.systems.vdvae.system import VeryDeepVAE


def signatures(system: VeryDeepVAE) -> dict[str, tf.types.experimental.GenericFunction]:
    """`encode`, `decode`, `sample` and `elbo`; any number of images. Numbers drawn for image i are functions of the
    seed and i.

    * encode(images uint8 [B, R, R, 3], seed) -> layer_000, layer_001, ... float32 [B, r, r, Z], drawn from the
      posterior, and rates float32 [B, layers], nats per dimension.
    * decode(layer_000, ..., layers, seed, temperature) -> images. The first `layers` layers take the latents given,
      the others draw at the temperature (their inputs only have to have the right shape).
    * sample(count, seed, temperature) -> images.
    * elbo(images, seed) -> elbo, distortion, rate, float32 [B], nats per dimension: lower is better.
    """
    network, preprocessing, side = system.network, system.preprocessing, system.spec.height
    blocks = system.architecture.decoder
    names = [f"layer_{index:03d}" for index in range(len(blocks))]
    images_spec = tf.TensorSpec([None, side, side, 3], tf.uint8, name="images")
    seed_spec = tf.TensorSpec([], tf.int32, name="seed")
    temperature_spec = tf.TensorSpec([], tf.float32, name="temperature")
    latent_specs = [
        tf.TensorSpec([None, block.resolution, block.resolution, network.latents], tf.float32, name=name)
        for name, block in zip(names, blocks, strict=True)
    ]

    @tf.function(input_signature=[images_spec, seed_spec], autograph=False)
    def encode(images, seed):
        inputs, _ = preprocessing.input_and_target(images)
        inferred = network.infer(inputs, posterior_noise(_key(seed)))
        rates = [tf.reduce_sum(kl, axis=[1, 2, 3]) / system.spec.dims for kl in inferred.kls]
        return {**dict(zip(names, inferred.latents, strict=True)), "rates": tf.stack(rates, axis=1)}

    @tf.function(
        input_signature=[*latent_specs, tf.TensorSpec([], tf.int32, name="layers"), seed_spec, temperature_spec],
        autograph=False,
    )
    def decode(*arguments):
        *latents, layers, seed, temperature = arguments
        noise = Noise.of(_key(seed))
        features = network.generate(tf.shape(latents[0])[0], noise.latents, latents, temperature, leading=layers)
        return {"images": draw_images(network, features, noise.uniform)}

    @tf.function(
        input_signature=[tf.TensorSpec([], tf.int32, name="count"), seed_spec, temperature_spec], autograph=False
    )
    def sample(count, seed, temperature):
        noise = Noise.of(_key(seed))
        features = network.generate(count, noise.latents, temperatures=temperature)
        return {"images": draw_images(network, features, noise.uniform)}

    @tf.function(input_signature=[images_spec, seed_spec], autograph=False)
    def elbo(images, seed):
        inputs, targets = preprocessing.input_and_target(images)
        bound = system.bound(inputs, targets, latent_noise(_key(seed).fold("elbo")))
        return {"elbo": bound.distortion + bound.rate, "distortion": bound.distortion, "rate": bound.rate}

    return {"encode": encode, "decode": decode, "sample": sample, "elbo": elbo}


def _key(seed: tf.Tensor) -> Key:
    return Key(tf.stack([seed, 0]))
