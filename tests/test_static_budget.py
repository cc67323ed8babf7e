"""Every kernel compiles within its budget for every supported architecture, and the check finds faults."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.static_budget import Cost, faults, occupancy, variants

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_kernels_stay_within_their_budget() -> None:
    """Run in a separate process, since other tests interpret kernels instead of compiling them."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks/static_budget.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    expected = rf"{len(variants())} kernels, (\d+) compiled, 0 at fault\n$"
    found = re.search(expected, run.stdout)
    assert found and int(found[1]) >= 10, run.stdout


@pytest.mark.parametrize(
    ("cost", "fault"),
    [
        (Cost(100, 0, 1000, 4), None),
        (Cost(125, 16, 1250, 1), None),
        (Cost(126, 0, 1000, 4), "registers 126, committed 100"),
        (Cost(100, 0, 1251, 4), "shared 1251, committed 1000"),
        (Cost(100, 20, 1000, 4), "spills 20 bytes"),
        (Cost(100, 0, 10**6, 4), "232448 there"),
        (Cost(100, 0, 1000, 0), "no wgmma"),
        (Cost(100, 0, 1000, 4, ("compiles to a trap",)), "compiles to a trap"),
    ],
)
def test_check_finds_faults(cost: Cost, fault: str | None) -> None:
    variant = next(v for v in variants() if v.target == "sm_90" and v.matrix)
    found = faults(variant, cost, {"registers": 100, "shared": 1000})
    assert bool(found) == bool(fault)
    assert fault is None or fault in found[0]
    assert faults(variant, Cost(1, 0, 1, 1), None) == ["not in static_budget.json: run with --update"]


@pytest.mark.parametrize(
    ("registers", "shared", "occupied"),
    [
        (32, 0, 1.0),  # all warps
        (128, 0, 0.25),  # 128 x 32 x 8 = half of the registers: two programs of 8 warps
        (129, 0, 0.125),  # one program
        (32, 110 * 1024, 0.25),  # twice 110 + 1 KiB of 228
        (32, 120 * 1024, 0.125),
    ],
)
def test_occupancy_by_hand(registers: int, shared: int, occupied: float) -> None:
    variant = next(v for v in variants() if v.target == "sm_90" and v.warps == 8)
    assert occupancy(variant, Cost(registers, 0, shared, 1)) == occupied
