"""Ancestral sampling from the DistAug network, one sub-pixel at a time.

`sample` keeps keys and values of every layer (see `caches`). `sample_uncached` is its reference: like the original code
it keeps the inputs of every layer, and computes keys and values of the whole prefix again for every sub-pixel.

The numbers drawn for position t of sample i are a function of (key, t, i): sample i is the same in any batch, and the
same from both functions. A token is argmax(logits + temperature * g) with standard Gumbel noise g, which is a draw from
softmax(logits / temperature) (Maddison, Tarlow, Minka, "A* Sampling", 2014, section 2); at temperature 0 it is the
most likely value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfgen.ops import library
from tfgen.ops.blocksparse import CAUSAL_MODES
from tfgen.randomness import Key
from tfgen.systems.distaug.caches import CACHES
from tfgen.systems.distaug.transformer import Block, Transformer

Progress = Callable[[int, int, np.ndarray], None]  # (positions done, in all, tokens so far int32 [B, T])
State = dict[str, Any]
CHUNK = 96  # positions drawn by one call of a compiled sampler


class DecodeError(ValueError):
    """A network that cannot be sampled from, or arguments that do not fit it."""


def sample(
    network: Transformer,
    key: Key,
    count: int | None = None,
    conditioning: tf.Tensor | None = None,
    temperature: float = 1.0,
    callback: Progress | None = None,
    chunk: int = CHUNK,
) -> tf.Tensor:
    """Draws images. The compiled sampler of a network is kept for later calls.

    Args:
      network: causal in every layer.
      key: sample i of the batch takes the numbers of row i.
      count: B; may be left out where `conditioning` is given.
      conditioning: int32 [B, K]; None for token 0 (identity) of every type.
      temperature: 0 or more. Logits are divided by it; 0 takes the most likely value.
      callback: called after every chunk, with the tokens so far (0 where not drawn yet).
      chunk: positions between two calls of `callback`.

    Returns:
      int32 [B, T].

    Raises:
      DecodeError: see the arguments.
    """
    if temperature < 0:
        raise DecodeError(f"temperature must be 0 or more, found {temperature}")
    conditioning = _checked(network, count, conditioning)
    # What is compiled depends on whether our compiled operations may be used, too.
    sampler, n_ctx = _kept_sampler(network, chunk, library.load() is None), network.n_ctx
    state = sampler.initial_state(conditioning.shape[0])
    for first in range(0, n_ctx, sampler.chunk):
        state = sampler.run(first, state, key, conditioning, temperature)
        if callback is not None:
            callback(min(first + sampler.chunk, n_ctx), n_ctx, state["tokens"].numpy())
    return state["tokens"]


def sample_function(network: Transformer, chunk: int = CHUNK) -> tf.types.experimental.GenericFunction:
    """The sampler as one function of plain TensorFlow operations, for a SavedModel.

    Returns:
      A function of `seed` int32 [], `conditioning` int32 [B, K] (it gives B, even where K is 0) and `temperature`
      float32 [], to tokens int32 [B, T]. It keeps nothing between calls, so that calls may overlap.
    """
    sampler = Sampler(network, chunk)

    @tf.function(
        input_signature=[
            tf.TensorSpec([], tf.int32, name="seed"),
            tf.TensorSpec([None, len(network.conditioning_rows)], tf.int32, name="conditioning"),
            tf.TensorSpec([], tf.float32, name="temperature"),
        ]
    )
    def draw(seed, conditioning, temperature):
        with library.plain_tensorflow():  # whoever traces it
            key = Key(tf.stack([seed, 0])).fold("sample")
            state = sampler.initial_state(tf.shape(conditioning)[0])
            shapes = tf.nest.map_structure(lambda spec: spec.shape, sampler.state_specs())
            _, state = tf.while_loop(
                lambda first, state: first < network.n_ctx,
                lambda first, state: (
                    first + sampler.chunk,
                    sampler.steps(first, state, key, conditioning, temperature),
                ),
                [tf.constant(0), state],
                shape_invariants=[tf.TensorShape([]), shapes],
                parallel_iterations=1,
            )
            return state["tokens"]

    return draw


class Sampler:
    """A sampler that draws `chunk` positions at a time.

    Its state between chunks is a dict of "tokens", int32 [B, T], and "caches", the tables of each layer.

    Args:
      network: causal in every layer.
      chunk: positions drawn by one call of `run` or `steps`.

    Raises:
      DecodeError: the network has a layer that is not causal, or `chunk` is less than 1.
    """

    def __init__(self, network: Transformer, chunk: int = CHUNK):
        _check_causal(network)
        if chunk < 1:
            raise DecodeError(f"chunk must be 1 or more, found {chunk}")
        self.network, self.chunk = network, min(chunk, network.n_ctx)
        sizes = (network.n_head, network.qk_width, network.n_embd)
        dtype = tf.as_dtype(network.compute_dtype)
        self.caches = [CACHES[b.pattern.mode](b.pattern, *sizes, dtype, self.chunk) for b in network.blocks]
        self._compiled = tf.function(self._steps, input_signature=[*_step_specs(network), self.state_specs()])

    def state_specs(self) -> State:
        """Shapes and dtypes of the state, for any batch."""
        tokens = tf.TensorSpec([None, self.network.n_ctx], tf.int32)
        return {"tokens": tokens, "caches": [cache.specs() for cache in self.caches]}

    def initial_state(self, batch: int | tf.Tensor) -> State:
        """The state before the first position."""
        tokens = tf.zeros([batch, self.network.n_ctx], tf.int32)
        return {"tokens": tokens, "caches": [cache.initial(batch) for cache in self.caches]}

    def run(self, first: int, state: State, key: Key, conditioning: tf.Tensor, temperature: float) -> State:
        """`steps`, compiled once for all calls."""
        return self._compiled(*step_arguments(first, key, conditioning, temperature), state)

    def _steps(self, first, seed, first_sample, conditioning, temperature, state: State) -> State:
        return self.steps(first, state, Key(seed, first_sample), conditioning, temperature)

    def steps(self, first: tf.Tensor, state: State, key: Key, conditioning: tf.Tensor, temperature: tf.Tensor) -> State:
        """Draws positions first .. first + chunk - 1, or to T - 1. `first`, int32 [], is a multiple of the chunk."""
        network, tokens = self.network, state["tokens"]
        last = tf.minimum(first + self.chunk, network.n_ctx)
        inputs = StepInputs(network, conditioning)

        def step(t: tf.Tensor, previous: tf.Tensor, drawn: tf.TensorArray, carried: list) -> tuple:
            x = inputs(t, previous)  # [B, E]
            following = []
            for block, cache, layer in zip(network.blocks, self.caches, carried, strict=True):
                n = block.attn_input(x)
                attended, layer = cache.attend(t, block.q_proj(n), block.k_proj(n), block.v_proj(n), layer)
                x = block.after_attention(x, attended)
                following.append(layer)
            token = _draw(network, x, key, t, temperature)
            return t + 1, token, drawn.write(t - first, token), following

        previous = tf.gather(tokens, tf.maximum(first - 1, 0), axis=1)  # [B]
        drawn = tf.TensorArray(tf.int32, last - first, element_shape=previous.shape)
        carried = [cache.enter(kept) for cache, kept in zip(self.caches, state["caches"], strict=True)]
        _, _, drawn, carried = tf.while_loop(
            lambda t, *_: t < last, step, [first, previous, drawn, carried], parallel_iterations=1
        )
        tokens = tf.concat([tokens[:, :first], tf.transpose(drawn.stack()), tokens[:, last:]], axis=1)
        kept = [cache.leave(layer, last - first) for cache, layer in zip(self.caches, carried, strict=True)]
        return tf.nest.map_structure(
            lambda spec, tensor: tf.ensure_shape(tensor, spec.shape),
            self.state_specs(),
            {"tokens": tokens, "caches": kept},
        )


@functools.lru_cache(maxsize=4)
def _kept_sampler(network: Transformer, chunk: int, plain: bool) -> Sampler:
    return Sampler(network, chunk)


def sample_uncached(
    network: Transformer,
    key: Key,
    count: int | None = None,
    conditioning: tf.Tensor | None = None,
    temperature: float = 1.0,
    prefix: tf.Tensor | None = None,
    steps: int | None = None,
) -> tf.Tensor:
    """The reference of `sample`, with the same draws.

    Args:
      network, key, count, conditioning, temperature: as for `sample`.
      prefix: int32 [B, p], tokens to begin with; None for none.
      steps: positions drawn after the prefix; None for all.

    Returns:
      int32 [B, p + steps], the prefix included.
    """
    conditioning = _checked(network, count, conditioning)
    tokens = tf.zeros([conditioning.shape[0], 0], tf.int32) if prefix is None else tf.cast(prefix, tf.int32)
    inputs = layer_inputs(network, tokens, conditioning)
    step = uncached_step(network)
    first = tokens.shape[1]
    for t in range(first, network.n_ctx if steps is None else first + steps):
        previous = tokens[:, -1] if t else tf.zeros([len(tokens)], tf.int32)
        token, inputs = step(*step_arguments(t, key, conditioning, temperature), previous, inputs)
        tokens = tf.concat([tokens, token[:, None]], axis=1)
    return tokens


def layer_inputs(network: Transformer, tokens: tf.Tensor, conditioning: tf.Tensor) -> list[tf.Tensor]:
    """Inputs of every layer at the positions of a prefix: int32 [B, p], [B, K] -> L tensors [B, p, E]."""
    length = tokens.shape[1]
    padded = tf.pad(tokens, [[0, 0], [0, network.n_ctx - length]])
    x = network.embedding(padded, network.identity_coordinates, conditioning)
    inputs = []
    for block in network.blocks:
        inputs.append(x[:, :length])
        x = block(x)
    return inputs


def uncached_step(network: Transformer) -> tf.types.experimental.GenericFunction:
    """One position as the original draws it, compiled.

    Returns:
      A function of the arguments of `Sampler.run` as tensors, of the previous token int32 [B], and of the inputs of
      every layer at positions 0 .. t - 1, [B, t, E] each; to the token of position t, int32 [B], and the inputs at
      positions 0 .. t.
    """
    _check_causal(network)
    prefix_spec = tf.TensorSpec([None, None, network.n_embd], network.compute_dtype)
    specs = [*_step_specs(network), tf.TensorSpec([None], tf.int32), [prefix_spec] * network.n_layer]

    @tf.function(input_signature=specs)
    def step(t, seed, first_sample, conditioning, temperature, previous, inputs):
        x = StepInputs(network, conditioning)(t, previous)  # [B, E]
        following = []
        for block, prefix in zip(network.blocks, inputs, strict=True):
            following.append(tf.concat([prefix, x[:, None]], axis=1))  # [B, t + 1, E]
            x = block.after_attention(x, _attend_last(block, following[-1]))
        return _draw(network, x, Key(seed, first_sample), t, temperature), following

    return step


def _attend_last(block: Block, inputs: tf.Tensor) -> tf.Tensor:
    """Attention of the last position over all: layer inputs [B, t + 1, E] -> [B, E]."""
    n = block.attn_input(inputs)
    t = tf.shape(n)[1] - 1
    seen = tf.where(block.pattern.keeps(t, tf.range(t + 1)))[:, 0]

    def heads(x: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(x)
        x = tf.reshape(x, [shape[0], shape[1], block.n_head, x.shape[2] // block.n_head])
        return tf.cast(tf.transpose(x, [0, 2, 1, 3]), tf.float32)  # [B, heads, seen, D]

    query = heads(block.q_proj(n[:, -1:]))
    key, value = (heads(tf.gather(projection(n), seen, axis=1)) for projection in (block.k_proj, block.v_proj))
    scores = tf.matmul(query, key, transpose_b=True) / math.sqrt(query.shape[-1])
    attended = tf.matmul(tf.nn.softmax(scores), value)  # [B, heads, 1, D]
    return tf.cast(tf.reshape(attended, [-1, n.shape[2]]), n.dtype)


class StepInputs:
    """Input of the first layer, one position at a time; what does not depend on the position is computed once."""

    def __init__(self, network: Transformer, conditioning: tf.Tensor):
        coordinates = network.identity_coordinates
        self.embedding, self.dtype = network.embedding, network.compute_dtype
        self.start = self.embedding.start_vector(conditioning, tf.shape(conditioning)[0])  # [B, E]
        self.positions = self.embedding.embed_positions(coordinates, 1)[0]  # [T, E]
        # The original leaves these out when it samples, although it trains with them.
        self.lookahead = self.embedding.embed_lookahead(coordinates, 1)[0] if network.lookahead else None

    def __call__(self, t: tf.Tensor, previous: tf.Tensor) -> tf.Tensor:
        """[B, E] at position t, from the tokens at position t - 1, int32 [B] (of no effect where t is 0)."""
        fed = self.embedding.embed_tokens(previous) + self.positions[tf.maximum(t - 1, 0)]
        x = tf.where(t == 0, self.start, fed)
        if self.lookahead is not None:
            x += self.lookahead[t]
        return tf.cast(x, self.dtype)


def _draw(network: Transformer, x: tf.Tensor, key: Key, t: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
    """Token of position t from the output of the last layer: [B, E] -> int32 [B]."""
    logits = network.gen_logits(network.final_norm(x))  # [B, V]
    uniform = key.fold(t).uniform([tf.shape(logits)[0], network.vocab_size])
    gumbel = -tf.math.log(-tf.math.log(tf.maximum(uniform, np.finfo(np.float32).tiny)))  # finite, also at 0
    return tf.argmax(logits + temperature * gumbel, axis=-1, output_type=tf.int32)


def _step_specs(network: Transformer) -> list[tf.TensorSpec]:
    """Of position, seed, first sample, conditioning and temperature: what every step is a function of."""
    conditioning = tf.TensorSpec([None, len(network.conditioning_rows)], tf.int32)
    scalars = [tf.TensorSpec([], dtype) for dtype in (tf.int32, tf.int64, tf.float32)]
    return [scalars[0], tf.TensorSpec([2], tf.int32), scalars[1], conditioning, scalars[2]]


def step_arguments(t: int, key: Key, conditioning: tf.Tensor, temperature: float) -> list[tf.Tensor]:
    """The same as tensors, for position t."""
    return [tf.constant(t), key.seed, key.first_sample, conditioning, tf.constant(temperature, tf.float32)]


def _check_causal(network: Transformer) -> None:
    unusable = sorted({block.pattern.mode for block in network.blocks} - set(CAUSAL_MODES))
    if unusable:
        raise DecodeError(
            f"attention mode {', '.join(unusable)} looks at later positions, so that nothing can be drawn from this "
            f"network; sampling needs layers of modes {', '.join(CAUSAL_MODES)} only"
        )


def _checked(network: Transformer, count: int | None, conditioning: tf.Tensor | None) -> tf.Tensor:
    """int32 [B, K]."""
    names = list(network.conditioning_rows)
    if conditioning is None:
        if count is None:
            raise DecodeError("the number of samples is not known: pass count or conditioning")
        return tf.zeros([count, len(names)], tf.int32)
    conditioning = tf.convert_to_tensor(conditioning, tf.int32)
    if not conditioning.shape.is_compatible_with([count, len(names)]):
        expected = f"[{'B' if count is None else count}, {len(names)}] ({', '.join(names)})"
        raise DecodeError(f"conditioning must have shape {expected}, found {conditioning.shape}")
    return conditioning
