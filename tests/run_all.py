"""`python -m tests.run_all [PATH ...]`: the whole test suite, or what is under these paths, by several processes.

Most tests keep one processor busy (they trace graphs), so that a second process takes nothing from the first. What a
process printed comes when it is done.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import time

PROJECT = pathlib.Path(__file__).resolve().parents[1]
MOST_PROCESSES = 4  # each takes up to 2 GB
# The longest: none of them may begin last.
FIRST = ("tests/e2e", "tests/parity", "tests/kernels", "tests/systems", "tests/test_packaging.py")
GOOD = (0, 5)  # 5: the tests of a group are all left out on this machine


def group(path: pathlib.PurePath) -> str:
    """The tests that share a process with those of a file: of the same folder, unless the file alone takes long."""
    parts = path.parts
    if parts[1] in ("e2e", "parity") or str(path) in FIRST:
        return str(path)
    return "/".join(parts[: 3 if parts[1] == "systems" else 2]) if len(parts) > 2 else "tests/*.py"


def groups(under: list[str]) -> dict[str, list[str]]:
    """The files of every group, those that take longest first."""
    found: dict[str, list[str]] = {}
    for file in sorted((PROJECT / "tests").rglob("test_*.py")):
        path = file.relative_to(PROJECT)
        if not under or any(path.is_relative_to(folder) for folder in under):
            found.setdefault(group(path), []).append(str(path))
    order = sorted(found, key=lambda name: next((i for i, first in enumerate(FIRST) if name.startswith(first)), 99))
    return {name: found[name] for name in order}


def run(name: str, files: list[str]) -> tuple[str, int, str]:
    """Runs a group: its name, pytest's exit code, what it printed."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files],
        cwd=PROJECT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return name, done.returncode, f"{done.stdout}{name}: {time.monotonic() - began:.0f} s\n"


def main(under: list[str]) -> int:
    chosen = groups([path.rstrip("/") for path in under])
    if not chosen:
        print(f"no tests under {' '.join(under)}; expected paths such as tests/ops", file=sys.stderr)
        return 2
    began, bad = time.monotonic(), []
    processes = min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, *item) for item in chosen.items()]):
            name, code, output = future.result()
            print(output, flush=True)
            if code not in GOOD:
                bad.append(name)
    summary = f"{len(chosen) - len(bad)} of {len(chosen)} groups of tests passed"
    print(f"{summary} in {time.monotonic() - began:.0f} s", *(f"FAILED {name}" for name in bad), sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
