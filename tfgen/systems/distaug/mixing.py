"""Two data sets mixed at random: each training image comes from the auxiliary one with a given probability.

Section "auxiliary data" of Jun et al., "Distribution Augmentation for Generative Modeling" (ICML 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfgen.data.errors import DataError
from tfgen.data.source import ImageSpec, Source, Subset
from tfgen.randomness import host_generator

MAIN, AUXILIARY = 0, 1


def take_without_replacement(generator: np.random.RandomState, size: int, counts: np.ndarray) -> np.ndarray:
    """Items of a set of `size` for a row of requests, in shuffled order and without replacement.

    When fewer items remain than a request needs, they are passed over and the set is shuffled anew.

    Args:
      counts: int [R], items of each request, none above `size`.

    Returns:
      int64 [sum(counts)], request after request.
    """
    if counts.max(initial=0) > size:
        raise DataError(f"a request for {counts.max()} different images of a set that has {size}: lower the batch size")
    ends = np.cumsum(counts)
    taken = [np.empty(0, np.int64)]
    request = served = 0
    while request < len(counts):
        next_request = int(np.searchsorted(ends, served + size, side="right"))  # the first that does not fit
        taken.append(generator.permutation(size)[: ends[next_request - 1] - served])
        request, served = next_request, int(ends[next_request - 1])
    return np.concatenate(taken)


def draw_mixture(
    requests: np.ndarray,
    sizes: Sequence[int],
    probabilities: Sequence[float],
    id_generator: np.random.RandomState,
    item_generators: Sequence[np.random.RandomState],
) -> tuple[np.ndarray, np.ndarray]:
    """Draws images from several data sets.

    For each image the data set is drawn with the given probabilities, then the item from the data set's own shuffled
    order. Within a request the images are grouped by data set. This is the original's sampler, which serves one
    request per batch; the draws of a request do not depend on later ones.

    Args:
      requests: int [R], images of each request.
      sizes, probabilities: of each data set.
      id_generator: draws the data sets.
      item_generators: one for the order of each data set.

    Returns:
      Data set and item of each image, both int64 [sum(requests)], request after request.
    """
    drawn = id_generator.choice(len(sizes), size=int(np.sum(requests)), p=probabilities)
    request_of = np.repeat(np.arange(len(requests)), requests)
    datasets = drawn[np.lexsort((drawn, request_of))]  # grouped by data set within each request
    items = np.empty_like(datasets)
    for dataset, (size, generator) in enumerate(zip(sizes, item_generators, strict=True)):
        chosen = datasets == dataset
        counts = np.bincount(request_of[chosen], minlength=len(requests))
        items[chosen] = take_without_replacement(generator, size, counts)
    return datasets, items


class MixedSource(Source):
    """A main and an auxiliary data set behind each other; an epoch mixes them at random.

    Reading adds the column "dataset", int32 [n]: 0 for the main, 1 for the auxiliary set. Labels are left out, since
    two data sets number their classes differently. An epoch has as many images as the main set.

    Unlike the original, whose ranks all draw the same images in batches grouped by data set, the order of an epoch is
    drawn image by image for all ranks together, and is a function of (seed, epoch). Within an epoch no image comes a
    second time before all of its data set have come; each epoch shuffles anew.

    Args:
      main, auxiliary: sources of images of the same shape.
      fraction: probability that an image comes from `auxiliary`.
      seed: of the draws, in addition to the run's.
      subset_size: keep only the first images of `auxiliary`; all, if it has no more.

    Raises:
      DataError: images of different shapes, or a fraction outside [0, 1].
    """

    def __init__(self, main: Source, auxiliary: Source, fraction: float, seed: int, subset_size: int | None = None):
        if not 0 <= fraction <= 1:
            raise DataError(f"expected an auxiliary fraction within [0, 1], found {fraction}")
        if main.spec.shape != auxiliary.spec.shape:
            raise DataError(
                f"cannot mix images of {main.spec.shape} ({main.name}) and {auxiliary.spec.shape} ({auxiliary.name}): "
                "choose an auxiliary data set of the same image size"
            )
        if subset_size is not None and subset_size < len(auxiliary):
            name = f"{auxiliary.name}, first {subset_size}"
            auxiliary = Subset(auxiliary, np.arange(subset_size), name)
        self._parts, self._fraction, self._seed = (main, auxiliary), fraction, seed
        self.name = f"{main.name} + {fraction:g} of {auxiliary.name}"
        self.spec = ImageSpec(*main.spec.shape)

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    @property
    def epoch_size(self) -> int:
        return len(self._parts[MAIN])

    def epoch_order(self, generator: np.random.RandomState) -> np.ndarray:
        epoch = int(generator.randint(2**31))
        datasets, items = draw_mixture(
            np.ones(self.epoch_size, np.int64),
            [len(part) for part in self._parts],
            [1 - self._fraction, self._fraction],
            host_generator(self._seed, "mixture", epoch),
            [host_generator(self._seed, f"mixture items {part}", epoch) for part in (MAIN, AUXILIARY)],
        )
        return items + datasets * len(self._parts[MAIN])

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        indices = np.asarray(indices)
        boundary = len(self._parts[MAIN])
        datasets = (indices >= boundary).astype(np.int32)
        images = np.empty((len(indices), *self.spec.shape), np.uint8)
        for dataset, part in enumerate(self._parts):
            chosen = datasets == dataset
            if chosen.any():
                images[chosen] = part.read(indices[chosen] - dataset * boundary)["image"]
        return {"image": images, "dataset": datasets}
