"""Recorded passes of whole networks, and the statistics of initial weights."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.data.source import ImageSpec
from tfgen.systems.smoothing import data, published
from tfgen.systems.smoothing.config import Config, Stage
from tfgen.systems.smoothing.denoise import denoise
from tfgen.systems.smoothing.pixelcnn import PixelCNN, below_zeros, right_of_zeros
from tfgen.systems.smoothing.system import DistributionSmoothing

# Advised in the description of the recordings.
OUTPUT, ACTIVATION, LOSS, TEACHER_FORCED = 2e-5, 1e-5, 1e-5, 2e-5
GRADIENT_RELATIVE, GRADIENT_ABSOLUTE = 1e-4, 1e-5
DENOISED, SCORE_RELATIVE, SCORE_ABSOLUTE, FULL = 2e-5, 1e-4, 2e-4, 1e-3
EXACT = 1e-6

# What the original's first layers do after their convolutions.
_SHIFTS = {"u_init": below_zeros, "ul_init.0": below_zeros, "ul_init.1": right_of_zeros}


def channels_last(array: np.ndarray) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C]."""
    return np.asarray(array).transpose(0, 2, 3, 1)


def channels_first(array) -> np.ndarray:
    """[B, H, W, C] -> [B, C, H, W]."""
    return np.asarray(array).transpose(0, 3, 1, 2)


def recorded_network(case: Case, prefix: str = "sd/") -> PixelCNN:
    """The network that a file describes, with the weights under `prefix`."""
    config = case.json("config")
    network = PixelCNN(
        config["input_channels"], config["nr_filters"], config["nr_resnet"], config["nr_logistic_mix"], seed=0
    )
    published.load_arrays(network, case.under(prefix))
    return network


def recorded_system(case: Case, stage: Stage, size: tuple[int, int]) -> DistributionSmoothing:
    """The system that a file describes; `size` is that of its images."""
    recorded = case.json("config")
    config = Config(
        runner=stage.value,
        noise=recorded["noise"],
        clean_noise=recorded.get("clean_noise") or Config.clean_noise,
        **{name: recorded[name] for name in ("nr_resnet", "nr_filters", "nr_logistic_mix")},
        **{name: recorded[name] for name in ("lr", "lr_decay") if name in recorded},
        batch_size=recorded.get("batch") or recorded["batch_size"],
        ema="ema_rate" in recorded or recorded.get("model", {}).get("ema", False),
        ema_rate=recorded.get("ema_rate") or recorded.get("model", {}).get("ema_rate", Config.ema_rate),
    )
    return DistributionSmoothing(config, ImageSpec(*size, recorded["input_channels"]))


def watched(network: PixelCNN) -> dict[str, tf.Tensor]:
    """From now on keeps the output of every layer, [B, C, H, W] by the original's name. For calls outside of graphs."""
    outputs: dict[str, tf.Tensor] = {}

    def watch(layer, name: str) -> None:
        call = layer.call

        def kept(*arguments, **keywords):
            result = call(*arguments, **keywords)
            outputs[name] = channels_first(_SHIFTS.get(name, tf.identity)(result))
            return result

        layer.call = kept

    for block in network.resnets:
        watch(block, block.path.replace("/", "."))
        for part in ("conv_input", "nin_skip", "conv_out"):
            if getattr(block, part) is not None:
                watch(getattr(block, part), f"{block.path.replace('/', '.')}.{part}")
    for name in ("downsize_u_stream", "downsize_ul_stream", "upsize_u_stream", "upsize_ul_stream", "ul_init"):
        for index, layer in enumerate(getattr(network, name)):
            watch(layer, f"{name}.{index}")
    watch(network.u_init, "u_init")
    watch(network.nin_out, "nin_out")
    return outputs


def gradient_close(case: Case, name: str, actual, expected: np.ndarray) -> None:
    """Largest difference, compared with 1e-4 of the largest entry and 1e-5."""
    tolerance = GRADIENT_RELATIVE * float(np.abs(expected).max(initial=0.0)) + GRADIENT_ABSOLUTE
    case.close(name, actual, tolerance, expected=expected)


