"""The SavedModel: plain TensorFlow, and the same numbers as the samplers and the bound."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.diffusion import small
from tfgen.ops.library import plain_tensorflow
from tfgen.systems.diffusion import samplers
from tfgen.systems.diffusion.evaluation import bound_term
from tfgen.systems.diffusion.exported import _key, evenly_spaced
from tfgen.systems.diffusion.resizing import from_uint8, to_uint8
from tfgen.systems.diffusion.respacing import kept_steps
from tfgen.systems.diffusion.sampling import Conditions

STEPS = 12


def integer(value: int) -> tf.Tensor:
    return tf.constant(value, tf.int32)


def saved(system, folder):
    """The functions of the system's SavedModel."""
    module = tf.Module()
    module.weights = list(system.network.variables)
    with plain_tensorflow():
        tf.saved_model.save(module, str(folder), signatures=system.signatures())
    loaded = tf.saved_model.load(str(folder))

    def call(name, **arguments):
        tensors = {
            key: tf.constant(value, None if isinstance(value, np.ndarray) else tf.int32)
            for key, value in arguments.items()
        }
        return {key: value.numpy() for key, value in loaded.signatures[name](**tensors).items()}

    return call


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    system = small.system(diffusion_steps=STEPS)
    return system, saved(system, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    system = small.system(small.LABELLED, **small.OF_CLASSES, label_dropout=0.1, diffusion_steps=STEPS)
    return system, saved(system, tmp_path_factory.mktemp("labelled"))


def test_only_operations_of_tensorflow(plain):
    """Nothing but standard operations, in the functions' own functions too."""
    for function in plain[0].signatures().values():
        with plain_tensorflow():
            graph = function.get_concrete_function().graph.as_graph_def()
        nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
        assert len(nodes) > 100
        assert not {node.op for node in nodes if not hasattr(tf.raw_ops, node.op)}


@pytest.mark.parametrize("count", [2, 5, STEPS])
def test_samples_are_those_of_ddim(plain, count):
    system, call = plain
    process = system.base_process.respaced(str(count)) if count < STEPS else system.process
    start = _key(integer(7)).fold("start").normal([3, 8, 8, 3])
    model = system.model(process, Conditions(None, None))
    expected = to_uint8(samplers.ddim(process, model, start, lambda step: tf.zeros_like(start))).numpy()
    found = call("sample", count=3, steps=count, seed=7)["images"]
    assert (found.shape, found.dtype) == ((3, 8, 8, 3), np.uint8)
    assert np.abs(found.astype(int) - expected).max() <= 1
    more = call("sample", count=5, steps=count, seed=7)["images"]
    assert np.abs(more[:3].astype(int) - found).max() <= 1
    assert (call("sample", count=3, steps=count, seed=8)["images"] != found).any()


def test_bits_per_dim_are_those_of_the_bound(plain):
    system, call = plain
    images = small.images(3)
    x_start, key = from_uint8(images), _key(integer(1)).fold("bits_per_dim")
    model = system.model(system.process, Conditions(None, None))
    for terms in (1, 5, STEPS):
        expected = system.process.prior_bits_per_dim(x_start).numpy() + sum(
            bound_term(system.process, model, x_start, key, part, terms).numpy() for part in range(terms)
        )
        found = call("bits_per_dim", images=images, terms=terms, seed=1)["bits_per_dim_bound"]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_classes(labelled):
    _, call = labelled
    drawn = call("sample", count=40, steps=2, seed=0, class_label=-1)
    assert set(drawn["labels"]) == {0, 1, 2}
    chosen = call("sample", count=40, steps=2, seed=0, class_label=1)
    np.testing.assert_array_equal(chosen["labels"], np.ones(40))
    same = (chosen["images"] == drawn["images"]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(same, drawn["labels"] == 1)
    bounds = [
        call("bits_per_dim", images=small.images(2), terms=2, seed=0, labels=np.array(labels, np.int32))
        for labels in ([0, 1], [0, 2])
    ]
    first, second = (values["bits_per_dim_bound"] for values in bounds)
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    assert first[1] != second[1]


def test_small_images_in_place_of_a_count(tmp_path):
    call = saved(small.system(**small.SUPER_RESOLUTION, diffusion_steps=STEPS), tmp_path)
    low_res = small.images(2)[:, :4, :4]
    found = call("sample", low_res=low_res, steps=3, seed=0)["images"]
    assert found.shape == (2, 8, 8, 3)
    assert (call("sample", low_res=low_res[::-1].copy(), steps=3, seed=0)["images"] != found).any()
    assert np.isfinite(call("bits_per_dim", images=small.images(2), terms=2, seed=0)["bits_per_dim_bound"]).all()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sample", {"count": 1, "steps": 1, "class_label": -1}, "expected steps from 2 to 12, found"),
        ("sample", {"count": 1, "steps": 13, "class_label": -1}, "expected steps from 2 to 12, found"),
        ("sample", {"count": 1, "steps": 2, "class_label": 3}, "expected class_label from -1 to 2, found"),
        (
            "bits_per_dim",
            {"images": small.images(1), "labels": np.zeros(1, np.int32), "terms": 0},
            "terms from 1 to 12",
        ),
        ("bits_per_dim", {"images": small.images(1), "labels": np.zeros(1, np.int32), "terms": 13}, "found"),
    ],
)
def test_numbers_out_of_range(labelled, name, arguments, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        labelled[1](name, **arguments, seed=0)


def test_evenly_spaced_steps_are_those_of_the_respacing():
    in_a_graph = tf.function(evenly_spaced, input_signature=[tf.TensorSpec([], tf.int32)] * 2, autograph=False)
    random = np.random.RandomState(0)
    cases = {(steps, wanted) for steps in range(2, 60) for wanted in range(2, steps + 1)}
    cases |= {(steps, wanted) for steps in (1000, 4000) for wanted in (2, 10, 20, 25, 50, 100, 250, 500, 999, steps)}
    cases |= {(steps, random.randint(2, steps + 1)) for steps in random.randint(60, 4001, 400)}
    for steps, wanted in sorted(cases):
        found = in_a_graph(integer(steps), integer(wanted)).numpy()
        np.testing.assert_array_equal(found, kept_steps(int(steps), str(wanted)), err_msg=f"{wanted} of {steps}")
