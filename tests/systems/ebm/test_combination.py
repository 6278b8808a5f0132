"""Composed energies and their chains: on energies whose gradients are known against NumPy, then on networks."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.ebm import small
from tfgen.ops.philox import philox_normal
from tfgen.randomness import Key
from tfgen.systems.ebm import combination, sampler
from tfgen.systems.ebm.combination import Combination, FusedArithmetic, PlainArithmetic, RoundMoves
from tfgen.systems.ebm.sampler import Chain

CURVATURES = {"a": np.array([1.0, 4.0, 9.0], np.float32), "b": np.array([2.0, 0.5, 3.0], np.float32)}
CENTRES = {"a": np.float32(0.2), "b": np.float32(0.9)}
STARTS = np.array([[0.2, 0.8, 0.5], [1.0, 0.0, 0.3]], np.float32)


def bowl(name: str) -> combination.Energy:
    """Energies [2, 1] of two points [2, 3]."""
    return lambda x: tf.reduce_sum(0.5 * CURVATURES[name] * (x - CENTRES[name]) ** 2, axis=1, keepdims=True)


def slope(name: str, x: np.ndarray) -> np.ndarray:
    return CURVATURES[name] * (x - CENTRES[name])


def height(name: str, x: np.ndarray) -> np.ndarray:
    return (0.5 * CURVATURES[name] * (x - CENTRES[name]) ** 2).sum(1, keepdims=True)


BOWLS = {name: bowl(name) for name in CURVATURES}


# Energies --------------------------------------------------------------------------------------------------


def test_conjunction_disjunction_and_negation():
    a, b = (height(name, STARTS) for name in "ab")
    energies = list(BOWLS.values())
    np.testing.assert_allclose(combination.conjunction(energies)(STARTS), a + b, rtol=1e-6)
    expected = -np.log(np.exp(-a) + np.exp(-b))
    np.testing.assert_allclose(combination.disjunction(energies)(STARTS), expected, rtol=1e-5)
    np.testing.assert_allclose(combination.negation(energies[0], 0.3)(STARTS), -0.3 * a, rtol=1e-6)


def test_disjunction_descends_what_is_lower():
    """Its gradient is that of both, weighted by exp(-E); of far energies there is nothing left, and no infinity."""
    a, b = (np.exp(-height(name, STARTS)) for name in "ab")
    expected = (a * slope("a", STARTS) + b * slope("b", STARTS)) / (a + b)
    either = combination.disjunction(list(BOWLS.values()))
    np.testing.assert_allclose(combination.gradient_of(either, tf.constant(STARTS)), expected, rtol=1e-4)
    far = combination.disjunction([BOWLS["a"], lambda x: BOWLS["b"](x) + 1e4])
    np.testing.assert_allclose(combination.gradient_of(far, tf.constant(STARTS)), slope("a", STARTS), rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("sequential", lambda a, b: [a, -0.5 * b]),
        ("sum", lambda a, b: [a - 0.5 * b]),
        ("or", lambda a, b: [a - 0.5 * b]),
    ],
)
def test_rules_with_a_negation(rule, expected):
    found = [energy(STARTS).numpy() for energy in combination.composed(BOWLS, rule, {"b": 0.5})]
    np.testing.assert_allclose(found, expected(height("a", STARTS), height("b", STARTS)), rtol=1e-6)


def test_what_is_either_and_not_the_third():
    third = bowl("b")
    (energy,) = combination.composed({**BOWLS, "c": third}, "or", {"c": 0.5})
    a, b = (height(name, STARTS) for name in "ab")
    np.testing.assert_allclose(energy(STARTS), -np.log(np.exp(-a) + np.exp(-b)) - 0.5 * b, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BOWLS, "and", {}), "rule 'and', expected one of sequential, sum, or"),
        ((BOWLS, "sum", {"a": 1.0, "b": 1.0}), "a, b: expected one or more that are not negated"),
        (({}, "sum", {}), "no concept: expected one or more"),
    ],
)
def test_what_cannot_be_composed(arguments, message):
    with pytest.raises(ValueError, match=message):
        combination.composed(*arguments)


# Chains ----------------------------------------------------------------------------------------------------


def normals(count: int) -> np.ndarray:
    return np.random.RandomState(1).normal(size=[count, *STARTS.shape]).astype(np.float32)


CHAIN = Chain(3, 0.05, 0.02, high=0.9)


def test_a_round_visits_one_concept_after_the_other():
    """The gradient is taken before the noise of its update, and the next concept's after both."""
    noise, x = normals(6), STARTS.astype(np.float64)
    for index, n in enumerate(noise):
        x = np.clip(x + CHAIN.noise * n - CHAIN.step_size * slope("ab"[index % 2], x), 0.0, 0.9)
    energies = combination.composed(BOWLS, "sequential", {})
    moves = RoundMoves(energies, PlainArithmetic(CHAIN, sampler.given(tf.constant(noise))))
    np.testing.assert_allclose(sampler.run(STARTS, 3, moves), x, rtol=1e-5)


