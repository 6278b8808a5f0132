"""Optimizers with the exact arithmetic of the published systems.

All state is in variables, so that a checkpoint of the module is a checkpoint of the optimizer, and every update
is elementwise or a reduction in a fixed order: the same inputs give the same bits. Gradients come from
`tfgen.training.gradients`, unscaled and clipped; a step whose gradients are not usable is skipped by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfgen.training import moments16
from tfgen.training.subgraph import subgraph
from tfgen.training.targets import Targets

TINY = 1e-30  # added to squared gradients, keeps a row of zeros from dividing by zero (Adafactor, section 3)


def _slot(variable: tf.Variable, name: str, shape: Sequence[int] | None = None, dtype=tf.float32) -> tf.Variable:
    """A zero variable that belongs to `variable`."""
    zeros = tf.zeros(variable.shape if shape is None else shape, dtype)
    return tf.Variable(zeros, trainable=False, name=f"{variable.name.removesuffix(':0')}/{name}")


def _scalar(value: float, name: str) -> tf.Variable:
    return tf.Variable(value, dtype=tf.float32, trainable=False, name=name)


def _check_settings(weight_decay: float, epsilon: float, **betas: float) -> None:
    for name, beta in betas.items():
        if not 0 <= beta < 1:
            raise ValueError(f"{name} is {beta}, expected at least 0 and less than 1")
    if epsilon <= 0:
        raise ValueError(f"epsilon is {epsilon}, expected a small positive number such as 1e-8")
    if weight_decay < 0:
        raise ValueError(f"weight_decay is {weight_decay}, expected 0 (none) or more")


def _is_matrix(variable: tf.Variable) -> bool:
    """Whether `variable` is a matrix or a table of rows, not a bias, gain or scalar."""
    return variable.shape.rank >= 2


def _assign(variable: tf.Variable, value: tf.Tensor, take: tf.Tensor | None) -> None:
    """Sets the variable, unless `take` is False."""
    variable.assign(value if take is None else tf.where(take, value, variable.read_value()))


_SCALAR, _VECTOR, _MATRIX, _ANY_SHAPE = (tf.TensorSpec(shape, tf.float32) for shape in ([], [None], [None, None], None))


class Adam(tf.Module):
    """Adam (Kingma & Ba, arXiv:1412.6980, end of section 2) with decoupled weight decay (arXiv:1711.05101).

        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        p <- p (1 - lr weight_decay) - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon)

    epsilon stands outside the root and is not bias corrected. Only variables of rank 2 and above decay (not biases,
    not gains), by the scheduled rate and at the point where the gradient was taken.

    Args:
      beta1, beta2, epsilon, weight_decay: as above.
      packed_moments: keep m and v as 16-bit words (see `moments16`). Arithmetic stays float32; an update uses its
        own m and v before they are rounded.
      packed_min_size: variables with fewer elements keep float32 moments.

    Attributes:
      first_moments, second_moments: lists of variables (m and v) in the order given to `build`; read them through
        `moments`, since some may be packed.
      beta1_power, beta2_power: float32 scalars, beta^t of the next update t = 1, 2, ...

    Raises:
      ValueError: an argument outside its range.
    """

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        packed_moments: bool = False,
        packed_min_size: int = 8192,
    ):
        super().__init__(name="adam")
        _check_settings(weight_decay, epsilon, beta1=beta1, beta2=beta2)
        self.beta1, self.beta2, self.epsilon, self.weight_decay = beta1, beta2, epsilon, weight_decay
        self.packed_moments, self.packed_min_size = packed_moments, packed_min_size
        self.beta1_power, self.beta2_power = _scalar(beta1, "adam/beta1_power"), _scalar(beta2, "adam/beta2_power")
        self.first_moments: list[tf.Variable] = []
        self.second_moments: list[tf.Variable] = []
        self._targets = Targets(())

    @property
    def targets(self) -> tuple[tf.Variable, ...]:
        """The variables given to `build`."""
        return self._targets.variables

    def build(self, variables: Sequence[tf.Variable]) -> None:
        """Creates the moments of `variables` (float32), all zero. Call it once."""
        if self.targets:
            raise ValueError("this optimizer is built already: make a new one for other variables")
        self._targets = Targets.of(variables)
        dtypes = [tf.float16 if self._packs(variable) else tf.float32 for variable in variables]
        self.first_moments = [_slot(v, "adam_mean", dtype=d) for v, d in zip(variables, dtypes, strict=True)]
        self.second_moments = [_slot(v, "adam_variance", dtype=d) for v, d in zip(variables, dtypes, strict=True)]

    def _packs(self, variable: tf.Variable) -> bool:
        return self.packed_moments and variable.shape.num_elements() >= self.packed_min_size

    def moments(self, index: int) -> tuple[tf.Tensor, tf.Tensor]:
        """m and v of variable `index` as float32 tensors."""
        mean, variance = self.first_moments[index].read_value(), self.second_moments[index].read_value()
        if self._packs(self.targets[index]):
            return moments16.unpack_mean(mean), moments16.unpack_variance(variance)
        return mean, variance

    def _store(self, index: int, mean: tf.Tensor, variance: tf.Tensor, take: tf.Tensor | None) -> None:
        if self._packs(self.targets[index]):
            mean, variance = moments16.pack_mean(mean), moments16.pack_variance(variance)
        _assign(self.first_moments[index], mean, take)
        _assign(self.second_moments[index], variance, take)

    def apply(
        self,
        gradients: Sequence[tf.Tensor | tf.IndexedSlices],
        learning_rate: float | tf.Tensor,
        take: tf.Tensor | None = None,
    ) -> None:
        """One update of all variables, every row of every table included.

        Args:
          gradients: one per variable, in the order given to `build`.
          learning_rate: scalar, the scheduled rate lr.
          take: bool scalar; where it is False nothing changes, whatever the gradients hold (NaN, too). None: always.

        Raises:
          ValueError: gradients that do not fit the variables.
        """
        learning_rate = tf.cast(learning_rate, tf.float32)
        keep_vector, keep_matrix = tf.constant(1.0), 1.0 - learning_rate * self.weight_decay
        step_size = learning_rate * tf.sqrt(1.0 - self.beta2_power) / (1.0 - self.beta1_power)
        for index, gradient in enumerate(self._targets.dense(gradients)):
            variable = self.targets[index]
            keep = keep_matrix if _is_matrix(variable) else keep_vector
            value, mean, variance = self._updated(variable, *self.moments(index), gradient, keep, step_size)
            _assign(variable, value, take)
            self._store(index, mean, variance, take)
        _assign(self.beta1_power, self.beta1_power * self.beta1, take)
        _assign(self.beta2_power, self.beta2_power * self.beta2, take)

    @subgraph(*[_ANY_SHAPE] * 4, _SCALAR, _SCALAR)
    def _updated(self, value, mean, variance, gradient, keep, step_size):
        """New value, m and v of one variable; `keep` is the share of the value that weight decay leaves."""
        # 1 - beta in double precision: in float32, 1 - 0.999 is wrong by 1e-5 of itself.
        mean = self.beta1 * mean + np.float32(1.0 - self.beta1) * gradient
        variance = self.beta2 * variance + np.float32(1.0 - self.beta2) * tf.square(gradient)
        return value * keep - step_size * mean / (tf.sqrt(variance) + self.epsilon), mean, variance


class AdamW(tf.Module):
    """Adam with decoupled weight decay in the form of PyTorch and Apex (Loshchilov & Hutter, arXiv:1711.05101).

        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        p <- p - lr ( (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon) + weight_decay p )

    It differs from `Adam` in the place of epsilon, after the bias correction, and in what decays: every variable,
    gains and biases too. One fused operation a variable makes the update.

    Args:
      beta1, beta2, epsilon, weight_decay: as above.

    Attributes:
      updates: int64 scalar, updates made; t of the next one is one more.
      first_moments, second_moments: lists of float32 variables (m and v) in the order given to `build`.

    Raises:
      ValueError: an argument outside its range.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(name="adamw")
        _check_settings(weight_decay, epsilon, beta1=beta1, beta2=beta2)
        self.beta1, self.beta2, self.epsilon, self.weight_decay = beta1, beta2, epsilon, weight_decay
        self.updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="adamw/updates")
        self.first_moments: list[tf.Variable] = []
        self.second_moments: list[tf.Variable] = []
        self._targets = Targets(())

    @property
    def targets(self) -> tuple[tf.Variable, ...]:
        """The variables given to `build`."""
        return self._targets.variables

    def build(self, variables: Sequence[tf.Variable]) -> None:
        """Creates the moments of `variables` (float32), all zero. Call it once."""
        if self.targets:
            raise ValueError("this optimizer is built already: make a new one for other variables")
        self._targets = Targets.of(variables)
        self.first_moments = [_slot(variable, "adamw_mean") for variable in variables]
        self.second_moments = [_slot(variable, "adamw_variance") for variable in variables]

    def apply(
        self,
        gradients: Sequence[tf.Tensor | tf.IndexedSlices],
        learning_rate: float | tf.Tensor,
        take: tf.Tensor | None = None,
    ) -> None:
        """One update of all variables; arguments and errors as in `Adam.apply`."""
        learning_rate = tf.cast(learning_rate, tf.float32)
        t = tf.cast(self.updates + 1, tf.float32)
        beta1_power, beta2_power = tf.pow(self.beta1, t), tf.pow(self.beta2, t)
        # The fused operation adds its epsilon before the bias correction of v: scaled, it is the one above.
        epsilon = self.epsilon * tf.sqrt(1.0 - beta2_power)
        beta1, beta2, taken = tf.constant(self.beta1), tf.constant(self.beta2), tf.constant(1, tf.int64)
        if take is not None:
            # An update by nothing: betas of 1 keep the moments, a rate of 0 the values, bit for bit.
            beta1, beta2 = tf.where(take, beta1, 1.0), tf.where(take, beta2, 1.0)
            learning_rate, taken = tf.where(take, learning_rate, 0.0), tf.cast(take, tf.int64)
            factor = tf.cast(take, tf.float32)
            gradients = [tf.math.multiply_no_nan(tf.convert_to_tensor(gradient), factor) for gradient in gradients]
        decay = learning_rate * self.weight_decay
        slots = zip(self.targets, self.first_moments, self.second_moments, strict=True)
        for (variable, mean, variance), gradient in zip(slots, self._targets.dense(gradients), strict=True):
            if self.weight_decay:
                variable.assign_sub(decay * variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=mean.handle,
                v=variance.handle,
                beta1_power=beta1_power,
                beta2_power=beta2_power,
                lr=learning_rate,
                beta1=beta1,
                beta2=beta2,
                epsilon=epsilon,
                grad=gradient,
            )
        self.updates.assign_add(taken)


