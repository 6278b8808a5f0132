import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfgen.systems.vdvae.preprocess import GENERIC, PREPROCESSING, preprocessing

LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)


@pytest.mark.parametrize("dataset", [*PREPROCESSING, "photos"])
def test_formula(dataset):
    constants = preprocessing(dataset)
    x = LEVELS.astype(np.float64) / (255 if constants.unit_range else 1)
    q = 8 * np.floor(x / 8) if constants.low_bit else x
    inputs, targets = constants.input_and_target(tf.constant(LEVELS))
    assert (inputs.dtype, targets.dtype) == (tf.float32, tf.float32)
    np.testing.assert_allclose(inputs, (x + constants.shift) * constants.scale, rtol=0, atol=2e-6)
    np.testing.assert_allclose(targets, (q + constants.shift_loss) * constants.scale_loss, rtol=0, atol=2e-6)
    assert targets.numpy().min() == pytest.approx(-1, abs=1e-6)
    assert targets.numpy().max() == pytest.approx(0.9450981 if constants.low_bit else 1, abs=1e-6)


def test_constants_are_single_precision():
    for constants in [*PREPROCESSING.values(), GENERIC]:
        values = dataclasses.astuple(constants)[:4]
        assert all(type(value) is np.float32 for value in values)


def test_low_bits_are_dropped_from_the_target_only():
    inputs, targets = PREPROCESSING["ffhq_256"].input_and_target(tf.constant(LEVELS))
    assert len(np.unique(targets)) == 32
    assert len(np.unique(inputs)) == 256
    assert [name for name, constants in PREPROCESSING.items() if constants.low_bit] == ["ffhq_256"]


def test_levels_survive_the_unit_range():
    """The original shows ffhq_1024 images as 255 x, truncated: the bytes that a source holds."""
    x = LEVELS.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal((x * np.float32(255)).astype(np.uint8), LEVELS)


def test_works_in_a_function_of_unknown_batch_size():
    constants = PREPROCESSING["ffhq_256"]
    traced = tf.function(
        constants.input_and_target, input_signature=[tf.TensorSpec([None, 16, 16, 3], tf.uint8)], autograph=False
    )
    for traced_value, value in zip(traced(LEVELS), constants.input_and_target(LEVELS), strict=True):
        np.testing.assert_array_equal(traced_value, value)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="expected uint8 images, found float32"):
        GENERIC.input_and_target(tf.zeros([1, 2, 2, 3]))
