"""What an attention layer remembers while positions are drawn one by one.

A cache keeps the keys and values that later queries can still see, and no others:

| mode     | kept                                                              | read by a query        |
|----------|-------------------------------------------------------------------|------------------------|
| `a`      | every position so far                                             | all of it              |
| `b`      | a ring of the last s positions                                    | all of it              |
| `bT`,`c` | s tables, one for each residue class modulo s, of T / s positions | the table of its class |
| `b0`     | the chunk of T / s positions that is being drawn                  | all of it              |

Tables have the shape [B, heads, slots, width of a head]. Writing one slot rewrites its table, which costs no more than
the query pays for reading it; nothing that a query does not read is touched, so no step copies the whole sequence.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfgen.ops.blocksparse import Pattern

Tables = dict[str, tf.Tensor]  # "key" and "value"
_UNSEEN = -3.4e38  # score of a slot that the query does not see: its weight is exactly 0


class Cache:
    """Keys and values of one layer. Subclasses say which slot a position takes, and how the tables are carried along.

    Args:
      pattern: of the layer; causal.
      heads: number of attention heads.
      key_size, value_size: width of a head.
      dtype: of keys and values.
      chunk: positions drawn between `enter` and `leave`.
    """

    slots: int

    def __init__(self, pattern: Pattern, heads: int, key_size: int, value_size: int, dtype: tf.DType, chunk: int):
        self.pattern, self.heads, self.dtype, self.chunk = pattern, heads, dtype, chunk
        self.sizes = {"key": key_size, "value": value_size}

    # Between chunks -----------------------------------------------------------------------------------

    def specs(self) -> dict[str, tf.TensorSpec]:
        """Shapes of what is kept between chunks, for any batch."""
        return {part: tf.TensorSpec(self._shape(part, None), self.dtype) for part in self.sizes}

    def initial(self, batch: int | tf.Tensor) -> Tables:
        """What is kept before the first position."""
        return {part: tf.zeros(self._shape(part, batch), self.dtype) for part in self.sizes}

    def enter(self, kept: Tables) -> Any:
        """What is carried from position to position, from what was kept."""
        return kept

    def leave(self, carried: Any, steps: tf.Tensor) -> Tables:
        """What is kept after a chunk of `steps` positions."""
        return carried

    def _shape(self, part: str, batch: Any) -> list:
        return [batch, self.heads, self.slots, self.sizes[part]]

    # One position -------------------------------------------------------------------------------------

    def attend(
        self, t: tf.Tensor, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, carried: Any
    ) -> tuple[tf.Tensor, Any]:
        """Attention of position t, int32 [], over what it sees of itself and the positions before it.

        Args:
          query, key, value: [B, heads * size], of position t.
          carried: of position t - 1.

        Returns:
          [B, heads * value_size] in the dtype of `value`, and what is carried to position t + 1.
        """
        tables, carried = self._write(t, {"key": self._split(key), "value": self._split(value)}, carried)
        scale = 1.0 / math.sqrt(self.sizes["key"])
        attended = self._read(t, tf.cast(self._split(query), tf.float32) * scale, tables, carried)  # [B, heads, 1, Dv]
        return tf.cast(tf.reshape(attended, [-1, value.shape[1]]), value.dtype), carried

    def _split(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, [-1, self.heads, 1, x.shape[1] // self.heads])  # [B, heads, 1, D]

    def _write(self, t: tf.Tensor, new: Tables, carried: Any) -> tuple[Tables, Any]:
        """Puts position t into its slot; returns the tables that its query reads, and what is carried on."""
        tables = self._written(t, new, carried)
        return tables, tables

    def _written(self, t: tf.Tensor, new: Tables, tables: Tables) -> Tables:
        here = (tf.range(self.slots) == self._slot(t))[:, None]  # [slots, 1]
        return {part: tf.where(here, new[part], tables[part]) for part in self.sizes}

    def _read(self, t: tf.Tensor, query: tf.Tensor, tables: Tables, carried: Any) -> tf.Tensor:
        return _weighted(tf.nn.softmax(self._scores(t, query, tables)), tables["value"])

    def _scores(self, t: tf.Tensor, query: tf.Tensor, tables: Tables) -> tf.Tensor:
        """float32 [B, heads, 1, slots]."""
        return tf.where(tf.range(self.slots) <= self._last_visible(t), _products(query, tables["key"]), _UNSEEN)

    def _slot(self, t: tf.Tensor) -> tf.Tensor:
        """Where position t goes."""
        return t % self.slots

    def _last_visible(self, t: tf.Tensor) -> tf.Tensor:
        """The query of position t sees the slots up to this one (which may lie beyond the table)."""
        return self._slot(t)


class RingCache(Cache):
    """Mode `b`: the last s positions; a new one takes the place of the oldest."""

    def __init__(self, pattern: Pattern, *sizes: Any):
        super().__init__(pattern, *sizes)
        self.slots = min(pattern.window, pattern.n_ctx)

    def _last_visible(self, t: tf.Tensor) -> tf.Tensor:
        return t  # all slots, once the ring is full


class ChunkCache(Cache):
    """Mode `b0`: the positions of the current chunk of the pattern; the next chunk overwrites them."""

    def __init__(self, pattern: Pattern, *sizes: Any):
        super().__init__(pattern, *sizes)
        self.slots = pattern.chunk


class StridedCache(Cache):
    """Modes `bT` and `c`: a table for each residue class. A step touches that of its own class only.

    Between chunks the tables are one tensor with the class as first axis; within a chunk they are a list of tensors,
    so that replacing one leaves the others where they are.
    """

    def __init__(self, pattern: Pattern, *sizes: Any):
        super().__init__(pattern, *sizes)
        self.slots = pattern.chunk

    def enter(self, kept: Tables) -> dict[str, tf.TensorArray]:
        lists = {}
        for part, tables in kept.items():
            empty = tf.TensorArray(
                self.dtype, self.pattern.window, clear_after_read=False, element_shape=tables.shape[1:]
            )
            lists[part] = empty.unstack(tables)
        return lists

    def leave(self, carried: dict[str, tf.TensorArray], steps: tf.Tensor) -> Tables:
        return {part: tables.stack() for part, tables in carried.items()}

    def _shape(self, part: str, batch: Any) -> list:
        return [self.pattern.window, *super()._shape(part, batch)]

    def _write(self, t: tf.Tensor, new: Tables, carried: dict[str, tf.TensorArray]) -> tuple[Tables, Any]:
        residue = t % self.pattern.window
        tables = self._written(t, new, {part: tables.read(residue) for part, tables in carried.items()})
        return tables, {part: carried[part].write(residue, table) for part, table in tables.items()}

    def _slot(self, t: tf.Tensor) -> tf.Tensor:
        return t // self.pattern.window


class FullCache(Cache):
    """Mode `a`: all positions.

    Those of earlier chunks are read as they stand. Only a table of the current chunk is written, and joins the others
    at its end.
    """

    def __init__(self, pattern: Pattern, *sizes: Any):
        super().__init__(pattern, *sizes)
        self.slots = self.chunk

    def specs(self) -> dict[str, tf.TensorSpec]:
        return {part: tf.TensorSpec([None, self.heads, None, size], self.dtype) for part, size in self.sizes.items()}

    def initial(self, batch: int | tf.Tensor) -> Tables:
        return {part: tf.zeros([batch, self.heads, 0, size], self.dtype) for part, size in self.sizes.items()}

    def enter(self, kept: Tables) -> dict[str, Tables]:
        return {"earlier": kept, "current": super().initial(tf.shape(kept["key"])[0])}

    def leave(self, carried: dict[str, Tables], steps: tf.Tensor) -> Tables:
        earlier, current = carried["earlier"], carried["current"]
        return {part: tf.concat([earlier[part], current[part][:, :, :steps]], axis=2) for part in self.sizes}

    def _write(self, t: tf.Tensor, new: Tables, carried: dict[str, Tables]) -> tuple[Tables, Any]:
        current = self._written(t, new, carried["current"])
        return current, {"earlier": carried["earlier"], "current": current}

    def _read(self, t: tf.Tensor, query: tf.Tensor, tables: Tables, carried: dict[str, Tables]) -> tf.Tensor:
        earlier = carried["earlier"]
        scores = tf.concat([_products(query, earlier["key"]), self._scores(t, query, tables)], axis=-1)
        before, now = tf.split(tf.nn.softmax(scores), [tf.shape(earlier["key"])[2], self.slots], axis=-1)
        return _weighted(before, earlier["value"]) + _weighted(now, tables["value"])


CACHES: dict[str, type[Cache]] = {
    "a": FullCache,
    "b": RingCache,
    "bT": StridedCache,
    "c": StridedCache,
    "b0": ChunkCache,
}


def _products(query: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """[B, heads, 1, D], [B, heads, n, D] -> float32 [B, heads, 1, n]."""
    return tf.matmul(query, tf.cast(keys, tf.float32), transpose_b=True)


def _weighted(weights: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """[B, heads, 1, n], [B, heads, n, D] -> float32 [B, heads, 1, D]."""
    return tf.matmul(weights, tf.cast(values, tf.float32))
