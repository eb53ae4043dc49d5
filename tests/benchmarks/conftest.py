"""Runs a benchmark as its user does."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import processes
import pytest


@pytest.fixture
def run_script() -> Callable[..., str]:
    """Run a script with arguments and return its report.

    As a process of its own: it ends all that descends from it, which here would be the tests' own processes.
    """

    def run(name: str, *arguments: str) -> str:
        command = [sys.executable, str(Path(processes.__file__).with_name(name)), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
