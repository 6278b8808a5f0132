"""Shapes of the networks: published parameter counts, order and use of variables, and what is refused."""

from __future__ import annotations

import pytest

from tfgen.systems.ebm.architecture import Residual, ShapeError, parameter_count
from tfgen.systems.ebm.catalog import NETWORKS, network_shape

PUBLISHED = [
    ("MnistNet", 64, 0, 1_247_555),
    ("DspritesNet", 64, 0, 952_483),
    ("DspritesNet", 64, 2, 953_283),
    ("ResNet32", 128, 0, 7_519_496),
    ("ResNet32", 128, 10, 7_567_880),
    ("ResNet32Large", 128, 0, 18_738_312),
    ("ResNet32Large", 128, 10, 18_841_992),
    ("ResNet32Larger", 128, 0, 33_203_720),
    ("ResNet32Wider", 192, 0, 42_028_040),
    ("ResNet32Wider", 192, 10, 42_185_864),
    ("ResNet32Wider", 256, 10, 74_710_408),
    ("ResNet32Wider", 256, 1000, 97_773_448),
    ("ResNet128", 64, 1000, 24_555_592),
]


def widths(kind: str) -> int:
    return 64 if kind == "ResNet128" else 4


def shape_of(kind: str, **settings):
    return network_shape(kind, widths(kind), **({"label_columns": 1000} if kind == "ResNet128" else {}) | settings)


@pytest.mark.parametrize(("kind", "filters", "columns", "parameters"), PUBLISHED)
def test_published_parameter_count(kind, filters, columns, parameters):
    assert parameter_count(network_shape(kind, filters, label_columns=columns)) == parameters


@pytest.mark.parametrize("kind", NETWORKS)
def test_vectors_belong_to_normalised_weights(kind):
    normalised = {variable.name for variable in shape_of(kind).variables() if variable.kind == "vector"}
    weights = {v.name.removesuffix("weight") for v in shape_of(kind).variables() if v.name.endswith("weight")}
    assert normalised == {f"{name}_u" for name in weights - {"fc5/w"}}
    assert not any(variable.kind == "vector" for variable in shape_of(kind, spec_norm=False).variables())


def test_what_attention_replaces_is_there_and_unused():
    plain, attending = (network_shape("ResNet32Large", 4, use_attention=use) for use in (False, True))
    assert [v.name for v in plain.variables()] == [v.name for v in attending.variables()]
    unused = {v.name.partition("/")[0] for v in attending.variables() if v.kind == "zero weight" and not v.used}
    assert unused == {"res_4_res_c2"}
    assert not any(v.used for v in plain.variables() if v.name.startswith("atten/"))
    assert [layer.name for layer in attending.layers][4] == "atten"
    assert len(attending.layers) == len(plain.layers)


def test_attention_of_resnet128_stands_after_the_first_block():
    layers = shape_of("ResNet128", use_attention=True).layers
    assert [layer.name for layer in layers][:3] == ["res_optim", "atten", "res_3"]


def test_attention_in_the_smallest_residual_network():
    shape = network_shape("ResNet32", 4, use_attention=True)
    assert [layer.name for layer in shape.layers] == ["res_optim", "res_1", "res_2", "atten", "res_4", "res_5"]
    assert shape.attention.channels == shape.layers[2].outputs == 8


def test_the_last_activation_depends_on_network_label_and_swish():
    found = {
        (kind, columns, swish): network_shape(kind, 4, label_columns=columns, swish=swish).sum_activation
        for kind in ("ResNet32", "ResNet32Large", "ResNet32Wider")
        for columns in (0, 10)
        for swish in (False, True)
    }
    for (kind, columns, swish), activation in found.items():
        if kind == "ResNet32Wider":
            assert activation == ("swish" if swish else "relu")
        elif kind == "ResNet32Large":
            assert activation == ("leaky" if columns else "relu")
        else:
            assert activation == "relu"


def test_swish_leaves_the_first_wider_block_and_the_small_networks_alone():
    wider = network_shape("ResNet32Wider", 4, swish=True)
    assert [layer.activation for layer in wider.layers if isinstance(layer, Residual)][:2] == ["leaky", "swish"]
    assert network_shape("ResNet32", 4, swish=True) == network_shape("ResNet32", 4)


def test_labels_of_one_column_have_rows_without_an_axis():
    names = {v.name: v.shape for v in network_shape("DspritesNet", 4, label_columns=1).variables()}
    assert names["c3/g"] == (8,)
    assert {v.name for v in network_shape("DspritesNet", 4, label_columns=1).variables() if v.used} >= {"c3/cb"}
    assert "c3/cb" not in {v.name for v in network_shape("DspritesNet", 4).variables() if v.used}


def test_label_planes_of_mnist_widen_the_first_layer():
    names = {v.name: v.shape for v in network_shape("MnistNet", 4, label_columns=10).variables()}
    assert names["c1_pre/cweight"] == (3, 3, 11, 64)
    assert names["c1/gb"] == (64,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ResNet33", 4, {}), "no network 'ResNet33'; the networks are MnistNet, "),
        (("ResNet32", 0, {}), "ResNet32 with 0 filters"),
        (("ResNet32Wider", 128, {}), "ResNet32Wider cannot have 128 filters.*192 .CIFAR-10. or 256"),
        (("ResNet128", 32, {"label_columns": 1000}), "ResNet128 has 64 filters.*found 32"),
        (("ResNet128", 64, {}), "ResNet128 is conditional only: add --cclass"),
        (("MnistNet", 4, {"downsample": True}), "28 pixels.*multiple of 8.*leave --downsample out"),
        (("DspritesNet", 4, {"downsample": True, "side": 8}), "8 pixels are too small"),
    ],
)
def test_what_a_network_cannot_be(arguments, message):
    kind, filters, settings = arguments
    with pytest.raises(ShapeError, match=message):
        network_shape(kind, filters, **settings)
