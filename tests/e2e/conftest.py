"""What the end-to-end tests of every system share."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def call(capsys):
    """Runs a command in this process; returns what it printed, after checking its exit code."""

    def run(verb, *arguments, expect=0):
        main = importlib.import_module(f"tfgen.{verb}").main
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        assert code == expect, f"exit code {code}\n{captured.out}\n{captured.err}"
        return captured.out + captured.err

    return run
