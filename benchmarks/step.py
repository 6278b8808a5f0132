"""`python -m benchmarks.step --case=NAME`: one training step, and a batch of samples, of a named configuration.

Prints one JSON line: medians in seconds, the time from the command to the end of the first step, and peak memory. The
step is the trainer's own: noise, forward, backward, clipping, optimizer, averaged weights. For DistAug the attention of
all layers is timed by itself, too, as often as a step computes it; TFGEN_PURE_TF=1 does without compiled operations.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import time

STARTED = time.time()

# Configuration of the reference timing of the original VDVAE (two threads, float32): 1,067,980 parameters.
CASES = {
    "vdvae_reference": [
        "--system=vdvae", "--dataset=cifar10", "--width=96", "--zdim=16", "--num_mixtures=10", "--n_batch=8",
        "--enc_blocks=32x3,32d2,16x3,16d2,8x2,8d2,4x2,4d4,1x2",
        "--dec_blocks=1x1,4m1,4x1,8m4,8x2,16m8,16x3,32m16,32x4",
    ],
    "vdvae_cifar10": ["--system=vdvae", "--hps=cifar10"],
    # Configuration of the reference timing of the original diffusion code (two threads): 9,926,790 parameters.
    "diffusion_reference": [
        "--system=diffusion", "--dataset=cifar10", "--image_size=32", "--num_channels=64", "--num_res_blocks=2",
        "--learn_sigma=True", "--dropout=0.3", "--diffusion_steps=4000", "--noise_schedule=cosine", "--batch_size=8",
    ],
    "diffusion_cifar10": ["--system=diffusion", "--hps=cifar10", "--batch_size=8"],
    # Configuration of the reference timing of the original PixelCNN++ (two threads): 1,519,320 parameters.
    "smoothing_reference": [
        "--system=smoothing", "--dataset=CIFAR10", "--nr_resnet=2", "--nr_filters=40", "--nr_logistic_mix=10",
        "--batch_size=8",
    ],
    "smoothing_cifar10": ["--system=smoothing", "--hps=cifar10_smoothed", "--batch_size=8"],
    # Configurations of the reference timing of the original energy-based models (two threads), 10 steps of the chain.
    "ebm_reference": [
        "--system=ebm", "--hps=cifar10_uncond", "--large_model=False", "--batch_size=16", "--num_steps=10",
    ],
    "ebm_reference_large": ["--system=ebm", "--hps=cifar10_uncond", "--batch_size=16", "--num_steps=10"],
    "distaug_c10_15m": ["--system=distaug", "--hps=c10_15m", "--n_batch=1", "--precision=float32"],
    "distaug_c10_150m": ["--system=distaug", "--hps=c10_150m_baseline", "--n_batch=1", "--precision=float32"],
}  # fmt: skip

# How samples are drawn: as the reference timings do, 8 images by 10 steps of DDIM, 4 images of 16x16 pixel by pixel,
# 16 images by 20 Langevin steps.
SAMPLING = {
    "diffusion": {"sampler": "ddim", "timestep_respacing": "ddim10", "sample_batch": 8},
    "ebm": {"num_steps": 20},
}
COUNTS = {"diffusion": 8, "smoothing": 4, "ebm": 16}
SAMPLE_SIDES = {"smoothing": 16}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=sorted(CASES), required=True)
    parser.add_argument("--threads", type=int, default=2, help="of every operation")
    parser.add_argument("--steps", type=int, default=7, help="steps timed, after two to warm up")
    parser.add_argument("--samples", type=int, default=16, help="images drawn; 0 for none")
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    import numpy as np
    import tensorflow as tf

    from tfgen import settings as settings_module
    from tfgen.distribute import Ranks
    from tfgen.ops import library
    from tfgen.randomness import Key, StepDraws
    from tfgen.systems import load
    from tfgen.training.state import TrainState
    from tfgen.training.step import TrainStep

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    settings = settings_module.parse(CASES[options.case])
    system_class = load(settings.system)
    spec = system_class.image_spec(settings.config)
    system = system_class(settings.config, spec)
    recipe = system.recipe(train_size=45_000, ranks=1)
    state = TrainState(system, recipe)
    step = TrainStep(system, recipe, state, Ranks())
    images = np.random.RandomState(0).randint(0, 256, [recipe.batch_size, *spec.shape], np.uint8)
    raw = {"image": images, "label": np.zeros(recipe.batch_size, np.int32)}
    prepared = system.prepare(raw, StepDraws(0, 0, 0, 1, recipe.batch_size))
    batch = {name: tf.constant(value) for name, value in prepared.items()}
    requests = np.zeros(2, np.float32)

    def one_step() -> float:
        began = time.perf_counter()
        step(batch, requests)["loss"].numpy()
        return time.perf_counter() - began

    began = time.time()
    one_step()
    ready = time.time()
    one_step()
    steps = [one_step() for _ in range(options.steps)]
    line = {
        "case": options.case,
        "parameters": sum(variable.shape.num_elements() for variable in system.network.trainable_variables),
        "batch": recipe.batch_size,
        "threads": options.threads,
        "kernels": library.load() is not None,
        "step_seconds": round(statistics.median(steps), 4),
        "step_seconds_least": round(min(steps), 4),
        "build_seconds": round(began - STARTED, 1),
        "first_step_seconds": round(ready - began, 1),
    }
    if settings.system == "distaug":
        seconds = attention_seconds(system.network, recipe.batch_size, options.steps)
        line |= {"attention_seconds": round(seconds, 4), "attention_share": round(seconds / line["step_seconds"], 3)}
    elif options.samples:
        sampling = system.sample_options_class(**SAMPLING.get(settings.system, {}))
        count = COUNTS.get(settings.system, options.samples)
        key = Key.create(0, "benchmark")
        if settings.system in SAMPLE_SIDES:
            side = SAMPLE_SIDES[settings.system]
            system = system_class(settings.config, dataclasses.replace(spec, height=side, width=side))
        system.sample(count, key, sampling)
        times = []
        for _ in range(options.steps):
            began = time.perf_counter()
            system.sample(count, key, sampling)
            times.append(time.perf_counter() - began)
        line |= {"samples": count, "sample_seconds": round(statistics.median(times), 4)}
    line["peak_memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(json.dumps(line))
    return 0


def attention_seconds(network, batch: int, rounds: int) -> float:
    """Seconds that the attention of all layers takes in one step, recomputation included."""
    import tensorflow as tf

    from tfgen.ops.blocksparse import attention

    def median(call) -> float:
        call()
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            tf.nest.map_structure(lambda tensor: tensor.numpy(), call())
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    patterns: dict = {}
    for block in network.blocks:
        patterns.setdefault((block.pattern.mode, block.n_head), []).append(block)
    total = 0.0
    for blocks in patterns.values():
        block = blocks[0]
        pattern, heads = block.pattern, block.n_head
        widths = [layer.w.shape[1] for layer in (block.q_proj, block.k_proj, block.v_proj)]
        inputs = [tf.random.stateless_normal([batch, pattern.n_ctx, width], [0, width]) for width in widths]

        @tf.function
        def forward(pattern=pattern, heads=heads, inputs=inputs):
            return attention(*inputs, pattern, heads)

        @tf.function
        def both(pattern=pattern, heads=heads, inputs=inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                out = attention(*inputs, pattern, heads)
            return tape.gradient(out, inputs)

        once = median(both) + (median(forward) if network.recompute else 0.0)
        total += len(blocks) * once
    return total


if __name__ == "__main__":
    raise SystemExit(main())
