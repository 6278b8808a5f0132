"""Recorded items of the original's data sets, squares of cutout, bytes of images."""

from __future__ import annotations

import re

import numpy as np

from tests.parity.harness import Case, checker
from tfgen.data import textures
from tfgen.systems.ebm import preprocess, sprites

TOLERANCE = 1e-6
_OTHERS = ("textures", "imagenet32", "dsprites")  # recorded in their own ways
_RESCALES = {"cifar10_nonoise": 2.0}  # where the name does not tell


@checker("ebm", "data_preproc*.npz")
def check(case: Case) -> None:
    config = case.json("config")
    for name in case.matching("*/im"):
        if not name.startswith(_OTHERS):
            check_item(case, name.removesuffix("/im"), config)
    check_texture(case, config["seed"])
    check_small_imagenet(case, config)
    check_sprites(case, config["seed"])
    for name in case.matching("cutout*/params"):
        check_cutout(case, name.removesuffix("params"), config["seed"])
    check_bytes(case)
    case.leave_unread("*/dtype", "the original's float64 is fed as float32; here images are float32 throughout")


def clock_generator(index: int, config: dict) -> np.random.RandomState:
    """The generator that the original seeds from the clock, which stood still in the recording."""
    return np.random.RandomState((index + int(1e7 * config["time"])) % 2**32)


def check_item(case: Case, name: str, config: dict) -> None:
    """An item such as "cifar10_noise_rescale2" or "cifar10_full_idx4"; the latter's data set has no noise either.

    The number of the item, which decides its random numbers, is in the name or else the one that fits.
    """
    dataset, *words = name.split("_")
    raw = case["mnist_u8" if dataset == "mnist" else "raw32_u8"]
    options = {re.sub(r"\d+$", "", word): int(re.sub(r"\D", "", word) or 0) for word in words}
    noisy = not {"nonoise", "full"} & set(options)
    rescale = float(options.get("rescale", _RESCALES.get(name, 1.0)))

    def item(index: int) -> np.ndarray:
        image = raw[index % len(raw)]
        uniforms = np.random.RandomState(config["seed"] + index).uniform(0, 1, image.shape) if noisy else None
        return preprocess.scaled(image, preprocess.scaling_of(dataset), uniforms, rescale if noisy else 1.0)

    index = options.get("idx")
    if index is None:
        index = min(range(len(raw)), key=lambda number: np.abs(item(number) - case[f"{name}/im"]).max())
    found = item(index)
    case.close(f"{name}/im", found, TOLERANCE * rescale)
    if dataset == "mnist":  # the start is drawn after the noise, from the same generator
        generator = np.random.RandomState(config["seed"] + index)
        generator.uniform(0, 1, found.shape)
    else:
        generator = clock_generator(index, config)
    if name.endswith("default_source"):
        start = preprocess.starts_at_images(found, generator.standard_normal(found.shape))
    else:
        start = preprocess.uniform_starts(generator.uniform(0, 1, found.shape), rescale)
    case.close(f"{name}/corrupt", start, TOLERANCE * rescale)
    label = None if dataset == "mnist" else int(case["raw_labels"][index % len(raw)])
    check_label(case, f"{name}/label", label)


def check_label(case: Case, name: str, label: int | None) -> None:
    """A recorded one-hot label; where the class itself is not recorded it is the one that the row has."""
    row = case[name]
    case.close(name, np.eye(len(row))[int(row.argmax()) if label is None else label], 0.0)


def check_texture(case: Case, seed: int) -> None:
    """A crop from the corner of an image; the chain begins at the image itself."""
    for name in case.matching("textures_idx*/im"):
        prefix = name.removesuffix("im")
        index = int(prefix.removeprefix("textures_idx").removesuffix("/"))
        uniforms = np.random.RandomState(seed + index).uniform(0, 1, case[name].shape)
        crop = textures.corner(case["texture0_u8"])
        found = preprocess.scaled(crop, preprocess.scaling_of("textures"), uniforms)
        case.close(name, found, TOLERANCE)
        case.close(f"{prefix}corrupt", found, TOLERANCE)
        case.equal(f"{prefix}label", 0)
    case.leave_unread("textures/len", "the original counts each file twice; the number of files is not recorded")


def check_small_imagenet(case: Case, config: dict) -> None:
    for name in case.matching("imagenet32_idx*/im"):
        prefix = name.removesuffix("im")
        index = int(prefix.removeprefix("imagenet32_idx").removesuffix("/"))
        image = case[f"imagenet32/raw_idx{index}"].reshape(3, 32, 32).transpose(1, 2, 0)
        uniforms = np.random.RandomState(config["seed"] + index).uniform(0, 1, image.shape)
        case.close(name, preprocess.scaled(image, preprocess.scaling_of("imagenet"), uniforms), TOLERANCE)
        start = clock_generator(index, config).uniform(0, 1, image.shape)
        case.close(f"{prefix}corrupt", preprocess.uniform_starts(start), TOLERANCE)
        check_label(case, f"{prefix}label", int(case[f"imagenet32/raw_label_idx{index}"]) - 1)
        order = case["imagenet32/order_labels"]  # of all images, and so of the files
        case.equal(
            "imagenet32/order_labels: this image", int(order[index]), expected=int(case[f"{prefix}label"].argmax()) + 1
        )


def check_sprites(case: Case, seed: int) -> None:
    latents = case["dsprites/latents"]
    for name in case.matching("dsprites/*/len"):
        prefix = name.removesuffix("len")
        flag = prefix.removeprefix("dsprites/").removesuffix("/")
        restricted = flag == "restrict"
        mode = sprites.mode("" if restricted or flag == "plain" else flag, restricted)
        rows = mode.rows(latents)
        case.equal(name, len(rows) * mode.repeats)
        chosen = rows[case[f"{prefix}ids"] % len(rows)]
        case.equal(f"{prefix}source_row", chosen)
        if restricted:
            case.leave_unread(f"{prefix}labels", "the original's label of this subset is no label of a network")
        else:
            case.close(f"{prefix}labels", mode.labels(latents[chosen]), TOLERANCE)
    first = case["dsprites/corrupt_first16"]
    case.close(
        "dsprites/corrupt_first16",
        preprocess.sprites_starts(np.random.RandomState(seed).standard_normal(len(first))),
        TOLERANCE,
    )


def check_cutout(case: Case, prefix: str, seed: int) -> None:
    """The original takes the three channels for the height: its squares are those of an image of three rows."""
    inside, probability, size = case[f"{prefix}params"]
    generator = np.random.RandomState(seed + int(re.sub(r"\D", "", prefix)))
    count, side = 4, 32
    masks = np.ones((count, side, side), np.uint8)
    for mask in masks:
        box = preprocess.cutout_box(generator, 3, side, int(size), bool(inside), probability)
        if box is not None:
            mask[box] = 0
    case.equal(f"{prefix}mask4", np.packbits(masks))


def check_bytes(case: Case) -> None:
    values = case["u8/in"]
    case.equal("u8/train_rescale_im_color", preprocess.logged_bytes(values))
    case.equal("u8/train_rescale_im_mnist", preprocess.logged_bytes(values, inverted=True))
    case.equal("u8/test_inception_rescale_im", preprocess.sampled_bytes(values))
    case.equal("u8/sandbox_rescale_im", preprocess.rounded_bytes(values))
    every_byte = np.arange(256, dtype=np.uint8)
    case.equal("u8/real_cifar_roundtrip", preprocess.sampled_bytes(preprocess.scaled(every_byte, "levels", None)))
