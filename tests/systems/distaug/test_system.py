"""DistAug as a system: parameter counts of the real networks, and what `prepare` hands to the network."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfgen import presets, settings
from tfgen.data.source import ImageSpec
from tfgen.randomness import StepDraws
from tfgen.systems.distaug import data
from tfgen.systems.distaug.config import Config, parameter_count
from tfgen.systems.distaug.system import DistAug


def networks():
    """One preset for each size of network; those that differ by conditioning tables only are left out."""
    seen = {}
    for name in presets.names("distaug"):
        if presets.find("distaug", name).refused:
            continue
        config = settings.parse(["--system=distaug", f"--hps={name}"]).config
        spec = data.known_spec(config.dataset)
        if config.n_ctx == spec.dims:
            size = (spec.shape, config.n_layer, config.n_embd, config.mlp_width, config.key_width)
            seen.setdefault(size, (name, config, spec))
    return list(seen.values())


@pytest.mark.parametrize(
    ("name", "config", "spec"), networks(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_parameter_count_of_the_network(name, config, spec):
    """The formula, which every preset's header is tested against, is that of the network."""
    with tf.Graph().as_default():  # shapes only: the largest has 300 million parameters
        network = DistAug(dataclasses.replace(config, recompute=False), spec).network
        counted = sum(variable.shape.num_elements() for variable in network.trainable_variables)
    assert counted == parameter_count(config, spec) == presets.find("distaug", name).parameters


def test_parameter_count_with_every_table():
    config = Config(
        n_ctx=192, n_layer=2, n_embd=16, n_head=2, local_attn_ctx=24, randomly_determined_order_use_lookahead=True,
        use_rotation=True, use_color=True, use_transposition=True, use_reverse=True, use_jigsaw=True,
        rand_augment=True, rand_augment_conditioning=True, use_randomly_determined_order=True,
        auxiliary_dataset="cifar10", use_dataset_conditioning=True,
    )  # fmt: skip
    spec = ImageSpec(8, 8, 3)
    network = DistAug(config, spec).network
    assert network.count_params() == parameter_count(config, spec)


SPEC = ImageSpec(8, 8, 3)
SMALL = Config(n_ctx=192, n_layer=1, n_embd=8, n_head=1, attention_layers="a")


def prepared(config, images, **draws):
    system = DistAug(config, SPEC)
    arguments = {"seed": 1, "step": 5, "rank": 0, "ranks": 1, "batch_size": len(images)} | draws
    return system, system.prepare({"image": images}, StepDraws(**arguments))


@pytest.fixture
def images():
    return np.random.RandomState(0).randint(0, 256, [6, 8, 8, 3]).astype(np.uint8)


def test_coordinates_name_the_original_place_of_every_token(images):
    config = dataclasses.replace(
        SMALL, use_rotation=True, use_color=True, use_jigsaw=True, use_randomly_determined_order=True
    )
    _, batch = prepared(config, images)
    assert batch["conditioning"].shape == (6, 4)
    for image, tokens, (row, column, channel) in zip(images, batch["tokens"], batch["coordinates"], strict=True):
        np.testing.assert_array_equal(image[row, column, channel], tokens)


def test_ranks_share_what_one_rank_would_draw(images):
    config = dataclasses.replace(SMALL, use_rotation=True, use_transposition=True, aug=True)
    _, whole = prepared(config, images)
    for rank in (0, 1):
        _, part = prepared(config, images[3 * rank : 3 * rank + 3], rank=rank, ranks=2, batch_size=3)
        for name, value in part.items():
            np.testing.assert_array_equal(value, whole[name][3 * rank : 3 * rank + 3])


def test_rand_augment_changes_the_images_whose_token_says_so(images):
    config = dataclasses.replace(
        SMALL,
        rand_augment=True,
        rand_augment_conditioning=True,
        rand_augment_rate=0.5,
        rand_augment_n=2,
        rand_augment_m=5,
    )
    many = np.tile(images, [8, 1, 1, 1])
    _, batch = prepared(config, many)
    told = batch["conditioning"][:, 0] == 1
    changed = (batch["tokens"] != many.reshape(48, -1)).any(axis=1)
    assert 5 < told.sum() < 43
    assert not changed[~told].any()
    assert changed[told].mean() > 0.7  # some operations leave some images as they are


def test_unconditional_augmentation_hides_the_tokens_from_the_network(images):
    config = dataclasses.replace(SMALL, use_rotation=True, use_unconditional_augmentation=True)
    system, batch = prepared(config, images)
    assert (batch["tokens"] != images.reshape(6, -1)).any()
    names = [variable.name for variable in system.network.trainable_variables if "sos" in variable.name]
    assert names == ["sos_token/sos:0"]


def test_flips_move_no_coordinates(images):
    _, batch = prepared(dataclasses.replace(SMALL, aug=True), images)
    flipped = (batch["tokens"] != images.reshape(6, -1)).any(axis=1)
    assert 0 < flipped.sum() < 6
    for image, tokens, was in zip(images, batch["tokens"], flipped, strict=True):
        np.testing.assert_array_equal(tokens, (image[:, ::-1] if was else image).ravel())
    identity = np.indices(SPEC.shape).reshape(3, -1)
    assert all((coordinates == identity).all() for coordinates in batch["coordinates"])
