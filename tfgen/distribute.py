"""The few collective operations the library uses, over Horovod or in a single process.

Nothing here imports Horovod unless the process was started by `horovodrun` or `mpirun` with more than one rank.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Launchers tell their processes the number of ranks through one of these.
_SIZE_VARIABLES = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")

Groups = Sequence[Sequence[int]]


class DistributionError(RuntimeError):
    """The ranks cannot work together."""


class Ranks:
    """A single process: rank 0 of 1. `HorovodRanks` has the same members."""

    rank = 0
    size = 1
    local_rank = 0

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def average_gradients(
        self, gradients: list[tf.Tensor], wire_dtype: tf.DType = tf.float32, groups: Groups | None = None
    ) -> list[tf.Tensor]:
        """Mean over ranks of each gradient, in its own dtype.

        Args:
          wire_dtype: dtype in which gradients travel.
          groups: indices of gradients that are reduced together, in the order in which the groups are sent;
            None for one group. Only speed depends on it.
        """
        del wire_dtype, groups
        return gradients

    def sum(self, tensor: tf.Tensor) -> tf.Tensor:
        """Sum over ranks of a small tensor."""
        return tensor

    def concatenate(self, tensor: tf.Tensor) -> tf.Tensor:
        """Tensors of all ranks, concatenated along the first axis in the order of ranks. Equal other axes."""
        return tensor

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Gives every rank the first rank's values."""

    def gather(self, array: np.ndarray) -> np.ndarray:
        """Arrays of all ranks, concatenated along the first axis in the order of ranks. Equal other axes."""
        return array

    def agree(self, value: object, what: str) -> None:
        """Raises DistributionError unless `value` has the same text on every rank."""


class HorovodRanks(Ranks):
    """Several processes under Horovod."""

    def __init__(self) -> None:
        import horovod.tensorflow as hvd

        hvd.init()
        self._hvd = hvd
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()

    def average_gradients(self, gradients, wire_dtype=tf.float32, groups=None):
        reduced: list[tf.Tensor | None] = [None] * len(gradients)
        for number, group in enumerate(groups or [range(len(gradients))]):
            # Divided before the sum, as the original does: a 16-bit sum then cannot overflow where the mean does not.
            sent = [tf.cast(gradients[index] / self.size, wire_dtype) for index in group]
            received = self._hvd.grouped_allreduce(sent, op=self._hvd.Sum, name=f"gradients_{number}")
            for index, value in zip(group, received, strict=True):
                reduced[index] = tf.cast(value, gradients[index].dtype)
        missing = [index for index, value in enumerate(reduced) if value is None]
        if missing:
            raise DistributionError(f"gradient groups leave out gradients {missing}")
        return reduced

    def sum(self, tensor):
        return self._hvd.allreduce(tensor, op=self._hvd.Sum)

    def concatenate(self, tensor):
        return self._hvd.allgather(tensor)

    def broadcast(self, variables):
        self._hvd.broadcast_variables(variables, root_rank=0)

    def gather(self, array):
        return np.concatenate(self._hvd.allgather_object(array))

    def agree(self, value, what):
        values = self._hvd.allgather_object(str(value))
        if len(set(values)) > 1:
            shown = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(values))
            raise DistributionError(f"ranks disagree on {what}: {shown}")


def launched_ranks() -> int:
    """Number of processes that the launcher started, 1 without a launcher."""
    for name in _SIZE_VARIABLES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def connect() -> Ranks:
    """Joins the other ranks, and pins this process to the GPU of its local rank.

    Raises:
      DistributionError: started as one of several ranks, but Horovod cannot be imported.
    """
    count = launched_ranks()
    if count == 1:
        ranks = Ranks()
    else:
        try:
            ranks = HorovodRanks()
        except ImportError as error:
            raise DistributionError(
                f"this process was launched as one of {count} ranks, but Horovod cannot be imported ({error}). "
                "Install it with `make horovod` (or `pip install --no-build-isolation 'tfgen[horovod]'`), "
                "or start a single process without horovodrun."
            ) from error
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        own = gpus[ranks.local_rank % len(gpus)]
        tf.config.set_visible_devices(own, "GPU")
        tf.config.experimental.set_memory_growth(own, True)
    return ranks
