"""Recorded parts: grammar, widths, blocks, GELU, KL, schedules, averages, statistics of the log, initial weights."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tests.parity.vdvae import gaussian
from tests.parity.vdvae.model import channels_first, channels_last, close, recorded_system
from tests.parity.vdvae.train import compare_window
from tfgen.ops.gelu import gelu
from tfgen.systems.vdvae import network, pictures, published
from tfgen.systems.vdvae.architecture import EncoderBlock, parse_blocks, parse_widths
from tfgen.training.ema import Ema
from tfgen.training.schedules import LinearWarmup

UNITS, AVERAGE = 1e-5, 1e-7


@checker("vdvae", "units*.npz")
def check(case: Case) -> None:
    case.json("config")  # case name and seed
    check_grammar(case)
    gaussian.check(case)
    for name in case.matching("block*_args"):
        check_block(case, name.removesuffix("_args"))
    close(case, "gelu_y", gelu(tf.constant(case["gelu_x"])), UNITS)
    check_shapes(case)
    steps = case["warmup_iters"]
    for name in case.matching("warmup*_factor"):
        schedule = LinearWarmup(1.0, float(re.sub(r"\D", "", name)))
        close(case, name, schedule(steps.astype(np.int64)), UNITS)
    check_averages(case)
    records = case.json("accstats_in")
    for name in case.matching("accstats_out_*"):
        window = int(name.rsplit("_", 1)[1])
        compare_window(case, name, records[-window:], case.json(name))


def check_grammar(case: Case) -> None:
    for text, blocks in case.json("parse_layer_string").items():
        parsed = [[token.resolution, token.second] for token in parse_blocks(text)]
        case.equal(f"parse_layer_string {text}", str(parsed), expected=str(blocks))
    for text, widths in case.json("width_settings").items():
        width, _, custom = text.partition("|")
        parsed_widths = parse_widths(int(width), custom)
        actual = [parsed_widths[int(resolution)] for resolution in widths]
        case.equal(f"width_settings {text}", actual, expected=list(widths.values()))
    for text, points in case.json("lv_points").items():
        rows, layers = map(int, text.split(","))
        actual = np.asarray(pictures.partial_points(rows, layers), np.int64)
        case.equal(f"lv_points {text}", actual, expected=np.asarray(points, np.int64))


def check_block(case: Case, name: str) -> None:
    arguments, state = case.json(f"{name}_args"), case.under(f"{name}_state/")
    weights = []
    for part in ("c1", "c2", "c3", "c4"):
        weights += [
            tf.constant(published.to_ours(state[f"{part}.weight"], "kernel")),
            tf.constant(state[f"{part}.bias"]),
        ]
    x = tf.constant(channels_last(case[f"{name}_x"]))
    with tf.GradientTape() as tape:
        tape.watch(x)
        if arguments["residual"]:
            y = network.residual_block(x, weights, arguments["down_rate"] or 1)
        else:
            y = network.bottleneck(x, weights)
        # The recorded gradient is of the sum of output times cos(index), indices in channels-first order.
        cosines = np.cos(np.arange(np.prod(y.shape), dtype=np.float32)).reshape(channels_first(y).shape)
        total = tf.reduce_sum(y * channels_last(cosines))
    close(case, f"{name}_out", channels_first(y), UNITS)
    close(case, f"{name}_grad_x", channels_first(tape.gradient(total, x)), UNITS)


def check_shapes(case: Case) -> None:
    """Padding of channels, enlargement of a mixed-in state, pooling."""
    for name in case.matching("pad_out*"):
        width = int(name.removeprefix("pad_out"))
        x = case["pad_x"]
        shape = EncoderBlock(x.shape[-1], x.shape[1], 1, 1, x.shape[-1], width)
        close(case, name, channels_first(network.padded(tf.constant(channels_last(x)), shape)), UNITS)
    for name in case.matching("mixin_out_*"):
        factor, width = map(int, re.findall(r"\d+", name))
        enlarged = network.enlarged(tf.constant(channels_last(case["mixin_x"]))[..., :width], factor)
        close(case, name, channels_first(enlarged), UNITS)
    for name in case.matching("avgpool_out_k*"):
        factor = int(name.removeprefix("avgpool_out_k"))
        pooled = network.pooled(tf.constant(channels_last(case["avgpool_x"])), factor)
        close(case, name, channels_first(pooled), UNITS)


def check_averages(case: Case) -> None:
    for name in case.matching("ema_*_out"):
        variable = tf.Variable(case["ema_before"])
        average = Ema(float(name.split("_")[1]), rounded_rate=True)
        average.build([variable])
        variable.assign(case["ema_model"])
        average.update()
        case.close(name, average.averages[0], AVERAGE)


@checker("vdvae", "init_stats*.npz")
def check_initial_weights(case: Case) -> None:
    """Bounds of every tensor, and the standard deviation of those that are large enough to tell."""
    system = recorded_system(case)
    case.equal("n_enc_blocks", len(system.architecture.encoder))
    case.equal("n_dec_blocks", len(system.architecture.decoder))
    named = published.variables(system.network)
    case.equal("names", [item.name for item in named])
    case.equal("shapes", [str(list(item.shape)) for item in named])
    for item, (least, largest, mean, deviation) in zip(named, case["stats_min_max_mean_std"], strict=True):
        values = np.asarray(item.variable)
        if deviation == 0:
            case.equal(f"{item.name}: constant", [values.min(), values.max()], expected=[least, largest])
            continue
        inputs = np.prod(item.shape[1:])
        scale = 1.0
        if re.search(r"encoder\.enc_blocks\.\d+\.c4\.weight", item.name):
            scale = len(system.architecture.encoder) ** -0.5
        elif re.search(r"(resnet\.c4|z_proj)\.weight", item.name):
            scale = len(system.architecture.decoder) ** -0.5
        bound = scale / np.sqrt(inputs)
        for whose, extreme in (("ours", np.abs(values).max()), ("recorded", max(-least, largest))):
            excess = max(float(extreme) / bound - 1, 0.0)
            case.close(f"{item.name}: {whose} beyond the bound", excess, 1e-5, expected=0.0)
        if values.size > 200:
            case.close(f"{item.name}: standard deviation", values.std() / deviation, 0.2, expected=1.0)
            case.close(f"{item.name}: mean", values.mean() - mean, 7 * deviation / np.sqrt(values.size), expected=0.0)
