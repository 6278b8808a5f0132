"""Recorded training steps, and recorded checkpoints."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tests.parity.smoothing.network import (
    channels_first,
    channels_last,
    gradient_close,
    recorded_system,
)
from tfgen.systems.smoothing import data, published
from tfgen.systems.smoothing.config import Stage
from tfgen.systems.smoothing.system import DistributionSmoothing
from tfgen.training.optimizers import AdamW
from tfgen.training.state import TrainState

# Advised in the description of the recordings.
PARAMETER, AVERAGE, OUTPUT = (1e-6, 1e-8), (1e-6, 1e-7), 2e-5
# Not advised: the fused operation has 1 - 0.999 in float32, 1.3e-5 off, which its bias correction takes out again.
MOMENT_RELATIVE, MOMENT_ABSOLUTE = 2e-5, 1e-7
CHECKPOINT_OUTPUT, LOSS, OWN_UPDATE_OF_RATE, EXACT = 1e-5, 1e-5, 2.0, 1e-6
# Elements with a small gradient turn with rounding; the others follow the recording to this part of the rate.
LARGE_GRADIENT, LARGE_UPDATE_OF_RATE = 1e-4, 0.02


class Trainer:
    """A system and its state at the start of a recording."""

    def __init__(self, case: Case):
        config = case.json("config")
        stage = Stage.REVERSE if config["conditioned"] else Stage.SMOOTHED
        self.case, self.config = case, config
        self.system = recorded_system(case, stage, (config["height"], config["width"]))
        self.recipe = self.system.recipe(train_size=1000, ranks=1)
        self.state = TrainState(self.system, self.recipe)
        published.load_arrays(self.system.network, case.under("init/"))
        self.averages = self.state.averages[0].averages
        for average, variable in zip(self.averages, self.system.network.trainable_variables, strict=True):
            average.assign(variable)
        self.named = published.variables(self.system.network)


@checker("smoothing", "train_*.npz")
def check(case: Case) -> None:
    trainer = Trainer(case)
    steps = trainer.config["steps"]
    case.equal("param_order", [item.name for item in trainer.named])
    rates = trainer.recipe.learning_rate(tf.constant(np.arange(steps + 1), tf.int64))
    # The schedule's float32 rate, beside the recorded float64 one.
    case.close("lrs", rates, np.finfo(np.float32).eps, relative=True)
    check_steps(case, trainer, steps)
    check_first_update(case, Trainer(case))


def within(case: Case, name: str, actual: np.ndarray, expected: np.ndarray, parts: tuple[float, float]) -> None:
    """A relative and an absolute tolerance as one number."""
    error = np.abs(actual - expected.astype(np.float64)) / (parts[1] + parts[0] * np.abs(expected))
    case.close(name, error, 1.0, expected=np.zeros_like(error))


def check_steps(case: Case, trainer: Trainer, steps: int) -> None:
    """Every pass from where the recorded updates lead, and optimizer and averages, fed with the recorded gradients.

    Those are gradients of sums over the batch; so are the recorded moments.
    """
    adam = case.json("config")["adam"]
    optimizer = AdamW(*adam["betas"], epsilon=adam["eps"])
    variables = trainer.system.network.trainable_variables
    optimizer.build(variables)
    for step in range(steps):
        check_pass(case, trainer, step)
        gradients = [tf.constant(item.to_ours(case[f"step{step}/grad/{item.name}"])) for item in trainer.named]
        optimizer.apply(gradients, trainer.recipe.learning_rate(tf.constant(step, tf.int64)))
        trainer.state.averages[0].update()
        for index, item in enumerate(trainer.named):
            for kind, values, parts in (("param", variables, PARAMETER), ("ema", trainer.averages, AVERAGE)):
                name = f"step{step}/{kind}/{item.name}"
                if name in case:
                    within(case, name, values[index].numpy(), item.to_ours(case[name]), parts)
    for index, item in enumerate(trainer.named):
        for kind, moments in (("exp_avg", optimizer.first_moments), ("exp_avg_sq", optimizer.second_moments)):
            name = f"final/{kind}/{item.name}"
            recorded = item.to_ours(case[name])
            tolerance = MOMENT_RELATIVE * float(np.abs(recorded).max()) + MOMENT_ABSOLUTE
            case.close(name, moments[index].numpy(), tolerance, expected=recorded)


def check_pass(case: Case, trainer: Trainer, step: int) -> list[tf.Tensor]:
    """Noise, network with dropout, loss and gradients; returns the gradients of the sum over the batch."""
    system, config = trainer.system, trainer.config
    scaled = data.scaled(channels_last(case[f"step{step}/image_u8"]))
    noisy = scaled + config["noise"] * channels_last(case[f"step{step}/randn0"])
    smoothed, target = None, noisy
    if system.stage is Stage.REVERSE:
        smoothed, target = noisy, scaled + config["clean_noise"] * channels_last(case[f"step{step}/randn1"])
    inputs = target if smoothed is None else tf.concat([smoothed, target], axis=1)
    case.close(f"step{step}/net_input", channels_first(inputs), EXACT)
    with tf.GradientTape() as tape:
        parameters = system.parameters(target, smoothed, masks(case, system, step))
        nats = -tf.reduce_sum(system.density(parameters, target))
    case.close(f"step{step}/net_out", channels_first(parameters), OUTPUT)
    case.close(f"step {step}: loss", nats, LOSS, expected=case["losses"][step], relative=True)
    gradients = tape.gradient(nats, system.network.trainable_variables)
    for item, gradient in zip(trainer.named, gradients, strict=True):
        name = f"step{step}/grad/{item.name}"
        gradient_close(case, name, gradient, item.to_ours(case[name]))
    return gradients


def check_first_update(case: Case, trainer: Trainer) -> None:
    """The update by our own gradients, of means over the batch as the loop has them."""
    gradients = check_pass(case, trainer, 0)
    trainer.state.optimizer.apply(
        [gradient / trainer.config["batch"] for gradient in gradients],
        trainer.recipe.learning_rate(tf.constant(0, tf.int64)),
    )
    rate = trainer.config["lr"]
    for item, gradient in zip(trainer.named, gradients, strict=True):
        name = f"step0/param/{item.name}"
        if name not in case:
            continue
        recorded, actual, size = item.to_ours(case[name]), item.variable.numpy(), np.abs(gradient)
        case.close(f"own {name}", actual, OWN_UPDATE_OF_RATE * rate, expected=recorded)
        large = size > LARGE_GRADIENT * size.max()
        case.close(f"own {name}, large gradients", actual, LARGE_UPDATE_OF_RATE * rate, expected=recorded, where=large)


def masks(case: Case, system: DistributionSmoothing, step: int) -> dict[str, tf.Tensor]:
    """The recorded dropout masks by path of the residual block; the original names the dropout module inside it."""
    recorded = case.under(f"step{step}/mask/")
    found = {}
    for block in system.network.resnets:
        path = block.path.replace("/", ".")
        name = next(name for name in recorded if name == path or name.startswith(f"{path}."))
        found[block.path] = tf.constant(recorded[name].astype(np.float32)[:, np.newaxis, np.newaxis, :])
    return found


@checker("smoothing", "ckpt_*_check*.npz")
def check_checkpoint(case: Case) -> None:
    config = case.json("config")
    stage = Stage(config["runner"])
    height = case["x"].shape[2] // (2 if stage is Stage.REVERSE else 1)
    system = recorded_system(case, stage, (height, case["x"].shape[3]))
    recipe = system.recipe(train_size=1000, ranks=1)
    state = TrainState(system, recipe)
    stem = case.path.stem.removeprefix("ckpt_").removesuffix("_check")
    files = sorted((case.path.parent / "ckpt").glob(f"{stem}_checkpoint*.pth"))
    case.equal("files found", bool(files), expected=True)
    x = tf.constant(channels_last(case["x"]))
    named = published.variables(system.network)
    case.equal("param_order", [item.name for item in named])
    for path in files:
        system.load_published(str(path), state)
        found = published.read(str(path))
        case.equal(
            f"{path.name}: module_keys",
            sorted(f"module.{name}" for name in found.weights),
            expected=sorted(case["module_keys"]),
        )
        case.equal(f"{path.name}: epoch", found.epoch, expected=case["epoch"])
        case.equal(f"{path.name}: last_epoch", int(state.step), expected=case.json("scheduler_json")["last_epoch"])
        next_rate = recipe.learning_rate(state.step)
        recorded_rate = case.json("scheduler_json")["_last_lr"][0]
        case.close(
            f"{path.name}: rate", next_rate, np.finfo(np.float32).eps, expected=np.array(recorded_rate), relative=True
        )
        check_probes(case, path.name, state, named, config["batch_size"])
        case.close(
            f"{path.name}: out_raw_weights",
            channels_first(system.network(x)),
            CHECKPOINT_OUTPUT,
            expected=case["out_raw_weights"],
        )
        if "out_ema_weights" in case:
            with state.averages[0].swapped_in():
                averaged = channels_first(system.network(x))
            case.close(f"{path.name}: out_ema_weights", averaged, CHECKPOINT_OUTPUT, expected=case["out_ema_weights"])
    group = case.json("opt_param_group_json")
    case.close("betas", [state.optimizer.beta1, state.optimizer.beta2], 1e-12, expected=np.array(group["betas"]))
    case.close("eps", state.optimizer.epsilon * config["batch_size"], 1e-15, expected=np.array(group["eps"]))
    case.close("weight_decay", state.optimizer.weight_decay, 0.0, expected=np.array(float(group["weight_decay"])))
    case.leave_unread("opt_state_index_for_first5", "the order of the parameters is compared as a whole")
    case.leave_unread("tb_scalars_json", "the log of a run whose images are not recorded")
    case.leave_unread("files_written", "names of the original's output files")


def check_probes(case: Case, file: str, state: TrainState, named: list, batch: int) -> None:
    averages = state.averages[0].averages if state.averages else []
    kinds = {
        "param": (state.network.trainable_variables, 1),
        "ema": (averages, 1),
        # Ours are moments of means over the batch.
        "exp_avg": (state.optimizer.first_moments, batch),
        "exp_avg_sq": (state.optimizer.second_moments, batch**2),
    }
    for index, item in enumerate(named):
        for kind, (values, factor) in kinds.items():
            name = f"probe/{kind}/{item.name}"
            if name in case:
                actual = values[index].numpy() * np.float32(factor)
                case.close(
                    f"{file}: {name}",
                    actual,
                    EXACT if factor > 1 else 0.0,
                    expected=item.to_ours(case[name]),
                    relative=True,
                )
        name = f"probe/step/{item.name}"
        if name in case:
            case.equal(f"{file}: {name}", int(state.optimizer.updates), expected=int(case[name]))
