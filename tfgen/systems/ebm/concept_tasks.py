"""The tasks of `tfgen.combine`. Each is a function of the command's options that yields lines to print."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tfgen.data.errors import DataError
from tfgen.data.source import Source
from tfgen.files import atomic_path
from tfgen.monitor import grids
from tfgen.monitor.progress import Progress
from tfgen.randomness import Key, host_generator
from tfgen.settings import SettingsError
from tfgen.systems.ebm import concepts, generalization, label_discovery, preprocess, published, sprites
from tfgen.systems.ebm.combination import Combination, Rule, panel
from tfgen.systems.ebm.concepts import Member
from tfgen.systems.ebm.generalization import Generalization, JointTraining, Pair
from tfgen.systems.ebm.label_discovery import Discovery
from tfgen.systems.ebm.networks import EnergyNetwork

if TYPE_CHECKING:
    from tfgen.combine import Options

_DISCOVERED_BATCHES = 30
_SHOWN = 10  # images in the picture of gentest
_COLUMNS = {"size": sprites.SCALE, "shape": sprites.SHAPE, "x": sprites.X, "y": sprites.Y, "rotation": sprites.ROTATION}


def conceptcombine(options: Options) -> Iterator[str]:
    """Images with the factors of images of the data, or with those that were asked for."""
    members = {name: load(name, options) for name in options.concepts}
    side = common_side(members)
    originals, latents = factors_of(options, side)
    labels = {name: member.labels(latents) for name, member in members.items()}
    combination = Combination(
        {name: member.network for name, member in members.items()},
        concepts.chain(options.num_steps, options.step_size),
        cast(Rule, options.combine),
        dict.fromkeys(options.negated, options.negation_strength),
        options.advances,
    )
    key = Key.create(options.seed, "combination of concepts")
    parts = []
    for first in range(0, options.count, options.batch_size):
        chosen = slice(first, min(first + options.batch_size, options.count))
        own = key.skip(first)
        normals = own.fold("starts").normal([chosen.stop - first, side, side, 1])
        starts = preprocess.sprites_starts(normals.numpy())
        parts.append(combination.sample(starts, {name: rows[chosen] for name, rows in labels.items()}, own).numpy())
    images = np.concatenate(parts)
    columns = [preprocess.rounded_bytes(images)] + ([] if originals is None else [shown(originals, options)])
    out = options.picture(concepts.file_name(options.concepts))
    grids.save_png(out, panel(columns))
    with atomic_path(out.with_suffix(".npz")) as temporary:
        np.savez(temporary, images=images, **{f"labels_{name}": rows for name, rows in labels.items()})
    yield from (f"{name}: {member.description}" for name, member in members.items())
    beside = "samples" if originals is None else "samples, and the images with these labels"
    yield f"{out}: {beside}; {out.with_suffix('.npz').name}: arrays"


def labeldiscover(options: Options) -> Iterator[str]:
    """The mean error of sizes that were found, over 30 batches of images in the original's order."""
    member = load("size", options)
    source = open_source(options, member.network.shape.side)
    discovery = Discovery(member.network, options.num_steps, options.advances)
    key = Key.create(options.seed, "discovery of labels")
    generator = host_generator(options.seed, "starts of labels")
    rows = concepts.order(len(source))[: _DISCOVERED_BATCHES * options.batch_size]
    found, true = [], []
    for first in range(0, len(rows), options.batch_size):
        images, latents = concepts.read(source, rows[first : first + options.batch_size])
        starts = label_discovery.starts(generator, len(images))
        found.append(discovery.find(scaled(images, options), starts, key.skip(first)).numpy())
        true.append(concepts.CONCEPTS["size"].labels(latents))
    error = label_discovery.mean_error(np.concatenate(found), np.concatenate(true))
    yield f"size: {member.description}"
    yield f"mean |error| of the size over {len(rows):,} images: {error:.6f}"


def gentest(options: Options) -> Iterator[str]:
    """Networks of a factor and the position: where asked for their training, and the error on unseen combinations."""
    names = (options.factor, "pos")
    members = {} if options.train else {name: load(name, options) for name in names}
    source = open_source(options, common_side(members) if members else None)
    generator = host_generator(options.seed, "combinations that are learned")
    rows = generalization.rows_of(options.factor, concepts.all_latents(source), options.frac, generator)
    chain = concepts.chain(options.num_steps, options.step_size)
    out = options.picture("gentest.png", *names)
    if options.train:
        members, updates = trained(options, names, source, rows.training)
        yield from save(members, out.parent, updates)
    factor, position = (members[name] for name in names)
    test = Generalization(Pair(factor.network, position.network), chain, options.advances)
    key = Key.create(options.seed, "test of generalization")

    def sample(latents: np.ndarray, first: int) -> np.ndarray:
        return test.sample([factor.labels(latents), position.labels(latents)], key.skip(first))

    parts = generalization.parts_of(rows.unseen)
    errors = []
    with Progress(len(parts), 0, "test", unit="parts") as progress:
        for error in generalization.mean_squared_errors(source, parts, sample, lambda images: scaled(images, options)):
            errors.append(error)
            progress.update(len(errors), {"mse": float(np.mean(errors))})
    images, latents = concepts.read(source, parts[0][:_SHOWN])
    grids.save_png(out, panel([preprocess.rounded_bytes(sample(latents, 0)), shown(images, options)]))
    yield from (f"{name}: {member.description}" for name, member in members.items())
    yield f"mean squared error of {len(rows.unseen):,} combinations that were not learned: {np.mean(errors):.6f}"
    yield f"{out}: samples, and the images with these labels"


