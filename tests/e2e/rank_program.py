"""`python -m tests.e2e.rank_program [VARIANT]` on two ranks: prints one line per fact. Tests start it."""

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

# Embeddings of the size that training gives them; with the tiny initial ones the gradients are far above 1.
_SIZES = ("--logits_w=0.125", "--w_embd_std=0.5", "--pos_embd_std=0.5", "--merge_layer_allreduce=1")
# A process of few steps, so that every step soon has a history.
_FEW = (*runs.TINY_DIFFUSION, "--channel_mult=1", "--diffusion_steps=6")
FLAGS = {
    "distaug": (*runs.TINY, *_SIZES),
    "vdvae": runs.TINY_VDVAE,
    "diffusion": _FEW,
    "smoothing": (*runs.TINY_SMOOTHING, "--runner=ReversePixelCNNPPTrainRunner"),
    "diffusion_by_loss": (*_FEW, "--schedule_sampler=loss-second-moment"),
}
CHOSEN = sys.argv[1] if sys.argv[1:] else "distaug"
BATCH_FLAG, STEPS = ("batch_size", 20) if CHOSEN.startswith(("diffusion", "smoothing")) else ("n_batch", 50)


def build(batch_size: int, ranks: int):
    parsed = settings.parse([*FLAGS[CHOSEN], f"--{BATCH_FLAG}={batch_size}"])
    system_class = load(parsed.system)
    splits = system_class.open_data(parsed.config, parsed.run.data_dir)
    system = system_class(parsed.config, splits.spec)
    recipe = system.recipe(splits.train.epoch_size, ranks)
    return splits, system, recipe, TrainState(system, recipe)


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


def main() -> None:
    runtime.configure(deterministic=True)
    ranks = distribute.connect()
    assert ranks.size == 2
    requests = np.zeros(2, np.float32)

    # Each rank with a batch of 8, and the same process alone with 16.
    splits, system, recipe, state = build(8, ranks.size)
    step_function = TrainStep(system, recipe, state, ranks)
    ranks.broadcast(state.variables)
    own = gradients(step_function, state, batch_of(splits, system, recipe, 0, ranks.rank, ranks.size))
    averaged = tf.function(lambda: ranks.average_gradients(own, recipe.wire_dtype, recipe.gradient_groups))()

    big_splits, big_system, big_recipe, big_state = build(16, 1)
    big_step = TrainStep(big_system, big_recipe, big_state, distribute.Ranks())
    reference = gradients(big_step, big_state, batch_of(big_splits, big_system, big_recipe, 0, 0, 1))
    difference = max(float(tf.reduce_max(tf.abs(a - b))) for a, b in zip(averaged, reference, strict=True))
    largest = max(float(tf.reduce_max(tf.abs(b))) for b in reference)
    half = tf.function(lambda: ranks.average_gradients(own, tf.float16, recipe.gradient_groups))()
    rounding = max(float(tf.reduce_max(tf.abs(a - b))) for a, b in zip(averaged, half, strict=True))
    if ranks.is_first:
        print(
            f"groups {len(recipe.gradient_groups or ())}, float16 on the wire changes gradients by {rounding:.3g}",
            flush=True,
        )
        print(f"largest gradient difference and gradient: {difference:.3g} {largest:.3g}", flush=True)

    for step in range(STEPS):
        step_function(batch_of(splits, system, recipe, step, ranks.rank, ranks.size), requests)
    print(f"rank {ranks.rank}: weights after {STEPS} steps {digest(state.variables)}", flush=True)

    # What the system itself remembers, on both ranks and after as many steps of the process alone.
    if system.state.variables:
        for step in range(STEPS):
            big_step(batch_of(big_splits, big_system, big_recipe, step, 0, 1), requests)
        print(f"rank {ranks.rank}: system state {digest(system.state.variables)}", flush=True)
        for own, single in zip(system.state.variables, big_system.state.variables, strict=True):
            values, difference = single.numpy(), np.abs(own.numpy() - single.numpy()).max()
            facts = f"{values.min():.6g} to {values.max():.6g}, differs from one rank by {difference:.3g}"
            print(f"rank {ranks.rank}: {own.name} {facts}", flush=True)

    # A loss that is not a number on rank 1 only. A new step function, since the old one is traced already.
    healthy = system.loss

    def sick(batch, key, training):
        loss = healthy(batch, key, training)
        factor = float("nan") if ranks.rank == 1 else 1.0
        return dataclasses.replace(loss, objective=loss.objective * factor)

    system.loss = sick
    kept = [*system.network.variables, *state.optimizer.variables, *state.averages[0].variables]
    before = digest(kept)
    outputs = TrainStep(system, recipe, state, ranks)(
        batch_of(splits, system, recipe, STEPS, ranks.rank, ranks.size), requests
    )
    facts = f"skipped {int(outputs['skipped'])}, unchanged {digest(kept) == before}"
    print(
        f"rank {ranks.rank} after a NaN on rank 1: {facts}",
        flush=True,
    )


if __name__ == "__main__":
    main()
