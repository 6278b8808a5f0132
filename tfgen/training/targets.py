"""The variables that an optimizer or an average works on, held without owning them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Targets:
    """A fixed list of float32 variables that belong to somebody else (the network).

    A list or tuple set as an attribute of a `tf.Module` becomes part of its `variables` and of its checkpoint
    paths; the network's weights would then be broadcast, counted and named a second time under every optimizer
    and average. TensorFlow does not look inside this class, so those hold their own slots only.
    """

    variables: tuple[tf.Variable, ...]

    @classmethod
    def of(cls, variables: Sequence[tf.Variable]) -> Targets:
        """Checks `variables`.

        Raises:
          ValueError: a variable is not float32, or is listed twice.
        """
        seen: set[int] = set()
        for index, variable in enumerate(variables):
            if variable.dtype != tf.float32:
                raise ValueError(
                    f"variable {index} ({variable.name}) is {variable.dtype.name}, expected float32: keep the "
                    "weights in float32 and cast where they are used (Keras policy 'mixed_float16' or 'mixed_bfloat16')"
                )
            if id(variable) in seen:
                raise ValueError(f"variable {index} ({variable.name}) is listed twice: pass each variable once")
            seen.add(id(variable))
        return cls(tuple(variables))

    def dense(self, gradients: Sequence[tf.Tensor | tf.IndexedSlices]) -> list[tf.Tensor]:
        """Checks that `gradients` fit the variables, one by one, and returns them as dense float32 tensors.

        Raises:
          ValueError: another number of gradients than of variables, or a shape that differs.
        """
        if len(gradients) != len(self.variables):
            raise ValueError(
                f"{len(gradients)} gradients for {len(self.variables)} variables: pass one for each variable "
                "given to build()"
            )
        tensors = []
        for gradient, variable in zip(gradients, self.variables, strict=True):
            tensor = tf.cast(tf.convert_to_tensor(gradient), tf.float32)
            if not tensor.shape.is_compatible_with(variable.shape):
                raise ValueError(
                    f"the gradient of {variable.name} has shape {tensor.shape}, expected {variable.shape}: "
                    "pass the gradients in the order of the variables given to build()"
                )
            tensors.append(tensor)
        return tensors