def test_the_sum_is_one_update():
    noise, x = normals(3), STARTS.astype(np.float64)
    for n in noise:
        x = np.clip(x + CHAIN.noise * n - CHAIN.step_size * (slope("a", x) + slope("b", x)), 0.0, 0.9)
    moves = RoundMoves(
        combination.composed(BOWLS, "sum", {}), PlainArithmetic(CHAIN, sampler.given(tf.constant(noise)))
    )
    np.testing.assert_allclose(sampler.run(STARTS, 3, moves), x, rtol=1e-5)


@pytest.mark.parametrize("clip_mode", ["none", "li", "l2_sample"])
def test_fused_arithmetic_is_the_plain_one(clip_mode):
    """With the numbers that the fused operation draws."""
    chain = Chain(3, 0.05, 0.02, high=0.9, clip_mode=clip_mode, clip=0.0 if clip_mode == "none" else 1.0)
    key = Key.create(0, "noise")
    drawn = tf.stack([philox_normal(STARTS.shape, sampler.philox_seed(key), draw) for draw in range(6)])
    energies = combination.composed(BOWLS, "sequential", {})
    plain = PlainArithmetic(chain, sampler.given(drawn))
    fused = FusedArithmetic(chain, key)
    end = sampler.run(STARTS, 3, RoundMoves(energies, fused))
    np.testing.assert_allclose(end, sampler.run(STARTS, 3, RoundMoves(energies, plain)), rtol=1e-5)
    for arithmetic in (plain, fused):
        noised = arithmetic.noised(tf.constant(STARTS), tf.constant(1))
        np.testing.assert_allclose(noised, STARTS + 0.02 * drawn[1], rtol=1e-6)
        moved = arithmetic.moved(tf.constant(STARTS), tf.zeros([2, 3]))
        np.testing.assert_array_equal(moved, np.clip(STARTS, 0.0, np.float32(0.9)))


# Networks --------------------------------------------------------------------------------------------------


def members(side: int = 16, **others: int) -> dict:
    """Of two and three label columns."""
    return {
        name: small.network("DspritesNet", 2, seed=columns, side=others.get(name, side), label_columns=columns)
        for name, columns in (("pos", 2), ("shape", 3))
    }


def labels(count: int) -> dict[str, np.ndarray]:
    generator = np.random.RandomState(2)
    return {"pos": generator.uniform(size=[count, 2]), "shape": np.eye(3)[np.arange(count) % 3]}


def test_a_sample_is_that_of_the_plain_chain_at_any_batch_size():
    networks = members()
    combined = Combination(networks, Chain(2, 5.0, 0.1))
    starts = small.images(networks["pos"], count=4)
    key, rows = Key.create(0, "combination"), labels(4)
    whole = combined.sample(starts, rows, key).numpy()
    drawn = tf.stack([philox_normal(starts.shape, sampler.philox_seed(key), draw) for draw in range(4)])
    plain = combined.run(starts, rows, PlainArithmetic(combined.chain, sampler.given(drawn)))
    np.testing.assert_allclose(whole, plain, atol=1e-5)
    own = FusedArithmetic(combined.chain, key.skip(1))
    part = combined.run(starts[1:3], {name: row[1:3] for name, row in rows.items()}, own)
    np.testing.assert_allclose(part, whole[1:3], atol=1e-5)
    for changed in ("pos", "shape"):
        others = combined.sample(starts, rows | {changed: 1 - rows[changed]}, key).numpy()
        assert np.abs(others - whole).max() > 1e-4, changed


@pytest.mark.parametrize("advance", [False, True])
def test_vectors_are_kept_only_if_asked(advance):
    networks = members()
    before = {name: network.by_name["c1/c_u"].numpy() for name, network in networks.items()}
    combined = Combination(networks, Chain(1, 5.0, 0.1), advance=advance)
    combined.run(
        small.images(networks["pos"]), labels(2), FusedArithmetic(combined.chain, Key.create(0, "combination"))
    )
    for name, network in networks.items():
        assert np.array_equal(network.by_name["c1/c_u"], before[name]) != advance


@pytest.mark.parametrize(
    ("networks", "settings", "message"),
    [
        (members(shape=8), {}, "different sizes .pos 16x16x1, shape 8x8x1., expected one size"),
        (members(), {"negated": {"size": 1.0}}, "negated: size; the concepts are pos, shape"),
        (members(), {"negated": {"pos": 1.0, "shape": 1.0}}, "pos, shape: expected one or more"),
    ],
)
def test_networks_that_cannot_be_combined(networks, settings, message):
    with pytest.raises(ValueError, match=message):
        Combination(networks, Chain(1, 5.0, 0.1), **settings)


def test_panel():
    samples, originals = (np.full([3, 4, 4, 1], value, np.uint8) for value in (10, 20))
    picture = combination.panel([samples, originals])
    assert picture.shape == (18, 12, 1)
    np.testing.assert_array_equal(picture[1:5, 1:5], samples[0])
    np.testing.assert_array_equal(picture[13:17, 7:11], originals[2])
    assert (picture[5:7] == 255).all()
    assert (picture[:, 5:7] == 255).all()
