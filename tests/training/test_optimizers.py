from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfgen.training import moments16
from tfgen.training.optimizers import Adafactor, Adam, AdamW

SHAPES = {"matrix": [96, 90], "vector": [7], "table": [4, 3], "sos": [1, 1, 6], "scalar": []}
RATES = [0.01, 0.02, 0.005, 0.015]


def _arrays(seed: int, scale: float = 1.0) -> list[np.ndarray]:
    random = np.random.RandomState(seed)
    return [(scale * random.normal(size=shape)).astype(np.float32) for shape in SHAPES.values()]


def _variables() -> list[tf.Variable]:
    return [tf.Variable(array, name=name) for name, array in zip(SHAPES, _arrays(0), strict=True)]


def _train(optimizer, variables: list[tf.Variable], first: int = 0, traced: bool = False) -> None:
    """Updates with fixed gradients, from number `first` on."""
    apply = tf.function(optimizer.apply) if traced else optimizer.apply
    for step in range(first, len(RATES)):
        apply([tf.constant(g) for g in _arrays(step + 1, scale=0.1)], tf.constant(RATES[step]))


def _bits(module: tf.Module, variables: list[tf.Variable]) -> list[bytes]:
    return [variable.numpy().tobytes() for variable in [*variables, *module.variables]]


# The formulas once more, in NumPy and double precision ------------------------------------------------


class AdamReference:
    def __init__(self, value, beta1=0.9, beta2=0.999, weight_decay=0.0, packed=False):
        self.value = np.array(value, np.float64)
        self.beta1, self.beta2, self.weight_decay, self.packed = beta1, beta2, weight_decay, packed
        self.mean, self.variance, self.t = np.zeros_like(self.value), np.zeros_like(self.value), 0

    def step(self, gradient, rate):
        self.t += 1
        mean = self.beta1 * self.mean + (1 - self.beta1) * gradient
        variance = self.beta2 * self.variance + (1 - self.beta2) * gradient**2
        step_size = rate * np.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)
        decay = self.weight_decay if self.value.ndim >= 2 else 0.0
        self.value = self.value * (1 - rate * decay) - step_size * mean / (np.sqrt(variance) + 1e-8)
        if self.packed and self.value.size >= 8192:
            mean = moments16.decode_mean(moments16.encode_mean(mean)).astype(np.float64)
            variance = moments16.decode_variance(moments16.encode_variance(variance)).astype(np.float64)
        self.mean, self.variance = mean, variance


class AdafactorReference:
    def __init__(self, value, beta2=0.999, weight_decay=0.0):
        self.value, self.beta2, self.weight_decay, self.t = np.array(value, np.float64), beta2, weight_decay, 0
        self.columns, self.rows = 0.0, 0.0

    def step(self, gradient, rate):
        self.t += 1
        shape = self.value.shape
        gradient = gradient.reshape([-1, shape[-1]])
        d = self.beta2 * (1 - self.beta2**self.t) / (1 - self.beta2 ** (self.t + 1))
        self.columns = d * self.columns + (1 - d) * (gradient**2 + 1e-30).mean(0)
        self.rows = d * self.rows + (1 - d) * (gradient**2 + 1e-30).mean(1)
        x = gradient / np.outer(np.sqrt(self.rows / self.rows.mean()), np.sqrt(self.columns))
        x /= max(1.0, np.sqrt((x**2).mean()))
        self.value = self.value * (1 - rate * self.weight_decay) - rate * x.reshape(shape)


def _train_references(references) -> None:
    for step, rate in enumerate(RATES):
        for reference, gradient in zip(references, _arrays(step + 1, scale=0.1), strict=True):
            reference.step(gradient.astype(np.float64), rate)


