"""Images of a trained run: many of them for Inception score and Fréchet distance, and a film of chains.

Du & Mordatch, arXiv:1903.08689, section 4.1 and table 1, whose best rows let several checkpoints of a run take turns.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfgen import __version__
from tfgen.data.source import Source, Splits
from tfgen.files import atomic_path, write_text
from tfgen.metrics import inception
from tfgen.metrics.frechet import frechet_distance
from tfgen.metrics.inception import InceptionGraph
from tfgen.monitor import grids
from tfgen.monitor.film import Film
from tfgen.randomness import Key, host_generator
from tfgen.restore import read_network
from tfgen.settings import SettingsError
from tfgen.systems.base import TaskRun
from tfgen.systems.ebm import preprocess, sampler
from tfgen.systems.ebm.networks import OFF, EnergyNetwork, Weights
from tfgen.systems.ebm.replay import Replayed
from tfgen.systems.ebm.sampler import Chain, FusedMoves
from tfgen.systems.ebm.tasks import calls, protocol
from tfgen.systems.ebm.tasks.calls import MaskedMoves
from tfgen.systems.ebm.tasks.options import EvaluateOptions
from tfgen.systems.ebm.tasks.protocol import Group, Renewal, Schedule
from tfgen.training.run_folder import RunFolder

if TYPE_CHECKING:
    from tfgen.systems.ebm.system import EnergyBasedModel

CLIP = 0.05  # of the original's program that makes images; it trains with 0.01
PANEL = 100  # images of the picture, ten in a row
FILM_IMAGES, FILM_STEPS, FILM_STEP_SIZE = 16, 200, 180.0
_FILM_PART = 10  # steps between which frames come to the host
_READ = 500  # reference images at a time
# What the reference of the original is; other data sets have their training images.
_REFERENCE = {"cifar10": ("train", "test"), "imagenet": ("valid",), "imagenetfull": ("test",)}
_REFERENCE_IMAGES = 60_000


def geninception(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """Images by the sampling protocol of the original, and their scores where the Inception graph is given.

    Writes images.npz ("images" uint8 [N, H, W, C], and "labels" float32 [N, K] of a conditional run), test<idx>.png,
    ten by ten of the last images, and settings.json, with all that the images and scores depend on.

    Raises:
      SettingsError: settings that contradict each other or the run.
      InceptionError: a file that is not the Inception graph.
    """
    schedule, groups = _schedule(options, job)
    chain = calls.chain_of(options, system.config.rescale, clip=CLIP)
    graph = None
    if options.inception_path:
        if system.spec.channels != 3:
            raise SettingsError("--inception_path: the Inception network reads colour images; leave it out")
        graph = InceptionGraph(options.inception_path)  # a bad file is told before hours of sampling
    steps, networks = ensemble(system, options.ensemble, job)
    generator = Generator(system, networks, chain, schedule, options.advance_vectors)
    parts = [generator.group(job.key.fold("group", number)) for number in range(groups)]
    images = preprocess.sampled_bytes(np.concatenate([part.images.numpy() for part in parts]))
    arrays = {"images": images}
    labels = [part.labels.numpy() for part in parts if part.labels is not None]
    if labels:
        arrays["labels"] = np.concatenate(labels)
    with atomic_path(job.folder / "images.npz") as temporary:
        np.savez(temporary, **arrays)
    shown = images[-schedule.group :][:PANEL]
    grids.save_png(job.folder / f"test{options.idx}.png", grids.tile(shown, columns=10, border=0))
    results: dict[str, float] = {"images": len(images)}
    references = {}
    if graph is None:
        print(
            "No Inception score and no Fréchet distance: the network's weights are not part of this library. Name the "
            "frozen graph of 2015-12-05 (classify_image_graph_def.pb) with --inception_path, or score images.npz with "
            "another program."
        )
    else:
        references = {source.name: count for source, count in reference_images(system.config.dataset, job.splits)}
        results |= scores(graph, images, reference_batches(system.config.dataset, job.splits))
    settings = {
        "tfgen": __version__,
        "checkpoints": steps,
        "weights": job.weights,
        "seed": options.seed,
        "images": len(images),
        "protocol": dataclasses.asdict(schedule) | {"groups": groups, "ensemble": options.ensemble},
        "chain": dataclasses.asdict(chain),
        "power_iteration_advances": options.advance_vectors,
        "inception_graph": options.inception_path or None,
        "splits": inception.default_splits(len(images)),
        "reference": references,
        "run": dataclasses.asdict(system.config),
    }
    write_text(job.folder / "settings.json", json.dumps(settings | {"results": results}, indent=1) + "\n")
    used = {"steps": chain.steps, "step_size": chain.step_size, "noise": chain.noise, "clip": chain.clip}
    return results | used | {"calls": schedule.calls, "batch_size": schedule.batch_size, "ensemble": len(networks)}


def _schedule(options: EvaluateOptions, job: TaskRun) -> tuple[Schedule, int]:
    """The calls of a group, and the number of groups."""
    group = min(protocol.GROUP, options.im_number)
    if options.im_number % group:
        raise SettingsError(
            f"--im_number={options.im_number}: images come in groups of {protocol.GROUP}; expected a multiple of that, "
            "or fewer than one group"
        )
    schedule = Schedule(group, min(job.batch_size, group), int(2 * options.repeat_scale), options.nomix)
    return schedule, options.im_number // group


def ensemble(system: EnergyBasedModel, count: int, job: TaskRun) -> tuple[list[int | None], list[EnergyNetwork]]:
    """The networks that take turns, newest first, and the steps of their checkpoints.

    The first is the system's own; the others are those of the `count` - 1 checkpoints before it.

    Raises:
      SettingsError: the run has fewer.
    """
    if count == 1:
        return [job.step], [system.network]
    checkpoints = RunFolder(job.run).checkpoints()
    newest = job.step if job.step is not None else max(checkpoints.steps(), default=0)
    older = [step for step in reversed(checkpoints.steps()) if step < newest]
    if len(older) < count - 1:
        raise SettingsError(
            f"--ensemble={count}: {job.run} has {1 + len(older)} checkpoint(s) up to step {newest}; lower it, or train "
            f"with --keep_last={count} or more"
        )
    decays = system.recipe(train_size=1_000_000, ranks=1).ema_decays if job.weights == "ema" else ()
    networks, steps = [system.network], older[: count - 1]
    for step in steps:
        network = EnergyNetwork(system.network.shape, seed=None)
        read_network(network, checkpoints.at(step), decays)
        networks.append(network)
    return [newest, *steps], networks


class Generator:
    """Makes groups of images by the sampling protocol, on the device.

    Args:
      system: a run.
      networks: of its shape, which take turns.
      chain: of one call, in the range of the run.
      schedule: calls of a group.
      advance: keep what each call improves of the power iteration.
    """

    def __init__(
        self,
        system: EnergyBasedModel,
        networks: list[EnergyNetwork],
        chain: Chain,
        schedule: Schedule,
        advance: bool = False,
    ):
        self._system, self._networks, self._chain, self._advance = system, networks, chain, advance
        self._group = Group(schedule, system.spec.shape, system.label_columns)
        self._frozen = [] if advance else [network.normalized() for network in networks]
        # One function moves the chains of all calls: the networks have the same shape.
        self._moved = tf.function(self._move, autograph=False)
        self._fill_call = tf.function(self._fill, autograph=False)
        self._go_on_call = tf.function(self._go_on, autograph=False)

    def group(self, key: Key) -> Replayed:
        """Images float32 [group, H, W, C] in [0, 1], and labels; a function of the key (and the power iteration)."""

        def fill(call: int) -> None:
            self._fill_call(self._values(call), key.seed, tf.constant(call))

        def go_on(call: int, mixes: bool) -> None:
            self._go_on_call(self._values(call), key.seed, tf.constant(call), mixes)

        return protocol.run(self._group, fill, go_on)

    def _values(self, call: int) -> Mapping[str, tf.Tensor]:
        index = call % len(self._networks)
        if not self._advance:
            return self._frozen[index].values
        weights = self._networks[index].normalized()
        self._networks[index].store_vectors(weights)
        return weights.values

    def _fill(self, values: Mapping[str, tf.Tensor], seed: tf.Tensor, call: tf.Tensor) -> None:
        key = Key(seed).fold("call", call)
        self._group.fill(self._draws(key), lambda x, labels: self._moved(values, x, labels, key.fold("noise").seed))

    def _go_on(self, values: Mapping[str, tf.Tensor], seed: tf.Tensor, call: tf.Tensor, mixes: bool) -> None:
        key = Key(seed).fold("call", call)
        self._group.go_on(
            self._draws(key), lambda x, labels: self._moved(values, x, labels, key.fold("noise").seed), mixes
        )

    def _draws(self, key: Key) -> KeyDraws:
        return KeyDraws(self._system, key, self._group.schedule.batch_size)

    def _move(
        self, values: Mapping[str, tf.Tensor], images: tf.Tensor, labels: tf.Tensor | None, seed: tf.Tensor
    ) -> tf.Tensor:
        temperature, high = float(self._system.config.temperature), self._chain.high

        def energy(x: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
            del step
            return temperature * self._networks[0].energy(Weights(values, {}), x, labels, OFF)

        moves = FusedMoves(energy, self._chain, Key(seed))
        return sampler.run(images * high, self._chain.steps, moves) / high


class KeyDraws:
    """The random numbers of a call of the protocol, from a key. See `protocol.Draws`."""

    def __init__(self, system: EnergyBasedModel, key: Key, batch_size: int):
        self._system, self._key, self._batch_size = system, key, batch_size

    def fresh(self) -> Replayed:
        return self._beginning(self._key.fold("fresh"))

    def rows(self, length: tf.Tensor) -> tf.Tensor:
        # In float64: products of a float32 below 1 and a length may round up to the length.
        share = tf.cast(self._key.fold("rows").uniform([self._batch_size]), tf.float64)
        return tf.cast(share * tf.cast(length, tf.float64), tf.int64)

    def renewal(self) -> Renewal:
        keep_image, keep_label = (self._key.fold(name).uniform([self._batch_size]) for name in ("images", "labels"))
        return Renewal(keep_image, keep_label, *self._beginning(self._key.fold("renewal")))

    def _beginning(self, key: Key) -> Replayed:
        images = calls.starts(self._system, key, self._batch_size)
        return Replayed(images, calls.random_labels(self._system, key, self._batch_size))


# Scores ----------------------------------------------------------------------------------------------------


def scores(graph: InceptionGraph, images: np.ndarray, reference: Iterator[np.ndarray]) -> dict[str, float]:
    """Inception score, its deviation over the splits, and the Fréchet distance of the features.

    Args:
      images: uint8 [N, H, W, 3].
      reference: uint8 [n, H, W, 3] at a time.
    """
    features, probabilities = graph(images)
    mean, deviation = inception.inception_score(probabilities, inception.default_splits(len(images)))
    expected = np.concatenate([graph(batch)[0] for batch in reference])
    return {
        "inception_score": mean,
        "inception_score_std": deviation,
        "frechet_distance": frechet_distance(*(inception.whole_batches(rows) for rows in (features, expected))),
        "reference_images": len(expected),
    }


def reference_images(dataset: str, splits: Splits) -> list[tuple[Source, int]]:
    """Sources of the images that samples are compared with, and how many of each.

    CIFAR-10: training and test images; ImageNet 32x32: validation images; ImageNet 128x128: test images; else training
    images. The first 60,000 at most.
    """
    left, chosen = _REFERENCE_IMAGES, []
    for name in _REFERENCE.get(dataset, ("train",)):
        source = getattr(splits, name)
        count = min(len(source), left)
        chosen.append((source, count))
        left -= count
    return chosen


def reference_batches(dataset: str, splits: Splits) -> Iterator[np.ndarray]:
    """The images of `reference_images`, uint8 [n, H, W, C] at a time."""
    for source, count in reference_images(dataset, splits):
        for first in range(0, count, _READ):
            yield source.read(np.arange(first, min(first + _READ, count)))["image"]


# Film ------------------------------------------------------------------------------------------------------


def imagenetdemo(system: EnergyBasedModel, options: EvaluateOptions, job: TaskRun) -> dict[str, float]:
    """A film of chains from noise, one frame a step, of 16 classes drawn at random: sample.gif."""
    calls.check_conditional(system, "imagenetdemo")
    chain = calls.chain_of(options, system.config.rescale, steps=FILM_STEPS, step_size=FILM_STEP_SIZE)
    labels = film_labels(system, options.seed, job.key)
    film = Film(chain.steps, lambda images: grids.tile(images, columns=4, border=0))
    for frames in film_frames(system, chain, labels, job.key, options.advance_vectors):
        for frame in frames:
            film.add(functools.partial(np.asarray, frame))
    film.save(job.folder / "sample.gif", system.name)
    return {"images": FILM_IMAGES, "steps": chain.steps, "step_size": chain.step_size}


def film_labels(system: EnergyBasedModel, seed: int, key: Key) -> tf.Tensor:
    """16 labels, float32 [16, K]: the first classes of a random order, again from the first where there are fewer."""
    if not calls.has_classes(system):
        labels = calls.random_labels(system, key, FILM_IMAGES)
        assert labels is not None
        return labels
    order = host_generator(seed, "classes of imagenetdemo").permutation(system.label_columns)
    return tf.one_hot(np.resize(order, FILM_IMAGES), system.label_columns)


def film_frames(
    system: EnergyBasedModel, chain: Chain, labels: tf.Tensor, key: Key, advance: bool = False
) -> Iterator[np.ndarray]:
    """The images after each step, uint8 [n, B, H, W, C] for n steps at a time."""
    noise, count = key.fold("noise"), labels.shape[0]

    def moves(weights: Weights) -> MaskedMoves:
        return MaskedMoves(calls.energy_of(system, weights, labels), chain, noise)

    @tf.function(autograph=False)
    def part(y: tf.Tensor, first: tf.Tensor, last: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Frames of the steps `first` to `last` - 1 from noised images, and the noised images of step `last`."""
        weights = None if advance else system.normalized()
        frames = tf.TensorArray(tf.uint8, size=last - first, element_shape=y.shape)

        def body(step: tf.Tensor, y: tf.Tensor, frames: tf.TensorArray):
            # Each step of the original is a run of its own, which improves the power iteration.
            x, following = moves(system.normalized(True) if weights is None else weights).both(y, step)
            shown = tf.cast(tf.clip_by_value(256.0 * x / chain.high, 0.0, 255.0), tf.uint8)
            return step + 1, tf.ensure_shape(following, y.shape), frames.write(step - first, shown)

        _, y, frames = tf.while_loop(lambda step, *_: step < last, body, (first, y, frames), parallel_iterations=1)
        return y, frames.stack()

    y = moves(system.normalized()).begin(calls.starts(system, key, count) * chain.high, tf.constant(0))
    for first in itertools.count(0, _FILM_PART):
        if first >= chain.steps:
            return
        y, frames = part(y, tf.constant(first), tf.constant(min(first + _FILM_PART, chain.steps)))
        yield frames.numpy()
