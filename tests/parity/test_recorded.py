"""The recorded outputs of the original code, as tests: the same checkers as `python -m tests.parity`."""

from __future__ import annotations

import pytest

from tests.parity import harness
from tfgen import systems

# Of a system that is being built, and has no name yet, the files that a checker takes; of the others every file.
FILES = [
    (system, path)
    for system in harness.SYSTEMS
    if (harness.PROJECT / "tests" / "parity" / system).is_dir()
    for path in harness.recorded_files(harness.default_folder(system))
    if system in systems.NAMES or harness.find_checker(system, path.name)
]


@pytest.mark.parametrize(("system", "path"), FILES, ids=[f"{system}-{path.stem}" for system, path in FILES])
def test_recorded_file(system, path):
    report = harness.run_file(system, path)
    assert report.passed, "\n".join(line for line in report.lines() if "FAIL" in line)
