import numpy as np
import pytest
import tensorflow as tf

from tfgen.training import moments16
from tfgen.training.moments16 import MEAN, VARIANCE, MomentFormat

CODES = np.arange(2**16).astype(np.uint16)
both = pytest.mark.parametrize("number_format", [MEAN, VARIANCE], ids=["mean", "variance"])


def _values(number_format: MomentFormat) -> np.ndarray:
    """The value of each of the 65536 words, from the definition, in double precision."""
    mantissa_bits = number_format.mantissa_bits
    magnitude = CODES & 0x7FFF if number_format.signed else CODES
    exponent, mantissa = magnitude >> mantissa_bits, magnitude & (2**mantissa_bits - 1)
    value = 2.0 ** (exponent.astype(np.float64) - 60) * (1 + mantissa / 2**mantissa_bits)
    value = np.where(number_format.signed & (CODES >= 0x8000), -value, value)
    return np.where(CODES == 0, 0.0, value)


@both
def test_every_word_decodes_to_its_definition(number_format: MomentFormat) -> None:
    expected = _values(number_format)
    np.testing.assert_array_equal(number_format.decode(CODES), expected)
    np.testing.assert_array_equal(number_format.unpack(tf.constant(CODES.view(np.float16))).numpy(), expected)


@both
def test_every_word_survives_a_round_trip(number_format: MomentFormat) -> None:
    # +-2^-60 lie below the smallest number that is written; the words exist, the encoder never makes them.
    kept = (CODES & (0x7FFF if number_format.signed else 0xFFFF)) != 0
    values = number_format.decode(CODES)
    np.testing.assert_array_equal(number_format.encode(values)[kept], CODES[kept])
    packed = number_format.pack(tf.constant(values)).numpy().view(np.uint16)
    np.testing.assert_array_equal(packed[kept], CODES[kept])
    assert number_format.encode(np.float32(0.0)) == 0


@both
def test_rounds_to_nearest_ties_away(number_format: MomentFormat) -> None:
    words = np.random.RandomState(1).randint(1, 0x7FFE, 2000).astype(np.uint16)
    low, high = number_format.decode(words).astype(np.float64), number_format.decode(words + 1).astype(np.float64)
    middle = ((low + high) / 2).astype(np.float32)  # exact: float32 has the bits
    for sign in (1, -1) if number_format.signed else (1,):
        top = np.uint16(0x8000 if sign < 0 else 0)
        np.testing.assert_array_equal(number_format.encode(sign * middle), (words + 1) | top)
        np.testing.assert_array_equal(number_format.encode(sign * np.nextafter(middle, np.float32(0))), words | top)


@both
def test_limits(number_format: MomentFormat) -> None:
    largest = number_format.decode(np.uint16(number_format._word_mask))
    assert largest == (15.984375 if number_format.signed else 15.9921875)
    np.testing.assert_array_equal(number_format.decode(number_format.encode([20.0, np.inf, largest])), [largest] * 3)
    smallest = np.float32(2.0**-60 * (1 + 2.0**-number_format.mantissa_bits))
    below = np.nextafter(smallest, np.float32(0))
    np.testing.assert_array_equal(number_format.encode([smallest, below, -below, 1e-45, -0.0]), [1, 0, 0, 0, 0])


def test_sign() -> None:
    assert moments16.decode_mean(moments16.encode_mean(-0.75)) == -0.75
    assert moments16.decode_variance(moments16.encode_variance(-0.75)) == 0.75


@both
@pytest.mark.parametrize("traced", [False, True])
def test_tensorflow_packs_the_same_words(number_format: MomentFormat, traced: bool) -> None:
    random = np.random.RandomState(2)
    values = random.normal(size=[40, 500]) * 10.0 ** random.uniform(-25, 2, [40, 500])
    values = np.concatenate([values.ravel(), [np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38, 1e-45]]).astype(np.float32)
    pack = tf.function(number_format.pack) if traced else number_format.pack
    np.testing.assert_array_equal(pack(tf.constant(values)).numpy().view(np.uint16), number_format.encode(values))


def test_words_survive_a_variable_and_a_checkpoint(tmp_path) -> None:
    """Among them are NaN patterns of IEEE halves, whose payload must not be touched."""
    saved, restored = tf.Variable(CODES.view(np.float16)), tf.Variable(tf.zeros(CODES.shape, tf.float16))
    path = tf.train.Checkpoint(words=saved).write(str(tmp_path / "words"))
    tf.train.Checkpoint(words=restored).read(path).assert_consumed()
    np.testing.assert_array_equal(restored.numpy().view(np.uint16), CODES)
