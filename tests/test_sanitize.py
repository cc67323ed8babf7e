"""sanitize: coverage of the kernels, and verdicts of compute-sanitizer's runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import sanitize

ROOT = Path(__file__).resolve().parent.parent
CLEAN = "cast_votes: finished; vote 4\n========= ERROR SUMMARY: 0 errors\n"
RACE = CLEAN.replace("ERROR", "RACECHECK").replace("0 errors", "1 hazard displayed (0 errors, 1 warning)")


@pytest.mark.slow
def test_inside_launches_every_kernel() -> None:
    """Run in the interpreter if no GPU is available."""
    command = [sys.executable, str(ROOT / "tests/sanitize.py"), "--inside"]
    environment = os.environ if torch.cuda.is_available() else os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    launched = dict(re.findall(r"(\w+) (\d+)", run.stdout))
    for operation in sanitize.OPERATIONS:
        for name in sanitize.launched_kernels(operation):
            assert int(launched[name]) > 0, name
    assert len(launched) == sum(len(sanitize.launched_kernels(name)) for name in sanitize.OPERATIONS)


def test_lists_the_kernels_that_each_file_launches() -> None:
    found = {name: sanitize.launched_kernels(name) for name in sanitize.OPERATIONS}
    assert set(found) == {path.parent.name for path in (ROOT / "kernels").glob("*/triton.py")}
    expected = dict.fromkeys(["evaluate_layer", "locate_points", "make_tiles", "store_geometry"], "triton")
    assert found["query_field"] == expected | {"evaluate_resident": "resident"}
    assert found["cast_votes"] == {"vote": "triton"}


@pytest.mark.parametrize(
    ("output", "code", "expected"),
    [
        (CLEAN, 0, 0),
        (CLEAN.replace(" 0 ", " 1 "), 9, 1),
        (RACE, 0, 0),
        (CLEAN.splitlines()[0], 0, 1),
        (CLEAN.splitlines()[1], 0, 1),
        (CLEAN, -11, 1),
    ],
    ids=["clean", "errors", "race check", "no summary", "did not finish", "crash"],
)
def test_verdict(
    output: str,
    code: int,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Run with a fake compute-sanitizer of given output."""
    (tmp_path / "output").write_text(output)
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(
        f'#!/bin/sh\necho "$PYTORCH_NO_CUDA_MEMORY_CACHING $@" >> {tmp_path}/calls\n'
        f"cat {tmp_path}/output\n{f'exit {code}' if code >= 0 else 'kill -11 $$'}\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert sanitize.main(["--operation", "cast_votes"]) == expected
    lines = [line for line in capsys.readouterr().out.splitlines() if "check cast_votes: " in line]
    assert len(lines) == 3 and all(line.endswith(": clean") == (expected == 0) for line in lines)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[2] for call in calls] == ["memcheck", "racecheck", "synccheck"]
    for call in calls:
        assert call.startswith("1 --tool ") and "kernel_substring=vote " in call
        assert call.endswith("--inside --operation cast_votes")


def test_reports_missing_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitize.main([]) == 2 and "not on the PATH" in capsys.readouterr().err
    (tmp_path / "compute-sanitizer").write_text("#!/bin/sh\n")
    (tmp_path / "compute-sanitizer").chmod(0o755)
    assert sanitize.main([]) == 2 and "no CUDA device" in capsys.readouterr().err
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert sanitize.main(["--inside"]) == 2 and "TRITON_INTERPRET=1" in capsys.readouterr().err
