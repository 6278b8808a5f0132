"""Arithmetic that many layers share, traced once for each shape and called by every layer of that shape."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tensorflow as tf

from tfgen.ops import library

Function = TypeVar("Function", bound=Callable[..., Any])


_spelled_out = contextvars.ContextVar("spelled_out", default=False)


@contextlib.contextmanager
def spelled_out() -> Iterator[None]:
    """Within it functions of `traced_once` are plain functions, whose operations go into the graph that calls them.

    A call of a function waits for another thread of TensorFlow's, some 50 microseconds: that is for networks which are
    run many times and never differentiated. What counts is when a graph is traced, not when it runs.
    """
    token = _spelled_out.set(True)
    try:
        yield
    finally:
        _spelled_out.reset(token)


def traced_once(function: Function) -> Function:
    """Decorator: the function becomes one operation of the graphs that call it.

    A deep network has hundreds of blocks in a dozen shapes. Called this way each shape is traced, differentiated and
    optimized once, and a block costs its caller's graph one operation: the first step begins minutes earlier than with
    the blocks spelled out. A training step takes the same time.

    Args:
      function: takes tensors, lists of tensors, and hashable values of Python; returns tensors. It must not read
        variables: pass their values.
    """
    traces: dict[Any, Any] = {}

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if _spelled_out.get():
            return function(*arguments)
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
