"""Every kernel compiles within its budget for every supported architecture, and the check finds faults."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from benchmarks.static_budget import (
    PROLOGUE_LIMIT,
    Cost,
    faults,
    occupancy,
    unfenced_products,
    variants,
)

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


def test_launches_state_whether_products_and_sums_fuse() -> None:
    """Triton's default differs between versions."""
    launches = 0
    for path in (ROOT / "kernels").glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                stated = [keyword.arg for keyword in node.keywords]
                assert "enable_fp_fusion" in stated, f"{path}:{node.lineno}"
                launches += 1
    assert launches > 10


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
        (Cost(100, 0, 1000, 4, (), PROLOGUE_LIMIT), None),
        (Cost(100, 0, 1000, 4, (), PROLOGUE_LIMIT + 1), "601 instructions before the first product"),
    ],
)
def test_check_finds_faults(cost: Cost, fault: str | None) -> None:
    variant = next(
        v for v in variants() if v.target == "sm_90" and v.matrix and v.name.startswith("evaluate_layer")
    )
    found = faults(variant, cost, {"registers": 100, "shared": 1000})
    assert bool(found) == bool(fault)
    assert fault is None or fault in found[0]
    assert faults(variant, Cost(1, 0, 1, 1), None) == ["not in static_budget.json: run with --update"]


def test_other_versions_of_triton_have_other_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    committed = {"registers": 100, "shared": 1000}
    resident = next(v for v in variants() if v.name == "evaluate_resident fp16")
    monkeypatch.setattr(triton, "__version__", "3.9.0")
    assert faults(resident, Cost(200, 16, 2000, 4), committed, comparable=False) == []
    assert "spills 160 bytes" in faults(resident, Cost(200, 160, 1000, 4), committed, comparable=False)[0]
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    assert faults(resident, Cost(200, 160, 1000, 4), committed, comparable=False) == []
    assert "spills 164 bytes" in faults(resident, Cost(200, 164, 1000, 4), committed, comparable=False)[0]


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


WAIT, FENCE, PRODUCT = (
    "cp.async.wait_group 2;",
    "fence.proxy.async.shared::cta;",
    "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {};",
)


@pytest.mark.parametrize(
    ("lines", "unfenced"),
    [
        ([WAIT, FENCE, PRODUCT], False),
        ([WAIT, PRODUCT, FENCE], True),
        (["$L1:", PRODUCT, WAIT, "@%p1 bra $L1;", "ret;"], True),  # in the next turn
        (["$L1:", PRODUCT, WAIT, FENCE, "@%p1 bra $L1;", "ret;"], False),
        ([WAIT, "@%p1 bra $L2;", FENCE, "$L2:", PRODUCT], True),
        ([WAIT, "bra.uni $L2;", "$L1:", PRODUCT, "$L2:", FENCE, "@%p1 bra $L1;"], False),
        (["cp.async.cg.shared.global [%r1], [%r2], 16;", PRODUCT], False),  # of a later turn
        ([WAIT, "@%p1 tcgen05.mma.cta_group::1.kind::f16 [%r1];"], True),
        ([WAIT, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {};"], False),  # from registers
    ],
)
def test_products_that_read_copies_without_a_fence(lines: list[str], unfenced: bool) -> None:
    assert unfenced_products("\n".join(lines)) == unfenced
