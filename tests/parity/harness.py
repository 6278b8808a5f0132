"""Runs recorded outputs of the original code against this library.

A *case* is one recorded file. A *checker* is a function that reads a case, computes the same numbers with
the library and states each comparison with its tolerance. Checkers are found by system and file-name
pattern; a file without a checker, an array that a checker leaves unread without naming a reason, and an
error above its tolerance are all failures.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import json
import pathlib
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

PROJECT = pathlib.Path(__file__).resolve().parents[2]
SHARED = PROJECT.parent / "shared" / "golden"
BUNDLED = PROJECT / "tests" / "golden"
SYSTEMS = ("distaug", "smoothing", "vdvae", "ebm", "diffusion")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One line of the report: the largest error over an array, beside its tolerance."""

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


class Case:
    """One recorded file, with a record of which of its arrays have been used.

    Args:
      path: an `.npz` (arrays) or `.json` file (its top-level entries stand for arrays).
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.comparisons: list[Comparison] = []
        self.excused: dict[str, str] = {}
        self._used: set[str] = set()
        if path.suffix == ".json":
            self._data: Any = json.loads(path.read_text())
            self.names = tuple(self._data)
        else:
            self._data = np.load(path, allow_pickle=False)
            self.names = tuple(self._data.files)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(f"{self.path.name} has no array {name!r}; it has {len(self.names)}, {self.names[:5]} ...")
        self._used.add(name)
        return self._data[name]

    def matching(self, pattern: str) -> list[str]:
        """Array names that match a shell pattern, in file order. Does not count as reading them."""
        return [name for name in self.names if fnmatch.fnmatchcase(name, pattern)]

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """All arrays whose name starts with `prefix`, by the rest of the name."""
        return {name[len(prefix) :]: self[name] for name in self.names if name.startswith(prefix)}

    def json(self, name: str) -> Any:
        """An array that holds one JSON text."""
        return json.loads(str(self[name]))

    def sibling(self, file_name: str) -> Case:
        """Another recorded file of the same folder, to take inputs from."""
        path = self.path.with_name(file_name)
        if not path.exists():
            raise FileNotFoundError(f"{self.path.name} refers to {file_name}, which is not beside it")
        return Case(path)

    def leave_unread(self, pattern: str, because: str) -> None:
        """Declares that arrays are not compared, and why."""
        for name in self.matching(pattern):
            self.excused[name] = because

    def close(
        self,
        name: str,
        actual: Any,
        tolerance: float,
        *,
        expected: Any = None,
        where: np.ndarray | None = None,
        relative: bool = False,
    ) -> None:
        """Compares floating-point values: largest |actual - expected|, or relative to |expected|.

        Args:
          name: the recorded array; `expected` replaces it where the comparison needs a derived value.
          where: bool mask of the entries that count.
        """
        wanted = np.asarray(self[name] if expected is None else expected, np.float64)
        got = np.asarray(actual, np.float64)
        if got.shape != wanted.shape:
            self._add(name, np.inf, tolerance, f"shape {got.shape}, recorded {wanted.shape}")
            return
        # Equal infinities are no error; any other non-finite difference is one.
        with np.errstate(invalid="ignore"):  # inf - inf, in entries that the line discards or that fail below
            error = np.where(got == wanted, 0.0, np.abs(got - wanted))
        if relative:
            error = np.where(error == 0.0, 0.0, error / np.maximum(np.abs(wanted), np.finfo(np.float32).tiny))
        if where is not None:
            error = error[where]
        self._add(name, float(error.max()) if error.size else 0.0, tolerance, "relative" if relative else "")

    def equal(
        self, name: str, actual: Any, *, expected: Any = None, within: int = 0, except_share: float = 0.0
    ) -> None:
        """Compares integers (or text) exactly.

        Args:
          within: differences up to this size are free, if `except_share` allows their number.
          except_share: share of the entries that may differ (by at most `within`).
        """
        wanted, got = np.asarray(self[name] if expected is None else expected), np.asarray(actual)
        if got.shape != wanted.shape:
            self._add(name, np.inf, 0, f"shape {got.shape}, recorded {wanted.shape}")
            return
        if wanted.dtype.kind in "US":
            self._add(name, float((got != wanted).sum()), 0, "texts that differ")
            return
        difference = np.abs(got.astype(np.int64) - wanted.astype(np.int64))
        share = float((difference > 0).mean()) if difference.size else 0.0
        if within == 0 and except_share == 0.0:
            self._add(name, share, 0.0, "share that differs")
            return
        self._add(name, float(difference.max(initial=0)), within, "largest difference")
        self._add(name, share, except_share, "share that differs")

    def unread(self) -> list[str]:
        return [name for name in self.names if name not in self._used and name not in self.excused]

    def _add(self, name: str, error: float, tolerance: float, note: str) -> None:
        self.comparisons.append(Comparison(name, error, tolerance, note))


Checker = Callable[[Case], None]
_CHECKERS: dict[tuple[str, str], Checker] = {}


def checker(system: str, *patterns: str) -> Callable[[Checker], Checker]:
    """Registers a checker for the recorded files of `system` whose name matches one of the shell patterns."""

    def register(function: Checker) -> Checker:
        for pattern in patterns:
            if (system, pattern) in _CHECKERS:
                raise ValueError(f"two checkers for {system} {pattern}")
            _CHECKERS[system, pattern] = function
        return function

    return register


def find_checker(system: str, file_name: str) -> Checker | None:
    """The checker with the longest matching pattern."""
    importlib.import_module(f"tests.parity.{system}")
    patterns = [p for s, p in _CHECKERS if s == system and fnmatch.fnmatchcase(file_name, p)]
    return _CHECKERS[system, max(patterns, key=len)] if patterns else None


def recorded_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Recorded files under `folder`, sub-folders included."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".npz", ".json"))


def default_folder(system: str) -> pathlib.Path:
    """The full set where it is at hand, the bundled subset otherwise."""
    shared = SHARED / system
    return shared if shared.is_dir() else BUNDLED / system


@dataclasses.dataclass
class Report:
    """Outcome of one file."""

    path: pathlib.Path
    comparisons: list[Comparison]
    excused: dict[str, str]
    problems: list[str]

    @property
    def passed(self) -> bool:
        return not self.problems and all(comparison.passed for comparison in self.comparisons)

    def lines(self) -> Iterable[str]:
        for item in self.comparisons:
            verdict = "ok  " if item.passed else "FAIL"
            numbers = f"error {item.error:9.3g}  tolerance {item.tolerance:9.3g}"
            yield f"  {verdict} {item.name:<52} {numbers}  {item.note}".rstrip()
        for reason in sorted(set(self.excused.values())):
            count = sum(value == reason for value in self.excused.values())
            yield f"  left {count} array(s) unread: {reason}"
        for problem in self.problems:
            yield f"  FAIL {problem}"


def run_file(system: str, path: pathlib.Path) -> Report:
    """Checks one recorded file; never raises for what is wrong with it."""
    check = find_checker(system, path.name)
    if check is None:
        return Report(path, [], {}, [f"no checker of system {system!r} takes a file named {path.name}"])
    problems = []
    comparisons: list[Comparison] = []
    excused: dict[str, str] = {}
    try:
        case = Case(path)
        comparisons, excused = case.comparisons, case.excused
        check(case)
        unread = case.unread()
        if unread:
            problems.append(
                f"{len(unread)} array(s) left unread: {', '.join(unread[:8])}{' ...' if len(unread) > 8 else ''}"
            )
        if not comparisons:
            problems.append("the checker compared nothing")
    except Exception:  # any failure of one file is that file's result; the others still run
        problems.append("the checker stopped:\n" + traceback.format_exc())
    return Report(path, comparisons, excused, problems)
