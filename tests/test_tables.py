"""Tables from benchmark runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ceilings, tables
from benchmarks.ceilings import Ceilings, read_ceilings

DEVICE = Ceilings("a GPU", 2e12, 5e12, {"float16": 500e12})
TIMES = {"ms_20_50_80": [39.0, 40.0, 50.0], "times_the_baseline_20_50_80": [2.9, 3.0, 3.1]}
PIPELINE = {
    "network": "released",
    "step_mm": 16,
    "search": "guided",
    "dtype": "float32",
    "points_evaluated": 4321,
    "baseline_estimated": False,
    "stages_ms": {"encode": 9.0, "query": 3.0, "vote": 0.5},
} | TIMES
BATCH = {"network": "released", "batch": 8, "dtype": "float16", "images_per_second_pipelined": 300.0}
OPERATION = {
    "operation": "query_field",
    "case": "full, 16 mm",
    "batch": 1,
    "dtype": "float16",
    "form": "frame",
    "ms_20_50_80": [0.19, 0.2, 0.21],
    "times_the_baseline_20_50_80": [4.0, 5.0, 6.0],
    "work": {"flops": 50e9, "moved_bytes": 2e6},
    "cached": False,
    "timed": "in a graph",
    "definition_timed": "with launches",
}


def run(*benchmarks: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "machine_info": {"device": "a GPU", "kind": "gpu", "torch": "2.11"},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [
            {"name": f"{name}[some-case]", "extra_info": metadata} for name, metadata in benchmarks
        ],
    }


def test_each_benchmark_has_a_table() -> None:
    found = tables.results(
        run(
            ("bench_pipeline", PIPELINE),
            ("bench_pipeline", PIPELINE | {"baseline_estimated": True}),
            ("bench_batches", TIMES | BATCH),
            ("bench_compiled_baseline", TIMES | {"step_mm": 4, "dtype": "float32"}),
            (
                "bench_training_step",
                TIMES
                | {"preset": "paper", "batch": 24, "points": 5000, "dtype": "bfloat16", "compiled": True},
            ),
            ("bench_query_field", OPERATION),
        ),
        DEVICE,
    )
    assert found.keys() == {*tables.TABLES, "operations"}
    row = ["released", 16, "guided", "float32", 4321, 40.0, "39 to 50", 25.0, 3.0]
    assert found["speed"]["rows"] == [row, [*row[:8], "3 (estimated)"]]
    assert found["stages"]["rows"][0][4:] == [None, None, 9.0, 3.0, None, 0.5, None, None]
    assert found["batches"]["rows"] == [["released", 8, "float16", 40.0, "39 to 50", 200.0, 3.0, 300.0]]
    assert found["compiled_baseline"]["rows"] == [[4, "float32", 40.0, "39 to 50", 3.0]]
    assert found["training_step"]["rows"][0][4:] == ["yes", 40.0, "39 to 50", 600.0, 3.0]
    # 50 GFLOP at 500 TFLOP/s are 0.1 ms of 0.2; 2 MB at 2 TB/s are less.
    row = [200.0, "190 to 210", 50.0, 2e6 / 2**20, 50.0, 5.0, "in a graph", "with launches"]
    assert found["operations"]["rows"][0][5:] == row
    for result in found.values():
        assert all(len(row) == len(result["columns"]) for row in result["rows"])
        assert result["context"]["commit"] == "0123456789 with changes"


def test_omits_tables_without_results() -> None:
    assert tables.results(run(("bench_query_field", OPERATION)), None).keys() == {"operations"}
    with pytest.raises(ValueError, match="none of our benchmarks"):
        tables.results(run(), None)


def test_joins_parts_of_a_run() -> None:
    one, other = run(("bench_pipeline", PIPELINE)), run(("bench_query_field", OPERATION))
    assert tables.results(tables.joined([one, other]), None).keys() == {"speed", "stages", "operations"}
    with pytest.raises(ValueError, match="several commits: 0123456789abcdef, f00"):
        tables.joined([one, other | {"commit_info": {"id": "f00", "dirty": False}}])
    with pytest.raises(ValueError, match="several devices: a GPU, another"):
        tables.joined([one, other | {"machine_info": {"device": "another"}}])


def test_operations_on_data_in_the_cache_are_bounded_by_its_rate() -> None:
    work = {"flops": 0, "moved_bytes": 100e6}
    copies = [OPERATION | {"work": work, "cached": cached} for cached in (False, True)]
    rows = tables.results(run(*(("bench_query_field", row) for row in copies)), DEVICE)["operations"]["rows"]
    # 100 MB take 50 µs at 2 TB/s and 20 µs at 5 TB/s, of 200 µs.
    assert [row[9] for row in rows] == pytest.approx([25, 10])


def test_only_a_gpu_has_several_ways_of_timing() -> None:
    measured = run(("bench_query_field", OPERATION))
    measured["machine_info"]["kind"] = "cpu"
    assert tables.results(measured, None)["operations"]["columns"][-1] == "times the definition"


def test_benchmarks_that_failed_leave_the_others() -> None:
    found = tables.results(run(("bench_pipeline", {}), ("bench_query_field", OPERATION)), None)
    assert found.keys() == {"operations"}


def test_ratios_require_ceilings_of_the_same_device() -> None:
    (row,) = tables.results(run(("bench_query_field", OPERATION)), None)["operations"]["rows"]
    assert row[9] is None
    with pytest.raises(ValueError, match="are of another, the run of a GPU"):
        tables.results(run(("bench_query_field", OPERATION)), DEVICE._replace(device="another"))


def test_ceilings_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "RESULTS", tmp_path)
    monkeypatch.setattr(ceilings, "SIZES", {ceilings.DEVICE: (2**24, 2**16, 512)})
    ceilings.main()
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["columns"] == ceilings.COLUMNS
    found = read_ceilings(path)
    assert 1e7 < found.memory < 1e14 and 1e7 < found.products["float32"] < 1e15
    assert found.floor_seconds(0, "float32", found.memory) == pytest.approx(1)
    assert found.floor_seconds(3 * found.products["float32"], "float32", found.memory) == pytest.approx(3)