@checker("smoothing", "model_*.npz")
def check_model(case: Case) -> None:
    config = case.json("config")
    stage = Stage.REVERSE if config["conditioned"] else Stage.SMOOTHED
    system = recorded_system(case, stage, (config["height"], config["width"]))
    network = system.network
    published.load_arrays(network, case.under("sd/"))

    scaled = data.scaled(channels_last(case["image_u8"]))
    noisy = scaled + config["noise"] * channels_last(case["noise_draw"])
    inputs, target = noisy, noisy
    if stage is Stage.REVERSE:
        target = scaled + config["clean_noise"] * channels_last(case["clean_noise_draw"])
        inputs = tf.concat([noisy, target], axis=1)
    case.close("x", channels_first(inputs), EXACT)
    case.close("target", channels_first(target), EXACT)

    outputs = watched(network)
    x, target = tf.constant(channels_last(case["x"])), tf.constant(channels_last(case["target"]))
    whole = channels_first(network(x))
    case.close("out", whole, OUTPUT)
    if "out_f64" in case:
        case.close("out_f64", whole, OUTPUT)
    for name in case.matching("act/*"):
        case.close(name, outputs[name.removeprefix("act/")], ACTIVATION)

    first_row = config["height"] if stage is Stage.REVERSE else 0
    smoothed = x[:, :first_row] if first_row else None
    log_prob = system.log_prob(target, smoothed)
    # Densities of hundreds of nats: a float32 has 7 digits of them.
    case.close("loglik", log_prob, LOSS * max(1.0, float(np.abs(case["loglik"]).max())))
    loss = -tf.reduce_sum(log_prob)
    case.close("loss", loss, LOSS, relative=True)
    if "loss_f64" in case:
        case.close("loss_f64", loss, LOSS, relative=True)
    size = case["target"].size
    case.close("bits_per_dim", float(loss) / (size * math.log(2)), LOSS, relative=True)
    if case.matching("grad/*"):
        check_gradients(case, system, x, target, first_row)


def check_gradients(case: Case, system: DistributionSmoothing, x: tf.Tensor, target: tf.Tensor, first_row: int) -> None:
    network = system.network
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        parameters = network(x, first_row=first_row)
        # The target is another tensor than the input here, so that its gradient is that through the network.
        loss = -tf.reduce_sum(system.density(parameters, target))
    gradient_close(case, "grad_netout", channels_first(tape.gradient(loss, parameters)), case["grad_netout"])
    gradient_close(case, "grad_x_through_net", channels_first(tape.gradient(loss, x)), case["grad_x_through_net"])
    named = published.variables(network)
    for item, gradient in zip(named, tape.gradient(loss, [n.variable for n in named]), strict=True):
        name = f"grad/{item.name}"
        gradient_close(case, name, gradient, item.to_ours(case[name]))


@checker("smoothing", "denoise_*.npz")
def check_denoise(case: Case) -> None:
    config = case.json("config")
    system = recorded_system(case, Stage.SMOOTHED, (config["height"], config["width"]))
    network = system.network
    published.load_arrays(network, case.under("sd/"))
    noisy = tf.constant(channels_last(case["noisy"]))
    case.close("net_out", channels_first(network(noisy)), OUTPUT)
    case.close("loglik", system.log_prob(noisy), LOSS * max(1.0, float(np.abs(case["loglik"]).max())))
    for prefix, through in (("", False), ("optional_full_", True)):
        result = np.asarray(denoise(network, noisy, config["noise"], through_network=through))
        score = channels_first((result - noisy) / config["noise"] ** 2)
        recorded = case[f"{prefix}score"]
        if through:
            tolerance = FULL * float(np.abs(recorded).max())
            case.close(f"{prefix}score", score, tolerance)
            case.close(f"{prefix}denoised", channels_first(result), tolerance * config["noise"] ** 2)
        else:
            case.close(f"{prefix}denoised", channels_first(result), DENOISED)
            error = np.abs(score - recorded) / (SCORE_ABSOLUTE + SCORE_RELATIVE * np.abs(recorded))
            case.close(f"{prefix}score", error, 1.0, expected=np.zeros_like(error))


@checker("smoothing", "init_stats*.npz")
def check_initial_weights(case: Case) -> None:
    config = case.json("config")
    network = PixelCNN(
        config["input_channels"], config["nr_filters"], config["nr_resnet"], config["nr_logistic_mix"], config["seed"]
    )
    named = {item.name: item for item in published.variables(network)}
    rows = case.json("rows_json")
    case.equal("layers", sorted({name.rpartition(".")[0] for name in named}), expected=sorted(r["name"] for r in rows))
    for row in rows:
        layer, bound = row["name"], row["bound"]
        v, g, bias = (named[f"{layer}.{part}"] for part in ("weight_v", "weight_g", "bias"))
        case.equal(f"{layer}: shape of v", v.shape, expected=tuple(row["v_shape"]))
        case.equal(f"{layer}: shape of g", g.shape, expected=tuple(row["g_shape"]))
        for what, variable in (("v", v.variable), ("bias", bias.variable)):
            values = variable.numpy()
            case.equal(
                f"{layer}: {what} within the bound", bool(np.abs(values).max() <= bound * (1 + 1e-6)), expected=True
            )
            # The root mean square of n uniform numbers is off by 0.45 / sqrt(n) of itself; four times that.
            off = np.sqrt(np.mean(np.square(values))) / (bound / math.sqrt(3)) - 1
            case.close(f"{layer}: spread of {what}", off * math.sqrt(values.size), 1.8, expected=np.zeros(()))
        norm = np.sqrt(np.sum(np.square(v.variable.numpy()), axis=tuple(range(v.variable.shape.rank - 1))))
        case.close(f"{layer}: g", g.variable.numpy(), EXACT, expected=norm, relative=True)
