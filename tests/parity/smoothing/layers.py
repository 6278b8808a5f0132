"""Recorded building blocks, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tests.parity.smoothing.network import channels_first, channels_last
from tfgen.ops.concat_elu import concat_elu
from tfgen.systems.smoothing import pixelcnn
from tfgen.systems.smoothing.pixelcnn import Convolution, GatedResnet, Initializer, Pointwise, WeightNormalized

# Advised in the description of the recordings, as relative and absolute parts.
OUTPUT, GRADIENT = (1e-5, 3e-6), (1e-4, 2e-5)


@checker("smoothing", "layers*.npz")
def check(case: Case) -> None:
    for settings in case.json("config")["cases"]:
        check_block(case, settings["name"], settings)
    check_training(case)
    within(case, "concat_elu/out", channels_first(concat_elu(channels_last(case["concat_elu/in0"]))), OUTPUT)
    for name, function in (("down_shift", pixelcnn.shifted_down), ("right_shift", pixelcnn.shifted_right)):
        case.close(f"{name}/out", channels_first(function(tf.constant(channels_last(case[f"{name}/in0"])))), 0.0)
    within(case, "log_sum_exp/out", tf.reduce_logsumexp(case["log_sum_exp/in0"], axis=-1), OUTPUT)
    within(case, "log_prob_from_logits/out", tf.nn.log_softmax(case["log_prob_from_logits/in0"]), OUTPUT)
    depth = case["to_one_hot/out"].shape[-1]
    case.close("to_one_hot/out", tf.one_hot(case["to_one_hot/in0"], depth), 0.0)
    filled = float(case["to_one_hot/out_fill"].max())
    case.close("to_one_hot/out_fill", tf.one_hot(case["to_one_hot/in0"], depth, on_value=filled), 0.0)


def within(case: Case, name: str, actual: Any, parts: tuple[float, float], expected: np.ndarray | None = None) -> None:
    """A relative and an absolute tolerance as one number."""
    wanted = (case[name] if expected is None else expected).astype(np.float64)
    error = np.abs(np.asarray(actual) - wanted) / (parts[1] + parts[0] * np.abs(wanted))
    case.close(name, error, 1.0, expected=np.zeros_like(error))


class Block:
    """A layer with recorded weights."""

    def __init__(self, case: Case, name: str, settings: dict):
        shape = {key: value.shape for key, value in case.under(f"{name}/p/").items()}
        right = "right" in settings.get("conv", name)
        self.shift = None
        make = Initializer(0)
        if "skip_connection" in settings:
            filters = shape["conv_input.conv.weight_v"][0]
            self.layer: Any = GatedResnet("block", filters, make, right, settings["skip_connection"])
            parts = {"conv_input.conv": self.layer.conv_input, "conv_out.conv": self.layer.conv_out}
            if self.layer.nin_skip is not None:
                parts["nin_skip.lin_a"] = self.layer.nin_skip
        elif "lin_a.weight_v" in shape:
            outputs, inputs = shape["lin_a.weight_v"]
            self.layer = Pointwise("block", inputs, outputs, make)
            parts = {"lin_a": self.layer}
        elif "deconv.weight_v" in shape:
            inputs, outputs, *size = shape["deconv.weight_v"]
            self.layer = _Transposed(size, inputs, outputs, right)
            parts = {"deconv": self.layer}
        else:
            outputs, inputs, *size = shape["conv.weight_v"]
            self.layer = Convolution("block", tuple(size), inputs, outputs, make, right, settings["stride"][0])
            parts = {"conv": self.layer}
            if settings.get("shift_output_down"):
                self.shift = pixelcnn.shifted_down
            if settings.get("shift_output_right"):
                self.shift = pixelcnn.shifted_right
        self.parts: dict[str, WeightNormalized] = parts
        for path, part in parts.items():
            for kind, variable in _variables(part):
                variable.assign(to_ours(case[f"{name}/p/{path}.{kind}"]))

    def __call__(self, *inputs: tf.Tensor, **keywords: Any) -> tf.Tensor:
        result = self.layer(*inputs, **keywords)
        return result if self.shift is None else self.shift(result)


class _Transposed(WeightNormalized):
    """A transposed convolution whose numbers of inputs and outputs differ, as those of the network never do."""

    def __init__(self, size: list[int], inputs: int, outputs: int, right: bool):
        super().__init__("block", [*size, outputs, inputs], outputs, 1, Initializer(0))
        self.function = pixelcnn.down_right_shifted_transposed if right else pixelcnn.down_shifted_transposed

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.function(x, self.kernel, self.bias)


def _variables(layer: WeightNormalized) -> list[tuple[str, tf.Variable]]:
    return [("bias", layer.bias), ("weight_g", layer.g), ("weight_v", layer.v)]


def to_ours(array: np.ndarray) -> np.ndarray:
    """A recorded bias, gain or direction as ours."""
    if array.ndim == 1 or array[0].size == 1:
        return array.reshape(-1)
    return array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)


def check_block(case: Case, name: str, settings: dict) -> None:
    block = Block(case, name, settings)
    inputs = [tf.constant(channels_last(case[key])) for key in sorted(case.matching(f"{name}/in[0-9]"))]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        result = block(*inputs)
        score = tf.reduce_sum(result * channels_last(case[f"{name}/cot"]))
    within(case, f"{name}/out", channels_first(result), OUTPUT)
    for index, gradient in enumerate(tape.gradient(score, inputs)):
        within(case, f"{name}/gin{index}", channels_first(gradient), GRADIENT)
    for path, part in block.parts.items():
        key = f"{name}/effective_weight/{path}"
        within(case, key, part.kernel, OUTPUT, expected=to_ours(case[key]))
        for kind, variable in _variables(part):
            key = f"{name}/gp/{path}.{kind}"
            within(case, key, tape.gradient(score, variable), GRADIENT, expected=to_ours(case[key]))


def check_training(case: Case) -> None:
    """A block in training mode, with its dropout mask."""
    name = "gated_resnet_train"
    filters = case[f"{name}/p/conv_input.conv.weight_v"].shape[0]
    skips = case[f"{name}/p/nin_skip.lin_a.weight_v"].shape[1] // (2 * filters)
    width = case[f"{name}/p/conv_input.conv.weight_v"].shape[3]
    kind = "down_shifted_conv2d" if width == 3 else "down_right_shifted_conv2d"
    block = Block(case, name, {"skip_connection": skips, "conv": kind})
    mask = case[f"{name}/dropout_mask"].astype(np.float32)[:, np.newaxis, np.newaxis, :]
    inputs = [tf.constant(channels_last(case[f"{name}/in{index}"])) for index in range(2)]
    within(case, f"{name}/out", channels_first(block(*inputs, mask=tf.constant(mask))), OUTPUT)