TASKS: Mapping[str, Callable[[Options], Iterator[str]]] = {
    "conceptcombine": conceptcombine,
    "labeldiscover": labeldiscover,
    "gentest": gentest,
}


# Networks --------------------------------------------------------------------------------------------------


def load(name: str, options: Options) -> Member:
    """The trained network of a concept, of a run or else of a checkpoint of the original code."""
    if options.run_of(name):
        return concepts.load_run(name, options.run_of(name), options.weights)
    return concepts.load_published(name, options.checkpoint_of(name), options.num_filters, **network_settings(options))


def network_settings(options: Options) -> dict[str, Any]:
    """What the flags say about networks that do not come from runs, beside their width."""
    return {
        "swish": options.swish_act,
        "spec_norm": options.spec_norm,
        "spec_iterations": options.spec_iter,
        "spec_target": options.spec_norm_val,
        "downsample": options.downsample,
    }


def common_side(members: Mapping[str, Member]) -> int:
    """Side of the images that all networks read; raises `SettingsError` where there is none."""
    sides = {name: member.network.shape.side for name, member in members.items()}
    other = {name: member.network.shape.channels for name, member in members.items()}
    if len(set(sides.values())) > 1 or set(other.values()) != {1}:
        found = ", ".join(f"--run_{name}: {side}x{side}x{other[name]}" for name, side in sides.items())
        raise SettingsError(
            f"networks of different images cannot be combined ({found}): expected grey images of one size"
        )
    return next(iter(sides.values()))


def trained(options: Options, names: Sequence[str], source: Source, rows: np.ndarray) -> tuple[dict[str, Member], int]:
    """New networks after their training, and the number of updates."""
    networks, settings = {}, network_settings(options)
    for index, name in enumerate(names):
        shape = concepts.network_shape(name, options.num_filters, side=source.spec.height, **settings)
        # A seed of its own: the variables of both have the same names.
        networks[name] = EnergyNetwork(shape, options.seed + index)
    members = {
        name: Member(network, concepts.CONCEPTS[name].flag, "trained here") for name, network in networks.items()
    }
    training = JointTraining(
        Pair(*networks.values()),
        concepts.chain(options.num_steps, options.step_size),
        options.batch_size,
        options.lr,
        options.replay_capacity,
        Key.create(options.seed, "joint training"),
        keep_vectors=not options.spec_eval,
    )
    batches = list(
        generalization.batches(rows, options.batch_size, options.epoch_num, options.break_steps, options.seed)
    )
    with Progress(len(batches), 0, "train") as progress:
        for number, batch in enumerate(batches):
            images, latents = concepts.read(source, batch)
            labels = [member.labels(latents) for member in members.values()]
            metrics = training.step(scaled(images, options), labels, number)
            values = {metric: float(value) for metric, value in metrics.items()}
            if not np.isfinite(values["loss"]):
                raise generalization.DivergedError(
                    f"the loss of update {number + 1} is {values['loss']}: try a lower --lr or --step_lr, or another "
                    "--seed"
                )
            progress.update(number + 1, values)
    return members, len(batches)


def save(members: Mapping[str, Member], folder: pathlib.Path, number: int) -> Iterator[str]:
    """Writes networks as checkpoints of an update, in the form of the original's."""
    flags = []
    for name, member in members.items():
        published.save(member.network, f"{folder}/{name}/model_{number}")
        flags.append(f"--exp_{name}={name} --resume_{name}={number}")
    yield f"networks are in {folder}; without --train: --logdir={folder} {' '.join(flags)}"


# Images ----------------------------------------------------------------------------------------------------


def open_source(options: Options, side: int | None) -> Source:
    """The images; raises `SettingsError` where the networks read others."""
    source = concepts.open_images(options.dataset, options.dsprites_path, options.data_dir).train
    spec = source.spec
    if spec.channels != 1 or spec.height != spec.width or side not in (None, spec.height):
        expected = "square grey ones" if side is None else f"{side}x{side}x1, which the networks read"
        raise SettingsError(
            f"--dataset={options.dataset}: images of {source.name} are {spec.height}x{spec.width}x{spec.channels}, "
            f"expected {expected}"
        )
    return source


def factors_of(options: Options, side: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Images uint8 [count, side, side, 1], None where no label is theirs, and latent values [count, 6]."""
    originals, latents = None, np.ones([options.count, 1 + sprites.Y])
    if options.needs_data:
        source = open_source(options, side)
        if options.count > len(source):
            raise DataError(f"--count={options.count}: {source.name} has {len(source)} images; lower --count")
        originals, latents = concepts.read(source, concepts.order(len(source))[: options.count])
    latents = latents.copy()
    for name, value in options.given.items():
        latents[:, _COLUMNS[name]] = value
    return originals, latents


def scaled(images: np.ndarray, options: Options) -> np.ndarray:
    """float32 images as the networks see them, of uint8 ones."""
    return preprocess.scaled(images, preprocess.scaling_of(options.dataset), None)


def shown(images: np.ndarray, options: Options) -> np.ndarray:
    """uint8 pictures of uint8 images."""
    return preprocess.rounded_bytes(scaled(images, options))
