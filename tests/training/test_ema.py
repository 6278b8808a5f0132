import numpy as np
import pytest
import tensorflow as tf

from tfgen.training.ema import Ema


def _built(decay: float = 0.9, **options) -> tuple[Ema, list[tf.Variable]]:
    random = np.random.RandomState(0)
    variables = [tf.Variable(random.normal(size=shape).astype(np.float32)) for shape in ([3, 2], [4])]
    ema = Ema(decay, **options)
    ema.build(variables)
    return ema, variables


def _bits(variables) -> list[bytes]:
    return [variable.numpy().tobytes() for variable in variables]


def test_starts_at_the_initial_values_in_its_own_memory() -> None:
    ema, variables = _built()
    initial = _bits(variables)
    assert _bits(ema.averages) == initial
    for variable in variables:
        variable.assign_add(tf.ones_like(variable))
    assert _bits(ema.averages) == initial


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("warmup", [False, True])
def test_follows_the_formula(warmup: bool, traced: bool) -> None:
    ema, variables = _built(0.8, warmup=warmup)
    update = tf.function(ema.update) if traced else ema.update
    expected = [v.numpy().astype(np.float64) for v in variables]
    for step in range(60):
        for variable in variables:
            variable.assign(variable * 0.9 + np.float32(np.sin(step)))
        update()
        decay = min(0.8, (1 + step) / (10 + step)) if warmup else 0.8
        expected = [e - (1 - decay) * (e - v.numpy()) for e, v in zip(expected, variables, strict=True)]
        for average, wanted in zip(ema.averages, expected, strict=True):
            np.testing.assert_allclose(average, wanted, rtol=1e-5, atol=1e-6)


def test_swap_exchanges_and_restores_exactly() -> None:
    ema, variables = _built()
    for variable in variables:
        variable.assign(variable / 3.0)
    ema.update()
    raw, averaged = _bits(variables), _bits(ema.averages)
    assert raw != averaged
    with ema.swapped_in():
        assert (_bits(variables), _bits(ema.averages)) == (averaged, raw)
        variables[0].assign_add(tf.ones_like(variables[0]))  # in place; must not reach the values kept aside
    assert (_bits(variables), _bits(ema.averages)) == (raw, averaged)


def test_swap_restores_after_an_exception() -> None:
    ema, variables = _built()
    variables[1].assign_add(tf.ones([4]))
    raw, averaged = _bits(variables), _bits(ema.averages)
    with pytest.raises(KeyboardInterrupt), ema.swapped_in():
        raise KeyboardInterrupt
    assert (_bits(variables), _bits(ema.averages)) == (raw, averaged)
    with ema.swapped_in():
        assert _bits(variables) == averaged


def test_refuses_updates_and_nesting_inside_a_swap() -> None:
    ema, variables = _built()
    variables[1].assign_add(tf.ones([4]))
    averaged = _bits(ema.averages)
    with ema.swapped_in():
        with pytest.raises(ValueError, match="in place already"), ema.swapped_in():
            pass
        with pytest.raises(ValueError, match="leave the block first"):
            ema.update()
        assert _bits(variables) == averaged


def test_a_traced_function_sees_the_swapped_values() -> None:
    ema, variables = _built()
    variables[1].assign_add(tf.ones([4]))
    total = tf.function(lambda: tf.reduce_sum(variables[1]))
    raw = float(total())
    with ema.swapped_in():
        assert float(total()) == pytest.approx(raw - 4.0, abs=1e-5)
    assert float(total()) == raw


def test_refuses_to_swap_inside_a_function() -> None:
    ema, _ = _built()

    @tf.function(autograph=False)
    def swap() -> None:
        with ema.swapped_in():
            pass

    with pytest.raises(ValueError, match=r"inside tf\.function"):
        swap()


@pytest.mark.parametrize("warmup", [False, True])
def test_checkpoint_round_trip(warmup: bool, tmp_path) -> None:
    ema, variables = _built(warmup=warmup)
    variables[0].assign(variables[0] * 2.0)
    ema.update()
    path = tf.train.Checkpoint(ema=ema).write(str(tmp_path / "ema"))
    other, _ = _built(warmup=warmup)
    tf.train.Checkpoint(ema=other).read(path).assert_consumed()
    assert _bits(other.variables) == _bits(ema.variables)
    assert len(ema.variables) == 2 + warmup  # the averages and the counter, not the weights


def test_refuses() -> None:
    with pytest.raises(ValueError, match="decay is 1"):
        Ema(1.0)
    ema, variables = _built()
    with pytest.raises(ValueError, match="built already"):
        ema.build(variables)


@pytest.mark.parametrize("settings", [{}, {"warmup": True}, {"rounded_rate": True}])
def test_an_update_that_is_not_taken_changes_no_bit(settings: dict) -> None:
    variable = tf.Variable([1.0, -2.0, 0.3])
    average = Ema(0.9, **settings)
    average.build([variable])
    variable.assign([0.5, 0.1, 7.0])
    update = tf.function(average.update)
    update(tf.constant(True))
    assert average.averages[0].numpy()[0] != 1.0
    before = [item.numpy().tobytes() for item in average.variables]
    update(tf.constant(False))
    assert [item.numpy().tobytes() for item in average.variables] == before
