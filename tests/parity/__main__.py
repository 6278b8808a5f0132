"""`python -m tests.parity [--system=NAME] [DIR]`: every recorded file against the library."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tests.parity import harness

    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("--system", choices=harness.SYSTEMS, help="default: all systems that have files")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="folder of recorded files (needs --system)")
    options = parser.parse_args(argv)
    if options.folder and not options.system:
        parser.error("a folder belongs to one system: add --system=NAME")
    if options.folder and not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")

    systems = [options.system] if options.system else harness.SYSTEMS
    reports = []
    for system in systems:
        folder = options.folder or harness.default_folder(system)
        implemented = (harness.PROJECT / "tests" / "parity" / system).is_dir()
        if not options.system and not (implemented and harness.recorded_files(folder)):
            continue
        for path in harness.recorded_files(folder):
            report = harness.run_file(system, path)
            reports.append(report)
            print(f"{system} {path.relative_to(folder)}: {'passed' if report.passed else 'FAILED'}")
            for line in report.lines():
                print(line)
            sys.stdout.flush()
    failed = [report for report in reports if not report.passed]
    compared = sum(len(report.comparisons) for report in reports)
    print(f"parity: {len(reports) - len(failed)} of {len(reports)} files passed, {compared} comparisons")
    if not reports:
        print("parity: no recorded files were found", file=sys.stderr)
    return 1 if failed or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
