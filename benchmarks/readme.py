"""Fills the README's tables from benchmarks/results/, so that no figure in it is typed by hand.

    python benchmarks/readme.py             # rewrite the tables
    python benchmarks/readme.py RUN.json    # first take the speed from `pytest --benchmark-json RUN.json`

Between `<!-- results:NAME -->` and `<!-- /results -->` stands the table of benchmarks/results/NAME.json:

    {"columns": ["step (mm)", "FPS"], "rows": [[16, 24.6]], "context": {"device": "...", "torch": "..."}}

`rows` hold numbers or text in the columns' order; `context` says under what conditions they were measured.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SPEED_COLUMNS = [
    "network",
    "step (mm)",
    "search",
    "precision",
    "points asked",
    "median (ms)",
    "20th to 80th percentile",
    "FPS",
    "times the peer",
    "CS-MJE (mm)",
]
BLOCK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def filled(text: str, results: Path) -> str:
    """The document with every results block replaced by its table.

    Args:
        text: a Markdown document.
        results: folder of NAME.json files; a block without its file says that nothing was measured.

    Returns:
        The document.

    Raises:
        ValueError: a row does not have one value per column.
    """
    return BLOCK.sub(lambda match: match[1] + _table(results / f"{match[2]}.json") + match[3], text)


def speed(run: dict[str, Any]) -> dict[str, Any]:
    """The results of the pipeline's benchmarks (`bench_pipeline.py`) in a run of pytest-benchmark.

    Args:
        run: what `pytest benchmarks/ --benchmark-json FILE` wrote.

    Returns:
        A result as `filled` reads them.

    Raises:
        ValueError: the run holds no benchmark of the pipeline.
    """
    rows = [
        speed_row(benchmark["extra_info"])
        for benchmark in run["benchmarks"]
        if benchmark["name"].startswith("bench_pipeline")
    ]
    if not rows:
        raise ValueError("the run holds no benchmark of the pipeline: `pytest benchmarks/bench_pipeline.py`")
    machine, commit = run["machine_info"], run["commit_info"]
    return {
        "columns": SPEED_COLUMNS,
        "rows": rows,
        "context": {
            "device": machine["device"],
            "threads": machine["threads"],
            "torch": machine["torch"],
            "commit": commit["id"][:10] + (" with changes" if commit["dirty"] else ""),
            "date": run["datetime"][:10],
        },
    }


def speed_row(facts: dict[str, Any]) -> list[Any]:
    """A row under `SPEED_COLUMNS` of what one benchmark of the pipeline found."""
    low, median, high = facts["ms_20_50_80"]
    ratio = f"{facts['times_the_peer_20_50_80'][1]:.3g}" + (" (estimated)" if facts["peer_estimated"] else "")
    return [
        *(facts[name] for name in ("network", "step_mm", "search", "dtype", "points_evaluated")),
        median,
        f"{low:.3g} to {high:.3g}",
        1e3 / median,
        ratio,
        facts["cs_mje_mm"],
    ]


def _table(path: Path) -> str:
    """The file's rows as Markdown, their context below."""
    if not path.exists():
        return "*Not measured yet.*\n"
    result = json.loads(path.read_text())
    columns, rows = result["columns"], result["rows"]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{path.name}: a row holds {len(row)} values for {len(columns)} columns: {row}")
    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    context = ", ".join(f"{name}: {value}" for name, value in result["context"].items())
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n*{context}*\n"


def cell(value: float | str | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def main() -> None:
    for name in sys.argv[1:]:
        run = json.loads(Path(name).read_text())
        RESULTS.mkdir(exist_ok=True)
        target = RESULTS / f"speed_{run['machine_info']['kind']}.json"
        target.write_text(json.dumps(speed(run), indent=1) + "\n")
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(), RESULTS))


if __name__ == "__main__":
    main()
