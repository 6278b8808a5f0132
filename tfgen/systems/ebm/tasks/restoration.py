"""Pictures of the original's image tasks: restored and class-crossed images, samples of classes, nearest neighbours.

Du & Mordatch, arXiv:1903.08689, sections 4.1 to 4.3. What a picture shows is in functions of images, labels and a
`Call` of any sampler; the tasks below them bind these to a run.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from tfgen.data.errors import DataError
from tfgen.data.source import Source
from tfgen.files import atomic_path
from tfgen.monitor import grids
from tfgen.randomness import host_generator
from tfgen.systems.base import TaskRun
from tfgen.systems.ebm import preprocess
from tfgen.systems.ebm.prepare import levels_of
from tfgen.systems.ebm.tasks import calls
from tfgen.systems.ebm.tasks.calls import Call, Caller
from tfgen.systems.ebm.tasks.classes import own_images
from tfgen.systems.ebm.tasks.options import EvaluateOptions

if TYPE_CHECKING:
    from tfgen.systems.ebm.system import EnergyBasedModel

ROWS, CYCLE_ROWS = 20, 100  # of the pictures
PER_CLASS, CLASSES_ACROSS = 5, 2
CROSS_CALLS, CYCLE_CALLS, CLASS_CALLS, DOT_CALLS, BOX_CALLS, NEAREST_CALLS = 10, 20, 1, 5, 10, 10
DARK_DOTS, DOTS = 0.05, 0.1  # shares of the pixels: dark ones, and dark and bright ones together
DARK, BRIGHT = 0.1, 0.9
BOX_IMAGES = 10_000  # after which boxcorrupt stops
NEIGHBOURS = 5
UNCONDITIONAL_SAMPLES = 10  # of nearestneighbor, where there are no classes
_CHUNK_BYTES = 1 << 27  # of training images, as float64

# Pictures --------------------------------------------------------------------------------------------------


def panel(columns: list[np.ndarray]) -> np.ndarray:
    """Images beside each other, uint8 [rows H, columns W, C].

    Args:
      columns: images from the top to the bottom of each column, [rows, H, W, C] in [0, 1].
    """
    tiles = preprocess.rounded_bytes(np.stack(columns, axis=1))  # [rows, columns, H, W, C]
    return grids.tile(tiles.reshape(-1, *tiles.shape[2:]), columns=len(columns), border=0)


def states(images: np.ndarray, labels: np.ndarray | None, call: Call, count: int) -> list[np.ndarray]:
    """Images before the first of `count` calls and after each, `count` + 1 arrays like `images`."""
    result = [images]
    for number in range(count):
        result.append(call(result[-1], labels, number))
    return result


def crossed(images: np.ndarray, labels: np.ndarray | None, call: Call, rows: int = ROWS) -> np.ndarray:
    """The picture of crossclass: each image's predecessor (that of the first is the last) moves to its class.

    A row shows where it begins, the state before each call, and the image of that class.

    Args:
      images, labels: [B, H, W, C] in [0, 1], and [B, K].
    """
    begin = np.roll(images, 1, axis=0)
    moved = states(begin, labels, call, CROSS_CALLS)
    return panel([column[:rows] for column in (begin, *moved[:-1], images)])


def cycled(starts: np.ndarray, images: np.ndarray, labels: np.ndarray | None, call: Call, rows: int = CYCLE_ROWS):
    """The picture of cycleclass: where a chain begins, the state after each call, and an image of the same class.

    Args:
      starts, images, labels: [B, H, W, C], [B, H, W, C] and [B, K].
    """
    moved = states(starts, labels, call, CYCLE_CALLS)
    return panel([column[:rows] for column in (*moved, images)])


def class_samples(starts: np.ndarray, labels: np.ndarray, call: Call) -> np.ndarray:
    """The picture of democlass: the samples of two classes in each row, uint8 [ceil(K / 2) H, 2 per class W, C].

    Args:
      starts: [K per class, H, W, C], class by class.
      labels: [K, K].
    """
    per_class = len(starts) // len(labels)
    samples = states(starts, labels.repeat(per_class, axis=0), call, CLASS_CALLS)[-1]
    return grids.tile(preprocess.rounded_bytes(samples), columns=CLASSES_ACROSS * per_class, border=0)


def dotted(images: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Images with one pixel of 20 darkened and one brightened, in all colours.

    Args:
      images: [B, H, W, C].
      uniforms: in [0, 1), [B, H, W].
    """
    share = uniforms[..., np.newaxis]
    result = np.where(share < DARK_DOTS, np.asarray(DARK, images.dtype), images)
    return np.where((share > DARK_DOTS) & (share < DOTS), np.asarray(BRIGHT, images.dtype), result)


