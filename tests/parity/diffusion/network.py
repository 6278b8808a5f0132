"""Recorded parts and passes of networks, the presets, and the names and shapes of their tensors."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.ops.group_norm import EPSILON, group_norm
from tfgen.systems.diffusion import published, resizing, unet
from tfgen.systems.diffusion.architecture import UNetShape, parameter_count, unet_shape
from tfgen.systems.diffusion.unet import UNet

# Advised in the description of the recordings.
PARTS, EMBEDDING = 1e-5, 1e-5
FORWARD_RELATIVE, FORWARD_OF_LARGEST = 1e-4, 2e-5
GRADIENT_RELATIVE, GRADIENT_OF_LARGEST, GRADIENT_OF_ALL = 1e-3, 1e-4, 1e-6
NO_GRADIENT, NO_GRADIENT_ALLOWED = 1e-6, 1e-5  # of the largest norm
HALF_OF_LARGEST = 2e-2
PRESET_RELATIVE, PRESET_OF_LARGEST = 2e-4, 1e-4

# Names of the recordings that are not those of `UNetShape`.
_RENAMED = {"model_channels": "width", "attention_resolutions": "attention_rates", "use_checkpoint": "recompute"}
_OF_THE_RECORDING = ("model", "batch", "height", "width", "low_res", "num_parameters", "mode")
# Flags that say nothing about the network.
_OF_THE_PROCESS = (
    "sigma_small", "small_size", "diffusion_steps", "noise_schedule", "timestep_respacing", "use_kl", "predict_xstart",
    "rescale_timesteps", "rescale_learned_sigmas",
)  # fmt: skip


def channels_last(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


def channels_first(tensor: tf.Tensor) -> np.ndarray:
    return np.asarray(tensor).transpose(0, 3, 1, 2)


def within(
    case: Case, name: str, actual: Any, relative: float, absolute: float | np.ndarray, expected: Any = None
) -> None:
    """|actual - expected| <= absolute + relative |expected|, as one number."""
    wanted = np.asarray(case[name] if expected is None else expected, np.float64)
    got = np.asarray(actual, np.float64)
    if got.shape != wanted.shape:
        case.close(name, got, 1.0, expected=wanted)
        return
    allowed = np.maximum(absolute + relative * np.abs(wanted), np.finfo(np.float32).tiny)
    case.close(name, np.abs(got - wanted) / allowed, 1.0, expected=np.zeros_like(wanted))


def probe(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The standard normal array that the recordings derive from the name of a tensor."""
    generator = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    return generator.standard_normal(math.prod(shape)).astype(np.float32).reshape(shape)


