"""Reading many files in threads: refused reads are tried again, a few damaged files are left out."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from tfgen.data.errors import RejectedImagesError, UnreadableFileError
from tfgen.data.image_codec import UnusableImageError
from tfgen.data.image_files import ImageFiles

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGEST_REJECTED_SHARE = 0.01
RETRY_DELAYS = (0.1, 0.5, 2.0)  # seconds before each further attempt at a file that the system would not give
_SHOWN = 10  # names in a message about many files
_MOST_AT_ONCE = 1024  # files handed to the threads

_log = logging.getLogger(__name__)


class UsableFiles:
    """Image files of a data set. Those that cannot be used are logged once each with the reason, and left out.

    May be used from several threads.

    Args:
      files: where they are.
      names: those of the data set.
      title: of the data set, for messages.
      remedy: for the error about too many rejects: what to do with them.

    Attributes:
      names: files that can be used as far as is known; they keep their places when damage shows later.
      rejects: reason by name of the others.
    """

    def __init__(self, files: ImageFiles, names: Sequence[str], title: str, remedy: str):
        self.names, self.rejects = list(names), dict[str, str]()
        self._files, self._title, self._remedy = files, title, remedy
        self._candidate_count = len(names)
        self._lock = threading.Lock()  # guards `rejects` once images are read

    def inspect(self, examine: Callable[[str], Result]) -> list[Result]:
        """`examine(name)` of every file, in threads. Those for which it raises `UnusableImageError` leave `names`.

        Raises:
          RejectedImagesError: more than 1 % of the files leave.
          UnreadableFileError: see `attempt`.
        """

        def judge(name: str) -> Result | UnusableImageError:
            try:
                return examine(name)
            except UnusableImageError as error:
                return error

        usable, results = [], []
        with warnings.catch_warnings():
            # Pillow warns of sizes that are rejected. Set around all threads: filters belong to the process.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            for name, result in zip(self.names, in_threads(judge, self.names), strict=True):
                if isinstance(result, UnusableImageError):
                    self._reject(name, str(result))
                else:
                    usable.append(name)
                    results.append(result)
        self._check_rejects()
        self.names = usable
        return results

    def read(
        self, indices: Iterable[int], decode: Callable[[BinaryIO], np.ndarray]
    ) -> tuple[list[np.ndarray], list[int]]:
        """`decode` of the files at `indices` into `names`, in threads. The next good file stands in for a damaged one.

        Returns:
          What `decode` returned, and the index of the file that each came from.

        Raises:
          RejectedImagesError: more than 1 % of the files are damaged.
          UnreadableFileError: see `attempt`.
        """
        decoded = list(reading_threads().map(lambda index: self._first_good(index, decode), indices))
        return [result for result, _ in decoded], [index for _, index in decoded]

    def _first_good(self, index: int, decode: Callable[[BinaryIO], np.ndarray]) -> tuple[np.ndarray, int]:
        for candidate in range(index, index + len(self.names)):
            candidate %= len(self.names)
            name = self.names[candidate]
            if name in self.rejects:
                continue
            try:
                return attempt(decode, self._files, name), candidate
            except UnusableImageError as error:
                with self._lock:
                    self._reject(name, str(error))
                    self._check_rejects()
        raise RejectedImagesError(f"{self._title}: no image is left that can be decoded")

    def _reject(self, name: str, reason: str) -> None:
        if name not in self.rejects:
            self.rejects[name] = reason
            _log.warning("%s: %s is left out: %s", self._title, name, reason)

    def _check_rejects(self) -> None:
        count = len(self.rejects)
        if count <= LARGEST_REJECTED_SHARE * self._candidate_count:
            return
        listed = "\n".join(f"  {name}: {reason}" for name, reason in list(self.rejects.items())[:_SHOWN])
        more = f"\n  and {count - _SHOWN} more" if count > _SHOWN else ""
        raise RejectedImagesError(
            f"{count} of the {self._candidate_count} files of {self._title} cannot be used "
            f"({100 * count / self._candidate_count:.1f} %; at most {100 * LARGEST_REJECTED_SHARE:g} % may be left out)"
            f":\n{listed}{more}\n{self._remedy}"
        )


def attempt(function: Callable[[BinaryIO], Result], files: ImageFiles, name: str) -> Result:
    """`function` of the opened file, tried again after `RETRY_DELAYS` when the operating system refuses.

    Raises:
      UnreadableFileError: it refused each time.
      UnusableImageError: the contents are damaged (not tried again).
    """
    for delay in (*RETRY_DELAYS, None):
        try:
            with files.open(name) as stream:
                return function(stream)
        except OSError as error:
            if delay is None:
                raise UnreadableFileError(
                    f"cannot read {name} of {files.title} after {len(RETRY_DELAYS) + 1} attempts: {error}. "
                    "Check that the disk is mounted and the file readable, then start the same command again"
                ) from error
            _log.info("reading %s of %s failed (%s); trying again", name, files.title, error)
            time.sleep(delay)
    raise AssertionError("unreachable: the last attempt returns or raises")


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], at_once: int = _MOST_AT_ONCE
) -> Iterator[Result]:
    """Results in the order of items, at most `at_once` on the way: `Executor.map` alone would queue all of them."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, at_once)):
        yield from reading_threads().map(function, batch)


@functools.cache
def reading_threads() -> concurrent.futures.ThreadPoolExecutor:
    """Threads shared by all sources; decoding and reading release the interpreter's lock."""
    return concurrent.futures.ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1)), thread_name_prefix="read")
