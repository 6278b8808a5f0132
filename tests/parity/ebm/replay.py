"""Recorded replay buffers: contents and cursor after each batch, draws of Python's generator, bytes of images."""

from __future__ import annotations

import random

import numpy as np
import tensorflow as tf

from tests.parity.harness import Case, checker
from tfgen.systems.ebm import replay
from tfgen.systems.ebm.replay import ReplayBuffer

RESTART = 0.05


@checker("ebm", "replay*.npz")
def check(case: Case) -> None:
    config = case.json("config")
    for name in case.matching("*/size_bs"):
        check_buffer(case, name.removesuffix("size_bs"), config["python_seed"])
    random.seed(config["python_seed"])
    drawn = [random.randint(0, 9) for _ in case["py_randint_0_9_seeded"]]
    case.equal("py_randint_0_9_seeded", drawn)
    for name in case.matching("compress_r*/in"):
        check_bytes(case, name.removeprefix("compress_r").removesuffix("/in"), config["numpy_seed"])
    if "inc/storage" in case:
        check_labelled(case, config["python_seed"])


def check_buffer(case: Case, prefix: str, seed: int) -> None:
    """Consecutive integers as images; after each batch as many are drawn."""
    capacity, batch = (int(number) for number in case[f"{prefix}size_bs"])
    buffer = ReplayBuffer(capacity, batch, [], tf.float32, truncates=True)
    lengths, cursors, contents, samples = [], [], [], []
    random.seed(seed)
    columns = case[f"{prefix}contents"].shape[1]
    for step in range(len(case[f"{prefix}len"])):
        buffer.add(tf.range(step * batch, (step + 1) * batch, dtype=tf.float32))
        length = int(buffer.length)
        lengths.append(length)
        cursors.append(int(buffer.cursor))
        contents.append(np.pad(buffer.images.numpy()[:length], (0, columns - length), constant_values=-1.0))
        rows = [random.randint(0, length - 1) for _ in range(case[f"{prefix}samples"].shape[1])]
        samples.append(buffer.at(tf.constant(rows, tf.int64)).images.numpy())
    for name, values in {"len": lengths, "next_idx": cursors, "contents": contents, "samples": samples}.items():
        case.equal(f"{prefix}{name}", np.asarray(values, np.int64))


def check_bytes(case: Case, high: str, seed: int) -> None:
    """Images as bytes and back, and which chains begin anew."""
    bytes_name = f"compress_r{high}/out"
    case.equal(bytes_name, replay.to_bytes(tf.constant(case[f"compress_r{high}/in"]), float(high)))
    restored = f"decompress_r{high}/out_seeded"
    uniforms = tf.cast(case[f"decompress_r{high}/uniform01"], tf.float32)
    case.close(restored, replay.from_bytes(tf.constant(case[bytes_name]), uniforms, float(high)), 1e-6 * float(high))
    name = f"mask_r{high}"
    # The original compares a number below `high` with 0.05: as a share that is 0.05 / high.
    uniforms = np.random.RandomState(seed).uniform(0, 1, len(case[name]))
    case.equal(name, replay.goes_on(tf.constant(uniforms), RESTART / float(high)))


def check_labelled(case: Case, seed: int) -> None:
    """A buffer of images and labels: integer i is the image 10 i with the label 1000 + i."""
    storage, labels, cursor = case["inc/storage"], case["inc/labels"], int(case["inc/next"])
    buffer = filled_like(storage, cursor)
    for name, values in contents_of(buffer).items():
        case.equal(f"inc/{name}", values)
    case.equal("inc/next", int(buffer.cursor))
    random.seed(seed)
    rows = [random.randint(0, len(storage) - 1) for _ in case["inc/sample_idx"]]
    case.equal("inc/sample_idx", rows)
    found = buffer.at(tf.constant(rows, tf.int64))
    case.equal("inc/sample_x", found.images)
    case.equal("inc/sample_l", found.labels[:, 0])

    # Where images were replaced shows in what is there afterwards. Each row is written twice: the second time counts.
    after, after_labels = case["inc/after_set_storage"], case["inc/after_set_labels"]
    rows = np.flatnonzero((after != storage) | (after_labels != labels))
    twice = np.concatenate([rows, rows])
    images = np.concatenate([storage[rows], after[rows]]).astype(np.float32)
    new_labels = np.concatenate([labels[rows], after_labels[rows]]).astype(np.float32)
    buffer.replace(tf.constant(twice), tf.constant(images), tf.constant(new_labels[:, np.newaxis]))
    for name, values in contents_of(buffer).items():
        case.equal(f"inc/after_set_{name}", values)


def filled_like(storage: np.ndarray, cursor: int) -> ReplayBuffer:
    """A buffer with the recorded number of images and cursor, from which the unrecorded sizes follow."""
    count = 1 + int(storage.max()) // 10
    for capacity in range(1, len(storage) + 1):
        for batch in range(1, capacity + 1):
            if count % capacity != cursor or count % batch:
                continue
            buffer = ReplayBuffer(capacity, batch, [], tf.float32, label_columns=1, truncates=True)
            for first in range(0, count, batch):
                numbers = tf.range(first, first + batch, dtype=tf.float32)
                buffer.add(10.0 * numbers, 1000.0 + numbers[:, tf.newaxis])
            if int(buffer.length) == len(storage):
                return buffer
    raise ValueError(f"no buffer has {len(storage)} images and the cursor {cursor} after {count} images")


def contents_of(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    length = int(buffer.length)
    return {"storage": buffer.images.numpy()[:length], "labels": buffer.labels.numpy()[:length, 0]}
