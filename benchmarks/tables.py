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

Facts = dict[str, Any]  # a benchmark's `extra_info`
Row = list[Any]


def speed_row(facts: Facts) -> Row:
    """Of one benchmark of the pipeline."""
    ratio = facts["times_the_peer_20_50_80"][1]
    return [
        *(facts[name] for name in ("network", "step_mm", "search", "dtype", "points_evaluated")),
        *_times(facts),
        1e3 / facts["ms_20_50_80"][1],
        f"{ratio:.3g} (estimated)" if facts["peer_estimated"] else ratio,
    ]


def stages_row(facts: Facts) -> Row:
    """Milliseconds of each stage, of one benchmark of the pipeline."""
    stages = facts["stages_ms"]
    return [
        *(facts[name] for name in ("network", "step_mm", "search", "dtype")),
        *(stages.get(stage) for stage in STAGES),
        facts.get("peak_mib"),
    ]


def operation_row(facts: Facts, ceilings: Ceilings | None) -> Row:
    """Of one benchmark of an operation; the share is that of the time which its work allows."""
    low, median, high = facts["ms_20_50_80"]
    work, share = facts["work"], None
    if work is not None and ceilings is not None:
        floor = ceilings.floor_seconds(work["flops"], facts["dtype"], work["moved_bytes"])
        share = 1e5 * floor / median
    return [
        *(facts[name] for name in ("operation", "case", "batch", "dtype", "form")),
        1e3 * median,
        _range(1e3 * low, 1e3 * high),
        None if work is None else work["flops"] / 1e9,
        None if work is None else work["moved_bytes"] / 2**20,
        share,
        facts["times_the_peer_20_50_80"][1],
    ]


def batches_row(facts: Facts) -> Row:
    """Of one benchmark of batches."""
    return [
        *(facts[name] for name in ("network", "batch", "dtype")),
        *_times(facts),
        1e3 * facts["batch"] / facts["ms_20_50_80"][1],
        facts["times_the_peer_20_50_80"][1],
    ]


def compiled_row(facts: Facts) -> Row:
    """Of the peer through `torch.compile`."""
    return [facts["step_mm"], facts["dtype"], *_times(facts), facts["times_the_peer_20_50_80"][1]]


def training_row(facts: Facts) -> Row:
    """Of one training step."""
    return [
        *(facts[name] for name in ("preset", "batch", "points", "dtype")),
        "yes" if facts["compiled"] else "no",
        *_times(facts),
        1e3 * facts["batch"] / facts["ms_20_50_80"][1],
        facts["times_the_peer_20_50_80"][1],
    ]


class Table(NamedTuple):
    """How the benchmarks of one function become one file."""

    benchmark: str
    columns: list[str]
    row: Callable[[Facts], Row]


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
    """What `benchmarks/readme.py` reads, by name.

    Args:
        run: what `pytest benchmarks --benchmark-json FILE` wrote.
        ceilings: of the run's device; None leaves the shares of the ceiling out.

    Raises:
        ValueError: the run holds no benchmark of ours, or the ceilings are another device's.
    """
    machine, commit = run["machine_info"], run["commit_info"]
    if ceilings is not None and ceilings.device != machine["device"]:
        raise ValueError(
            f"the ceilings are those of {ceilings.device}, the run is of {machine['device']}: run "
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
        name: (table.columns, [table.row(facts) for function, facts in every if function == table.benchmark])
        for name, table in TABLES.items()
    }
    rows = [operation_row(facts, ceilings) for _, facts in every if "operation" in facts]
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
    """Parts of one run as one.

    Raises:
        ValueError: they are of several devices or commits.
    """
    for what, of in (
        ("devices", lambda run: run["machine_info"]["device"]),
        ("commits", lambda run: run["commit_info"]["id"]),
    ):
        if len(found := {of(run) for run in runs}) > 1:
            raise ValueError(f"the runs are of several {what}: {', '.join(sorted(found))}")
    return runs[0] | {"benchmarks": [benchmark for run in runs for benchmark in run["benchmarks"]]}


def _times(facts: Facts) -> tuple[float, str]:
    low, median, high = facts["ms_20_50_80"]
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
