"""Images from a VDVAE: samples of the prior, reconstructions, partial reconstructions and interpolations.

Child (2021), section 2.2 (the generative model) and figure 4 (partial reconstructions).
"""

from __future__ import annotations

import dataclasses
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfgen.data.pipeline import filled_up
from tfgen.likelihood import logistic_mixture, mixture_sampling
from tfgen.monitor import grids
from tfgen.randomness import Key
from tfgen.settings import SettingsError, flag
from tfgen.systems.base import SampleCallback
from tfgen.systems.vdvae.network import VDVAE, Draw
from tfgen.systems.vdvae.preprocess import Preprocessing

KINDS = ("samples", "reconstructions", "partial", "interpolation", "given", "pictures")
DRAWING_KINDS = ("samples", "partial", "given")  # those that draw latents at a temperature of one's choice
# What numpy and zipfile raise for files that are empty, cut short, altered, encrypted or of an unknown compression.
UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
DEFAULT_STEPS = 8  # images of an interpolation

# columns(images [B, R, R, 3], key) -> columns of the picture grid, uint8 [B, rows R, R, 3].
Columns = Callable[[np.ndarray, Key], np.ndarray]
# uniform(purpose, shape) -> float32 numbers in (0, 1) of that shape.
Uniform = Callable[[str, Sequence[int | tf.Tensor]], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Extra flags of `tfgen.sample`."""

    kind: str = flag(
        "samples",
        "samples: from the prior; reconstructions: images from their own latents; partial: the latents of the first "
        "layers are those of an image, the others drawn; interpolation: between images 1 and 2, 3 and 4, ...; given: "
        "from the latents in --latents_file; pictures: the grid of the training, a column for each of --count images",
        choices=KINDS,
    )
    temperature: str = flag(
        "1", "factor on the standard deviation of the prior: a number, or one for each layer; samples, partial, given"
    )
    latents: int | None = flag(None, "layers whose latents are those of an image; partial", minimum=0)
    latents_file: str = flag(
        "",
        "latents of the first layers, the others are drawn: .npz with layer_000, layer_001, ..., float32 [N, r, r, Z] "
        "as the exported `encode` gives them, sample i from row i, or N = 1 for all samples; given",
    )
    steps: int | None = flag(
        None, f"images of an interpolation, both ends included; default: {DEFAULT_STEPS}; interpolation", minimum=2
    )
    sample_batch: int | None = flag(None, "images drawn together; default: --sample_batch of the run", minimum=1)

    def __post_init__(self) -> None:
        if (self.kind == "partial") != (self.latents is not None):
            raise SettingsError(
                "--kind=partial needs --latents=K, the layers whose latents are those of an image"
                if self.kind == "partial"
                else f"--latents={self.latents} belongs to --kind=partial, found --kind={self.kind}"
            )
        if (self.kind == "given") != bool(self.latents_file):
            raise SettingsError(
                "--kind=given needs --latents_file=FILE.npz"
                if self.kind == "given"
                else f"--latents_file={self.latents_file} belongs to --kind=given, found --kind={self.kind}"
            )
        if self.steps is not None and self.kind != "interpolation":
            raise SettingsError(f"--steps={self.steps} belongs to --kind=interpolation, found --kind={self.kind}")
        if self.temperature != "1" and self.kind not in DRAWING_KINDS:
            raise SettingsError(
                f"--temperature={self.temperature} belongs to --kind={', '.join(DRAWING_KINDS[:-1])} or "
                f"{DRAWING_KINDS[-1]}, found --kind={self.kind}"
            )

    @property
    def columns(self) -> int:
        """Images of one interpolation."""
        return self.steps or DEFAULT_STEPS


# Random numbers --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Noise:
    """The random numbers of a batch of images.

    Attributes:
      latents: of the stochastic layers.
      uniform: of the head: "mixture", then "logistic".
    """

    latents: Draw
    uniform: Uniform

    @classmethod
    def of(cls, key: Key) -> Noise:
        """All numbers a function of the key."""
        return cls(
            latent_noise(key),
            lambda purpose, shape: mixture_sampling.open_interval(key.fold(purpose).uniform(shape)),
        )


def latent_noise(key: Key) -> Draw:
    """The noise of every stochastic layer, as a function of the key."""
    stream = key.fold("latents")
    return lambda layer, shape: stream.fold(layer).normal(shape)


def posterior_noise(key: Key) -> Draw:
    """The noise of latents inferred from images: image i has the same latents in every kind of sample.

    Args:
      key: its first sample is the index of the first image.
    """
    return latent_noise(key.fold("posterior"))


def draw_images(network: VDVAE, features: tf.Tensor, uniform: Uniform) -> tf.Tensor:
    """uint8 [B, R, R, 3], drawn from the head given the decoder's features [B, R, R, width]."""
    parameters = network.mixture_parameters(features)
    side = network.architecture.image_size
    pixels = [tf.shape(features)[0], side, side]
    mixture = uniform("mixture", [*pixels, parameters.shape[-1] // 10])
    logistic = uniform("logistic", [*pixels, 3])
    return logistic_mixture.to_uint8(mixture_sampling.gumbel(parameters, mixture, logistic))


# Samples of every kind -------------------------------------------------------------------------------------


def images_wanted(first: int, count: int, options: SampleOptions) -> np.ndarray:
    """See `System.images_wanted`. Image i for sample i, or images 2 j and 2 j + 1 for all of interpolation j."""
    if options.kind in ("samples", "given") or not count:
        return np.zeros(0, np.int64)
    if options.kind == "interpolation":
        rows = first // options.columns, (first + count - 1) // options.columns + 1
        return np.arange(2 * rows[0], 2 * rows[1], dtype=np.int64)
    return np.arange(first, first + count, dtype=np.int64)


def sample_grid(samples: np.ndarray, originals: np.ndarray, options: SampleOptions) -> np.ndarray:
    """See `System.sample_grid`. An interpolation is a row; reconstructions have the original on their left."""
    if options.kind == "pictures":
        return np.concatenate(list(samples), axis=1)
    if options.kind in ("samples", "given"):
        return grids.display_grid(samples)
    if options.kind == "interpolation":
        return grids.display_grid(samples, columns=options.columns)
    return grids.display_grid(np.concatenate([originals, samples], axis=2))


def parse_temperatures(text: str, layers: int) -> list[float]:
    """One temperature for each stochastic layer, from "0.8" or "1,1,0.9,...".

    Raises:
      SettingsError: no numbers of at least 0, or another number of them than 1 or `layers`.
    """
    try:
        values = [float(item) for item in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, layers) or any(not 0 <= value < math.inf for value in values):
        raise SettingsError(
            f"--temperature={text}: expected one number of at least 0, or one for each of the {layers} layers, "
            "separated by commas"
        )
    return values * layers if len(values) == 1 else values


def read_latents(path: str, network: VDVAE) -> list[np.ndarray]:
    """The latents of `--latents_file`: float32 [N, r, r, Z] for each of the first layers, N the same for all.

    Entries that are called otherwise are left alone (the exported `encode` also gives "rates").

    Raises:
      SettingsError: no such file, no such entries, a layer left out, or latents of another network or not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files if name.startswith("layer_")}
    except UNREADABLE as error:
        raise SettingsError(f"--latents_file={path} cannot be read as an .npz file of arrays: {error}") from error
    blocks = network.architecture.decoder
    names = [f"layer_{index:03d}" for index in range(len(blocks))]
    if not found or sorted(found) != names[: len(found)]:
        raise SettingsError(
            f"--latents_file={path}: expected the first of {names[0]} to {names[-1]} with none left out, "
            f"found {', '.join(sorted(found)) or 'none'}"
        )
    rows = len(found[names[0]]) if found[names[0]].ndim else 0
    for name, block in zip(names, blocks, strict=False):
        if name not in found:
            break
        expected = (rows, block.resolution, block.resolution, network.latents)
        array = found[name]
        if array.shape != expected or not rows or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise SettingsError(
                f"--latents_file={path}: {name} must be finite floating-point numbers of shape "
                f"[N, {', '.join(map(str, expected[1:]))}] with N = {rows or 'at least 1'}, "
                f"found {array.dtype} {list(array.shape)}"
            )
    return [found[name].astype(np.float32) for name in names[: len(found)]]


class Sampler:
    """Draws samples of every kind. A kind has one compiled function for each batch size, whatever the temperatures.

    Args:
      columns: draws those of the picture grid.
    """

    def __init__(self, network: VDVAE, preprocessing: Preprocessing, columns: Columns):
        self._network, self._preprocessing, self._columns = network, preprocessing, columns
        self._layers = len(network.decoder_blocks)

    def sample(
        self,
        count: int,
        key: Key,
        options: SampleOptions,
        batch_size: int,
        callback: SampleCallback | None = None,
        images: np.ndarray | None = None,
    ) -> np.ndarray:
        """uint8 [count, R, R, 3], or columns [count, rows R, R, 3] of the picture grid. See `System.sample`.

        Raises:
          SettingsError: options that do not go with the network or the images.
        """
        temperatures = tf.constant(parse_temperatures(options.temperature, self._layers), tf.float32)
        if options.latents is not None and options.latents > self._layers:
            raise SettingsError(
                f"--latents={options.latents}: the network has {self._layers} stochastic layers, give at most as many"
            )
        first = int(key.first_sample)
        wanted = images_wanted(first, count, options)
        found = 0 if images is None else len(images)
        if found != len(wanted):
            raise SettingsError(f"{count} images of --kind={options.kind} are made from {len(wanted)}, found {found}")
        latents = read_latents(options.latents_file, self._network) if options.kind == "given" else []
        if latents and 1 != len(latents[0]) < first + count:
            raise SettingsError(
                f"--latents_file={options.latents_file} has latents of {len(latents[0])} images: lower --count "
                f"({first + count} samples), or give those of one image for all"
            )
        parts = []
        for start in range(first, first + count, batch_size):
            # A short last batch is drawn whole: one compiled function serves all.
            size = min(batch_size, first + count - start)
            places = np.searchsorted(wanted, images_wanted(start, size, options))
            given = images[places] if images is not None else None
            rows = [z if len(z) == 1 else filled_up(z[start : start + size], batch_size) for z in latents]
            parts.append(self._batch(batch_size, key.seed, start, options, temperatures, given, rows)[:size])
            if callback is not None:
                callback(start + size - first, count, None)
        return np.concatenate(parts)

    def _batch(
        self,
        size: int,
        seed: tf.Tensor,
        first: int,
        options: SampleOptions,
        temperatures: tf.Tensor,
        images: np.ndarray | None,
        latents: list[np.ndarray],
    ) -> np.ndarray:
        index = tf.constant(first, tf.int64)
        if latents:
            whole = [tf.constant(np.broadcast_to(z, [size, *z.shape[1:]])) for z in latents]
            return self._from_latents(size, seed, index, temperatures, whole).numpy()
        if images is None:
            return self._from_prior(size, seed, index, temperatures).numpy()
        if options.kind == "pictures":
            return self._columns(filled_up(images, size), Key(seed, index))
        if options.kind == "interpolation":
            most_rows = (size + options.columns - 2) // options.columns + 1  # that `size` samples can touch
            return self._between(filled_up(images, 2 * most_rows), seed, index, size, options.columns).numpy()
        layers = self._layers if options.latents is None else options.latents
        return self._from_images(filled_up(images, size), seed, index, temperatures, layers).numpy()

    @tf.function(autograph=False)
    def _from_prior(self, size: int, seed: tf.Tensor, first: tf.Tensor, temperatures: tf.Tensor) -> tf.Tensor:
        """uint8 [size, R, R, 3]."""
        noise = Noise.of(Key(seed, first))
        features = self._network.generate(size, noise.latents, temperatures=tf.unstack(temperatures))
        return draw_images(self._network, features, noise.uniform)

    @tf.function(autograph=False)
    def _from_latents(
        self, size: int, seed: tf.Tensor, first: tf.Tensor, temperatures: tf.Tensor, latents: list[tf.Tensor]
    ) -> tf.Tensor:
        """uint8 [size, R, R, 3]: the first layers take the latents given, [size, r, r, Z] each."""
        noise = Noise.of(Key(seed, first))
        features = self._network.generate(size, noise.latents, latents, tf.unstack(temperatures))
        return draw_images(self._network, features, noise.uniform)

    @tf.function(autograph=False)
    def _from_images(
        self, images: tf.Tensor, seed: tf.Tensor, first: tf.Tensor, temperatures: tf.Tensor, layers: int
    ) -> tf.Tensor:
        """uint8 like `images`: their latents in the first `layers` layers, the prior's in the others."""
        key = Key(seed, first)
        noise = Noise.of(key)
        inputs, _ = self._preprocessing.input_and_target(images)
        inferred = self._network.infer(inputs, posterior_noise(key))
        if layers == self._layers:
            features = inferred.features
        else:
            features = self._network.generate(
                images.shape[0], noise.latents, inferred.latents[:layers], tf.unstack(temperatures)
            )
        return draw_images(self._network, features, noise.uniform)

    @tf.function(autograph=False)
    def _between(self, images: tf.Tensor, seed: tf.Tensor, first: tf.Tensor, size: int, columns: int) -> tf.Tensor:
        """uint8 [size, R, R, 3]: samples `first` on of rows of `columns`, each row between two of the images.

        The latents of a row are on the straight line between those of its ends, in every layer; the noise of the head
        is the same along a row, so that what changes is the latents.
        """
        first_row = first // columns
        inputs, _ = self._preprocessing.input_and_target(images)
        ends = self._network.infer(inputs, posterior_noise(Key(seed, 2 * first_row))).latents  # of [2 rows, r, r, Z]
        index = first + tf.range(size, dtype=tf.int64)
        row = index // columns - first_row  # [size]
        share = tf.cast(index % columns, tf.float32) / (columns - 1)
        share = tf.reshape(share, [size, 1, 1, 1])
        latents = [(1 - share) * tf.gather(z, 2 * row) + share * tf.gather(z, 2 * row + 1) for z in ends]
        noise = Noise.of(Key(seed, first_row))

        def uniform(purpose: str, shape: Sequence[int | tf.Tensor]) -> tf.Tensor:
            return tf.gather(noise.uniform(purpose, [images.shape[0] // 2, *shape[1:]]), row)

        features = self._network.generate(size, noise.latents, latents)
        return draw_images(self._network, features, uniform)
