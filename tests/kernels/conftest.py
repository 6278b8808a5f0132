"""The CPU kernels, compiled once for all tests of this folder."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tests.kernels import build
from tests.seeds import SEED


@pytest.fixture(scope="session")
def library_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.compile_cpu_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def kernels(library_path: Path) -> ctypes.CDLL:
    return build.load_cpu_kernels(library_path)


@pytest.fixture
def rng() -> np.random.Generator:
    print(f"TFGEN_TEST_SEED={SEED}")  # pytest shows it with a failure
    return np.random.default_rng(SEED)
