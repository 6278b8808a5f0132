"""The network of DistAug: an autoregressive Transformer over the sub-pixels of an image.

Child, Gray, Radford, Sutskever, "Generating Long Sequences with Sparse Transformers" (2019), section 5, with the start
vector of Jun et al., "Distribution Augmentation for Generative Modeling" (2020), section 3: it is the sum of one
learned row for each augmentation applied to the image.

Letters: B batch, T = H * W * C context length, E width of the residual stream, S width of queries and keys, I width of
the MLP, L layers, V vocabulary, K conditioning tokens of an image.

Variables carry the names of the original checkpoints, without their leading "model/", and are created in their order.
Dtypes: variables are float32; activations have the compute dtype of the Keras policy; normalisation, biases, activation
functions, attention and logits are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfgen.ops import blocksparse
from tfgen.randomness import Key


class TransformerError(ValueError):
    """Sizes that do not fit together, or inputs that do not fit the network."""


def quick_gelu(x: tf.Tensor) -> tf.Tensor:
    """x * sigmoid(1.702 x), an approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return x * tf.sigmoid(1.702 * x)


def token_losses(logits: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Negative log-likelihood in nats of each token: [B, T, V] float32, [B, T] int32 -> [B, T] float32."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens, logits=tf.cast(logits, tf.float32))


def dropout(x: tf.Tensor, rate: float, key: Key | None) -> tf.Tensor:
    """Inverted dropout: each entry is kept with probability 1 - rate, and then divided by it.

    The mask of a sample in x [B, ...] depends on `key` and the sample's index only. Without a key nothing is dropped.
    """
    if key is None or rate == 0.0:
        return x
    kept = key.uniform([tf.shape(x)[0], *x.shape[1:]]) >= rate
    return tf.where(kept, x / tf.cast(1.0 - rate, x.dtype), tf.zeros([], x.dtype))


@tf.custom_gradient
def lookup(table: tf.Tensor, indices: tf.Tensor):
    """Rows of a table [N, E] at int32 `indices` [...] -> [..., E]; the gradient is dense, as every row takes part."""

    def gradient(upstream: tf.Tensor):
        return tf.math.unsorted_segment_sum(upstream, indices, tf.shape(table)[0]), None

    return tf.gather(table, indices), gradient


def _variable(owner: tf.keras.layers.Layer, name: str, initial: tf.Tensor) -> tf.Variable:
    """A float32 variable of `owner`, which casts it where it needs to (so Keras must not)."""
    return owner.add_weight(
        name, initial.shape, tf.float32, initializer=lambda shape, dtype=None: initial, experimental_autocast=False
    )


def _normal(seed: int, name: str, shape: Sequence[int], std: float) -> tf.Tensor:
    """Initial value of the variable `name`: untruncated normal, exactly 0 where `std` is. Its order is immaterial."""
    return tf.random.stateless_normal(shape, Key.create(seed, f"initial value of {name}").seed) * std


def _product(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """[..., N] times [N, M] as one matrix product: `tf.matmul` would multiply (and differentiate) sample by sample."""
    if x.shape.rank == 2:
        return tf.matmul(x, matrix)
    flat = tf.matmul(tf.reshape(x, [-1, matrix.shape[0]]), matrix)
    return tf.reshape(flat, tf.concat([tf.shape(x)[:-1], [matrix.shape[1]]], axis=0))


class InputEmbedding(tf.keras.layers.Layer):
    """Tokens, coordinates and conditioning tokens to the input of the first layer; arguments as for `Transformer`."""

    def __init__(
        self, image_shape: tuple[int, int, int], vocab_size: int, n_embd: int, conditioning_rows: Mapping[str, int],
        lookahead: bool, embd_pdrop: float, pos_embd_std: float, w_embd_std: float, seed: int,
    ):  # fmt: skip
        super().__init__(name="embedding")
        self.n_ctx, self.embd_pdrop = math.prod(image_shape), embd_pdrop

        def table(name: str, shape: list[int], std: float) -> tf.Variable:
            return _variable(self, name, _normal(seed, name, shape, std))

        def axis_tables(prefix: str) -> list[tf.Variable]:  # of the row, the column and the channel
            std = pos_embd_std / math.sqrt(3)
            return [table(f"{prefix}pos_emb_{axis}", [extent, n_embd], std) for axis, extent in enumerate(image_shape)]

        self.we = table("we", [vocab_size, n_embd], w_embd_std)
        self.pos_emb = axis_tables("")
        self.sos = [table(f"sos_token/{name}", [rows, n_embd], w_embd_std) for name, rows in conditioning_rows.items()]
        self.single_sos = None if conditioning_rows else table("sos_token/sos", [1, 1, n_embd], w_embd_std)
        self.lookahead_emb = axis_tables("lookahead_embedding/") if lookahead else []

    def call(
        self, tokens: tf.Tensor, coordinates: tf.Tensor, conditioning: tf.Tensor | None, key: Key | None = None
    ) -> tf.Tensor:
        """[B, T, E] in the compute dtype."""
        batch = tf.shape(tokens)[0]
        fed = self.embed_tokens(tokens, key) + self.embed_positions(coordinates, batch, key)
        # A position embedding describes the token that is fed, not the one to be predicted; the start vector has none.
        # tf.slice rather than fed[:, :-1], whose gradient is an order of magnitude slower on a CPU.
        fed = tf.slice(fed, [0, 0, 0], [-1, self.n_ctx - 1, -1])
        x = tf.concat([self.start_vector(conditioning, batch)[:, None], fed], axis=1)  # [B, T, E]
        if self.lookahead_emb:
            x += self.embed_lookahead(coordinates, batch, key)
        return tf.cast(x, self.compute_dtype)

    def start_vector(self, conditioning: tf.Tensor, batch: int | tf.Tensor) -> tf.Tensor:
        """float32 [B, E]: the sum of the rows that an image's conditioning tokens select (Jun et al., section 3)."""
        if self.single_sos is not None:
            return tf.tile(self.single_sos[0], [batch, 1])
        return tf.add_n([lookup(table, conditioning[:, column]) for column, table in enumerate(self.sos)])

    def embed_tokens(self, tokens: tf.Tensor, key: Key | None = None) -> tf.Tensor:
        """int32 [...] -> float32 [..., E]."""
        return dropout(lookup(self.we, tokens), self.embd_pdrop, key and key.fold("we"))

    def embed_positions(self, coordinates: tf.Tensor, batch: int | tf.Tensor, key: Key | None = None) -> tf.Tensor:
        """Positions of the tokens that are fed: int32 [B or 1, 3, T] -> float32 [B or 1, T, E]."""
        return self._embed_axes(self.pos_emb, coordinates, batch, key and key.fold("pos_emb"))

    def embed_lookahead(self, coordinates: tf.Tensor, batch: int | tf.Tensor, key: Key | None = None) -> tf.Tensor:
        """Positions that are to be predicted: int32 [B or 1, 3, T] -> float32 [B or 1, T, E]."""
        return self._embed_axes(self.lookahead_emb, coordinates, batch, key and key.fold("lookahead"))

    def _embed_axes(self, tables: Sequence[tf.Variable], coordinates: tf.Tensor, batch, key: Key | None) -> tf.Tensor:
        if key is not None and self.embd_pdrop:  # samples share coordinates, but not masks
            coordinates = tf.broadcast_to(coordinates, [batch, 3, self.n_ctx])
        embedded = [lookup(table, coordinates[:, axis]) for axis, table in enumerate(tables)]
        return tf.add_n([dropout(x, self.embd_pdrop, key and key.fold(axis)) for axis, x in enumerate(embedded)])


class LayerNorm(tf.keras.layers.Layer):
    """Layer normalisation (Ba, Kiros, Hinton 2016) over the last axis; `epsilon` is added to the biased variance."""

    def __init__(self, features: int, epsilon: float, path: str):
        super().__init__(name=path.split("/")[-1])
        self.epsilon = epsilon
        self.g = _variable(self, f"{path}/g", tf.ones([features]))
        self.b = _variable(self, f"{path}/b", tf.zeros([features]))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(x, tf.float32)
        centred = wide - tf.reduce_mean(wide, -1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
        return tf.cast(centred * tf.math.rsqrt(variance + self.epsilon) * self.g + self.b, x.dtype)


class Linear(tf.keras.layers.Layer):
    """activation(x w + b), bias and activation in float32; `std` and `seed` are those of the initial `w`."""

    def __init__(self, inputs: int, outputs: int, std: float, seed: int, path: str, activation: Callable | None = None):
        super().__init__(name=path.split("/")[-1])
        self.activation = activation
        self.w = _variable(self, f"{path}/w", _normal(seed, f"{path}/w", [inputs, outputs], std))
        self.b = _variable(self, f"{path}/b", tf.zeros([outputs]))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        y = tf.cast(_product(x, tf.cast(self.w, x.dtype)), tf.float32) + self.b
        return tf.cast(self.activation(y) if self.activation else y, x.dtype)


class Block(tf.keras.layers.Layer):
    """A pre-normalised residual layer, attention and then a two-layer MLP: Child et al. (2019), equations 9 to 12.

    Its steps are attributes, named as in the original checkpoints.

    Args:
      index: number of the layer, from 0.
      pattern: the pairs that its attention keeps.
      n_head, n_embd, qk_width, mlp_width: number of heads, E, S, I.
      stds: standard deviation of the initial matrix of each projection.
      resid_pdrop: dropout rate of both branches.
      seed: of the initial values.
    """

    def __init__(
        self, index: int, pattern: blocksparse.Pattern, n_head: int, n_embd: int, qk_width: int, mlp_width: int,
        stds: Mapping[str, float], resid_pdrop: float, seed: int,
    ):  # fmt: skip
        super().__init__(name=f"h{index}")
        self.index, self.pattern, self.n_head, self.resid_pdrop = index, pattern, n_head, resid_pdrop

        def linear(name: str, inputs: int, outputs: int, activation: Callable | None = None) -> Linear:
            return Linear(inputs, outputs, stds[name], seed, f"h{index}/{name}", activation)

        self.attn_input = LayerNorm(n_embd, 1e-5, f"h{index}/attn_input")
        self.q_proj = linear("q_proj", n_embd, qk_width)
        self.k_proj = linear("k_proj", n_embd, qk_width)
        self.v_proj = linear("v_proj", n_embd, n_embd)
        self.post_proj = linear("post_proj", n_embd, n_embd)
        self.mlp = LayerNorm(n_embd, 1e-5, f"h{index}/mlp")
        self.mlp_proj1 = linear("mlp_proj1", n_embd, mlp_width, quick_gelu)
        self.mlp_proj2 = linear("mlp_proj2", mlp_width, n_embd)

    def call(self, x: tf.Tensor, key: Key | None = None) -> tf.Tensor:
        """[B, T, E] -> [B, T, E]; `key` draws the dropout masks, None for none."""
        n = self.attn_input(x)
        attended = blocksparse.attention(self.q_proj(n), self.k_proj(n), self.v_proj(n), self.pattern, self.n_head)
        return self.after_attention(x, attended, key)

    def after_attention(self, x: tf.Tensor, attended: tf.Tensor, key: Key | None = None) -> tf.Tensor:
        """What follows the attention and acts on each position by itself: two tensors [..., E] -> [..., E]."""
        x = x + dropout(self.post_proj(attended), self.resid_pdrop, key and key.fold("attention"))
        branch = self.mlp_proj2(self.mlp_proj1(self.mlp(x)))
        return x + dropout(branch, self.resid_pdrop, key and key.fold("mlp"))

    def recomputed(self, x: tf.Tensor, key: Key | None) -> tf.Tensor:
        """`call`, but only `x` is kept for the backward pass; the key draws the same masks again."""
        return tf.recompute_grad(lambda kept: self(kept, key=key))(x)


class OutputHead(tf.keras.layers.Layer):
    """Logits h . `logits_proj`, without a bias: [..., E] -> float32 [..., V]."""

    def __init__(self, n_embd: int, vocab_size: int, std: float, embd_pdrop: float, seed: int):
        super().__init__(name="gen_logits")
        self.embd_pdrop = embd_pdrop
        path = "gen_logits/logits_proj"
        self.logits_proj = _variable(self, path, _normal(seed, path, [n_embd, vocab_size], std))

    def call(self, x: tf.Tensor, key: Key | None = None) -> tf.Tensor:
        # The original drops out entries of this matrix, too. One mask for all samples on all ranks, hence sample 0.
        key = key and Key(key.fold("logits_proj").seed)
        matrix = dropout(tf.convert_to_tensor(self.logits_proj), self.embd_pdrop, key)
        return _product(tf.cast(x, tf.float32), matrix)


class Transformer(tf.keras.Model):
    """Logits of every sub-pixel, given those before it and the augmentations applied to the image.

    Args:
      height, width, channels: of the images; T is their product.
      vocab_size: V.
      n_embd, n_head, n_layer: E, number of heads, L.
      attention_layers: attention modes (see `tfgen.ops.blocksparse`), cycled over the layers.
      local_attn_ctx: stride and window of the sparse modes.
      blocksparse_op, blocksize: attention in square blocks of this side; sizes must be multiples of it.
      mlp_multiple, qk_ratio: I / E and S / E.
      conditioning_rows: rows of the table of each conditioning type ("sos_rot": 4 ...), in the order of the
        conditioning tokens; None or empty for a single start vector.
      lookahead: adds a second set of position embeddings, of the position to be predicted.
      embd_pdrop, resid_pdrop: dropout rates of embeddings and output matrix, and of both branches of every layer.
      pos_embd_std, w_embd_std: standard deviations of the initial embeddings (that of positions over sqrt(3)).
      qk_w, v_w, post_w, mlp_w1, mlp_w2, logits_w: variances of the initial matrices, times their fan-in (times 2 L as
        well for `post_w` and `mlp_w2`, which end a branch: Child et al. 2019, section 5.2).
      seed: of the initial values. Each is a function of (seed, name of the variable).
      recompute: recomputes the activations of each layer in the backward pass, to save memory.

    Example:
      network = Transformer(height=8, width=8, channels=1, n_embd=32, n_head=2, n_layer=2, attention_layers=("bT", "b"),
                            local_attn_ctx=8)
      logits = network(tokens, network.identity_coordinates)  # [B, 64, 256]

    Raises:
      TransformerError, blocksparse.PatternError: sizes that do not fit together.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        vocab_size: int = 256,
        n_embd: int = 512,
        n_head: int = 8,
        n_layer: int = 6,
        attention_layers: Sequence[str] = ("a",),
        local_attn_ctx: int = 64,
        blocksparse_op: bool = False,
        blocksize: int = 64,
        mlp_multiple: float = 4.0,
        qk_ratio: float = 1.0,
        conditioning_rows: Mapping[str, int] | None = None,
        lookahead: bool = False,
        embd_pdrop: float = 0.0,
        resid_pdrop: float = 0.0,
        pos_embd_std: float = 0.007,
        w_embd_std: float = 0.013,
        qk_w: float = 0.125,
        v_w: float = 0.125,
        post_w: float = 0.125,
        mlp_w1: float = 0.125,
        mlp_w2: float = 0.125,
        logits_w: float = 0.125,
        seed: int = 42,
        recompute: bool = False,
        **kwargs: Any,
    ):
        arguments = {name: given for name, given in locals().items() if name not in ("self", "kwargs", "__class__")}
        super().__init__(**kwargs)
        arguments["attention_layers"] = tuple(attention_layers)
        arguments["conditioning_rows"] = dict(conditioning_rows or {})
        self._argument_names = tuple(arguments)
        for name, given in arguments.items():
            setattr(self, name, given)
        self.n_ctx = height * width * channels
        self.qk_width, self.mlp_width = int(n_embd * qk_ratio), int(n_embd * mlp_multiple)
        self._check_sizes()

        self.embedding = InputEmbedding(
            (height, width, channels), vocab_size, n_embd, arguments["conditioning_rows"], lookahead, embd_pdrop,
            pos_embd_std, w_embd_std, seed,
        )  # fmt: skip
        stds = {
            "q_proj": math.sqrt(qk_w / n_embd),
            "k_proj": math.sqrt(qk_w / n_embd),
            "v_proj": math.sqrt(v_w / n_embd),
            "post_proj": math.sqrt(post_w / (n_embd * 2 * n_layer)),
            "mlp_proj1": math.sqrt(mlp_w1 / n_embd),
            "mlp_proj2": math.sqrt(mlp_w2 / (self.mlp_width * 2 * n_layer)),
        }
        self.blocks = []
        for i in range(n_layer):
            mode = self.attention_layers[i % len(self.attention_layers)]
            pattern = blocksparse.Pattern(mode, self.n_ctx, local_attn_ctx, blocksize)
            pattern.validate(block_form=blocksparse_op)
            block = Block(i, pattern, n_head, n_embd, self.qk_width, self.mlp_width, stds, resid_pdrop, seed)
            self.blocks.append(block)
        self.final_norm = LayerNorm(n_embd, 1e-6, "final_norm")  # not the epsilon of the blocks
        self.gen_logits = OutputHead(n_embd, vocab_size, math.sqrt(logits_w / n_embd), embd_pdrop, seed)
        self.built = True

    @property
    def identity_coordinates(self) -> np.ndarray:
        """int32 [1, 3, T]: row, column and channel of every position of an image that was not augmented."""
        return np.indices((self.height, self.width, self.channels), np.int32).reshape(1, 3, -1)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values."""
        config = {name: getattr(self, name) for name in self._argument_names}
        return config | {"conditioning_rows": dict(self.conditioning_rows)}

    def call(
        self,
        tokens: tf.Tensor,
        coordinates: tf.Tensor,
        conditioning: tf.Tensor | None = None,
        key: Key | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        """Logits of all positions at once.

        Args:
          tokens: int32 [B, T]. With causal modes, the logits of position t depend on tokens 0 .. t - 1 only.
          coordinates: int32 [B or 1, 3, T], row, column and channel in the original image of each position.
          conditioning: int32 [B, K], the row of each conditioning table; unused if there are none.
          key: draws the dropout masks; needed in training with a dropout rate above 0.
          training: switches dropout and `recompute` on.

        Returns:
          float32 [B, T, V].

        Raises:
          TransformerError: for shapes that do not fit, or a missing key.
        """
        self._check_inputs(tokens, coordinates, conditioning)
        if training and key is None and (self.embd_pdrop or self.resid_pdrop):
            raise TransformerError("training with dropout needs a random key: pass key=Key.create(seed, 'dropout')")
        key = key if training else None
        x = self.embedding(tokens, coordinates, conditioning, key=key)
        for block in self.blocks:
            layer_key = key and key.fold("layer", block.index)
            x = block.recomputed(x, layer_key) if training and self.recompute else block(x, key=layer_key)
        return self.gen_logits(self.final_norm(x), key=key)

    def _check_sizes(self) -> None:
        for features, flags in ((self.n_embd, "n_embd"), (self.qk_width, "n_embd * qk_ratio")):
            if features < 1 or features % self.n_head:
                raise TransformerError(f"{flags} must be a multiple of n_head, found {features} and {self.n_head}")
        if self.mlp_width < 1:
            raise TransformerError(f"n_embd * mlp_multiple must be at least 1, found {self.mlp_width}")
        modes = self.attention_layers
        if not modes or self.n_layer < 1 or self.n_layer % len(modes):
            raise TransformerError(
                f"n_layer must be a multiple of the number of attention_layers, found {self.n_layer} and {len(modes)}: "
                f"{','.join(modes)}"
            )

    def _check_inputs(self, tokens: tf.Tensor, coordinates: tf.Tensor, conditioning: tf.Tensor | None) -> None:
        if len(tokens.shape) != 2 or tokens.shape[1] != self.n_ctx:
            raise TransformerError(f"tokens must have shape [B, {self.n_ctx}], found {tokens.shape}")
        if len(coordinates.shape) != 3 or tuple(coordinates.shape[1:]) != (3, self.n_ctx):
            raise TransformerError(f"coordinates must have shape [B or 1, 3, {self.n_ctx}], found {coordinates.shape}")
        names = ", ".join(self.conditioning_rows)
        if names and (conditioning is None or conditioning.shape[1] != len(self.conditioning_rows)):
            found = "None" if conditioning is None else f"shape {conditioning.shape}"
            raise TransformerError(f"conditioning needs one column for each of {names}, found {found}")
