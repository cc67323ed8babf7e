"""Fill the figures of README.md and docs/ from benchmarks/results/.

    python benchmarks/readme.py

Two markers are filled from benchmarks/results/NAME.json:

    <!-- results:NAME --> ... <!-- /results -->                  the whole table, and its conditions below
    <!-- value:NAME/ROW/COLUMN -->...<!-- /value -->             one value of the table

ROW is the first cell of a row, or "A, B" with as many of its first cells as tell it from the other rows.

A result file holds one table and the conditions of its measurement:

    {"columns": ["step (mm)", "FPS"], "rows": [[16, 24.6]], "context": {"device": "...", "torch": "..."}}
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLE = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)
VALUE = re.compile(r"(<!-- value:(\w+)/([^/]+)/((?:(?!-->).)+) -->).*?(<!-- /value -->)", re.DOTALL)


def filled(text: str, results: Path) -> str:
    """Replace the contents of every marker.

    Args:
        text: a Markdown document.
        results: folder of NAME.json files; a missing file leaves "not measured yet".

    Returns:
        The document.

    Raises:
        ValueError: a row does not have one value per column, or a value's row or column does not exist.
    """
    previous: dict[str, Any] = {}  # conditions of the table above

    def table(match: re.Match[str]) -> str:
        nonlocal previous
        path = results / f"{match[2]}.json"
        if not path.exists():
            return f"{match[1]}*Not measured yet.*\n{match[3]}"
        result = _read(path)
        conditions = result["context"]
        below = "Conditions as above." if conditions == previous else _listed(conditions)
        previous = conditions
        return f"{match[1]}{_rows(result)}\n*{below}*\n{match[3]}"

    text = TABLE.sub(table, text)
    return VALUE.sub(lambda m: m[1] + _value(results / f"{m[2]}.json", m[3], m[4]) + m[5], text)


def _rows(result: dict[str, Any]) -> str:
    columns = result["columns"]
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in result["rows"])]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _listed(conditions: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in conditions.items())


def _value(path: Path, row: str, column: str) -> str:
    """One value with three digits."""
    if not path.exists():
        return "not measured yet"
    result = _read(path)
    rows = [
        values
        for values in result["rows"]
        if row in (", ".join(map(str, values[: count + 1])) for count in range(len(values)))
    ]
    if len(rows) != 1 or column not in result["columns"]:
        raise ValueError(f"{path.name}: no value in row {row!r}, column {column!r}")
    value = rows[0][result["columns"].index(column)]
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else _cell(value)


def _read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    columns = result["columns"]
    for row in result["rows"]:
        if len(row) != len(columns):
            raise ValueError(f"{path.name}: a row holds {len(row)} values for {len(columns)} columns: {row}")
    return result


def _cell(value: float | str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def main() -> None:
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text(), RESULTS))


if __name__ == "__main__":
    main()
