from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tfgen.likelihood.bits import bits_per_dim, nats_per_dim


def test_a_uniform_image_model_has_eight_bits():
    dims = 32 * 32 * 3
    assert bits_per_dim(nats_per_dim(dims * math.log(256), dims)) == pytest.approx(8.0, rel=1e-15)


@pytest.mark.parametrize("make", [lambda x: np.array(x, np.float32), tf.constant])
def test_arrays_and_tensors_keep_their_kind(make):
    totals = make([8.0, 16.0])
    bits = bits_per_dim(nats_per_dim(totals, 4))
    assert type(bits) is type(totals)
    assert bits.dtype == totals.dtype
    np.testing.assert_allclose(bits, [2 / math.log(2), 4 / math.log(2)], rtol=1e-7)


def test_an_image_has_dimensions():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        nats_per_dim(1.0, 0)
