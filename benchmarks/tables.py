"""Write the tables of speed in benchmarks/results/ from a run of pytest-benchmark.

    python benchmarks/tables.py RUN.json [RUN.json ...]    # written by `pytest benchmarks --benchmark-json`

Several runs count as parts of one. Tables without benchmarks in the runs stay unchanged.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ceilings import RESULTS, Ceilings, read_ceilings

Metadata = dict[str, Any]  # a benchmark's `extra_info`
Row = list[Any]


def speed_row(metadata: Metadata) -> Row:
    """Make the row of a benchmark of the pipeline."""
    ratio = metadata["times_the_peer_20_50_80"][1]
    return [
        *(metadata[name] for name in ("network", "step_mm", "search", "dtype", "points_evaluated")),
        *_times(metadata),
        1e3 / metadata["ms_20_50_80"][1],
        f"{ratio:.3g} (estimated)" if metadata["peer_estimated"] else ratio,
    ]


def stages_row(metadata: Metadata) -> Row:
    """Make the row of milliseconds by stage, from a benchmark of the pipeline."""
    stages = metadata["stages_ms"]
    return [
        *(metadata[name] for name in ("network", "step_mm", "search", "dtype")),
        *(stages.get(stage) for stage in STAGES),
        metadata.get("peak_mib"),
    ]


def operation_row(metadata: Metadata, ceilings: Ceilings | None) -> Row:
    """Make the row of a benchmark of an operation, with its ratio to the ceiling."""
    low, median, high = metadata["ms_20_50_80"]
    work, ratio = metadata["work"], None
    if work is not None and ceilings is not None:
        floor = ceilings.floor_seconds(work["flops"], metadata["dtype"], work["moved_bytes"])
        ratio = 1e5 * floor / median
    return [
        *(metadata[name] for name in ("operation", "case", "batch", "dtype", "form")),
        1e3 * median,
        _range(1e3 * low, 1e3 * high),
        None if work is None else work["flops"] / 1e9,
        None if work is None else work["moved_bytes"] / 2**20,
        ratio,
        metadata["times_the_peer_20_50_80"][1],
    ]


def batches_row(metadata: Metadata) -> Row:
    """Make the row of a benchmark of batches."""
    return [
        *(metadata[name] for name in ("network", "batch", "dtype")),
        *_times(metadata),
        1e3 * metadata["batch"] / metadata["ms_20_50_80"][1],
        metadata["times_the_peer_20_50_80"][1],
    ]


def compiled_row(metadata: Metadata) -> Row:
    """Make the row of a benchmark of the baseline with `torch.compile`."""
    return [metadata["step_mm"], metadata["dtype"], *_times(metadata), metadata["times_the_peer_20_50_80"][1]]


def training_row(metadata: Metadata) -> Row:
    """Make the row of a benchmark of a training step."""
    return [
        *(metadata[name] for name in ("preset", "batch", "points", "dtype")),
        "yes" if metadata["compiled"] else "no",
        *_times(metadata),
        1e3 * metadata["batch"] / metadata["ms_20_50_80"][1],
        metadata["times_the_peer_20_50_80"][1],
    ]


class Table(NamedTuple):
    """A file with the rows of one function's benchmarks."""

    benchmark: str
    columns: list[str]
    row: Callable[[Metadata], Row]


TIMES = ["median (ms)", "20th to 80th percentile"]
STAGES = ("prepare", "remap", "encode", "query", "select", "vote", "read")
TABLES = {
    "speed": Table(
        "bench_pipeline",
        [
            *("network", "step (mm)", "search", "precision", "points queried", *TIMES, "FPS"),
            "times the peer",
        ],
        speed_row,
    ),
    "stages": Table(
        "bench_pipeline",
        ["network", "step (mm)", "search", "precision", *STAGES, "peak memory (MiB)"],
        stages_row,
    ),
    "batches": Table(
        "bench_batches",
        ["network", "images per call", "precision", *TIMES, "images/s", "times the peer"],
        batches_row,
    ),
    "compiled_peer": Table(
        "bench_compiled_peer", ["step (mm)", "precision", *TIMES, "times the peer"], compiled_row
    ),
    "training_step": Table(
        "bench_training_step",
        [
            *("preset", "batch", "points", "precision", "compiled", *TIMES, "images/s"),
            "times the plain step",
        ],
        training_row,
    ),
}
OPERATIONS = [
    *("operation", "case", "batch", "precision", "form", "median (µs)", "20th to 80th percentile"),
    *("GFLOP", "MiB", "share of the ceiling (%)", "times the definition"),
]


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
        (benchmark["name"].partition("[")[0], benchmark["extra_info"]) for benchmark in run["benchmarks"]
    ]
    found = {
        name: (
            table.columns,
            [table.row(metadata) for function, metadata in every if function == table.benchmark],
        )
        for name, table in TABLES.items()
    }
    rows = [operation_row(metadata, ceilings) for _, metadata in every if "operation" in metadata]
    found["operations"] = OPERATIONS, rows
    tables = {
        name: {"columns": columns, "rows": rows, "context": context}
        for name, (columns, rows) in found.items()
        if rows
    }
    if not tables:
        raise ValueError("the run holds none of our benchmarks: pytest benchmarks --benchmark-json FILE")
    return tables


def joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join parts of one run.

    Raises:
        ValueError: they are of several devices or commits.
    """
    for kind, of in (
        ("devices", lambda run: run["machine_info"]["device"]),
        ("commits", lambda run: run["commit_info"]["id"]),
    ):
        if len(found := {of(run) for run in runs}) > 1:
            raise ValueError(f"the runs are of several {kind}: {', '.join(sorted(found))}")
    return runs[0] | {"benchmarks": [benchmark for run in runs for benchmark in run["benchmarks"]]}


def _times(metadata: Metadata) -> tuple[float, str]:
    low, median, high = metadata["ms_20_50_80"]
    return median, _range(low, high)


def _range(low: float, high: float) -> str:
    return " to ".join(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (low, high))


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
