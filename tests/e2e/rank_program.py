"""`python -m tests.e2e.rank_program` on two ranks: prints one line per fact, VARIANT: FACT. Tests start it."""

from __future__ import annotations

import dataclasses
import hashlib
import sys

import numpy as np
import tensorflow as tf

from tests.e2e import runs
from tfgen import distribute, runtime, settings
from tfgen.data.pipeline import IndexStream
from tfgen.randomness import StepDraws
from tfgen.systems import load
from tfgen.training.state import TrainState
from tfgen.training.step import TrainStep

# A process of few steps, so that every step soon has a history.
_FEW = (*runs.TINY_DIFFUSION, "--channel_mult=1", "--diffusion_steps=6")


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is trained: its flags, the name of the flag of the batch size, and for how many steps."""

    flags: tuple[str, ...]
    batch_flag: str
    steps: int


VARIANTS = {
    # Embeddings of the size that training gives them; with the tiny initial ones the gradients are far above 1.
    "distaug": Variant(
        (*runs.TINY, "--logits_w=0.125", "--w_embd_std=0.5", "--pos_embd_std=0.5", "--merge_layer_allreduce=1"),
        "n_batch",
        50,
    ),
    "vdvae": Variant(runs.TINY_VDVAE, "n_batch", 50),
    "diffusion": Variant(_FEW, "batch_size", 20),
    "diffusion_by_loss": Variant((*_FEW, "--schedule_sampler=loss-second-moment"), "batch_size", 20),
    "smoothing": Variant((*runs.TINY_SMOOTHING, "--runner=ReversePixelCNNPPTrainRunner"), "batch_size", 20),
    # Chains from noise are those of one rank, so that the negatives are the same; buffers would be each rank's own.
    "ebm": Variant((*runs.TINY_EBM, "--replay_batch=False", "--ema_rate=0.9"), "batch_size", 20),
}


def build(variant: Variant, batch_size: int, ranks: int):
    parsed = settings.parse([*variant.flags, f"--{variant.batch_flag}={batch_size}"])
    system_class = load(parsed.system)
    splits = system_class.open_data(parsed.config, parsed.run.data_dir)
    system = system_class(parsed.config, splits.spec)
    recipe = system.recipe(splits.train.epoch_size, ranks)
    return splits, system, recipe, TrainState(system, recipe)


def multiply_loss(system) -> tf.Variable:
    """A factor of the system's loss from now on, 1 until it is assigned."""
    factor, loss_alone = tf.Variable(1.0), system.loss

    def loss(batch, key, training):
        found = loss_alone(batch, key, training)
        return dataclasses.replace(found, objective=found.objective * factor)

    system.loss = loss
    return factor


def batch_of(splits, system, recipe, step: int, rank: int, ranks: int):
    stream = IndexStream(splits.train, recipe.batch_size, ranks, recipe.seed)
    draws = StepDraws(recipe.seed, step, rank, ranks, recipe.batch_size)
    prepared = system.prepare(splits.train.read(stream.indices(step, rank)), draws)
    return {name: tf.convert_to_tensor(value) for name, value in prepared.items()}


def gradients(step_function, state, batch):
    one = tf.constant(1.0)
    return step_function._loss_and_gradients(batch, step_function._key.fold(state.step), one)[2]


def digest(variables) -> str:
    return hashlib.sha256(b"".join(variable.numpy().tobytes() for variable in variables)).hexdigest()


def compare(name: str, variant: Variant, ranks: distribute.Ranks) -> None:
    """Compares two ranks with one process at twice the batch, and with each other."""

    def say(fact: str) -> None:
        # In one piece: the launcher mixes what the ranks print.
        sys.stdout.write(f"{name}: {fact}\n")
        sys.stdout.flush()

    requests = np.zeros(2, np.float32)

    # Each rank with a batch of 8, and the same process alone with 16.
    splits, system, recipe, state = build(variant, 8, ranks.size)
    factor = multiply_loss(system)
    step_function = TrainStep(system, recipe, state, ranks)
    ranks.broadcast(state.variables)
    own = gradients(step_function, state, batch_of(splits, system, recipe, 0, ranks.rank, ranks.size))
    averaged = tf.function(lambda: ranks.average_gradients(own, recipe.wire_dtype, recipe.gradient_groups))()

    big_splits, big_system, big_recipe, big_state = build(variant, 16, 1)
    big_step = TrainStep(big_system, big_recipe, big_state, distribute.Ranks())
    reference = gradients(big_step, big_state, batch_of(big_splits, big_system, big_recipe, 0, 0, 1))
    difference = max(float(tf.reduce_max(tf.abs(a - b))) for a, b in zip(averaged, reference, strict=True))
    largest = max(float(tf.reduce_max(tf.abs(b))) for b in reference)
    half = tf.function(lambda: ranks.average_gradients(own, tf.float16, recipe.gradient_groups))()
    rounding = max(float(tf.reduce_max(tf.abs(a - b))) for a, b in zip(averaged, half, strict=True))
    if ranks.is_first:
        say(f"groups {len(recipe.gradient_groups or ())}, float16 on the wire changes gradients by {rounding:.3g}")
        say(f"largest gradient difference and gradient: {difference:.3g} {largest:.3g}")

    for step in range(variant.steps):
        step_function(batch_of(splits, system, recipe, step, ranks.rank, ranks.size), requests)
    say(f"rank {ranks.rank}: weights after {variant.steps} steps {digest(state.variables)}")

    # What the system itself remembers, on both ranks and after as many steps of the process alone.
    if system.state.variables:
        for step in range(variant.steps):
            big_step(batch_of(big_splits, big_system, big_recipe, step, 0, 1), requests)
        say(f"rank {ranks.rank}: system state {digest(system.state.variables)}")
        for own, single in zip(system.state.variables, big_system.state.variables, strict=True):
            values, difference = single.numpy(), np.abs(own.numpy() - single.numpy()).max()
            facts = f"{values.min():.6g} to {values.max():.6g}, differs from one rank by {difference:.3g}"
            say(f"rank {ranks.rank}: {own.name} {facts}")

    # A loss that is not a number on rank 1 only.
    factor.assign(float("nan") if ranks.rank == 1 else 1.0)
    kept = [*system.network.variables, *state.optimizer.variables, *state.averages[0].variables]
    before = digest(kept)
    outputs = step_function(batch_of(splits, system, recipe, variant.steps, ranks.rank, ranks.size), requests)
    facts = f"skipped {int(outputs['skipped'])}, unchanged {digest(kept) == before}"
    say(f"rank {ranks.rank} after a NaN on rank 1: {facts}")


def main() -> None:
    runtime.configure(deterministic=True)
    ranks = distribute.connect()
    assert ranks.size == 2
    for name, variant in VARIANTS.items():
        compare(name, variant, ranks)


if __name__ == "__main__":
    main()
