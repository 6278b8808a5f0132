"""The recordings of the network once more, with attention in plain TensorFlow; test_recorded.py takes the kernels."""

from __future__ import annotations

import pytest

from tests.parity import harness
from tfgen.ops import library

FILES = [
    path
    for path in harness.recorded_files(harness.default_folder("distaug"))
    if any(part in path.name for part in (".forward.", ".train.", "attention_block", "sample_greedy", "checkpoint"))
]


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_recorded_file(path):
    with library.plain_tensorflow():
        assert library.load() is None
        report = harness.run_file("distaug", path)
    assert report.passed, "\n".join(line for line in report.lines() if "FAIL" in line)
