"""The promises of `python -m tests.faults`, with few cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_promises_are_kept() -> None:
    command = [sys.executable, "-m", "tests.faults", "--short"]
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
