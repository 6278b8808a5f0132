"""A disk that is full when a test says so."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def no_file_larger_than() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Within the context, writes beyond a number of bytes fail, the first of them in part: a full disk's behaviour."""

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