def undotted(images: np.ndarray, labels: np.ndarray | None, uniforms: np.ndarray, call: Call, rows: int = ROWS):
    """The picture of anticorrupt: images with dots, these restored, and the images. Arguments as of `dotted`."""
    corrupted = dotted(images, uniforms)
    restored = states(corrupted, labels, call, DOT_CALLS)[-1]
    return panel([column[:rows] for column in (corrupted, restored, images)])


def box_mask(shape: tuple[int, int, int]) -> np.ndarray:
    """1 in the lower half of an image [H, W, C], where boxcorrupt draws noise and moves; 0 above."""
    mask = np.zeros(shape, np.float32)
    mask[shape[0] // 2 :] = 1.0
    return mask


def boxed_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """[B, H - H // 2, W, C], of the lower halves of images [B, H, W, C]."""
    count, height, width, channels = shape
    return count, height - height // 2, width, channels


def boxed(images: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Images [B, H, W, C] with the uniform numbers [B, H - H // 2, W, C] in place of their lower half."""
    return np.concatenate([images[:, : images.shape[1] // 2], uniforms.astype(images.dtype)], axis=1)


def box_errors(images: np.ndarray, labels: np.ndarray | None, uniforms: np.ndarray, call: Call) -> np.ndarray:
    """Mean squared differences of images and their restorations, over the whole image, [B].

    Args:
      call: moves in `box_mask`.
    """
    restored = states(boxed(images, uniforms), labels, call, BOX_CALLS)[-1]
    return np.square(restored - images).mean(axis=(1, 2, 3), dtype=np.float64)


def summary(errors: np.ndarray, split: str) -> str:
    """What the original prints of errors [N]."""
    return f"Mean {errors.mean()} and std {errors.std()} for {split} dataloader"


def nearest(samples: np.ndarray, chunks: Iterable[np.ndarray], count: int = NEIGHBOURS) -> np.ndarray:
    """Numbers of the `count` images nearest to each sample in Euclidean distance, nearest first: int64 [n, count].

    Of equally near images the earlier one comes first.

    Args:
      samples: [n, H, W, C].
      chunks: all images, [m, H, W, C] at a time.
    """
    flat = samples.reshape(len(samples), -1).astype(np.float64)
    best, rows = np.zeros((len(samples), 0)), np.zeros((len(samples), 0), np.int64)
    seen = 0
    for chunk in chunks:
        images = chunk.reshape(len(chunk), -1).astype(np.float64)
        # |a - b|^2 less |a|^2, which is the same for all images of a sample.
        distances = np.square(images).sum(axis=1) - 2.0 * flat @ images.T
        numbers = np.broadcast_to(np.arange(seen, seen + len(chunk)), distances.shape)
        best, rows = np.concatenate([best, distances], axis=1), np.concatenate([rows, numbers], axis=1)
        order = np.argsort(best, axis=1, kind="stable")[:, :count]
        best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
        seen += len(chunk)
    return rows


def neighbours(
    starts: np.ndarray,
    labels: np.ndarray | None,
    chunks: Iterable[np.ndarray],
    images_at: Callable[[np.ndarray], np.ndarray],
    call: Call,
) -> np.ndarray:
    """The picture of nearestneighbor: a sample in each row, and the images nearest to it.

    Args:
      starts, labels: where the chains begin, [n, H, W, C], and [n, K].
      chunks: all images in [0, 1], [m, H, W, C] at a time.
      images_at: the images of numbers [n].
    """
    samples = states(starts, labels, call, NEAREST_CALLS)[-1]
    return panel([samples, *(images_at(rows) for rows in nearest(samples, chunks).T)])


# Tasks -----------------------------------------------------------------------------------------------------


def crossclass(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """Images that move to another class: crossclass.png."""
    calls.check_conditional(system, "crossclass")
    images, labels = _drawn_images(system, options, job, "crossclass", ROWS)
    return _saved(job, "crossclass", crossed(images, labels, _caller(system, options, job)), len(images))


def cycleclass(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """Chains from noise, with the images whose labels they have: cycleclass.png."""
    calls.check_conditional(system, "cycleclass")
    images, labels = _drawn_images(system, options, job, "cycleclass", CYCLE_ROWS)
    begin = calls.starts(system, job.key, len(images)).numpy()
    return _saved(job, "cycleclass", cycled(begin, images, labels, _caller(system, options, job)), len(images))


def democlass(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """Five samples of each class: democlass.png."""
    labels = calls.classes(system, "democlass")
    begin = calls.starts(system, job.key, PER_CLASS * len(labels)).numpy()
    return _saved(job, "democlass", class_samples(begin, labels, _caller(system, options, job)), len(begin))


def anticorrupt(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """Images whose dots the chains remove: anticorrupt.png."""
    images, labels = _drawn_images(system, options, job, "anticorrupt", ROWS)
    uniforms = job.key.fold("dots").uniform(images.shape[:3]).numpy()
    return _saved(job, "anticorrupt", undotted(images, labels, uniforms, _caller(system, options, job)), len(images))


def boxcorrupt(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """Errors of images whose lower half is restored, of the first 10,000 images of the training and the test split.

    With fewer images of the task's own split (--images) those of both are as many. Per-image errors go to
    data_diff_train_image.npy and data_diff_test_image.npy. With --svhn they are of SVHN alone, as the test split.
    """
    sources = {"train": job.splits.train, "test": job.splits.test}
    if options.svhn:
        sources = {"test": own_images(system, options, job)}
    mask, caller = box_mask(system.spec.shape), _caller(system, options, job)
    results: dict[str, float] = {}
    for index, (split, source) in enumerate(sources.items()):
        count = min(len(job.source), len(source), BOX_IMAGES)
        if not count:
            raise DataError(f"boxcorrupt restores images, {source.name} has none: choose another --split or --images")
        errors = []
        for first in range(0, count, job.batch_size):

            def call(images, labels, number, first=first, index=index):
                return caller(images, labels, BOX_CALLS * index + number, mask=mask, first=first)

            images, labels = _read(system, source, np.arange(first, min(first + job.batch_size, count)))
            key = job.key.fold("box", index).skip(first)
            errors.append(box_errors(images, labels, key.uniform(boxed_shape(images.shape)).numpy(), call))
        joined = np.concatenate(errors)
        with atomic_path(job.folder / f"data_diff_{split}_image.npy") as temporary:
            np.save(temporary, joined)
        print(summary(joined, split))
        results |= {f"{split}_mse": float(joined.mean()), f"{split}_mse_std": float(joined.std())}
        results[f"{split}_images"] = count
    return results


def nearestneighbor(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """A sample of each class and the training images nearest to it: nearest.png. Without classes, ten samples."""
    labels = calls.classes(system, "nearestneighbor") if system.label_columns else None
    source = own_images(system, options, job) if options.svhn else job.splits.train
    if len(source) < NEIGHBOURS:
        raise DataError(
            f"nearestneighbor shows the {NEIGHBOURS} nearest training images, {source.name} has {len(source)}"
        )
    count = UNCONDITIONAL_SAMPLES if labels is None else len(labels)
    begin = calls.starts(system, job.key, count).numpy()
    size = max(1, _CHUNK_BYTES // (8 * system.spec.dims))

    def images_at(rows: np.ndarray) -> np.ndarray:
        return _compared(system, source.read(rows)["image"])

    chunks = (images_at(np.arange(first, min(first + size, len(source)))) for first in range(0, len(source), size))
    picture = neighbours(begin, labels, chunks, images_at, _caller(system, options, job))
    return _saved(job, "nearest", picture, count)


def _caller(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> Caller:
    chain = calls.chain_of(options, system.config.rescale)
    return Caller(system, chain, job.key, job.batch_size, options.advance_vectors)


def _read(system: EnergyBasedModel, source: Source, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Images [B, H, W, C] in [0, 1], and labels [B, K] of a conditional run."""
    batch = source.read(rows)
    return system.scaled(levels_of(batch)), system.labels_of(batch)


def _drawn_images(
    system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun, task: str, count: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """`count` images of the task's split, in an order that the seed gives: stored ones are often sorted."""
    source = own_images(system, options, job)
    order = source.epoch_order(host_generator(options.seed, f"images of {task}"))
    if len(order) < count:
        raise DataError(
            f"--task={task} shows {count} images, {source.name} has {len(order)}: choose another --split, or "
            "raise --images"
        )
    return _read(system, source, np.asarray(order[:count]))


def _compared(system: EnergyBasedModel, images: np.ndarray) -> np.ndarray:
    """Images of uint8 as the original compares samples with them: bytes over 255; those of dSprites as they are."""
    return system.scaled(images) if system.config.is_sprites else images.astype(np.float32) / np.float32(255)


def _saved(job: TaskRun, name: str, picture: np.ndarray, images: int) -> dict[str, float]:
    path = pathlib.Path(job.folder) / f"{name}.png"
    grids.save_png(path, picture)
    return {"images": images}
