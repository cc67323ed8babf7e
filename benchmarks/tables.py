"""Write the tables of speed in benchmarks/results/ from a run of pytest-benchmark.

    python benchmarks/tables.py RUN.json [RUN.json ...]    # written by `pytest benchmarks --benchmark-json`

Several runs count as parts of one. Tables without benchmarks in the runs stay unchanged.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ceilings import RESULTS, Ceilings, read_ceilings

Metadata = dict[str, Any]  # a benchmark's `extra_info`
Columns = dict[str, str | Callable[[Metadata], Any]]  # by title, the entry of the metadata or its function


class Table(NamedTuple):
    """A file with a row for each benchmark of one function."""

    benchmark: str
    columns: Columns


def make_row(columns: Columns, metadata: Metadata) -> list[Any]:
    """Make a benchmark's row; entries that it lacks are None."""
    return [value(metadata) if callable(value) else metadata.get(value) for value in columns.values()]


def _ratio(metadata: Metadata) -> float:
    return float(metadata["times_the_baseline_20_50_80"][1])


def _ratio_of_frames(metadata: Metadata) -> float | str:
    ratio = _ratio(metadata)
    return f"{ratio:.3g} (estimated)" if metadata["baseline_estimated"] else ratio


def _stage(stage: str, metadata: Metadata) -> float | None:
    milliseconds: float | None = metadata["stages_ms"].get(stage)
    return milliseconds


def _per_second(metadata: Metadata) -> float:
    return float(1e3 * metadata.get("batch", 1) / metadata["ms_20_50_80"][1])


def _range(metadata: Metadata, scale: float = 1.0) -> str:
    ends = (scale * metadata["ms_20_50_80"][place] for place in (0, 2))
    return " to ".join(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in ends)


TIMES: Columns = {
    "median (ms)": lambda metadata: metadata["ms_20_50_80"][1],
    "20th to 80th percentile": _range,
}
FRAME: Columns = {"network": "network", "step (mm)": "step_mm", "search": "search", "precision": "dtype"}
STAGES = ("prepare", "remap", "encode", "query", "select", "vote", "read")
TABLES = {
    "speed": Table(
        "bench_pipeline",
        {
            **FRAME,
            "points queried": "points_evaluated",
            **TIMES,
            "FPS": _per_second,
            "times the baseline": _ratio_of_frames,
        },
    ),
    "stages": Table(
        "bench_pipeline",
        {
            **FRAME,
            **{stage: partial(_stage, stage) for stage in STAGES},
            "peak memory (MiB)": "peak_mib",
        },
    ),
    "batches": Table(
        "bench_batches",
        {
            **{"network": "network", "images per call": "batch", "precision": "dtype"},
            **TIMES,
            "images/s": _per_second,
            "times the baseline": _ratio,
            "images/s pipelined": "images_per_second_pipelined",
        },
    ),
    "compiled_baseline": Table(
        "bench_compiled_baseline",
        {"step (mm)": "step_mm", "precision": "dtype", **TIMES, "times the baseline": _ratio},
    ),
    "training_step": Table(
        "bench_training_step",
        {
            **{"preset": "preset", "batch": "batch", "points": "points", "precision": "dtype"},
            "compiled": lambda metadata: "yes" if metadata["compiled"] else "no",
            **TIMES,
            "images/s": _per_second,
            "times the plain step": _ratio,
        },
    ),
}


def operation_columns(ceilings: Ceilings | None, kind: str) -> Columns:
    """Columns of the table of operations on a "cpu" or a "gpu", with their ratios to the ceilings."""

    def ratio_to_ceiling(metadata: Metadata) -> float | None:
        work = metadata["work"]
        if work is None or ceilings is None:
            return None
        floor = ceilings.floor_seconds(
            work["flops"], metadata["dtype"], work["moved_bytes"], metadata["cached"]
        )
        return float(1e5 * floor / metadata["ms_20_50_80"][1])

    return {
        **{"operation": "operation", "case": "case", "batch": "batch", "precision": "dtype", "form": "form"},
        "median (µs)": lambda metadata: 1e3 * metadata["ms_20_50_80"][1],
        "20th to 80th percentile": lambda metadata: _range(metadata, 1e3),
        "GFLOP": lambda metadata: metadata["work"] and metadata["work"]["flops"] / 1e9,
        "MiB": lambda metadata: metadata["work"] and metadata["work"]["moved_bytes"] / 2**20,
        "share of the ceiling (%)": ratio_to_ceiling,
        "times the definition": _ratio,
        **({"timed": "timed", "definition timed": "definition_timed"} if kind == "gpu" else {}),
    }


def results(run: dict[str, Any], ceilings: Ceilings | None) -> dict[str, dict[str, Any]]:
    """Make the tables that `benchmarks/readme.py` reads, by name.

    Args:
        run: contents of the file from `pytest benchmarks --benchmark-json FILE`.
        ceilings: of the run's device; None omits the ratios to the ceiling.

    Raises:
        ValueError: the run holds none of these benchmarks, or the ceilings are another device's.
    """
    machine, commit = run["machine_info"], run["commit_info"]
    if ceilings is not None and ceilings.device != machine["device"]:
        raise ValueError(
            f"the ceilings are of {ceilings.device}, the run of {machine['device']}: run "
            "benchmarks/ceilings.py on the device of the run"
        )
    names = ("device", "driver, clocks", "torch", "triton")
    context = {
        **{name: machine[name] for name in names if name in machine},
        "commit": commit["id"][:10] + (" with changes" if commit["dirty"] else ""),
        "date": run["datetime"][:10],
    }
    every = [
        (benchmark["name"].partition("[")[0], benchmark["extra_info"])
        for benchmark in run["benchmarks"]
        if benchmark["extra_info"]  # those that failed have none
    ]
    rows = {
        name: (table.columns, [metadata for function, metadata in every if function == table.benchmark])
        for name, table in TABLES.items()
    }
    operations = [metadata for _, metadata in every if "operation" in metadata]
    rows["operations"] = operation_columns(ceilings, machine["kind"]), operations
    tables = {
        name: {
            "columns": list(columns),
            "rows": [make_row(columns, metadata) for metadata in found],
            "context": context,
        }
        for name, (columns, found) in rows.items()
        if found
    }
    if not tables:
        raise ValueError("the run holds none of our benchmarks: pytest benchmarks --benchmark-json FILE")
    return tables


def joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join parts of one run.

    Raises:
        ValueError: they are of several devices or commits.
    """
    for kind, part, entry in (("devices", "machine_info", "device"), ("commits", "commit_info", "id")):
        if len(found := {run[part][entry] for run in runs}) > 1:
            raise ValueError(f"the runs are of several {kind}: {', '.join(sorted(found))}")
    return runs[0] | {"benchmarks": [benchmark for run in runs for benchmark in run["benchmarks"]]}


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    run = joined([json.loads(Path(name).read_text()) for name in sys.argv[1:]])
    kind = run["machine_info"]["kind"]
    measured = RESULTS / f"ceilings_{kind}.json"
    RESULTS.mkdir(exist_ok=True)
    for table, result in results(run, read_ceilings(measured) if measured.exists() else None).items():
        (RESULTS / f"{table}_{kind}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
