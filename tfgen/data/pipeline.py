"""From a source to batches: which images each rank sees at which step, and reading them ahead of time."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np

from tfgen.data.errors import DataError
from tfgen.data.source import Source
from tfgen.randomness import host_generator

Item = TypeVar("Item")


def minibatches(order: np.ndarray, batch_size: int, ranks: int) -> np.ndarray:
    """Cuts an order into batches: int [N] -> [steps, ranks, batch_size].

    Rank r takes [:, r]. What is left over after the last full global batch is dropped.

    Raises:
      DataError: fewer images than one global batch.
    """
    global_batch = batch_size * ranks
    steps = len(order) // global_batch
    if steps == 0:
        raise DataError(
            f"{len(order)} image(s) do not fill one batch of {global_batch} ({batch_size} per rank, {ranks} rank(s)): "
            "lower the batch size or add images"
        )
    return order[: steps * global_batch].reshape(steps, ranks, batch_size)


def filled_up(rows: np.ndarray, count: int) -> np.ndarray:
    """`rows`, and the last of them again until there are `count`: one compiled function serves short batches, too."""
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


class IndexStream:
    """The images of every training step, as a function of (seed, epoch); nothing is stored, so resuming is free.

    The order of epoch e is `source.epoch_order(host_generator(seed, "order", e))`, cut by `minibatches`.
    May be called from several threads.

    Args:
      source: where the images come from.
      batch_size: images per rank and step.
      ranks: number of processes.
      seed: the run's seed.

    Raises:
      DataError: the source has fewer images than one global batch.
    """

    def __init__(self, source: Source, batch_size: int, ranks: int, seed: int):
        self._source, self._batch_size, self._ranks, self._seed = source, batch_size, ranks, seed
        self.steps_per_epoch = len(minibatches(np.arange(source.epoch_size), batch_size, ranks))
        self._lock = threading.Lock()
        self._cached: tuple[int, np.ndarray] | None = None

    def epoch(self, step: int) -> int:
        """The epoch that step `step` belongs to; both count from 0."""
        return step // self.steps_per_epoch

    def global_indices(self, step: int) -> np.ndarray:
        """Images of all ranks at a step, rank by rank: int64 [ranks * batch_size]."""
        return self._batches(self.epoch(step))[step % self.steps_per_epoch].reshape(-1)

    def indices(self, step: int, rank: int) -> np.ndarray:
        """Images of one rank at a step: int64 [batch_size]."""
        return self._batches(self.epoch(step))[step % self.steps_per_epoch, rank]

    def _batches(self, epoch: int) -> np.ndarray:
        """int64 [steps, ranks, batch_size]. Keeps the last epoch asked for: computing an order costs O(N)."""
        with self._lock:
            if self._cached is None or self._cached[0] != epoch:
                order = self._source.epoch_order(host_generator(self._seed, "order", epoch))
                batches = minibatches(order.astype(np.int64, copy=False), self._batch_size, self._ranks)
                self._cached = epoch, batches
            return self._cached[1]


class EvaluationBatches:
    """One rank's share of a source in stored order, batch by batch. Can be iterated any number of times.

    A batch is what `Source.read` gives, and "index": where its images stand in the source, consecutive int64 [B].

    Args:
      source: where the images come from.
      batch_size: images per rank and batch.
      rank, ranks: this process and their number.
      limit: only the first `limit` images.
      drop_remainder: leave out the images after the last full global batch, as the original code does. Otherwise they
        come as a smaller last batch, on some ranks as none at all, and each image is seen exactly once: average over
        images then, not over batches.

    Raises:
      DataError: `drop_remainder` would leave nothing.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        limit: int | None = None,
        drop_remainder: bool = False,
    ):
        self.source, self.batch_size, self.rank, self.ranks = source, batch_size, rank, ranks
        count = len(source) if limit is None else min(limit, len(source))
        if drop_remainder:
            count = minibatches(np.arange(count), batch_size, ranks).size
        self.count = count  # images of all ranks together

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for start in range(self.rank * self.batch_size, self.count, self.ranks * self.batch_size):
            indices = np.arange(start, min(start + self.batch_size, self.count), dtype=np.int64)
            yield self.source.read(indices) | {"index": indices}


class Prefetcher(Generic[Item]):
    """Calls `function(first)`, `function(first + 1)`, ... in a background thread and hands out the results in order.

    Use it as a context manager, or call `close`: that ends the thread once its current call returns.

    Args:
      function: called from one thread only, never twice at a time. An exception it raises is raised again by `next`,
        after the results that came before it.
      first: argument of the first call.
      depth: results kept ready at most.

    Attributes:
      wait_seconds: how long the last `next` had to wait for its result.
    """

    def __init__(self, function: Callable[[int], Item], first: int, depth: int = 2):
        if depth < 1:
            raise ValueError(f"expected depth >= 1, found {depth}")
        self._function, self._depth = function, depth
        self._ready: collections.deque[Item] = collections.deque()
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()  # guards the four attributes above
        self.wait_seconds = 0.0
        # A daemon: a consumer that dies without closing must not keep the process alive.
        self._thread = threading.Thread(target=self._produce, args=(first,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Prefetcher[Item]:
        return self

    def __next__(self) -> Item:
        started = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._failure or self._closed)
            self.wait_seconds = time.perf_counter() - started
            if self._closed:
                raise StopIteration
            if not self._ready:
                assert self._failure is not None
                raise self._failure
            item = self._ready.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Stops and waits for the thread. Results that are ready are dropped; `next` raises StopIteration."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Prefetcher[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _produce(self, step: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
                if self._closed:
                    return
            try:
                item = self._function(step)
            except BaseException as error:  # whatever it is, the consumer has to hear of it
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._ready.append(item)
                self._changed.notify_all()
            step += 1
