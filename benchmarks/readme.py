"""Fills the tables of the README and of docs/ from benchmarks/results/, so that no figure is typed by hand.

    python benchmarks/readme.py

Between `<!-- results:NAME -->` and `<!-- /results -->` stands the table of benchmarks/results/NAME.json:

    {"columns": ["step (mm)", "FPS"], "rows": [[16, 24.6]], "context": {"device": "...", "torch": "..."}}

`rows` hold numbers or text in the columns' order; `context` says under what conditions they were measured.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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


def _table(path: Path) -> str:
    """The file's rows as Markdown, their context below."""
    if not path.exists():
        return "*Not measured yet.*\n"
    result = json.loads(path.read_text())
    columns, rows = result["columns"], result["rows"]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{path.name}: a row holds {len(row)} values for {len(columns)} columns: {row}")
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    context = ", ".join(f"{name}: {value}" for name, value in result["context"].items())
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n*{context}*\n"


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