# Adam -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("options", [{}, {"beta2": 0.95, "weight_decay": 0.3}, {"beta1": 0.0}], ids=str)
def test_adam_follows_the_formula(options: dict, traced: bool) -> None:
    variables, optimizer = _variables(), Adam(**options)
    optimizer.build(variables)
    references = [AdamReference(v.numpy(), **options) for v in variables]
    _train(optimizer, variables, traced=traced)
    _train_references(references)
    for index, (variable, reference) in enumerate(zip(variables, references, strict=True)):
        mean, variance = optimizer.moments(index)
        np.testing.assert_allclose(variable, reference.value, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(mean, reference.mean, atol=1e-7)
        np.testing.assert_allclose(variance, reference.variance, rtol=1e-5)
    after = len(RATES) + 1
    np.testing.assert_allclose(optimizer.beta1_power, optimizer.beta1**after, rtol=1e-6)
    np.testing.assert_allclose(optimizer.beta2_power, optimizer.beta2**after, rtol=1e-6)


def test_packed_moments_of_large_variables_only() -> None:
    variables, optimizer = _variables(), Adam(packed_moments=True)
    optimizer.build(variables)
    assert [slot.dtype for slot in optimizer.first_moments] == [tf.float16] + [tf.float32] * 4
    references = [AdamReference(v.numpy(), packed=True) for v in variables]
    _train(optimizer, variables, traced=True)
    _train_references(references)
    for index, (variable, reference) in enumerate(zip(variables, references, strict=True)):
        mean, variance = optimizer.moments(index)
        # A moment near the middle of two words may be rounded to the other one by float32 arithmetic.
        np.testing.assert_allclose(variable, reference.value, atol=2e-5)
        np.testing.assert_allclose(mean, reference.mean, atol=2e-4)
        np.testing.assert_allclose(variance, reference.variance, rtol=2.1e-3)


def test_embedding_tables_are_updated_in_every_row() -> None:
    table, optimizer = tf.Variable(tf.ones([4, 2])), Adam()
    optimizer.build([table])
    for row in (1, 2):
        optimizer.apply([tf.IndexedSlices(tf.ones([1, 2]), tf.constant([row]), tf.constant([4, 2]))], 0.1)
    np.testing.assert_array_equal(table[0], [1.0, 1.0])
    assert (table[1].numpy() < 1.0 - 0.11).all()  # moved again at the second step, by its momentum


# Adafactor --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("options", [{}, {"beta2": 0.9, "weight_decay": 0.3}], ids=str)
def test_adafactor_follows_the_formula(options: dict, traced: bool) -> None:
    variables, optimizer = _variables(), Adafactor(**options)
    optimizer.build(variables)
    references = [
        AdafactorReference(v.numpy(), **options) if v.shape.rank >= 2 else AdamReference(v.numpy(), **options)
        for v in variables
    ]
    _train(optimizer, variables, traced=traced)
    _train_references(references)
    for variable, reference in zip(variables, references, strict=True):
        # 1 - beta2^t of float32 powers near 1 is off by 1e-4 of itself, and so are the steps, of 0.05 in all.
        np.testing.assert_allclose(variable, reference.value, rtol=1e-6, atol=2e-5)
    rows = [reference.rows for reference in references if isinstance(reference, AdafactorReference)]
    for slot, expected in zip(optimizer.row_variances, rows, strict=True):
        np.testing.assert_allclose(slot, expected, rtol=1e-3)


def test_adafactor_takes_gradients_of_zero() -> None:
    matrix, optimizer = tf.Variable(tf.ones([3, 2])), Adafactor()
    optimizer.build([matrix])
    optimizer.apply([tf.constant([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])], 0.1)
    assert np.isfinite(matrix.numpy()).all()
    assert matrix[1, 1] < 1.0
    np.testing.assert_array_equal(matrix[:, 0], np.ones(3))


# Both -------------------------------------------------------------------------------------------------

kinds = pytest.mark.parametrize(
    "kind", [Adam, lambda: Adam(packed_moments=True), Adafactor], ids=["adam", "packed", "adafactor"]
)


@kinds
def test_same_bits_every_run(kind) -> None:
    results = []
    for _ in range(2):
        variables, optimizer = _variables(), kind()
        optimizer.build(variables)
        _train(optimizer, variables, traced=True)
        results.append(_bits(optimizer, variables))
    assert results[0] == results[1]


@kinds
def test_resumes_to_the_bit_from_a_checkpoint(kind, tmp_path) -> None:
    variables, optimizer = _variables(), kind()
    optimizer.build(variables)
    step = 2
    for gradients, rate in [(_arrays(1, 0.1), RATES[0]), (_arrays(2, 0.1), RATES[1])]:
        optimizer.apply([tf.constant(g) for g in gradients], tf.constant(rate))
    path = tf.train.Checkpoint(optimizer=optimizer, weights=variables).write(str(tmp_path / "step"))
    _train(optimizer, variables, first=step)

    resumed_variables, resumed = [tf.Variable(tf.zeros_like(v)) for v in variables], kind()
    resumed.build(resumed_variables)
    restored = tf.train.Checkpoint(optimizer=resumed, weights=resumed_variables).read(path)
    restored.assert_consumed()
    _train(resumed, resumed_variables, first=step)
    assert _bits(optimizer, variables) == _bits(resumed, resumed_variables)


@kinds
def test_holds_its_slots_and_not_the_weights(kind) -> None:
    variables, optimizer = _variables(), kind()
    optimizer.build(variables)
    assert optimizer.targets == tuple(variables)
    assert not {id(v) for v in optimizer.variables} & {id(v) for v in variables}
    names = [v.name for v in optimizer.variables]
    assert len(set(names)) == len(names)
    assert not optimizer.trainable_variables


@kinds
def test_refuses_gradients_that_do_not_fit(kind) -> None:
    optimizer = kind()
    optimizer.build([tf.Variable([1.0, 2.0], name="pair")])
    with pytest.raises(ValueError, match="0 gradients for 1 variables"):
        optimizer.apply([], 0.1)
    with pytest.raises(ValueError, match=r"gradient of pair:0 has shape \(3,\), expected \(2,\)"):
        optimizer.apply([tf.zeros([3])], 0.1)
    with pytest.raises(ValueError, match="built already"):
        optimizer.build([tf.Variable(1.0)])


def test_refuses_settings_and_variables() -> None:
    with pytest.raises(ValueError, match="beta2 is 1"):
        Adam(beta2=1)
    with pytest.raises(ValueError, match="weight_decay is -1"):
        Adafactor(weight_decay=-1)
    with pytest.raises(ValueError, match="half:0\\) is float16, expected float32"):
        Adam().build([tf.Variable(1.0, dtype=tf.float16, name="half")])
    variable = tf.Variable(1.0)
    with pytest.raises(ValueError, match="listed twice"):
        Adam().build([variable, variable])


MAKERS = {
    "adam": Adam,
    "packed adam": lambda **settings: Adam(packed_moments=True, packed_min_size=1, **settings),
    "adamw": AdamW,
    "adafactor": Adafactor,
}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 0.0])
@pytest.mark.parametrize("name", MAKERS)
def test_an_update_that_is_not_taken_changes_no_bit(name: str, bad: float) -> None:
    results = []
    for skips in (False, True):
        variables = _variables()
        optimizer = MAKERS[name](weight_decay=0.1)
        optimizer.build(variables)
        apply = tf.function(optimizer.apply)
        for step, rate in enumerate(RATES):
            gradients = [tf.constant(g) for g in _arrays(step + 1, scale=0.1)]
            if skips:
                apply(gradients, tf.constant(rate), tf.constant(True))
                before = _bits(optimizer, variables)
                apply([tf.fill(v.shape, tf.constant(bad, tf.float32)) for v in variables], rate, tf.constant(False))
                assert _bits(optimizer, variables) == before
            else:
                apply(gradients, tf.constant(rate))
        results.append([variable.numpy() for variable in [*variables, *optimizer.variables]])
    for straight, skipping in zip(*results, strict=True):  # another graph: equal up to rounding
        np.testing.assert_allclose(straight, skipping, rtol=1e-6, atol=1e-9)
