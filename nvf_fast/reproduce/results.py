"""Results of a reproduction, written as Markdown and as JSON with their origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvf_fast.evaluation.report_files import surroundings, table_lines, write_report_files

SMALLER = (
    "**A {size}: networks far smaller and trainings far shorter than the paper's. It shows that every step "
    "runs, and does not compare the methods.**"
)


@dataclass(frozen=True)
class Result:
    """A reproduced table, or a figure's numbers."""

    name: str  # such as "table2"
    title: str  # one line
    columns: Sequence[str] = ()  # their names with units; those that end in "paper" hold printed figures
    rows: Sequence[Sequence[Any]] = ()  # a value for each column, or None
    notes: Sequence[str] = ()  # sentences for the reader
    images: Sequence[str] = ()  # files that belong to it, in the folder of the results
    details: dict[str, Any] = field(default_factory=dict)  # further entries of the JSON file


def write_result(folder: Path, result: Result, context: dict[str, Any]) -> list[Path]:
    """Write NAME.md and NAME.json, for another size than the paper's NAME_SIZE, and return their paths.

    Args:
        folder: made when missing.
        result: table or figure.
        context: size, data, seed and device, from `Workshop.context`.
    """
    context = {**context, **surroundings()}
    notes = list(result.notes)
    if context["size"] != "paper":
        notes.insert(0, SMALLER.format(size=context["size"]))
    lines = [line for note in notes for line in (note, "")]
    if result.rows:
        lines += [*table_lines(result.columns, result.rows), ""]
    lines += [line for image in result.images for line in (f"![{result.title}]({image})", "")]
    contents = {
        "title": result.title,
        "columns": list(result.columns),
        "rows": [list(row) for row in result.rows],
        "notes": notes,
        "images": list(result.images),
        "details": result.details,
    }
    stem = folder / file_stem(result.name, context["size"])
    return write_report_files(stem, result.title, lines[:-1], context, contents)


def file_stem(name: str, size: str) -> str:
    """Stem of a result's files: "table2", or "table2_smoke_run" for another size than the paper's."""
    return name if size == "paper" else f"{name}_{size.replace(' ', '_')}"
