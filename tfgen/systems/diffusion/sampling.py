"""Images from a diffusion model: samples by every sampler, of classes, and larger versions of small images."""

from __future__ import annotations

import dataclasses
import functools
import zipfile
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen.data.pipeline import filled_up
from tfgen.monitor import grids
from tfgen.ops import library
from tfgen.ops.traced import spelled_out
from tfgen.randomness import Key
from tfgen.settings import SettingsError, check_values, flag
from tfgen.systems.base import SampleCallback
from tfgen.systems.diffusion import samplers
from tfgen.systems.diffusion.guidance import guided
from tfgen.systems.diffusion.process import Process
from tfgen.systems.diffusion.resizing import area, from_uint8, to_uint8
from tfgen.systems.diffusion.samplers import SAMPLERS
from tfgen.systems.diffusion.unet import Prepared

if TYPE_CHECKING:
    from tfgen.systems.diffusion.system import ImprovedDiffusion


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Extra flags of `tfgen.sample`."""

    sampler: str = flag(
        "ancestral",
        "; ".join(f"{name}: {sampler.description}" for name, sampler in SAMPLERS.items() if not sampler.from_images),
        choices=tuple(name for name, sampler in SAMPLERS.items() if not sampler.from_images),
    )
    steps: int | None = flag(None, "steps of the process that are used, evenly spaced; default: all", minimum=2)
    timestep_respacing: str = flag("", "which steps are used, in the original's words: 250, 10,15,20 or ddim50")
    use_ddim: bool = flag(False, "the original's name for --sampler=ddim")
    eta: float = flag(0.0, "noise of DDIM, 0 for none, 1 for as much as ancestral sampling has; ddim", minimum=0.0)
    clip_denoised: bool = flag(True, "clip the images predicted at each step to the range of pixels")
    class_label: int | None = flag(
        None, "class of all samples, of a class-conditional model; default: drawn for each", minimum=0
    )
    guidance_scale: float = flag(
        1.0,
        "classifier-free guidance: above 1 samples are more typical of their class; needs --label_dropout",
        minimum=0.0,
    )
    reconstruct: bool = flag(
        False, "images of --split through noise and back: encoded by reverse DDIM, decoded by DDIM; ddim, eta 0"
    )
    base_samples: str = flag(
        "",
        "small images to enlarge: .npz with `arr_0` or `images`, uint8 [N, h, w, 3], and labels in `arr_1` or "
        "`labels`; sample i from image i modulo N. Default: images of --split, reduced; super-resolution",
    )
    sample_batch: int = flag(16, "images drawn together", minimum=1)

    def __post_init__(self) -> None:
        check_values(self)
        if self.use_ddim and self.sampler not in ("ancestral", "ddim"):
            raise SettingsError(f"--use_ddim and --sampler={self.sampler} name two samplers: drop one")
        if self.steps is not None and self.timestep_respacing:
            raise SettingsError("--steps and --timestep_respacing both choose the steps: drop one")
        if self.reconstruct and (self.chosen != "ddim" or self.eta):
            raise SettingsError("--reconstruct goes through DDIM without noise: add --sampler=ddim, and no --eta")
        if self.eta and self.chosen != "ddim":
            raise SettingsError(f"--eta={self.eta:g} belongs to --sampler=ddim, found --sampler={self.chosen}")

    @property
    def chosen(self) -> str:
        """Name of the sampler, `use_ddim` considered."""
        return "ddim" if self.use_ddim else self.sampler

    @property
    def respacing(self) -> str:
        """The steps in the original's words; "" for those of the training."""
        return str(self.steps) if self.steps is not None else self.timestep_respacing


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What the network is given beside the noisy images, [B, ...] each.

    Attributes:
      labels: int32 [B], or None.
      low_res: float32 [B, h, w, 3] in [-1, 1], or None.
    """

    labels: tf.Tensor | None
    low_res: tf.Tensor | None


@dataclasses.dataclass(frozen=True)
class BaseSamples:
    """The contents of `--base_samples`: uint8 [N, h, w, 3], and int64 [N] or None."""

    images: np.ndarray
    labels: np.ndarray | None


def read_base_samples(path: str, small_size: int) -> BaseSamples:
    """Reads the `.npz` of a base model, the original's or that of `tfgen.sample`.

    Raises:
      SettingsError: no such file, no images in it, or images that are not `small_size` pixels wide and high.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files if name in ("arr_0", "arr_1", "images", "labels")}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise SettingsError(
            f"--base_samples={path} cannot be read as an .npz file of arrays ({error}): give the samples_*.npz or "
            "samples.npz of a base model, not a picture"
        ) from error
    images, labels = found.get("arr_0", found.get("images")), found.get("arr_1", found.get("labels"))
    expected = (small_size, small_size, 3)
    if (
        images is None
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1:] != expected
        or not len(images)
    ):
        what = "no arr_0 or images" if images is None else f"{images.dtype} {list(images.shape)}"
        raise SettingsError(
            f"--base_samples={path}: expected uint8 [N, {small_size}, {small_size}, 3], the --small_size of the run, "
            f"found {what}"
        )
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise SettingsError(
            f"--base_samples={path}: expected {len(images)} labels, integers, found {labels.dtype} {list(labels.shape)}"
        )
    return BaseSamples(images, labels)


