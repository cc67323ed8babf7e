"""sanitize: coverage of the kernels, and parsing of compute-sanitizer's output."""

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
FINISHED = "".join(f"{name}: finished; some 1\n" for name in sanitize.OPERATIONS)
BEGIN = "========= COMPUTE-SANITIZER\n"
OUT_OF_BOUNDS = """========= Invalid __global__ read of size 4 bytes
=========     at vote+0x1a0 in cast_votes.py:23
=========     by thread (1,0,0) in block (0,0,0)
=========     Address 0x7f is out of bounds
=========
"""
INLINED = """========= Invalid __global__ write of size 4 bytes
=========     at sum+0x70 in standard.py:290
=========     by thread (1,0,0) in block (0,0,0)
=========         Device Frame: find_hits+0x30 in ray_mesh.py:44
=========
"""
RACE = """========= Error: Race reported between Write access at measure_blocks+0x90 in group_norm_relu.py:41
=========     and Read access at measure_blocks+0x100 in standard.py:51 [508 hazards]
=========
========= Warning: Race reported between Write access at vote+0x90 in cast_votes.py:41
=========     and Read access at vote+0x100 in standard.py:51 [8 hazards]
=========
"""
UNINITIALISED = """========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::elementwise_kernel<(int)128>(int)+0x70
=========     by thread (31,0,0) in block (1,0,0)
=========
"""


def parsed(tool: str, output: str, code: int) -> sanitize.Result:
    return sanitize.parse(tool, list(sanitize.OPERATIONS), output, code)


def unclean(found: sanitize.Result) -> dict[str, str]:
    return {name: str(verdict) for name, verdict in found.verdicts.items() if str(verdict) != "clean"}


@pytest.mark.slow
def test_inside_launches_every_kernel() -> None:
    """Run in the interpreter if no GPU is available."""
    command = [sys.executable, str(ROOT / "tests/sanitize.py"), "--inside"]
    environment = os.environ if torch.cuda.is_available() else os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    launched = dict(re.findall(r"(\w+) (\d+)", run.stdout))
    for path in (ROOT / "kernels").glob("*.py"):
        for name in re.findall(r"@triton\.jit\ndef ([a-z]\w+)", path.read_text()):
            assert int(launched[name]) > 0, name
    assert len(launched) == 10


def test_lists_the_kernels_that_each_file_launches() -> None:
    found = {name: sanitize.launched_kernels(name) for name in sanitize.OPERATIONS}
    assert set(found) == {path.parent.name for path in (ROOT / "kernels").glob("*/triton.py")}
    assert sorted(found["query_field"]) == ["make_tiles", "evaluate_layer", "locate_points"]
    assert found["cast_votes"] == ["vote"]


@pytest.mark.parametrize("tool", sanitize.TOOLS)
def test_clean(tool: str) -> None:
    summary = "========= ERROR SUMMARY: 0 errors\n"
    if tool == "racecheck":
        summary = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    found = parsed(tool, BEGIN + FINISHED + summary, 0)
    assert unclean(found) == {} and found.notes == [] and not found.failed


def test_assigns_errors_to_operations() -> None:
    output = BEGIN + 2 * OUT_OF_BOUNDS + INLINED + FINISHED + "========= ERROR SUMMARY: 3 errors\n"
    found = parsed("memcheck", output, 9)
    assert unclean(found) == {"cast_votes": "2 errors", "ray_mesh": "1 error"}
    assert found.failed and found.notes == [] and "find_hits" in found.reports[2]
    found = parsed("memcheck", output.replace("3 errors", "9 errors"), 9)
    assert found.notes == ["memcheck: 6 errors of 9 cannot be assigned to a kernel of ours"]


def test_ignores_race_warnings() -> None:
    summary = "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n"
    found = parsed("racecheck", BEGIN + RACE + FINISHED + summary, 9)
    assert unclean(found) == {"group_norm_relu": "1 error"} and found.notes == []


def test_foreign_kernels_count_except_for_initcheck() -> None:
    output = BEGIN + UNINITIALISED + FINISHED + "========= ERROR SUMMARY: 1 error\n"
    found = parsed("initcheck", output, 9)
    assert unclean(found) == {} and not found.failed
    assert found.notes == ["initcheck: 1 reports of kernels that are not ours"]
    assert parsed("memcheck", output, 9).failed


def test_crashes_are_not_clean() -> None:
    some = "query_field: finished; some 1\n"
    found = parsed("memcheck", BEGIN + some + "========= ERROR SUMMARY: 0 errors\n", 0)
    assert str(found.verdicts["query_field"]) == "clean" and len(unclean(found)) == 5 and found.failed
    assert set(unclean(found).values()) == {"could not run (it did not finish)"}
    assert set(unclean(parsed("memcheck", FINISHED, -11)).values()) == {
        "could not run (no summary, exit code -11)"
    }
    found = parsed("memcheck", BEGIN + FINISHED + "========= ERROR SUMMARY: 0 errors\n", 1)
    assert set(unclean(found).values()) == {"could not run (exit code 1)"}


@pytest.mark.parametrize(
    ("output", "code", "expected"),
    [
        (BEGIN + FINISHED + "========= ERROR SUMMARY: 0 errors\n", 0, (0, "clean")),
        (BEGIN + OUT_OF_BOUNDS + FINISHED + "========= ERROR SUMMARY: 1 error\n", 9, (1, "1 error")),
        (BEGIN, 3, (1, "could not run (no summary, exit code 3)")),
    ],
    ids=["clean", "errors", "crash"],
)
def test_table_and_exit_code(
    output: str,
    code: int,
    expected: tuple[int, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Run with a fake compute-sanitizer of given output."""
    (tmp_path / "output").write_text(output)
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(
        f'#!/bin/sh\necho "$PYTORCH_NO_CUDA_MEMORY_CACHING $@" >> {tmp_path}/calls\n'
        f"cat {tmp_path}/output\nexit {code}\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert sanitize.main(["--tool", "memcheck"]) == expected[0]
    names, row = capsys.readouterr().out.splitlines()[:2]
    assert names.split() == list(sanitize.OPERATIONS)
    assert row.startswith("memcheck ") and expected[1] in row
    assert sanitize.main(["--operation", "cast_votes"]) == expected[0]
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["cast_votes"] and [row.split()[0] for row in table[1:4]] == list(
        sanitize.TOOLS[:3]
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 4 and all(line.startswith("1 --tool ") for line in calls)
    assert "kernel_substring=evaluate_layer" in calls[0] and "kernel_substring=find_hits" in calls[0]
    assert "kernel_substring=vote " in calls[2] and "find_hits" not in calls[2]
    assert "--tool initcheck" in calls[3] and "kernel_substring" not in calls[3]
    assert calls[3].endswith("--inside --operation cast_votes")


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
