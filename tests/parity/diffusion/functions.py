"""Recorded functions of the process and terms of the likelihood, with a recorded output in place of a network's."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.likelihood import discretized_gaussian, gaussian
from tfgen.systems.diffusion import noise_schedules
from tfgen.systems.diffusion.process import LossType, MeanType, Process, VarianceType

FUNCTIONS = (1e-5, 1e-6)  # relative, and absolute in units of the largest value
BITS = (2e-3, 2e-6)  # relative, and absolute in bits per dimension: terms of 1e-7 are cancellation
TAILS = 0.1  # relative, at t = 0 where the recorded mean is far from the data: tails of the float32 likelihood
GRADIENT = (1e-3, 1e-5)
FAR_MEANS = ("xstart", "xprev")
RESPACED_STEPS = 10  # of the process whose timesteps model_t/respaced holds: its last step is number 9


def channels_last(array: np.ndarray) -> np.ndarray:
    """[..., C, H, W] to [..., H, W, C]."""
    return np.moveaxis(np.asarray(array), -3, -1)


def channels_first(array: tf.Tensor) -> np.ndarray:
    """[..., H, W, C] to [..., C, H, W]."""
    return np.moveaxis(np.asarray(array), -1, -3)


def within(case: Case, name: str, actual, relative, absolute, where: np.ndarray | None = None) -> None:
    """|actual - recorded| <= absolute + relative |recorded|; the report shows the error as a share of that."""
    recorded = np.asarray(case[name], np.float64)
    actual = np.broadcast_to(np.asarray(actual, np.float64), recorded.shape)
    allowed = absolute + relative * np.abs(recorded)
    case.close(
        f"{name}: of tolerance", (actual - recorded) / allowed, 1.0, expected=np.zeros_like(recorded), where=where
    )


def close(case: Case, name: str, actual, where: np.ndarray | None = None) -> None:
    """Images, channels last, or numbers within `FUNCTIONS`."""
    recorded = case[name]
    if recorded.ndim >= 4:
        actual = channels_first(actual)
    within(case, name, actual, FUNCTIONS[0], FUNCTIONS[1] * np.abs(recorded).max(), where)


def bits(case: Case, name: str, actual, t: np.ndarray, far: bool, factor: float = 1.0) -> None:
    """Terms of the variational bound, [B], times a factor."""
    relative = np.where((t == 0) & far, TAILS, BITS[0])
    within(case, name, actual, relative, BITS[1] * factor)


class Recorded:
    """The inputs of a file, channels last, and processes of its types."""

    def __init__(self, case: Case):
        self.case = case
        self.config = case.json("config")
        self.betas = noise_schedules.betas(self.config["schedule"], self.config["steps"])
        self.t = case["t"]
        self.x_start, self.noise, self.mean_output, self.variance_output = (
            tf.constant(channels_last(case[name])) for name in ("x_start", "noise", "model_mean_out", "model_var_out")
        )

    def process(self, mean: str = "eps", variance: str = "fixedsmall", loss: str = "mse") -> Process:
        """Of types as the names of arrays spell them."""
        kinds = [
            kind[self.config[table][name].split(".")[-1]]
            for kind, table, name in (
                (MeanType, "mean_types", mean),
                (VarianceType, "var_types", variance),
                (LossType, "loss_types", loss),
            )
        ]
        return Process.create(self.betas, *kinds)

    def output(self, process: Process) -> tf.Tensor:
        """What the recorded network gave for a process."""
        if not process.variance_type.learned:
            return self.mean_output
        offset = 3.0 if process.variance_type is VarianceType.LEARNED else 0.0
        return tf.concat([self.mean_output, self.variance_output - offset], axis=-1)


@checker("diffusion", "qp_functions*.npz")
def check(case: Case) -> None:
    recorded = Recorded(case)
    x_t = check_forward(case, recorded)
    for name in case.matching("p/*/*/clip?/*"):
        _, mean, variance, clip, key = name.split("/")
        process = recorded.process(mean, variance)
        prediction = process.p_mean_variance(recorded.output(process), x_t, recorded.t, clip == "clip1")
        close(case, name, getattr(prediction, key))
    for name in case.matching("vb/*/*/clip?"):
        _, mean, variance, clip = name.split("/")
        process = recorded.process(mean, variance)
        term, _ = process.variational_bound_term(
            recorded.output(process), recorded.x_start, x_t, recorded.t, clip == "clip1"
        )
        bits(case, name, term, recorded.t, mean in FAR_MEANS)
    for prefix in sorted({name.rsplit("/", 1)[0] for name in case.matching("loss/*/*/*/*")}):
        check_losses(case, recorded, prefix, x_t)
    check_denoised_fn(case, recorded, x_t)
    check_likelihoods(case)
    check_network_timesteps(case, recorded)
    for name in case.matching("respaced*/t"):
        check_respaced(case, recorded, name.removesuffix("/t"))


def check_forward(case: Case, recorded: Recorded) -> tf.Tensor:
    """q(x_t | x_0) and its posterior, x_0 and noise from each other. Returns x_t."""
    process, t, x_start = recorded.process(), recorded.t, recorded.x_start
    x_t = process.q_sample(x_start, t, recorded.noise)
    close(case, "q_sample", x_t)
    for prefix, moments in (
        ("q_mean_variance", process.q_mean_variance(x_start, t)),
        ("q_posterior", process.q_posterior_mean_variance(x_start, x_t, t)),
    ):
        for key, value in zip(("mean", "variance", "log_variance"), moments, strict=True):
            close(case, f"{prefix}/{key}", value)
    for mean in ("eps", "xprev"):
        prediction = recorded.process(mean).p_mean_variance(recorded.mean_output, x_t, t, clip_denoised=False)
        close(case, f"pred_xstart_from_{mean}", prediction.pred_xstart)
    close(case, "pred_eps_from_xstart", process.eps_from_xstart(x_t, t, recorded.mean_output))
    bits(case, "prior_bpd", process.prior_bits_per_dim(x_start), t, far=False)
    return x_t


def check_losses(case: Case, recorded: Recorded, prefix: str, x_t: tf.Tensor) -> None:
    _, mean, variance, loss = prefix.split("/")
    process = recorded.process(mean, variance, loss)
    output = recorded.output(process)
    with tf.GradientTape() as tape:
        tape.watch(output)
        losses = process.training_losses(output, recorded.x_start, x_t, recorded.t, recorded.noise)
        total = tf.reduce_sum(losses["loss"])
    compare_losses(case, prefix, losses, process, recorded.t, mean in FAR_MEANS)
    name = f"{prefix}/grad_out"
    if name in case:
        gradient = channels_first(tape.gradient(total, output))
        tails = (recorded.t == 0) & (mean in FAR_MEANS)
        largest = np.abs(case[name]).max()
        relative = np.where(tails, TAILS, GRADIENT[0])[:, np.newaxis, np.newaxis, np.newaxis]
        absolute = np.where(tails, TAILS, GRADIENT[1])[:, np.newaxis, np.newaxis, np.newaxis] * largest
        within(case, name, gradient, relative, absolute)


def compare_losses(
    case: Case, prefix: str, losses: dict[str, tf.Tensor], process: Process, t: np.ndarray, far: bool
) -> None:
    keys = {name.rsplit("/", 1)[1] for name in case.matching(f"{prefix}/*")} - {"grad_out"}
    case.equal(f"{prefix}: keys", " ".join(sorted(losses)), expected=" ".join(sorted(keys)))
    factor = {LossType.RESCALED_MSE: process.steps / 1000, LossType.RESCALED_KL: process.steps}
    for key, value in losses.items():
        if key == "mse":
            close(case, f"{prefix}/{key}", value)
        else:
            bits(case, f"{prefix}/{key}", value, t, far, factor.get(process.loss_type, 1.0))


def check_denoised_fn(case: Case, recorded: Recorded, x_t: tf.Tensor) -> None:
    process = recorded.process()
    prediction = process.p_mean_variance(
        recorded.output(process), x_t, recorded.t, clip_denoised=True, denoised_fn=lambda x: 0.5 * x + 0.1
    )
    for name in case.matching("denoised_fn/*"):
        close(case, name, getattr(prediction, name.split("/")[1]))


def check_likelihoods(case: Case) -> None:
    close(case, "cdf_out", discretized_gaussian.approximate_normal_cdf(tf.constant(case["cdf_x"])))
    x, log_scale = tf.constant(case["dgll_x"]), tf.constant(case["dgll_log_scale"])
    for suffix, tolerance in (("", 2e-3), ("2", 1e-3)):
        name = f"dgll_out{suffix}"
        actual = discretized_gaussian.log_prob(x, tf.constant(case[f"dgll_mean{suffix}"]), log_scale)
        rounding = case[name] < -12  # of tanh in float32, and nothing else
        case.close(name, actual, tolerance, where=~rounding)
        case.equal(f"{name}: tails are tails", (actual.numpy() < -10)[rounding].all(), expected=True)
    arguments = [tf.constant(case[f"kl_{name}"]) for name in ("mean1", "logvar1", "mean2", "logvar2")]
    close(case, "kl_out", gaussian.kl_divergence_of_log_variances(*arguments))
    close(case, "kl_out_std", gaussian.kl_divergence_of_log_variances(*arguments[:2], 0.0, 0.0))


def check_network_timesteps(case: Case, recorded: Recorded) -> None:
    steps = tf.constant([0, 3, 9], tf.int64)
    for name in case.matching("model_t/*"):
        process = Process.create(
            recorded.betas, MeanType.EPSILON, VarianceType.FIXED_SMALL, LossType.MSE, "rescaled" in name
        )
        if "respaced" in name:
            process = process.respaced(str(RESPACED_STEPS))
        told = process.network_timesteps(steps)
        case.equal(f"{name}: dtype", told.dtype.name, expected=case[name].dtype.name)
        case.close(name, told, 0.0)


def check_respaced(case: Case, recorded: Recorded, prefix: str) -> None:
    """Losses of a respaced process; the configuration says its types in words."""
    text, t = re.search(r"\d+$", prefix).group(), case[f"{prefix}/t"]
    for kind, words in recorded.config[prefix].items():
        named = [word.strip().upper().replace(" ", "_") for word in words.split(",")]
        mean, variance, loss = (
            next((enumeration[name] for name in named if name in enumeration.__members__), default)
            for enumeration, default in (
                (MeanType, MeanType.EPSILON),
                (VarianceType, None),
                (LossType, None),
            )
        )
        process = Process.create(recorded.betas, mean, variance, loss).respaced(text)
        x_t = process.q_sample(recorded.x_start, t, recorded.noise)
        losses = process.training_losses(recorded.output(process), recorded.x_start, x_t, t, recorded.noise)
        compare_losses(case, f"{prefix}/{kind}", losses, process, t, far=mean is not MeanType.EPSILON)
