"""The original's own loop over a few batches, with its replay buffer, its log and the checkpoint it leaves."""

from __future__ import annotations

import random

import numpy as np
import tensorflow as tf

from tests.parity.ebm import formula
from tests.parity.ebm.recorded import of_largest
from tests.parity.ebm.train import CHAIN, CHAIN_OF_LARGE_STEPS, LARGE_STEP, Recorded, check_final, recorded_config
from tests.parity.harness import Case, checker
from tfgen.systems.ebm import objective as objectives
from tfgen.systems.ebm import published, replay, sampler
from tfgen.systems.ebm.networks import EnergyNetwork
from tfgen.systems.ebm.objective import Outcome
from tfgen.systems.ebm.replay import ReplayBuffer
from tfgen.training.clipped_adam import ClippedAdam

START, LOGGED = 1e-6, 1e-4
_UNORDERED = ("x_grad", "x_grad_first", "loss_e")


@checker("ebm", "train_loop_*.npz")
def check(case: Case) -> None:
    loop = Loop(case)
    calls = [name.removesuffix("kind") for name in case.matching("call*/kind")]
    logs = iter([name.removesuffix("keys") for name in case.matching("log*/keys")])
    for prefix in calls:
        kind = str(case[f"{prefix}kind"])
        outcome = loop.run(prefix, updates=kind != "test")
        if kind == "train_log":
            loop.check_log(next(logs), outcome, tf.constant(case[f"{prefix}X"]))
        elif kind == "test":
            loop.check_score(next(logs))
    check_final(loop)
    check_checkpoint(case)


