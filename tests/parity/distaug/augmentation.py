"""Augmentations: permutations, drawn tokens, RandAugment's operations."""

from __future__ import annotations

import dataclasses
import functools
import json
import re

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.data.source import ImageSpec
from tfgen.systems.distaug import randaugment
from tfgen.systems.distaug.augment import Augmentations, lexicographic_permutations, random_orders
from tfgen.systems.distaug.config import Config

# Of the recordings' README: blending operations may be one level off, rotations and shears may choose another pixel.
BLENDING = {"Color", "Contrast", "Brightness", "Sharpness"}
ROUNDED_GEOMETRY = {"Rotate", "ShearX", "ShearY"}
SHARE = 0.01


def recorded_config(case: Case, **settings) -> Config:
    """The settings of a recording; what its `config` says beside flags is left out."""
    known = {field.name for field in dataclasses.fields(Config)}
    return Config(**{name: value for name, value in case.json("config").items() if name in known}, **settings)


@checker("distaug", "augmentations*.npz")
def check_augmentations(case: Case) -> None:
    config = recorded_config(case)
    image = case["image_used"]  # [T]
    height, width = case.json("config")["image_hw"]
    spec = ImageSpec(height, width, image.size // (height * width))
    augmentations = Augmentations(config, spec)
    case.leave_unread("images", "the pictures that image_used was taken from")

    case.equal("x_emb_identity", augmentations.identity_coordinates)
    for name in case.matching("color_table"):
        case.equal(name, lexicographic_permutations(3))
    for name in case.matching("jigsaw_table_grid*"):
        case.equal(name, lexicographic_permutations(int(name.removeprefix("jigsaw_table_grid")) ** 2))
    for kind in augmentations.types:
        if case.matching(f"{kind.name}/*"):
            # Every other type stays at its identity.
            tokens = case[f"{kind.name}/tokens"]
            column = [other.name for other in augmentations.types].index(kind.name)
            conditioning = np.zeros([len(tokens), len(augmentations.types)], np.int32)
            conditioning[:, column] = tokens
            _compare_permutation(case, kind.name, augmentations, image, conditioning)
    for name in case.matching("pipeline_*/tokens"):
        _check_pipeline(case, name.removesuffix("/tokens"), config, spec, image)
    if "hflip/draws" in case:
        flips = Augmentations.horizontal_flips(np.random.RandomState(config.aug_seed), len(case["hflip/draws"]))
        case.equal("hflip/draws", flips)
        picture = image.reshape(spec.shape)
        mirrored = np.where(flips[:, None, None, None], picture[:, ::-1], picture)
        case.equal("hflip/X", mirrored.reshape(len(flips), -1))


def _check_pipeline(case: Case, prefix: str, config: Config, spec: ImageSpec, image: np.ndarray) -> None:
    """All types together. `prefix` ends in how the tokens are drawn: "uniform", or "unaug" and the rate."""
    rate = re.fullmatch(r"pipeline_(?:uniform|unaug([\d.]+))", prefix)
    if rate is None:
        raise ValueError(f"do not know how {prefix!r} was drawn")
    if rate[1] is not None:
        config = dataclasses.replace(config, unaugmented_data_rate=float(rate[1]))
    augmentations = Augmentations(config, spec)
    expected = case[f"{prefix}/tokens"]
    drawn = augmentations.draw_tokens(np.random.RandomState(config.aug_seed), len(expected))
    case.equal(f"{prefix}/tokens", drawn)
    _compare_permutation(case, prefix, augmentations, image, drawn[: len(case[f"{prefix}/X"])])


def _compare_permutation(
    case: Case, prefix: str, augmentations: Augmentations, image: np.ndarray, conditioning: np.ndarray
) -> None:
    """`prefix`/X holds the permuted images, `prefix`/source_index which sub-pixel stands where."""
    permuted, coordinates = augmentations.apply(np.tile(image, [len(conditioning), 1]), conditioning)
    case.equal(f"{prefix}/X", permuted)
    case.equal(f"{prefix}/source_index", augmentations.source_index(conditioning))
    moved = augmentations.identity_coordinates[0][:, case[f"{prefix}/source_index"].astype(np.int64)]
    case.equal(f"{prefix}: coordinates", coordinates, expected=moved.transpose(1, 0, 2))


@checker("distaug", "random_order_permutations*.npz")
def check_random_orders(case: Case) -> None:
    for name in case.matching("seed*_ctx*"):
        seed, dims = map(int, re.fullmatch(r"seed(\d+)_ctx(\d+)", name).groups())
        case.equal(name, random_orders(seed, len(case[name]), dims))


@checker("distaug", "autoaugment_ops*.npz")
def check_operations(case: Case) -> None:
    recorded = case.json("config")
    case.equal("config: op_order", randaugment.OPERATIONS, expected=recorded["op_order"])
    constants = randaugment.Constants(recorded["cutout_const"], recorded["translate_const"], recorded["replace"])
    images = case["images"]
    arguments = dict(case.json("args_json"))

    for name in case.names:
        parts = name.split("/")
        if parts[0] in randaugment.OPERATIONS:
            _check_operation(case, name, images, arguments.get(name), recorded["cutout_center_yx"], constants)
        elif parts[0] == "direct":
            _check_direct(case, name, images)
        elif parts[0] == "randaug":
            _check_randaugment(case, name, images, recorded["randaug_cutout_center_yx"], constants)
    policy = [[list(step) for step in pair] for pair in randaugment.AUTOAUGMENT_V0]
    case.equal(
        "autoaugment_v0_policy_json", json.dumps(policy), expected=json.dumps(case.json("autoaugment_v0_policy_json"))
    )


def _check_operation(
    case: Case,
    name: str,
    images: np.ndarray,
    argument: list[float] | None,
    centre: list[int],
    constants: randaugment.Constants,
) -> None:
    """`name` is operation/level<l>, with /pos or /neg for those with a sign."""
    operation, level, *sign = name.split("/")
    level = float(level.removeprefix("level"))
    signs = np.full(len(images), _sign(sign[0] if sign else "pos"), np.float32)
    if argument is not None:
        own = randaugment.level_argument(operation, level, constants)
        signed = [] if own is None else [own * _sign(sign[0]) if sign else own]
        case.close(f"{name}: argument", signed, 1e-6, expected=argument)
    centres = np.tile(np.array(centre, np.int32), [len(images), 1])
    result = randaugment.apply_operation(tf.constant(images), operation, level, signs, centres, constants)
    _compare_images(case, name, result.numpy(), [operation])


def _check_direct(case: Case, name: str, images: np.ndarray) -> None:
    """`name` is direct/<operation>/factor<f> or direct/posterize/bits<n>."""
    _, operation, strength = name.split("/")
    kind, number = re.fullmatch(r"(factor|bits)(-?[\d.]+)", strength).groups()
    function = {
        "color": randaugment.color,
        "contrast": randaugment.contrast,
        "brightness": randaugment.brightness,
        "sharpness": randaugment.sharpness,
        "posterize": randaugment.posterize,
    }[operation]
    results = function(tf.constant(images), int(number) if kind == "bits" else float(number))
    _compare_images(case, name, _nearest(results.numpy(), case[name]), [operation.capitalize()])


def _check_randaugment(
    case: Case, name: str, images: np.ndarray, centre: list[int], constants: randaugment.Constants
) -> None:
    """`name` is randaug/n<N>_m<M>/ops<i>-<j>.../<sign>: these operations in sequence."""
    _, policy, numbers, sign = name.split("/")
    n, m = map(int, re.fullmatch(r"n(\d+)_m(\d+)", policy).groups())
    operations = [int(number) for number in numbers.removeprefix("ops").split("-")]
    count = len(images)
    draws = randaugment.RandAugmentDraws(
        operation=np.tile(np.array(operations, np.int32), [count, 1]),
        sign=np.full([count, n], _sign(sign), np.float32),
        centre=np.tile(np.array(centre, np.int32), [count, n, 1]),
    )
    results = _randaugment(n, m, ImageSpec(*images.shape[1:]), constants).apply(images, draws)
    chosen = _nearest(results, case[name])
    _compare_images(case, name, chosen, [randaugment.OPERATIONS[number] for number in operations])


@functools.lru_cache(maxsize=4)
def _randaugment(n: int, m: int, spec: ImageSpec, constants: randaugment.Constants) -> randaugment.RandAugment:
    return randaugment.RandAugment(n, m, spec, constants)


def _nearest(results: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Of one result for each image, the one nearest to the recorded single result.

    Some recordings were made on one of the images and do not say which.
    """
    distance = np.abs(results.astype(np.int64) - recorded.astype(np.int64)).sum(axis=(1, 2, 3))
    return results[np.argmin(distance)][None]


def _sign(text: str) -> float:
    return {"pos": 1.0, "neg": -1.0}[text]


def _compare_images(case: Case, name: str, result: np.ndarray, operations: list[str]) -> None:
    """With the tolerance of the recordings' README for these operations."""
    if ROUNDED_GEOMETRY.intersection(operations):
        case.equal(name, result, within=255, except_share=SHARE)
    elif BLENDING.intersection(operations):
        case.equal(name, result, within=1, except_share=SHARE)
    else:
        case.equal(name, result)
