"""The four concepts of dSprites that the original combines: size, shape, position and rotation.

Each is a DspritesNet that was trained with one factor of the images as its label, by itself.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from tfgen.data.errors import DataError
from tfgen.data.source import Source, Splits
from tfgen.settings import SettingsError, read_run
from tfgen.systems.ebm import published, sprites
from tfgen.systems.ebm.architecture import NetworkShape
from tfgen.systems.ebm.catalog import network_shape as catalog_shape
from tfgen.systems.ebm.networks import EnergyNetwork
from tfgen.systems.ebm.sampler import Chain

NOISE = 0.005  # standard deviation of the noise of an update
_NETWORK = "DspritesNet"
_STRIDES = 16  # pixels of a side for each position of the last features
_LATENTS = 6
_PERMUTATION = 1  # seed of the order of the images


@dataclasses.dataclass(frozen=True)
class Concept:
    """A factor of the images.

    Attributes:
      flag: of the training that conditions a network on it, one of `sprites.MODES`.
      subsets: flags of trainings on subsets, with the same kind of label.
      columns: of a label.
      suffix: in the name of the picture.
    """

    flag: str
    subsets: tuple[str, ...]
    columns: int
    suffix: str

    def labels(self, latents: np.ndarray) -> np.ndarray:
        """float64 [n, columns] of latent values [n, 6]."""
        return sprites.mode(self.flag).labels(latents)


# In the order in which a round of the chain visits them.
CONCEPTS: Mapping[str, Concept] = {
    "size": Concept("cond_size", ("dsize_only",), 1, "_condscale"),
    "shape": Concept("cond_shape", ("dshape_only", ""), 3, "_condshape"),
    "pos": Concept("cond_pos", ("dpos_only",), 2, "_condpos"),
    "rot": Concept("cond_rot", ("drot_only",), 2, "_condrot"),
}


def network_shape(name: str, filters: int, **settings) -> NetworkShape:
    """The network of a concept; settings are those of `catalog.network_shape`."""
    return catalog_shape(_NETWORK, filters, label_columns=CONCEPTS[name].columns, **settings)


def chain(rounds: int, step_size: float) -> Chain:
    """The chain of a combination, in rounds."""
    return Chain(rounds, step_size, NOISE)


def file_name(names: Iterable[str]) -> str:
    """Of the picture of a combination of these concepts."""
    return f"im{''.join(concept.suffix for name, concept in CONCEPTS.items() if name in set(names))}.png"


# Trained networks ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Member:
    """A trained network of a concept.

    Attributes:
      mode: flag of its training, one of `sprites.MODES`, which gives the labels that it knows.
      description: for people.
    """

    network: EnergyNetwork
    mode: str
    description: str

    def labels(self, latents: np.ndarray) -> np.ndarray:
        """float32 [n, columns] of latent values [n, 6]."""
        return sprites.mode(self.mode).labels(latents).astype(np.float32)


def load_run(name: str, folder: str, weights: str) -> Member:
    """The network of a run.

    Args:
      name: of the concept.
      weights: "ema" or "raw".

    Raises:
      SettingsError: the run is not one of this concept.
      CheckpointError: it has no checkpoint.
    """
    from tfgen.restore import restore

    concept, settings = CONCEPTS[name], read_run(folder)
    if settings.system != "ebm":
        raise SettingsError(f"--run_{name}={folder} is a run of the system {settings.system}, expected one of ebm")
    config = settings.config
    training = f"--dataset=dsprites --cclass --{concept.flag}"
    if not config.cclass:
        raise SettingsError(
            f"--run_{name}={folder} is unconditional, so that it knows no {name}: train one with {training}"
        )
    if config.sprites_mode not in (concept.flag, *concept.subsets):
        raise SettingsError(f"--run_{name}={folder} learned --{config.sprites_mode}: expected a run with {training}")
    if config.rescale != 1.0:
        raise SettingsError(f"--run_{name}={folder} has --rescale={config.rescale:g}, expected 1")
    restored = restore(settings, folder, weights)
    network = restored.system.network
    columns = network.shape.label_columns
    if columns != concept.columns:
        raise SettingsError(
            f"--run_{name}={folder} reads labels of {columns} values, expected {concept.columns}: train one with "
            f"{training}"
        )
    return Member(network, config.sprites_mode, f"{restored.description} of {folder}")


def load_published(name: str, path: str, filters: int, **settings) -> Member:
    """The network of a checkpoint of the original code.

    Args:
      name: of the concept.
      path: `logdir/exp/model_N`.
      filters, settings: see `network_shape`; the side of the images is that of the checkpoint.

    Raises:
      SettingsError: there are no such files.
      CheckpointError: they hold another network.
    """
    if not pathlib.Path(f"{published.stem(path)}.index").is_file():
        raise SettingsError(
            f"no network for the concept {name}: {path}.index does not exist. Name a run, --run_{name}=DIR, or a "
            f"checkpoint of the original code, --logdir, --exp_{name} and --resume_{name}, or leave the concept out "
            f"with --nocond_{'scale' if name == 'size' else name}"
        )
    arrays = published.read(path)
    network = EnergyNetwork(network_shape(name, filters, side=_side(arrays, filters), **settings), seed=None)
    published.load_into(path, network)
    return Member(network, CONCEPTS[name].flag, path)


def _side(arrays: Mapping[str, np.ndarray], filters: int) -> int | None:
    """Of the images that the hidden layer of a checkpoint was made for; None for the published side."""
    hidden = arrays.get("context_0/fc_dense/wweight")
    if hidden is None or len(hidden) % (2 * filters):
        return None  # another network, as loading it will tell
    return _STRIDES * max(math.isqrt(len(hidden) // (2 * filters)), 1)


# Images and their factors ----------------------------------------------------------------------------------


def open_images(dataset: str, dsprites_path: str, data_dir: str) -> Splits:
    """dSprites, or sprites that are drawn here."""
    from tfgen.systems.ebm.config import Config
    from tfgen.systems.ebm.data import open_splits

    return open_splits(Config(dataset=dataset, dsprites_path=dsprites_path, cclass=True), data_dir)


def order(count: int) -> np.ndarray:
    """The original's order of `count` images: int64 [count]."""
    return np.random.RandomState(_PERMUTATION).permutation(count)


def read(source: Source, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, H, W, 1] and latent values float64 [n, 6].

    Raises:
      DataError: the data set has no latent values.
    """
    batch = source.read(np.asarray(rows, np.int64))
    return batch["image"], checked_latents(source, batch)


def all_latents(source: Source) -> np.ndarray:
    """Latent values of all images of a source, float64 [n, 6]; errors are those of `read`."""
    whole = getattr(source, "latents", None)
    if whole is not None:
        return np.asarray(whole, np.float64)
    parts = [checked_latents(source, source.read(rows)) for rows in np.array_split(np.arange(len(source)), 64)]
    return np.concatenate(parts)


def checked_latents(source: Source, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    latents = batch.get("latents")
    if latents is None or latents.ndim != 2 or latents.shape[1] != _LATENTS:
        raise DataError(f"{source.name} has no latent values [n, {_LATENTS}]: name dSprites, --dataset=dsprites")
    return latents.astype(np.float64)
