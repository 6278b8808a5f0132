"""What an attention layer remembers while positions are drawn one by one.

A cache keeps the keys and values that later queries can still see, and no others:

| mode     | kept                                                              | read by a query        |
|----------|-------------------------------------------------------------------|------------------------|
| `a`      | every position so far                                             | all of it              |
| `b`      | a ring of the last s positions                                    | all of it              |
| `bT`,`c` | s tables, one for each residue class modulo s, of T / s positions | the table of its class |
| `b0`     | the chunk of T / s positions that is being drawn                  | all of it              |

A table has the shape [slots, B, heads * size], which `tfgen.ops.blocksparse_decode` reads where it lies. Writing one
slot costs at most a copy of its table, which is less than the query pays for reading it; nothing that a query does not
read is touched, so no step copies the whole sequence.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfgen.ops.blocksparse import Pattern
from tfgen.ops.blocksparse_decode import decode_attention

Tables = dict[str, tf.Tensor]  # "key" and "value"


class Cache:
    """Keys and values of one layer. Subclasses say which slot a position takes, and how the tables are carried along.

    Args:
      pattern: of the layer; causal.
      heads: number of attention heads.
      key_width, value_width: of all heads together.
      dtype: of keys and values.
      chunk: positions drawn between `enter` and `leave`.
    """

    slots: int

    def __init__(self, pattern: Pattern, heads: int, key_width: int, value_width: int, dtype: tf.DType, chunk: int):
        self.pattern, self.heads, self.dtype, self.chunk = pattern, heads, dtype, chunk
        self.widths = {"key": key_width, "value": value_width}

    # Between chunks -----------------------------------------------------------------------------------

    def specs(self) -> dict[str, tf.TensorSpec]:
        """Shapes of what is kept between chunks, for any batch."""
        return {part: tf.TensorSpec(self._shape(part, None), self.dtype) for part in self.widths}

    def initial(self, batch: int | tf.Tensor) -> Tables:
        """What is kept before the first position."""
        return {part: tf.zeros(self._shape(part, batch), self.dtype) for part in self.widths}

    def enter(self, kept: Tables) -> Any:
        """What is carried from position to position, from what was kept."""
        return kept

    def leave(self, carried: Any, steps: tf.Tensor) -> Tables:
        """What is kept after a chunk of `steps` positions."""
        return carried

    def _shape(self, part: str, batch: Any) -> list:
        """Shape of what is kept; `batch` is None for any."""
        return [self.slots, batch, self.widths[part]]

    # One position -------------------------------------------------------------------------------------

    def attend(
        self, t: tf.Tensor, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, carried: Any
    ) -> tuple[tf.Tensor, Any]:
        """Attention of position t, int32 [], over what it sees of itself and the positions before it.

        Args:
          query, key, value: [B, width], of position t.
          carried: of position t - 1.

        Returns:
          [B, value_width] in the dtype of `value`, and what is carried to position t + 1.
        """
        tables, carried = self._write(t, {"key": key, "value": value}, carried)
        visible = tf.minimum(self._last_visible(t) + 1, self.slots)
        earlier = self._earlier(carried)
        return decode_attention(query, tables["key"], tables["value"], visible, self.heads, earlier), carried

    def _write(self, t: tf.Tensor, new: Tables, carried: Any) -> tuple[Tables, Any]:
        """Puts position t into its slot; returns the tables that its query reads, and what is carried on."""
        tables = self._written(t, new, carried)
        return tables, tables

    def _written(self, t: tf.Tensor, new: Tables, tables: Tables) -> Tables:
        slot = tf.reshape(self._slot(t), [1, 1])
        return {part: tf.tensor_scatter_nd_update(tables[part], slot, new[part][None]) for part in self.widths}

    def _earlier(self, carried: Any) -> tuple[tf.Tensor, tf.Tensor] | None:
        """Keys and values that the query reads besides its table, [B, heads, positions, size]."""
        return None

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

    Those of earlier chunks, [B, heads, positions, size], are read as they stand. Only a table of the current chunk is
    written, and joins them at its end.
    """

    def __init__(self, pattern: Pattern, *sizes: Any):
        super().__init__(pattern, *sizes)
        self.slots = self.chunk

    def _shape(self, part: str, batch: Any) -> list:
        earlier = None if batch is None else 0
        return [batch, self.heads, earlier, self.widths[part] // self.heads]

    def enter(self, kept: Tables) -> dict[str, Tables]:
        batch = tf.shape(kept["key"])[0]
        current = {part: tf.zeros([self.slots, batch, width], self.dtype) for part, width in self.widths.items()}
        return {"earlier": kept, "current": current}

    def leave(self, carried: dict[str, Tables], steps: tf.Tensor) -> Tables:
        kept = {}
        for part, earlier in carried["earlier"].items():
            by_head = [self.slots, -1, self.heads, self.widths[part] // self.heads]
            current = tf.reshape(carried["current"][part], by_head)
            current = tf.transpose(current, [1, 2, 0, 3])  # [B, heads, slots, D]
            kept[part] = tf.concat([earlier, current[:, :, :steps]], axis=2)
        return kept

    def _write(self, t: tf.Tensor, new: Tables, carried: dict[str, Tables]) -> tuple[Tables, Any]:
        current = self._written(t, new, carried["current"])
        return current, {"earlier": carried["earlier"], "current": current}

    def _earlier(self, carried: dict[str, Tables]) -> tuple[tf.Tensor, tf.Tensor]:
        return carried["earlier"]["key"], carried["earlier"]["value"]


CACHES: dict[str, type[Cache]] = {
    "a": FullCache,
    "b": RingCache,
    "bT": StridedCache,
    "c": StridedCache,
    "b0": ChunkCache,
}
