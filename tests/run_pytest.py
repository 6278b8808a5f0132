"""Main program of the Bazel test targets: runs pytest on the paths in the arguments."""

from __future__ import annotations

import os
import sys

import pytest

if __name__ == "__main__":
    # Bazel reads each test's outcome from this file. pytest's cache would land among the sources.
    report = f"--junitxml={os.environ['XML_OUTPUT_FILE']}"
    sys.exit(pytest.main([report, "-p", "no:cacheprovider", *sys.argv[1:]]))
