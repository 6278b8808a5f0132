"""Augmentations that the network is conditioned on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tfgen.data.source import ImageSpec
from tfgen.randomness import StepDraws
from tfgen.settings import SettingsError
from tfgen.systems.distaug.augment import Augmentations, lexicographic_permutations, random_orders
from tfgen.systems.distaug.config import Config

GEOMETRIC = {
    "use_rotation": True,
    "use_transposition": True,
    "use_reverse": True,
    "use_jigsaw": True,
    "use_randomly_determined_order": True,
}
ALL = {**GEOMETRIC, "use_color": True, "rand_augment_conditioning": True}


def make(height: int, width: int, channels: int, **flags) -> Augmentations:
    spec = ImageSpec(height, width, channels)
    return Augmentations(Config(n_ctx=spec.dims, **flags), spec)


def augment_one(augmentations: Augmentations, image: np.ndarray, *conditioning: int) -> np.ndarray:
    tokens, _ = augmentations.apply(image.reshape(1, -1), np.array([conditioning]))
    return tokens.reshape(image.shape)


def random_image(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).randint(256, size=shape).astype(np.uint8)


def test_types_come_in_the_fixed_order():
    augmentations = make(4, 4, 3, **ALL, use_dataset_conditioning=True)
    expected = {"sos_rot": 4, "sos_c": 6, "sos_tr": 2, "sos_rev": 2, "sos_js": 24, "sos_aa": 2, "sos_rd": 4}
    assert {kind.name: kind.rows for kind in augmentations.types} == {**expected, "sos_data": 2}
    assert [kind.name for kind in augmentations.types] == [*expected, "sos_data"]
    assert list(augmentations.conditioning_rows.items()) == [(kind.name, kind.rows) for kind in augmentations.types]


def test_unconditional_augmentation_augments_but_conditions_on_nothing():
    augmentations = make(4, 4, 1, use_rotation=True, use_unconditional_augmentation=True)
    assert augmentations.conditioning_rows == {}
    tokens = augmentations.draw_tokens(np.random.RandomState(0), 64)
    assert tokens.shape == (64, 1)
    assert set(tokens.ravel()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("shape", "flags"), [((6, 6, 3), ALL), ((4, 4, 1), GEOMETRIC), ((4, 6, 3), {"use_color": True})]
)
def test_every_token_is_a_permutation_and_token_0_the_identity(shape, flags):
    augmentations = make(*shape, **flags)
    everything = np.arange(np.prod(shape))
    for kind in augmentations.types:
        if kind.source_index is None:
            continue
        table = kind.source_index(np.arange(kind.rows))
        assert table.dtype == np.int32
        np.testing.assert_array_equal(np.sort(table, axis=1), np.tile(everything, [kind.rows, 1]))
        np.testing.assert_array_equal(table[0], everything)
        assert len(np.unique(table, axis=0)) == kind.rows


def test_rotation_is_clockwise():
    image = random_image(4, 4, 3)
    rotated = augment_one(make(4, 4, 3, use_rotation=True), image, 1)
    for i, j in itertools.product(range(4), repeat=2):
        np.testing.assert_array_equal(rotated[i, j], image[3 - j, i])


def test_transposition_reverse_and_colour():
    image = random_image(4, 4, 3)
    np.testing.assert_array_equal(
        augment_one(make(4, 4, 3, use_transposition=True), image, 1), image.transpose(1, 0, 2)
    )
    np.testing.assert_array_equal(augment_one(make(4, 4, 3, use_reverse=True), image, 1), image[::-1, ::-1])
    np.testing.assert_array_equal(augment_one(make(4, 4, 3, use_color=True), image, 3), image[:, :, [1, 2, 0]])


@pytest.mark.parametrize(("shape", "grid"), [((4, 4, 3), 2), ((4, 6, 1), 2), ((6, 6, 1), 3), ((5, 5, 1), 1)])
def test_jigsaw_moves_tiles(shape, grid):
    image = random_image(*shape)
    augmentations = make(*shape, use_jigsaw=True, jigsaw_grid_size=grid)
    token = augmentations.types[0].rows * 2 // 3
    result = augment_one(augmentations, image, token)
    arrangement = next(itertools.islice(itertools.permutations(range(grid * grid)), token, None))
    tiles, placed = (
        [tile for row in np.split(picture, grid, axis=0) for tile in np.split(row, grid, axis=1)]
        for picture in (image, result)
    )
    for tile, source in enumerate(arrangement):
        np.testing.assert_array_equal(placed[tile], tiles[source])


def test_random_orders_are_successive_draws_of_one_generator():
    generator = np.random.RandomState(7)
    np.testing.assert_array_equal(random_orders(7, 2, 12), [generator.permutation(12), generator.permutation(12)])


def test_lexicographic_permutations():
    np.testing.assert_array_equal(
        lexicographic_permutations(3)[[0, 1, 3, 5]], [[0, 1, 2], [0, 2, 1], [1, 2, 0], [2, 1, 0]]
    )


def test_coordinates_name_where_each_subpixel_came_from():
    image = random_image(4, 4, 3)
    augmentations = make(4, 4, 3, **ALL)
    conditioning = augmentations.draw_tokens(np.random.RandomState(1), 10)
    tokens, coordinates = augmentations.apply(np.tile(image.reshape(1, -1), [10, 1]), conditioning)
    assert tokens.dtype == np.uint8
    assert coordinates.dtype == np.int32
    assert coordinates.shape == (10, 3, 48)
    row, column, channel = coordinates.transpose(1, 0, 2)
    np.testing.assert_array_equal(image[row, column, channel], tokens)


def test_later_types_act_on_the_result_of_earlier_ones():
    image = random_image(4, 4, 3)
    together = augment_one(make(4, 4, 3, use_rotation=True, use_transposition=True), image, 1, 1)
    rotated = augment_one(make(4, 4, 3, use_rotation=True), image, 1)
    np.testing.assert_array_equal(together, augment_one(make(4, 4, 3, use_transposition=True), rotated, 1))


def test_images_are_restored_by_the_inverse_permutation():
    image = random_image(6, 6, 3)
    augmentations = make(6, 6, 3, **ALL)
    conditioning = augmentations.draw_tokens(np.random.RandomState(2), 5)
    tokens, _ = augmentations.apply(np.tile(image.reshape(1, -1), [5, 1]), conditioning)
    inverse = np.argsort(augmentations.source_index(conditioning), axis=1)
    np.testing.assert_array_equal(np.take_along_axis(tokens, inverse, axis=1), np.tile(image.reshape(1, -1), [5, 1]))


@pytest.mark.parametrize("flags", [{"use_rotation": True, "permute_embeddings": False}, {}])
def test_coordinates_stay_where_nothing_moves_them(flags):
    augmentations = make(4, 4, 1, **flags)
    conditioning = np.ones([2, len(augmentations.types)], np.int32)
    tokens, coordinates = augmentations.apply(np.arange(32, dtype=np.uint8).reshape(2, 16), conditioning)
    np.testing.assert_array_equal(coordinates, np.tile(augmentations.identity_coordinates, [2, 1, 1]))
    assert (tokens == np.arange(32).reshape(2, 16)).all() == (not flags)


def test_identity_coordinates_count_rows_columns_channels():
    coordinates = make(2, 3, 2).identity_coordinates
    np.testing.assert_array_equal(coordinates[0, 0], [0] * 6 + [1] * 6)
    np.testing.assert_array_equal(coordinates[0, 1], [0, 0, 1, 1, 2, 2] * 2)
    np.testing.assert_array_equal(coordinates[0, 2], [0, 1] * 6)


# Drawing ------------------------------------------------------------------------------------------------


def test_tokens_are_uniform_by_default():
    tokens = make(4, 4, 3, use_rotation=True, use_color=True).draw_tokens(np.random.RandomState(3), 20_000)
    assert tokens.dtype == np.int32
    np.testing.assert_allclose(np.bincount(tokens[:, 0]) / 20_000, np.full(4, 1 / 4), atol=0.015)
    np.testing.assert_allclose(np.bincount(tokens[:, 1]) / 20_000, np.full(6, 1 / 6), atol=0.015)


def test_unaugmented_rate_is_the_share_of_images_left_alone():
    augmentations = make(4, 4, 3, use_rotation=True, use_color=True, use_reverse=True, unaugmented_data_rate=0.3)
    tokens = augmentations.draw_tokens(np.random.RandomState(4), 20_000)
    assert (tokens == 0).all(axis=1).mean() == pytest.approx(0.3, abs=0.015)
    others = np.bincount(tokens[:, 1])[1:] / 20_000
    np.testing.assert_allclose(others, np.full(5, (1 - 0.3 ** (1 / 3)) / 5), atol=0.01)


@pytest.mark.parametrize("unaugmented", [None, 0.5])
def test_randaugment_token_follows_its_own_rate(unaugmented):
    flags = {"rand_augment_conditioning": True, "rand_augment_rate": 0.8, "unaugmented_data_rate": unaugmented}
    tokens = make(4, 4, 3, **flags).draw_tokens(np.random.RandomState(5), 20_000)
    assert tokens.mean() == pytest.approx(0.8, abs=0.015)


def test_types_draw_one_after_the_other():
    tokens = make(4, 4, 3, use_rotation=True, rand_augment_conditioning=True, use_transposition=True).draw_tokens(
        np.random.RandomState(6), 9
    )
    generator = np.random.RandomState(6)
    expected = [generator.randint(4, size=9), generator.randint(2, size=9), generator.uniform(size=9) < 0.95]
    np.testing.assert_array_equal(tokens, np.stack(expected, axis=1))


def test_ranks_share_the_draws_of_the_global_batch():
    flags = {"use_rotation": True, "use_dataset_conditioning": True}
    augmentations = make(4, 4, 3, **flags)
    labels = np.array([0, 1, 1, 0, 1, 0])
    whole = augmentations.draw_tokens(np.random.RandomState(8), 6, labels)
    parts = []
    for rank in range(2):
        draws = StepDraws(seed=0, step=0, rank=rank, ranks=2, batch_size=3)
        generator = np.random.RandomState(8)
        parts.append(augmentations.draw_tokens(generator, draws.global_batch_size, draws.mine(labels), keep=draws.mine))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(whole[:, 1], labels)


def test_flips_are_fair_and_a_function_of_the_generator():
    flips = Augmentations.horizontal_flips(np.random.RandomState(9), 10_000)
    assert flips.dtype == bool
    assert flips.mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(flips, Augmentations.horizontal_flips(np.random.RandomState(9), 10_000))


def test_no_types_in_use_draw_nothing():
    generator = np.random.RandomState(10)
    assert make(4, 4, 1).draw_tokens(generator, 5).shape == (5, 0)
    assert generator.randint(1000) == np.random.RandomState(10).randint(1000)


def test_combinations_are_the_product_of_all_tokens():
    combinations = list(make(4, 4, 3, use_rotation=True, use_transposition=True).combinations())
    assert combinations == list(itertools.product(range(4), range(2)))
    assert list(make(4, 4, 3).combinations()) == [()]


# Errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "flag", "words"),
    [
        ((4, 4, 1), "use_color", "1 channel"),
        ((4, 6, 3), "use_rotation", "square"),
        ((4, 6, 3), "use_transposition", "square"),
        ((5, 5, 3), "use_jigsaw", "5x5"),
    ],
)
def test_images_that_cannot_be_augmented_are_named(shape, flag, words):
    with pytest.raises(SettingsError, match=words):
        make(*shape, **{flag: True})


def test_dataset_conditioning_needs_labels():
    augmentations = make(4, 4, 3, use_dataset_conditioning=True)
    with pytest.raises(SettingsError, match="--auxiliary_dataset"):
        augmentations.draw_tokens(np.random.RandomState(0), 4)
    with pytest.raises(SettingsError, match="aug_eval"):
        augmentations.combinations()


@pytest.mark.parametrize("conditioning", [[[4]], [[-1]], [[0, 0]], [0]])
def test_tokens_that_do_not_exist_are_refused(conditioning):
    with pytest.raises(ValueError, match="tokens"):
        make(4, 4, 1, use_rotation=True).source_index(np.array(conditioning))


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="4x4x1"):
        make(4, 4, 1).apply(np.zeros([2, 25], np.uint8), np.zeros([2, 0], np.int32))
