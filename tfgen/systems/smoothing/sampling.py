"""Images of distribution smoothing: samples of stage 1, of stage 2 given those, and one-step denoising of either.

Meng et al. (2021), section 3 and algorithm 1.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen import torch_file
from tfgen.data.pipeline import filled_up
from tfgen.likelihood import mixture_sampling
from tfgen.monitor import grids
from tfgen.randomness import Key
from tfgen.settings import SettingsError, flag
from tfgen.systems.base import SampleCallback
from tfgen.systems.smoothing import data
from tfgen.systems.smoothing.config import STAGE1_HELP, Stage
from tfgen.systems.smoothing.denoise import denoise
from tfgen.systems.smoothing.incremental import GROUP, Draw, IncrementalSampler

if TYPE_CHECKING:
    from tfgen.systems.smoothing.system import DistributionSmoothing

BISECTIONS = {1: 30, 3: 20}  # by the number of colours, as in the original's sampling program
_PLAUSIBLE_DEVIATIONS = 6  # of the smoothing noise, beyond the range of pixels
_RARE = 0.01
_LINE = 96  # level of the line between an image and what came of it


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Extra flags of `tfgen.sample`."""

    sampler: str = flag(
        "inverse_cdf",
        "how a pixel is drawn: inverse_cdf, of the original's sampling program, or gumbel, of its training",
        choices=("inverse_cdf", "gumbel"),
    )
    clip: bool = flag(False, "clip every colour to [-1, 1] as it is drawn; a plain model always does")
    temperature: float = flag(1.0, "of logits and scales", above=0.0)
    bisection_iter: int | None = flag(
        None, "halvings of inverse_cdf; default: 20 for three colours, 30 for one", minimum=1
    )
    denoise: str = flag(
        "none",
        "stage 1: take the noise off its samples in one step, along the gradient that the original computes, which "
        "leaves out that through the network (gradient), or along that of the paper (full_gradient)",
        choices=("none", "gradient", "full_gradient"),
    )
    stage1_run: str = flag("", STAGE1_HELP)
    from_images: bool = flag(False, "begin from images of --split with noise, in place of samples of stage 1")
    noisy_samples_path: str = flag(
        "",
        "begin from smoothed images in a file, image i from row i: `tensors.npz` of a sampling of stage 1, an array "
        "file .npy [N, H, W, C], or the original's .pth [N, C, H, W]",
    )
    with_logit: bool | None = flag(None, "show samples through a sigmoid; default: as in training")
    sample_batch: int | None = flag(None, "images drawn together; default: --sample_batch of the run", minimum=1)
    iteration: int | None = flag(None, "of the original: batches; here --count is the number of images", minimum=1)
    reverse_sampling: bool | None = flag(None, "of the original: sample stage 2; here the run knows its stage")

    def __post_init__(self) -> None:
        if self.from_images and self.noisy_samples_path:
            raise SettingsError("--from_images and --noisy_samples_path: choose one of them")

    @property
    def draws_smoothed(self) -> bool:
        """Whether smoothed images are samples of stage 1."""
        return not (self.from_images or self.noisy_samples_path)