class Adafactor(tf.Module):
    """Adafactor (Shazeer & Stern, arXiv:1804.04235, algorithm 4) as the DistAug code has it.

    Second moments of a matrix are kept as one number per row and one per column; there is no first moment and no
    scaling by the size of the weights. With g^2 below meaning g^2 + 1e-30, and t = 1, 2, ...

        d   = beta2 (1 - beta2^t) / (1 - beta2^(t+1))           one step ahead of the paper's
        row <- d row + (1 - d) mean of g^2 over the row;        column likewise
        x   = g / (sqrt(row / mean(row)) sqrt(column))
        p   <- p (1 - lr weight_decay) - lr x / max(1, rms(x))

    Variables of rank 0 and 1 are updated by Adam. Variables of rank above 2 count as matrices of all leading
    axes by the last one (the original stops with an error on them).

    Args:
      beta1: of Adam, for vectors only.
      beta2: of both.
      epsilon: of Adam.
      weight_decay: decoupled decay of matrices, as in `Adam`.

    Attributes:
      vectors: the `Adam` of the variables of rank 0 and 1.
      row_variances, column_variances: lists of variables, in the order of the matrices among the targets.
      beta2_power, beta2_next_power: float32 scalars, beta2^t and beta2^(t+1) of the next update.

    Raises:
      ValueError: an argument outside its range.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(name="adafactor")
        _check_settings(weight_decay, epsilon, beta1=beta1, beta2=beta2)
        self.beta2, self.weight_decay = beta2, weight_decay
        self.vectors = Adam(beta1, beta2, epsilon)
        self.beta2_power = _scalar(beta2, "adafactor/beta2_power")
        self.beta2_next_power = _scalar(beta2**2, "adafactor/beta2_next_power")
        self.row_variances: list[tf.Variable] = []
        self.column_variances: list[tf.Variable] = []
        self._targets = Targets(())

    @property
    def targets(self) -> tuple[tf.Variable, ...]:
        """The variables given to `build`."""
        return self._targets.variables

    def build(self, variables: Sequence[tf.Variable]) -> None:
        """Creates the moments of `variables` (float32), all zero. Call it once."""
        if self.targets:
            raise ValueError("this optimizer is built already: make a new one for other variables")
        self._targets = Targets.of(variables)
        self.vectors.build([variable for variable in variables if not _is_matrix(variable)])
        matrices = [variable for variable in variables if _is_matrix(variable)]
        self.row_variances = [_slot(v, "adafactor_row", [v.shape[:-1].num_elements()]) for v in matrices]
        self.column_variances = [_slot(v, "adafactor_column", [v.shape[-1]]) for v in matrices]

    def apply(
        self,
        gradients: Sequence[tf.Tensor | tf.IndexedSlices],
        learning_rate: float | tf.Tensor,
        take: tf.Tensor | None = None,
    ) -> None:
        """One update of all variables; arguments and errors as in `Adam.apply`."""
        learning_rate = tf.cast(learning_rate, tf.float32)
        pairs = list(zip(self.targets, self._targets.dense(gradients), strict=True))
        vectors = [gradient for variable, gradient in pairs if not _is_matrix(variable)]
        self.vectors.apply(vectors, learning_rate, take)

        keep = 1.0 - learning_rate * self.weight_decay
        old_weight = self.beta2 * (1.0 - self.beta2_power) / (1.0 - self.beta2_next_power)
        matrices = [pair for pair in pairs if _is_matrix(pair[0])]
        slots = zip(self.row_variances, self.column_variances, strict=True)
        for (variable, gradient), (row, column) in zip(matrices, slots, strict=True):
            update, new_row, new_column = self._update(
                row, column, tf.reshape(gradient, [-1, variable.shape[-1]]), old_weight
            )
            _assign(variable, variable * keep - learning_rate * tf.reshape(update, variable.shape), take)
            _assign(row, new_row, take)
            _assign(column, new_column, take)
        _assign(self.beta2_power, self.beta2_power * self.beta2, take)
        _assign(self.beta2_next_power, self.beta2_next_power * self.beta2, take)

    @subgraph(_VECTOR, _VECTOR, _MATRIX, _SCALAR)
    def _update(self, row, column, gradient, old_weight):
        """Clipped update x [rows, columns] and the new row [rows] and column [columns] of one matrix."""
        square = tf.square(gradient) + TINY
        row = old_weight * row + (1.0 - old_weight) * tf.reduce_mean(square, axis=1)
        column = old_weight * column + (1.0 - old_weight) * tf.reduce_mean(square, axis=0)
        row_scale = tf.sqrt(row / tf.reduce_mean(row))[:, tf.newaxis]  # [rows, 1]
        update = gradient / (row_scale * tf.sqrt(column))  # [rows, columns]
        root_mean_square = tf.sqrt(tf.reduce_mean(tf.square(update)))
        return update / tf.maximum(1.0, root_mean_square), row, column
