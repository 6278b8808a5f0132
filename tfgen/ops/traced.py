"""Arithmetic that many layers share, traced once for each shape and called by every layer of that shape."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

from tfgen.ops import library

Function = TypeVar("Function", bound=Callable[..., Any])


def traced_once(function: Function) -> Function:
    """Decorator: the function becomes one operation of the graphs that call it.

    A deep network has hundreds of blocks in a dozen shapes. Called this way each shape is traced, differentiated and
    optimized once, and a block costs its caller's graph one operation: the first step begins minutes earlier than with
    the blocks spelled out. A step takes the same time.

    Args:
      function: takes tensors, lists of tensors, and hashable values of Python; returns tensors. It must not read
        variables: pass their values.
    """
    traces: dict[Any, Any] = {}

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        # What is traced also depends on whether compiled operations may be used.
        key = (library.load() is None, *(_kind(argument) for argument in arguments))
        if key not in traces:
            traces[key] = tf.function(
                function,
                autograph=False,
                experimental_attributes={"_noinline": True},  # inlining would spell the blocks out again
            )
            if tf.executing_eagerly():  # traced by a call it would warn: one Python function, traced for every shape
                traces[key].get_concrete_function(*arguments)
        return traces[key](*arguments)

    return call  # type: ignore[return-value]


def _kind(argument: Any) -> Any:
    if isinstance(argument, list):
        return tuple(_kind(item) for item in argument)
    if tf.is_tensor(argument):
        return argument.dtype, tuple(argument.shape)
    return type(argument), argument  # True equals 1, and both equal 1.0
