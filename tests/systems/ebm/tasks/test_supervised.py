"""An energy network as a classifier: what an epoch learns, and where it is kept."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.systems.ebm.tasks import small
from tfgen.settings import SettingsError
from tfgen.systems.ebm.tasks import robustness, supervised
from tfgen.training.checkpoints import CheckpointError


def values(system) -> list[np.ndarray]:
    return [variable.numpy() for variable in system.network.all_variables]


def test_trained_saved_and_read_again(tmp_path):
    job = small.job(tmp_path, batch_size=5)
    trained = small.system()
    before = values(trained)
    results = robustness.labelfinetune(trained, small.options("labelfinetune"), job)
    assert not all(np.array_equal(a, b) for a, b in zip(before, values(trained), strict=True))
    assert set(results) == {"train_loss", "accuracy", "images"}
    assert sorted(path.name for path in job.run.iterdir()) == ["evaluation", "flags.txt", supervised.FOLDER]

    read = small.system(seed=9)
    again = robustness.labelfinetune(read, small.options("labelfinetune", train=False), job)
    for a, b in zip(values(trained), values(read), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again["accuracy"] == results["accuracy"]

    # A further training takes the place of this one.
    supervised.save(small.system(seed=5), job.run)
    supervised.restore(read, job.run)
    np.testing.assert_array_equal(values(read)[0], values(small.system(seed=5))[0])
    assert len(list((job.run / supervised.FOLDER).iterdir())) == 1


def test_an_epoch_of_one_batch_is_a_step_of_adam():
    """Of the learning rate in every entry, against the gradient of the loss summed over the batch."""
    system, source = small.system(), small.source(8, seed=1)
    batch = source.read(np.arange(8))
    labels, images = system.labels_of(batch), tf.constant(system.scaled(batch["image"]))
    variables = list(system.network.trained.values())
    with tf.GradientTape() as tape:
        weights = system.normalized()
        logits = -tf.stack([system.energy(weights, images, tf.one_hot([k] * 8, 4))[:, 0] for k in range(4)], axis=1)
        loss = -tf.reduce_sum(tf.boolean_mask(tf.nn.log_softmax(logits), labels == 1))
    gradients = tape.gradient(loss, variables)
    before = [variable.numpy() for variable in variables]
    results = supervised.train(system, source, 8, seed=0)
    assert results["train_loss"] == pytest.approx(float(loss) / 8, rel=1e-4)
    seen = 0
    for gradient, old, new in zip(gradients, before, variables, strict=True):
        clear = np.abs(gradient) > 1e-5
        seen += clear.sum()
        # Epsilon is 1e-8 beside the root of the uncorrected second moment, as in the original's optimizer.
        expected = -1e-3 * gradient / (np.abs(gradient) + 1e-8 / 0.001**0.5)
        np.testing.assert_allclose((new - old)[clear], expected[clear], rtol=0.01)
    assert seen > 1000
    for name, vector in weights.vectors.items():
        np.testing.assert_allclose(system.network.by_name[name], vector, atol=1e-5)


def test_a_loss_that_is_no_number():
    system = small.system()
    system.network.all_variables[-1].assign(system.network.all_variables[-1] * np.nan)
    with pytest.raises(SettingsError, match="the loss was not a number in 2 of 2 steps, so that nothing was saved"):
        supervised.train(system, small.source(8), 4, seed=0)


def test_nothing_or_something_damaged_to_read(tmp_path):
    system, job = small.system(), small.job(tmp_path)
    with pytest.raises(SettingsError, match="run --task=labelfinetune --train first"):
        supervised.restore(system, job.run)
    supervised.save(system, job.run)
    (path,) = (job.run / supervised.FOLDER).glob("*/*.data-*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="bytes were saved"):
        supervised.restore(system, job.run)