class Loop(Recorded):
    """The loop at the start of a call. Chains begin where they were recorded to end, so that errors do not add up."""

    def __init__(self, case: Case):
        super().__init__(case, "var0/")
        config = case.json("config")
        self.batch = config["batch"]
        shape = (config["num_items"], *case["call0/X"].shape[1:])
        self.data, self.fresh = (formula.picture(name, shape, config["data_seed"]) for name in ("DATA", "CORRUPT"))
        self.buffer = ReplayBuffer(self.config.replay_capacity, self.batch, shape[1:], tf.uint8, truncates=True)
        self.generator = np.random.RandomState(config["numpy_seed"])
        random.seed(config["python_random_seed"])
        self.step = 0
        self.previous: tf.Tensor | None = None
        self.gradients: list[tf.Tensor] = []

    def run(self, prefix: str, updates: bool) -> Outcome:
        """A step of training, or a run of the sampler in a test, which improves the vectors as well."""
        case, network, config = self.case, self.network, self.config
        if updates:
            self.check_batch(prefix)
        positives, starts = tf.constant(case[f"{prefix}X"]), tf.constant(case[f"{prefix}X_NOISE"])
        noise = sampler.given(tf.constant(case[f"{prefix}noise"]))

        def sample(energy: sampler.StepEnergy, x: tf.Tensor) -> tf.Tensor:
            return sampler.run(x, self.chain.steps, sampler.PlainMoves(energy, self.chain, noise))

        with tf.GradientTape() as tape:
            weights = network.normalized()
            outcome = objectives.evaluate(network, weights, self.objective, positives, starts, sample)
        self.gradients = tape.gradient(outcome.loss, list(network.trained.values()))
        large = self.chain.step_size >= LARGE_STEP
        case.close(f"{prefix}x_mod", outcome.negatives, CHAIN_OF_LARGE_STEPS if large else CHAIN)
        network.store_vectors(weights)
        if updates:
            self.optimizer.apply(self.gradients, config.lr)
            self.step, self.previous = self.step + 1, tf.constant(case[f"{prefix}x_mod"])
        return outcome

    def check_batch(self, prefix: str) -> None:
        """The images of this step, and where its chains begin."""
        rows = np.arange(self.step * self.batch, (self.step + 1) * self.batch) % len(self.data)
        self.case.close(f"{prefix}X", self.data[rows], 0.0)
        starts, high = tf.constant(self.fresh[rows]), self.config.rescale
        if self.previous is not None and self.config.replay_batch:
            self.buffer.add(replay.to_bytes(self.previous, high))
            length = int(self.buffer.length)
            if length > self.batch:
                drawn = [random.randint(0, length - 1) for _ in range(self.batch)]
                stored = self.buffer.at(tf.constant(drawn, tf.int64)).images
                uniforms = self.generator.uniform(0, 1, stored.shape).astype(np.float32)
                old = replay.goes_on(tf.constant(self.generator.uniform(0, 1, self.batch)), self.config.replay_restart)
                starts = tf.where(old[:, None, None], replay.from_bytes(stored, tf.constant(uniforms), high), starts)
        self.case.close(f"{prefix}X_NOISE", starts, START)

    def check_log(self, prefix: str, outcome: Outcome, images: tf.Tensor) -> None:
        """The scalars of one log record, by name."""
        positive, negative = np.asarray(outcome.positive), np.asarray(outcome.negative)
        values = {
            "e_pos": positive.mean(),
            "e_pos_std": positive.std(),
            "e_neg": negative.mean(),
            "e_neg_std": negative.std(),
            "e_diff": positive.mean() - negative.mean(),
            "temp": self.objective.temperature,
            "loss_ml": np.mean(outcome.likelihood),
            "loss_total": float(outcome.loss),
            "x_off": float(objectives.distance(outcome.negatives, images)),
            "iter": self.step - 1,
            "label_ent": 0.0,
            "eps": 0.0,
            "gamma": 0.0,
        }
        for name, gradient in zip(self.network.trained, self.gradients, strict=True):
            values[f"context_0/{name}:0"] = np.abs(gradient).max()
        keys = [str(key) for key in self.case[f"{prefix}keys"]]
        recorded = dict(zip(keys, self.case[f"{prefix}values"], strict=True))
        # The original computes these three before or after the update, as it happens.
        self.case.equal(f"{prefix}keys", sorted([*values, *_UNORDERED]))
        for name, value in values.items():
            title = f"{prefix}{name}"
            self.case.close(title, value, LOGGED * max(abs(recorded[name]), 1e-2), expected=recorded[name])

    def check_score(self, prefix: str) -> None:
        """Images without colour have no Inception score: two zeros are logged."""
        self.case.equal(f"{prefix}keys", ["inception_score", "inception_score_std"])
        self.case.close(f"{prefix}values", [0.0, 0.0], 0.0)


def check_checkpoint(case: Case) -> None:
    """The checkpoint that the loop left, where it lies beside the recording: read to the bit."""
    stems = sorted(case.path.parent.glob("ckpt_mnist_tf1/model_*.index"))
    config = recorded_config(case.json("config"))
    for path in stems:
        network = EnergyNetwork(config.network_shape(), seed=0)
        optimizer = ClippedAdam()
        optimizer.build(network.trainable_variables)
        published.load_into(str(path), network, optimizer=optimizer)
        found = {f"context_0/{name}": variable for name, variable in network.by_name.items()}
        place = {variable.ref(): index for index, variable in enumerate(optimizer.targets)}
        for name, variable in network.trained.items():
            index = place[variable.ref()]
            found[f"context_0/{name}/Adam"] = optimizer.first_moments[index]
            found[f"context_0/{name}/Adam_1"] = optimizer.second_moments[index]
        found |= {"beta1_power": optimizer.beta1_power, "beta2_power": optimizer.beta2_power}
        recorded = case.under("final/")
        case.equal(f"{path.stem}: names", sorted(found), expected=sorted(recorded))
        for name, value in found.items():
            case.close(f"{path.stem}: {name}", value, 0.0, expected=recorded[name])
        of_largest(case, "final/beta2_power", 0.999 ** (published.step_of(str(path)) + 1), 1e-5)
