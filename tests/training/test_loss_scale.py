import numpy as np
import pytest
import tensorflow as tf

from tfgen.training.loss_scale import CEILING, LossScale
from tfgen.training.recipe import LossScaleSettings


def _after(
    initial: float, loss_is_finite: bool, norm_is_finite: bool, *, dynamic: bool = True, steps: int = 1
) -> float:
    loss_scale = LossScale(LossScaleSettings(initial=initial, minimum=1024.0, dynamic=dynamic))
    update = tf.function(loss_scale.update)
    for _ in range(steps):
        update(tf.constant(loss_is_finite), tf.constant(norm_is_finite))
    return float(loss_scale.scale)


def test_grows_on_good_steps() -> None:
    assert _after(65536.0, True, True) == np.float32(65536.0) * np.float32(1.0003466337)
    assert _after(65536.0, True, True, steps=200) == pytest.approx(65536.0 * 2**0.1, rel=1e-4)


def test_halves_on_overflow_while_above_the_minimum() -> None:
    assert _after(65536.0, True, False) == 32768.0
    assert _after(1025.0, True, False) == 512.5
    assert _after(1024.0, True, False) == 1024.0
    assert _after(65536.0, True, False, steps=20) == 1024.0


@pytest.mark.parametrize("norm_is_finite", [False, True])
def test_stays_when_the_loss_itself_is_not_finite(norm_is_finite: bool) -> None:
    assert _after(65536.0, False, norm_is_finite) == 65536.0


def test_halves_when_the_loss_is_not_finite_where_that_counts() -> None:
    loss_scale = LossScale(LossScaleSettings(initial=65536.0, minimum=1024.0, loss_counts=True))
    for loss_is_finite, norm_is_finite, expected in (
        (False, True, 32768.0),
        (False, False, 16384.0),
        (True, False, 8192.0),
    ):
        loss_scale.update(tf.constant(loss_is_finite), tf.constant(norm_is_finite))
        assert float(loss_scale.scale) == expected


def test_static_is_constant() -> None:
    assert [_after(65536.0, True, norm, dynamic=False) for norm in (False, True)] == [65536.0, 65536.0]


def test_its_reciprocal_stays_a_normal_number() -> None:
    assert _after(CEILING, True, True, steps=5) == CEILING
    assert float(tf.constant(1.0) / CEILING) > 0.0


def test_checkpoint_round_trip(tmp_path) -> None:
    loss_scale, restored = LossScale(LossScaleSettings()), LossScale(LossScaleSettings())
    loss_scale.update(tf.constant(True), tf.constant(True))
    path = tf.train.Checkpoint(loss_scale=loss_scale).write(str(tmp_path / "scale"))
    tf.train.Checkpoint(loss_scale=restored).read(path).assert_consumed()
    assert float(restored.scale) == float(loss_scale.scale) != 65536.0


def test_refuses() -> None:
    with pytest.raises(ValueError, match="initial is 0"):
        LossScale(LossScaleSettings(initial=0.0))


def test_growth_is_a_setting() -> None:
    loss_scale = LossScale(LossScaleSettings(initial=2.0**20, minimum=1.0, growth=2.0**1e-3))
    for _ in range(1000):
        loss_scale.update(tf.constant(True), tf.constant(True))
    assert float(loss_scale.scale) == pytest.approx(2.0**21, rel=1e-4)
    with pytest.raises(ValueError, match=r"growth is 0\.5, expected a factor of at least 1"):
        LossScale(LossScaleSettings(growth=0.5))