class Sampler:
    """Draws images of a system. Compiled functions are kept for further calls."""

    def __init__(self, system: DistributionSmoothing):
        self._system = system
        self._incremental = IncrementalSampler(system.network)
        self._pixels: dict[tuple, Draw] = {}

    def sample(
        self,
        count: int,
        key: Key,
        options: SampleOptions,
        callback: SampleCallback | None,
        images: np.ndarray | None,
    ) -> np.ndarray:
        """See `System.sample`; leaves the smoothed images and what was made of them in `System.tensors`."""
        self._check(options)
        size = min(options.sample_batch or self._system.config.sample_batch, count)
        if options.iteration not in (None, -(-count // size)):
            raise SettingsError(
                f"--iteration={options.iteration} batches of {size} are not the {count} images of --count: leave it out"
            )
        given = None
        if options.noisy_samples_path:
            given = read_smoothed(options.noisy_samples_path, self._system, int(key.first_sample), count)
        elif options.from_images:
            assert images is not None
            originals = data.scaled(images)
            given = originals + self._system.config.noise * key.fold("noise").normal(tf.unstack(tf.shape(originals)))
        progress = _Progress(callback, -(-count // size) * self._rows(options), self._rows(options))
        smoothed, samples = [], []
        for start in range(0, count, size):
            chunk = key.skip(start)
            if given is not None:
                # A short last chunk is filled up: one compiled function serves all.
                first = tf.constant(filled_up(np.asarray(given[start : start + size]), size))
            else:
                first = self._first_draw(size, chunk, options, progress)
            smoothed.append(np.asarray(first))
            samples.append(np.asarray(self._second_step(first, size, chunk, options, progress)))
        arrays = {"smoothed": np.concatenate(smoothed)[:count], "samples": np.concatenate(samples)[:count]}
        self._system.tensors = {name: arrays[name] for name in self.tensors(options)}
        shown = self.shown(arrays["samples"], options)
        if not progress.total and callback is not None:
            callback(1, 1, lambda: shown)
        return shown

    def _first_draw(self, size: int, key: Key, options: SampleOptions, progress: _Progress) -> tf.Tensor:
        """Samples of stage 1, or of a plain model."""
        sampler = self
        if self._system.stage is Stage.REVERSE:
            assert self._system.stage1 is not None
            sampler = self._system.stage1.sampler
        return sampler.draw(size, key.fold("stage 1"), options, None, progress)

    def _second_step(self, first: tf.Tensor, size: int, key: Key, options: SampleOptions, progress: _Progress):
        """What is made of the first draw or the smoothed images given."""
        if self._system.stage is Stage.REVERSE:
            return self.draw(size, key.fold("stage 2"), options, first, progress)
        if options.denoise == "none":
            return first
        return self._denoised(first, options.denoise == "full_gradient")

    @tf.function(autograph=False)
    def _denoised(self, smoothed: tf.Tensor, through_network: bool) -> tf.Tensor:
        return denoise(self._system.network, smoothed, self._system.config.noise, through_network)

    def draw(
        self, size: int, key: Key, options: SampleOptions, given: tf.Tensor | None, progress: _Progress | None = None
    ) -> tf.Tensor:
        """Draws images pixel by pixel, float32 [size, H, W, C].

        Args:
          key: image i depends on it and i.
          given: smoothed images, of a system of stage 2.
          progress: told of every row.
        """
        height, width, _ = self._system.spec.shape
        report = None

        def report_rows(done: int, total: int, images: np.ndarray) -> None:
            assert progress is not None
            for rows in range(done - GROUP + 1, done + 1):  # they come four at a time
                progress.row(functools.partial(self._preview, images.copy(), rows, options))

        if progress is not None:
            report = report_rows
        numbers = (self.random_numbers(options, size, key),)
        return self._incremental.sample(height, width, size, self.pixel(options), numbers, given, report)

    def _preview(self, images: np.ndarray, rows: int, options: SampleOptions) -> np.ndarray:
        images[:, rows:] = 0
        return self.shown(images, options)

    def draw_in_graph(
        self, count: tf.Tensor, key: Key, options: SampleOptions, given: tf.Tensor | None = None
    ) -> tf.Tensor:
        """`draw` of any number of images as operations of a graph."""
        height, width, _ = self._system.spec.shape
        numbers = (self.random_numbers(options, count, key),)
        drawn = self._incremental.sample_in_graph(height, width, count, self.pixel(options), numbers, given)
        return tf.ensure_shape(drawn, [None, *self._system.spec.shape])

    def random_numbers(self, options: SampleOptions, count: int | tf.Tensor, key: Key) -> tf.Tensor:
        """What `draw_pixel` needs at every pixel, float32 [count, H, W, n]."""
        height, width, channels = self._system.spec.shape
        components = self._system.config.nr_logistic_mix if options.sampler == "gumbel" else 0
        drawn = key.fold("pixels").uniform([count, height, width, components + channels])
        uniforms = mixture_sampling.open_interval(drawn)
        return uniforms if options.sampler == "gumbel" else mixture_sampling.logit(uniforms)

    def pixel(self, options: SampleOptions) -> Draw:
        """How `options` draw a pixel; always the same function for the same options."""
        channels, levels = self._system.spec.channels, self._system.stage is Stage.PLAIN
        halvings = options.bisection_iter or BISECTIONS[channels]
        settings = options.sampler, channels, options.clip or levels, levels, options.temperature, halvings
        if settings not in self._pixels:
            self._pixels[settings] = functools.partial(draw_pixel, *settings)
        return self._pixels[settings]

    def tensors(self, options: SampleOptions) -> dict[str, tuple[int, ...]]:
        """See `System.sample_tensors`."""
        names = {
            Stage.PLAIN: ["samples"],
            Stage.SMOOTHED: ["smoothed"] if options.denoise == "none" else ["smoothed", "samples"],
            Stage.REVERSE: ["smoothed", "samples"],
        }
        return dict.fromkeys(names[self._system.stage], self._system.spec.shape)

    def grid(self, samples: np.ndarray, originals: np.ndarray, options: SampleOptions) -> np.ndarray:
        """See `System.sample_grid`: above each other the original, if any, the smoothed image, and what came of it."""
        above = [originals] if len(originals) == len(samples) else []
        smoothed = self._system.tensors.get("smoothed")
        if "samples" in self._system.tensors and smoothed is not None and len(smoothed) == len(samples):
            above.append(self.shown(smoothed, options))
        line = np.full_like(samples[:, :1], _LINE)
        parts = [part for image in above for part in (image, line)]
        return grids.display_grid(np.concatenate([*parts, samples], axis=1))

    def shown(self, images: np.ndarray, options: SampleOptions) -> np.ndarray:
        """uint8 images of float32 ones, of the same shape."""
        return np.asarray(self.shown_in_graph(images, options))

    def shown_in_graph(self, images: tf.Tensor, options: SampleOptions) -> tf.Tensor:
        """`shown` as operations of a graph."""
        with_logit = self._system.config.with_logit if options.with_logit is None else options.with_logit
        return data.to_uint8(data.from_logits(images) if with_logit else images)

    def _rows(self, options: SampleOptions) -> int:
        """Rows of pixels to draw for one batch."""
        draws = int(options.draws_smoothed) + (self._system.stage is Stage.REVERSE)
        return draws * self._system.spec.height

    def _check(self, options: SampleOptions) -> None:
        stage = self._system.stage
        if options.reverse_sampling not in (None, stage is Stage.REVERSE):
            raise SettingsError(
                f"--reverse_sampling={options.reverse_sampling}, but the run is of {stage.value}: leave it out"
            )
        if stage is not Stage.SMOOTHED and options.denoise != "none":
            raise SettingsError(f"--denoise={options.denoise} belongs to runs of stage 1, found one of {stage.value}")
        if stage is Stage.PLAIN and not options.draws_smoothed:
            raise SettingsError(
                "--from_images and --noisy_samples_path belong to both stages, not to a plain PixelCNN++"
            )
        if stage is Stage.SMOOTHED and not options.draws_smoothed and options.denoise == "none":
            raise SettingsError("smoothed images are given and nothing is to be made of them: add --denoise=gradient")
        if stage is Stage.REVERSE and options.draws_smoothed and self._system.stage1 is None:
            raise SettingsError(
                "stage 2 begins from smoothed images: add --stage1_run=DIR (a run of the smoothed stage), "
                "--noisy_samples_path=FILE, or --from_images"
            )


class _Progress:
    """Counts rows of pixels over batches and stages.

    Args:
      total: rows in all.
      shown: rows of the first batch, which previews are of.
    """

    def __init__(self, callback: SampleCallback | None, total: int, shown: int):
        self._callback, self.total, self._shown, self._done = callback, total, shown, 0

    def row(self, preview: Callable[[], np.ndarray]) -> None:
        """One more row is drawn."""
        self._done += 1
        if self._callback is not None:
            self._callback(self._done, self.total, preview if self._done <= self._shown else None)


# Pixels ----------------------------------------------------------------------------------------------------


def draw_pixel(
    sampler: str,
    channels: int,
    clip: bool,
    levels: bool,
    temperature: float,
    halvings: int,
    parameters: tf.Tensor,
    row: tf.Tensor,
    column: tf.Tensor,
    numbers: tf.Tensor,
) -> tf.Tensor:
    """One pixel of every image, float32 [B, C].

    Args:
      sampler, clip, temperature, halvings: see `SampleOptions`.
      levels: round to the levels of 8-bit images.
      parameters: of the mixtures, [B, 10 M] or [B, 3 M].
      row, column: of the pixel.
      numbers: of `Sampler.random_numbers`, [B, H, W, n].
    """
    numbers = numbers[:, row, column]
    if sampler == "gumbel":
        mixture, logistic = tf.split(numbers, [numbers.shape[-1] - channels, channels], axis=-1)
        pixel = mixture_sampling.gumbel(parameters, mixture, logistic, clip, temperature)
    else:
        pixel = mixture_sampling.inverse_cdf(parameters, numbers, clip, halvings, temperature)
    return tf.round((pixel + 1) * 127.5) / 127.5 - 1 if levels else pixel


# Files -----------------------------------------------------------------------------------------------------


def read_smoothed(path: str, system: DistributionSmoothing, first: int, count: int) -> np.ndarray:
    """Smoothed images `first` to `first + count - 1` of a file, float32 [count, H, W, C].

    Args:
      path: `.npz` with the array `smoothed`, `.npy` of images [N, H, W, C], or `.pth` of images [N, C, H, W].

    Raises:
      SettingsError: no such file, another kind of file, too few images, or images of another shape or range.
    """
    images = _read_array(path)
    expected = f"[N, {', '.join(map(str, system.spec.shape))}]"
    if images.ndim != 4 or images.shape[1:] != system.spec.shape or images.dtype.kind != "f":
        raise SettingsError(
            f"--noisy_samples_path={path}: expected floating-point images {expected}, found {images.dtype} "
            f"{list(images.shape)}: were they made by stage 1 of the same data set?"
        )
    if len(images) < first + count:
        raise SettingsError(
            f"--noisy_samples_path={path} has {len(images)} images and {first + count} are asked for: lower --count"
        )
    images = images[first : first + count].astype(np.float32)
    limit = 1 + _PLAUSIBLE_DEVIATIONS * system.config.noise
    if not np.isfinite(images).all():
        raise SettingsError(f"--noisy_samples_path={path}: some of the images hold NaN or infinity")
    if images.min() >= 0 or np.mean(np.abs(images) > limit) > _RARE:
        raise SettingsError(
            f"--noisy_samples_path={path}: expected images in [-1, 1] with noise of {system.config.noise:g}, found "
            f"values from {images.min():.3g} to {images.max():.3g}: scale them by v / 127.5 - 1 or 2 v - 1"
        )
    return images


def _read_array(path: str) -> np.ndarray:
    if not pathlib.Path(path).is_file():
        raise SettingsError(f"--noisy_samples_path={path}: there is no such file")
    try:
        if path.endswith(".npz"):
            with np.load(path) as arrays:
                if "smoothed" not in arrays:
                    raise SettingsError(
                        f"--noisy_samples_path={path}: expected an array named smoothed, found {', '.join(arrays)}"
                    )
                return arrays["smoothed"]
        if path.endswith(".npy"):
            return np.load(path)
        array = torch_file.load(path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise SettingsError(f"--noisy_samples_path={path} cannot be read: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 4:
        raise SettingsError(f"--noisy_samples_path={path}: expected one tensor [N, C, H, W]")
    return array.transpose(0, 2, 3, 1)