class Sampler:
    """Draws samples. All samplers and numbers of steps share one compiled network for each batch size."""

    def __init__(self, system: ImprovedDiffusion):
        self._system = system

    # What samples are made from -------------------------------------------------------------------------

    def images_wanted(self, first: int, count: int, options: SampleOptions) -> np.ndarray:
        """See `System.images_wanted`: image i for sample i, to reconstruct or to reduce it."""
        small = self._system.config.super_resolution and not options.base_samples
        if small or options.reconstruct:
            return np.arange(first, first + count, dtype=np.int64)
        return np.zeros(0, np.int64)

    def labels(
        self, count: int, key: Key, options: SampleOptions, given: np.ndarray | None = None
    ) -> np.ndarray | None:
        """int64 [count]: the classes of samples, functions of the key and the sample; None without classes.

        Args:
          given: labels of the images that the samples are made from, whose classes the samples then have.

        Raises:
          SettingsError: classes that the model does not have, or samples of images without labels.
        """
        config = self._system.config
        if not config.class_cond:
            if options.class_label is not None:
                raise SettingsError(f"--class_label={options.class_label}: this model has no classes (--class_cond)")
            return None
        if options.class_label is not None:
            if options.class_label >= config.num_classes:
                raise SettingsError(
                    f"--class_label={options.class_label}: the model has classes 0 to {config.num_classes - 1}"
                )
            return np.full(count, options.class_label, np.int64)
        if len(self.images_wanted(int(key.first_sample), count, options)):
            if given is None:
                raise SettingsError(
                    "the images that these samples are made from have no labels, and this model needs them: choose one "
                    "for all with --class_label, or another --data_dir"
                )
            if len(given) != count:
                raise SettingsError(f"{count} samples have the labels of as many images, found {len(given)}")
            wrong = given[(given < 0) | (given >= config.num_classes)]
            if wrong.size:
                raise SettingsError(
                    f"an image of --split has the label {wrong[0]}: the model has classes 0 to "
                    f"{config.num_classes - 1}; choose one for all with --class_label, or another --data_dir"
                )
            return given.astype(np.int64)
        if options.base_samples:
            base = read_base_samples(options.base_samples, config.small_size)
            if base.labels is None:
                raise SettingsError(
                    f"--base_samples={options.base_samples} has no labels (arr_1 or labels), and this model needs "
                    "them: choose one for all with --class_label"
                )
            wrong = base.labels[(base.labels < 0) | (base.labels >= config.num_classes)]
            if wrong.size:  # used or not, so that every rank refuses
                raise SettingsError(
                    f"--base_samples={options.base_samples} has the label {wrong[0]}: the model has classes 0 to "
                    f"{config.num_classes - 1}"
                )
            return base.labels[_cyclic(int(key.first_sample), count, len(base.labels))].astype(np.int64)
        drawn = key.fold("labels").uniform([count, 1])[:, 0].numpy()
        return np.minimum((drawn * self._system.classes).astype(np.int64), self._system.classes - 1)

    def process(self, options: SampleOptions) -> Process:
        """The process with the steps that the options ask for.

        Raises:
          SettingsError: steps that it does not have.
        """
        text = options.respacing
        if not text:
            return self._system.process
        try:
            return self._system.base_process.respaced(text)
        except ValueError as error:
            name = "steps" if options.steps is not None else "timestep_respacing"
            raise SettingsError(f"--{name}={text}: {error}") from error

    # Drawing --------------------------------------------------------------------------------------------

    def sample(
        self,
        count: int,
        key: Key,
        options: SampleOptions,
        callback: SampleCallback | None = None,
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """uint8 [count, S, S, 3]. See `System.sample`.

        Raises:
          SettingsError: options that do not go with the model.
        """
        self._check(options)
        process, sampler = self.process(options), SAMPLERS[options.chosen]
        classes, low_res = self.labels(count, key, options, labels), self._low_res(count, key, options, images)
        classes = None if classes is None else classes.astype(np.int32)  # as in training: one trace serves both
        size = min(options.sample_batch, count)
        batches = range(0, count, size)
        # Weights do not change while samples are drawn, and are seen here as they are now.
        prepared = self._prepared()
        parts = []
        for place, start in enumerate(batches):
            # A short last batch is drawn whole: one compiled network serves all.
            own = slice(start, min(start + size, count))
            stream = key.skip(start)
            shape = [size, *self._system.spec.shape]
            conditions = Conditions(_rows(classes, own, size), _rows(low_res, own, size))

            def report(done: int, total: int, sample: tf.Tensor, pred_xstart: tf.Tensor, place: int = place) -> None:
                if callback is not None:
                    # One batch is shown, the first: others in its place would make a film jump.
                    preview = functools.partial(_preview, pred_xstart) if place == 0 else None
                    callback(place * total + done, len(batches) * total, preview)

            model = self.model(process, conditions, options.guidance_scale, prepared)
            noise = functools.partial(step_noise, stream, shape)
            if options.reconstruct:
                originals = _rows(from_uint8(images), own, size)
                begin = samplers.reverse_ddim(process, model, originals, noise, clip_denoised=options.clip_denoised)
            else:
                begin = stream.fold("start").normal(shape)
            drawn = sampler.function(
                process,
                model,
                begin,
                noise,
                clip_denoised=options.clip_denoised,
                eta=options.eta,
                callback=report,
            )
            parts.append(to_uint8(drawn).numpy()[: own.stop - own.start])
        return np.concatenate(parts)

    def model(
        self,
        process: Process,
        conditions: Conditions,
        guidance_scale: float = 1.0,
        prepared: Prepared | None = None,
    ) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        """The network for samplers: x [B, S, S, 3] and steps of `process` [B] to its output [B, S, S, 3 or 6].

        Args:
          prepared: `UNet.prepared_kernels()` of the weights, if they do not change as long as the model is used.
        """

        def output(x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
            times = tf.cast(process.network_timesteps(t), tf.float32)
            conditional = self._compiled(x, times, conditions.labels, conditions.low_res, prepared)
            if guidance_scale == 1.0:
                return conditional
            hidden = tf.fill(tf.shape(t), self._system.config.num_classes)
            unconditional = self._compiled(x, times, hidden, conditions.low_res, prepared)
            return guided(conditional, unconditional, guidance_scale, self._system.spec.channels)

        return output

    @tf.function(autograph=False)
    def _compiled(
        self,
        x: tf.Tensor,
        timesteps: tf.Tensor,
        labels: tf.Tensor | None,
        low_res: tf.Tensor | None,
        prepared: Prepared | None,
    ) -> tf.Tensor:
        def output(rows: slice) -> tf.Tensor:
            own_labels, own_low_res = (None if tensor is None else tensor[rows] for tensor in (labels, low_res))
            return self._system.network(
                x[rows], timesteps[rows], labels=own_labels, low_res=own_low_res, training=False, prepared=prepared
            )

        with spelled_out():
            return tf.concat([output(rows) for rows in _side_by_side(x.shape[0])], axis=0)

    @tf.function(autograph=False)
    def _prepared(self) -> Prepared:
        return self._system.network.prepared_kernels()

    def _check(self, options: SampleOptions) -> None:
        config = self._system.config
        if options.guidance_scale != 1.0 and not config.label_dropout:
            raise SettingsError(
                f"--guidance_scale={options.guidance_scale:g}: this model was not trained for guidance without a "
                "classifier; train one with --class_cond --label_dropout=0.1"
            )
        if options.base_samples and not config.super_resolution:
            raise SettingsError(
                "--base_samples belongs to super-resolution models, and this one makes images from noise"
            )
        if options.base_samples and options.reconstruct:
            raise SettingsError("--reconstruct takes images of --split, and --base_samples others: drop one")

    def _low_res(
        self, count: int, key: Key, options: SampleOptions, images: np.ndarray | None
    ) -> np.ndarray | tf.Tensor | None:
        """The small images of the samples, float32 [count, h, w, 3], or None."""
        config = self._system.config
        if not config.super_resolution:
            return None
        if options.base_samples:
            base = read_base_samples(options.base_samples, config.small_size)
            return from_uint8(base.images[_cyclic(int(key.first_sample), count, len(base.images))])
        found = 0 if images is None else len(images)
        if found != count:
            raise SettingsError(f"{count} images are made from as many small ones, found {found}")
        return area(from_uint8(images), config.small_size, config.small_size)

    def grid(self, samples: np.ndarray, originals: np.ndarray) -> np.ndarray:
        """Samples, with what they are made from on their left: the image to reconstruct, or the small one, enlarged."""
        if not len(originals):
            return grids.display_grid(samples)
        if not self._system.config.super_resolution:
            return grids.display_grid(np.concatenate([originals, samples], axis=2))
        small = self._system.config.small_size
        reduced = to_uint8(area(from_uint8(originals), small, small)).numpy()
        factor = -(-samples.shape[1] // small)
        enlarged = grids.enlarge(reduced, factor)[:, : samples.shape[1], : samples.shape[2]]
        return grids.display_grid(np.concatenate([enlarged, samples], axis=2))


def _side_by_side(count: int | None) -> list[slice]:
    """Rows of a batch, in parts that are computed at the same time; all of them in one part if their number is unknown.

    On the CPU two: where an operation of one leaves a thread idle, the other has work for it. The same number whatever
    the number of threads, which must not change a result.
    """
    if count is None or count < 2 or library.gpu_visible():
        return [slice(0, count)]
    return [slice(0, count // 2), slice(count // 2, count)]


def step_noise(stream: Key, shape: list[int], step: int) -> tf.Tensor:
    """The standard normal numbers of a step: float32 of that shape."""
    return _drawn(stream.seed, stream.first_sample, tf.constant(step, tf.int64), tuple(shape))


@tf.function(autograph=False)
def _drawn(seed: tf.Tensor, first_sample: tf.Tensor, step: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    return Key(seed, first_sample).fold("noise", step).normal(shape)


def _preview(pred_xstart: tf.Tensor) -> np.ndarray:
    return to_uint8(pred_xstart).numpy()


def _cyclic(first: int, count: int, size: int) -> np.ndarray:
    return np.arange(first, first + count) % size


def _rows(values: np.ndarray | tf.Tensor | None, own: slice, size: int) -> tf.Tensor | None:
    """Rows `own`, filled up to `size`."""
    return None if values is None else tf.constant(filled_up(np.asarray(values[own]), size))
