"""`make gpu` and `make gpu-train`, rehearsed on the CPU at the smallest sizes in a copy of the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # two minutes

ROOT = Path(__file__).resolve().parent.parent
SMALLEST = (
    "--replay.uses 2 --replay.first 8 --replay.size 32 --optimisation.batch 4 --optimisation.parts 2 "
    "--optimisation.steps 2 --log-every 1"
)
SELECT_VOTERS = "benchmarks/bench_select_voters.py::bench_select_voters[28351-1-torch]"
CAST_VOTES = "benchmarks/bench_cast_votes.py::bench_cast_votes[95-1-torch]"

NARROW = (
    "--model.stem 8 --model.width 16 --model.stacks 1 --model.groups 4 --model.hidden 32 16 "
    "--optimisation.precision float32"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout, whose results the commands change."""
    left_out = shutil.ignore_patterns(".*", "build", "dist", "runs", "__pycache__", "*.egg-info")
    return Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=left_out))


def make(checkout: Path, *arguments: str, status: int = 0) -> str:
    """Run make there with this interpreter, as from a shell; check its status and return its output.

    In the environment of a pytest-xdist worker, pytest-benchmark would measure nothing.
    """
    command = ["make", *arguments, "DEVICE=cpu", f"PYTHON={sys.executable}"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "MAKE"))
    }
    run = subprocess.run(
        command, cwd=checkout, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert run.returncode == status, run.stdout[-3000:]
    return run.stdout


def test_measurements(checkout: Path) -> None:
    results = checkout / "benchmarks" / "results"
    before = (results / "ceilings_cpu.json").read_text()
    output = make(
        checkout, "gpu", "WORKERS=1", "TESTS=tests/test_points.py", "SHARED=nowhere",
        f"BENCHMARKS={CAST_VOTES}",
    )  # fmt: skip
    assert "compute-sanitizer" in output and "skipped" in output
    assert (results / "ceilings_cpu.json").read_text() != before
    rows = json.loads((results / "operations_cpu.json").read_text())["rows"]
    assert {row[0] for row in rows} == {"cast_votes"}
    assert f"{rows[0][5]:.4g}"[:3] in (checkout / "docs" / "speed.md").read_text()

    # A benchmark that ends its process leaves those after it and those of the call before.
    (checkout / "benchmarks" / "bench_ends.py").write_text("import os\ndef bench_ends(): os._exit(1)\n")
    make(checkout, "gpu-bench", f"BENCHMARKS=benchmarks/bench_ends.py {SELECT_VOTERS}", status=2)
    rows = json.loads((results / "operations_cpu.json").read_text())["rows"]
    assert {row[0] for row in rows} == {"cast_votes", "select_voters"}


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_training(checkout: Path, preset: str) -> None:
    arguments = [f"REPLAY={SMALLEST}", "LOADERS=1"]
    if preset == "paper":
        arguments += ["PRESET=paper", f"TRAIN={NARROW}"]
    evaluated = f"hand-views --count 0 --empty 4 --wide 1 --out runs/{preset}/report"
    make(checkout, "gpu-train", *arguments, f"EVALUATED={evaluated}")
    run = checkout / "runs" / preset
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 and any(line.get("cuda_graph") is False for line in lines)
    assert (run / "curves.png").exists() and (run / "report/report.json").exists()
    training = json.loads((run / "checkpoint" / "config.json").read_text())["training"]
    assert training["preset"] == preset
    assert (training["started_from"] is None) == (preset == "paper"), "no weights of it are committed"


def test_every_missing_package_is_named_before_anything_runs() -> None:
    without_packages = [sys.executable, "-I", "-S", "tests/check_packages.py", "cuda"]
    run = subprocess.run(without_packages, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "lacks torch, numpy, trimesh, nvtx, " in run.stderr and "hypothesis: install them" in run.stderr
