"""Arithmetic that is repeated for every variable, built into a graph once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def subgraph(*signature: tf.TensorSpec) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: a `tf.function` with one trace, which a larger function calls as a single operation.

    A network has up to two thousand variables, and Adam with 16-bit moments is a hundred operations for each. Built
    and optimized in place, they would hold up the first step of a run by minutes; called, they are built once. The
    step itself takes the same time.

    Args:
      signature: of the tensor arguments; shape None stands for any shape. `self` is not counted.
    """
    return tf.function(
        input_signature=signature,
        autograph=False,
        experimental_attributes={"_noinline": True},  # inlining would undo it before the first step
    )