def summary(name: str, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(L2 norm, sum, dot with `probe`) and the first 8 entries of an array in the original's layout."""
    wide = array.astype(np.float64)
    stats = [np.sqrt(np.sum(wide**2)), wide.sum(), np.sum(wide * probe(name, array.shape))]
    head = np.zeros(8, np.float32)
    head[: min(8, array.size)] = array.reshape(-1)[:8]
    return np.array(stats), head


# Parts -----------------------------------------------------------------------------------------------------


@checker("diffusion", "nn_small*.npz")
def check_parts(case: Case) -> None:
    case.json("config")  # a note
    check_embeddings(case)
    check_group_norm(case)
    for name in case.matching("attn*_qkv"):
        stem = name.removesuffix("_qkv")
        attended = unet.qkv_attention(tf.constant(case[name].transpose(0, 2, 1)), int(stem.removeprefix("attn")))
        within(case, f"{stem}_out", np.asarray(attended).transpose(0, 2, 1), PARTS, PARTS)
    check_resampling(case)
    for prefix, resize in (("bil", resizing.bilinear), ("area", resizing.area)):
        for name in case.matching(f"{prefix}_*_x"):
            recorded = f"{name.removesuffix('_x')}_out"
            resized = resize(tf.constant(channels_last(case[name])), *case[recorded].shape[2:])
            within(case, recorded, channels_first(resized), PARTS, PARTS)
    case.equal("u8_out", resizing.to_uint8(tf.constant(case["u8_x"])))


def check_embeddings(case: Case) -> None:
    for timesteps in case.matching("emb*_t"):
        stem, t = timesteps.removesuffix("_t"), case[timesteps].astype(np.float32)
        for name in case.matching(f"{stem}_*"):
            width = name.removeprefix(f"{stem}_")
            if width.isdecimal():
                embedding = unet.timestep_embedding(tf.constant(case[timesteps]), int(width))
                # A frequency that differs in its last bit turns the angle by that bit times t.
                turned = np.zeros([len(t), int(width)])
                frequencies = f"emb_freqs_{width}"
                if frequencies in case:
                    ours = unet.timestep_frequencies(int(width))
                    difference = np.abs(ours.astype(np.float64) - case[frequencies])
                    turned[:, : 2 * len(ours)] = np.abs(t)[:, None] * np.tile(difference, 2)
                within(case, name, embedding, 0.0, EMBEDDING + turned)
    for name in case.matching("emb_freqs_*"):
        frequencies = unet.timestep_frequencies(int(name.removeprefix("emb_freqs_")))
        case.equal(name, frequencies.view(np.int32), expected=case[name].view(np.int32), within=1, except_share=0.25)


def check_group_norm(case: Case) -> None:
    settings = case.json("gn_config")
    case.close("gn_config: eps", EPSILON, 1e-12, expected=settings["eps"])
    weights = tf.constant(case["gn_weight"]), tf.constant(case["gn_bias"])
    x = channels_last(case["gn_x"])
    normalized = group_norm(tf.constant(x), *weights, settings["groups"])
    # Where the variance is tiny beside the mean the recording has rounding errors of its own, and ours are no smaller.
    rounding = np.abs(exact_group_norm(x, *weights, settings["groups"]) - channels_last(case["gn_out"]))
    allowed = PARTS + 3 * rounding.max(axis=(1, 2, 3), keepdims=True)
    within(case, "gn_out", channels_first(normalized), PARTS, allowed)


def exact_group_norm(x: np.ndarray, scale: tf.Tensor, shift: tf.Tensor, groups: int) -> np.ndarray:
    """`group_norm` of x [B, H, W, C] in float64."""
    grouped = x.astype(np.float64).reshape(*x.shape[:3], groups, -1)
    centred = grouped - grouped.mean(axis=(1, 2, 4), keepdims=True)
    deviation = np.sqrt(np.mean(centred**2, axis=(1, 2, 4), keepdims=True) + EPSILON)
    return (centred / deviation).reshape(x.shape) * np.asarray(scale) + np.asarray(shift)


def check_resampling(case: Case) -> None:
    x = tf.constant(channels_last(case["rs_x"]))
    down, up = (
        [tf.constant(published.to_ours(case[f"rs_{way}_weight"], "convolution")), tf.constant(case[f"rs_{way}_bias"])]
        for way in ("down", "up")
    )
    odd = tf.constant(channels_last(case["rs_odd_x"]))
    for name, actual in {
        "rs_down_out": unet.convolution(x, *down, stride=2),
        "rs_odd_down_out": unet.convolution(odd, *down, stride=2),
        "rs_up_out": unet.convolution(unet.enlarged(x), *up),
        "rs_pool_out": unet.halved(x),
        "rs_nearest_out": unet.enlarged(x),
    }.items():
        within(case, name, channels_first(actual), PARTS, PARTS)


# Networks --------------------------------------------------------------------------------------------------


def recorded_shape(settings: Mapping[str, Any], **changes: Any) -> UNetShape:
    """The network that `config` of a recording describes."""
    given = {name: value for name, value in settings.items() if name not in _OF_THE_RECORDING and value is not None}
    renamed = {_RENAMED.get(name, name): value for name, value in given.items()}
    return UNetShape(**(renamed | {"low_res": settings.get("model") == "SuperResModel"} | changes))


def load_recorded(network: UNet, case: Case) -> UNet:
    arrays = {name: array.astype(np.float32) for name, array in case.under("param/").items()}
    published.load_arrays(network, arrays, where=case.path.name)
    return network


def recorded_network(case: Case) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The network of a recording with its weights: (x float32 [B, H, W, C], timesteps [B]) -> output [B, H, W, out]."""
    return load_recorded(UNet(recorded_shape(case.json("config")), seed=None), case)


@checker("diffusion", "unet_*.npz")
def check_network(case: Case) -> None:
    settings = case.json("config")
    network = load_recorded(UNet(recorded_shape(settings), seed=None), case)
    case.equal("config: num_parameters", parameter_count(network.shape), expected=settings["num_parameters"])
    x, timesteps = tf.constant(channels_last(case["x"])), tf.constant(case["t"])
    conditions = {}
    if "y" in case:
        conditions["labels"] = tf.constant(case["y"])
    if "low_res" in case:
        conditions["low_res"] = tf.constant(channels_last(case["low_res"]))
        enlarged = resizing.bilinear(conditions["low_res"], x.shape[1], x.shape[2])
        forward(case, "low_res_up", channels_first(enlarged))

    embedding = unet.timestep_embedding(timesteps, network.shape.width)
    last_bit = np.abs(case["t"])[:, np.newaxis] * np.finfo(np.float32).epsneg  # of a frequency, which is at most 1
    within(case, "t_emb", embedding, 0.0, EMBEDDING + last_bit)
    forward(case, "emb", network.embed(timesteps, conditions.get("labels")))
    outputs = network.block_outputs(x, timesteps, **conditions)
    for name in case.matching("act/*"):
        forward(case, name, channels_first(outputs[name.removeprefix("act/")][:1]))
    out = channels_first(network(x, timesteps, **conditions))
    forward(case, "out", out)
    error = np.abs(out - case["out"]).max() / np.abs(case["out"]).max()
    # Beyond the rounding of the original itself, which float64 tells.
    case.close("f32_vs_f64_relerr", error, float(case["f32_vs_f64_relerr"]) + FORWARD_OF_LARGEST, expected=0.0)
    if "out_fp16" in case:
        half = load_recorded(UNet(recorded_shape(settings, dtype="float16"), seed=None), case)
        largest = float(np.abs(case["out_fp16"]).max())
        case.close("out_fp16", channels_first(half(x, timesteps, **conditions)), HALF_OF_LARGEST * largest)
    check_gradients(case, network, x, timesteps, conditions)


def forward(case: Case, name: str, actual: Any) -> None:
    within(case, name, actual, FORWARD_RELATIVE, FORWARD_OF_LARGEST * np.abs(case[name]).max())


def check_gradients(
    case: Case, network: UNet, x: tf.Tensor, timesteps: tf.Tensor, conditions: dict[str, tf.Tensor]
) -> None:
    """Of the sum of outputs times the cotangent, by the image and by every variable."""
    named = published.variables(network)
    cotangent = tf.constant(channels_last(case["cotangent"]))

    @tf.function
    def differentiated() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(network(x, timesteps, **conditions) * cotangent)
        by_x, gradients = tape.gradient(total, (x, [item.variable for item in named]))
        return by_x, [tf.convert_to_tensor(gradient) for gradient in gradients]

    by_x, gradients = differentiated()
    arrays = {
        item.name: published.to_original(gradient.numpy(), item.layout)
        for item, gradient in zip(named, gradients, strict=True)
    }
    largest = max(float(np.abs(array).max()) for array in arrays.values())

    def compare(name: str, actual: np.ndarray, size: float, expected: Any = None) -> None:
        allowed = GRADIENT_OF_LARGEST * size + GRADIENT_OF_ALL * largest
        within(case, name, actual, GRADIENT_RELATIVE, allowed, expected)

    compare("grad_x", channels_first(by_x), float(np.abs(case["grad_x"]).max()))
    for name in case.matching("grad/*"):
        compare(name, arrays[name.removeprefix("grad/")], float(np.abs(case[name]).max()))
    names = [str(name) for name in case["gradsum/names"]]
    case.equal("gradsum/names", [item.name for item in named], expected=names)
    largest_norm = case["gradsum/stats"][:, 0].max()
    for name, recorded, recorded_head in zip(names, case["gradsum/stats"], case["gradsum/head"], strict=True):
        stats, head = summary(name, arrays[name])
        if recorded[0] < NO_GRADIENT * largest_norm:  # mathematically zero: rounding was recorded
            case.close(f"gradsum of {name}: none", stats[0] / largest_norm, NO_GRADIENT_ALLOWED, expected=0.0)
            continue
        compare_stats(case, f"gradsum/stats of {name}", stats, recorded, arrays[name].size, GRADIENT_RELATIVE)
        compare(f"gradsum/head of {name}", head, float(np.abs(arrays[name]).max()), expected=recorded_head)


def compare_stats(
    case: Case, name: str, actual: np.ndarray, recorded: np.ndarray, entries: int, relative: float
) -> None:
    """A row of `summary`: the norm by its own size, sum and dot product by what rounding of that size makes of them."""
    allowed = relative * recorded[0] * np.array([1.0, np.sqrt(entries), np.sqrt(entries)])
    within(case, name, actual, 0.0, allowed, expected=recorded)


# Presets ---------------------------------------------------------------------------------------------------


def shape_from_flags(kind: str, flags: Mapping[str, Any]) -> UNetShape:
    """The network of flags that differ from the defaults of the image ("image") or super-resolution ("sr") programs."""
    low_res = {"image": False, "sr": True}[kind]
    given = {name: value for name, value in flags.items() if name not in _OF_THE_PROCESS}
    size = given.pop("large_size", 256) if low_res else given.pop("image_size", 64)
    return unet_shape(image_size=size, low_res=low_res, **given)


def recipe_weights(named: list[published.Named]) -> dict[str, np.ndarray]:
    """The weights that the recordings describe instead of storing them."""
    arrays = {}
    for item in named:
        x = probe(item.name, item.shape)
        if item.name == "label_emb.weight":
            arrays[item.name] = np.float32(0.5) * x
        elif len(item.shape) == 1 and item.name.endswith(".weight"):
            arrays[item.name] = np.float32(1) + np.float32(0.1) * x
        elif len(item.shape) == 1:
            arrays[item.name] = np.float32(0.05) * x
        else:
            arrays[item.name] = x * np.float32(0.7 / np.sqrt(np.prod(item.shape[1:])))
    return arrays


@checker("diffusion", "unet_presets*.npz")
def check_presets(case: Case) -> None:
    for name, preset in case.json("config")["presets"].items():
        shape = shape_from_flags(preset["kind"], preset["overrides"])
        network = UNet(shape, seed=None)
        named = published.variables(network)
        case.equal(f"{name}: num_parameters", parameter_count(shape), expected=preset["num_parameters"])
        case.equal(f"{name}: num_tensors", len(named), expected=preset["num_tensors"])
        published.load_arrays(network, recipe_weights(named), where="the recipe")
        x = tf.constant(channels_last(case[f"{name}/x"]))
        case.equal(f"{name}: hw", x.shape[1:3], expected=preset["hw"])
        conditions = {}
        if f"{name}/y" in case:
            conditions["labels"] = tf.constant(case[f"{name}/y"])
        if f"{name}/low_res" in case:
            conditions["low_res"] = tf.constant(channels_last(case[f"{name}/low_res"]))
        timesteps = tf.constant(case[f"{name}/t"])
        outputs = network.block_outputs(x, timesteps, **conditions)
        recorded = case[f"{name}/act_norm_mean"]
        actual = [[np.linalg.norm(np.ravel(h)), np.mean(h, dtype=np.float64)] for h in outputs.values()]
        allowed = PRESET_OF_LARGEST * np.abs(recorded).max(axis=0)
        within(case, f"{name}/act_norm_mean", actual, PRESET_RELATIVE, allowed)
        allowed = PRESET_OF_LARGEST * np.abs(case[f"{name}/out"]).max()
        out = channels_first(network.head(list(outputs.values())[-1]))
        within(case, f"{name}/out", out, PRESET_RELATIVE, allowed)


@checker("diffusion", "preset_state_dicts*.npz")
def check_state_dicts(case: Case) -> None:
    """Names, order and shapes of the tensors of every preset."""
    case.json("config")  # a note
    built: dict[UNetShape, list[tuple[str, tuple[int, ...]]]] = {}
    for name in case.names:
        if name == "config":
            continue
        recorded = case.json(name)
        shape = shape_from_flags(recorded["kind"], recorded["config"])
        if shape not in built:
            built[shape] = [(item.name, item.shape) for item in published.variables(UNet(shape, seed=None))]
        case.equal(f"{name}: num_parameters", parameter_count(shape), expected=recorded["num_parameters"])
        case.equal(f"{name}: names", [n for n, _ in built[shape]], expected=[n for n, _ in recorded["state_dict"]])
        shapes = [str(list(s)) for _, s in recorded["state_dict"]]
        case.equal(f"{name}: shapes", [str(list(s)) for _, s in built[shape]], expected=shapes)
