"""Results of a reproduction, written as Markdown and as JSON with their origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvf_fast.evaluation.report import json_text, surroundings, write_texts

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
    """Write NAME.md and NAME.json into a folder; for another size than the paper's, NAME_SIZE.

    Args:
        folder: made when missing.
        result: table or figure.
        context: size, data, seed and device, from `Workshop.context`.

    Returns:
        The files.
    """
    context = {**context, **surroundings()}
    notes = list(result.notes)
    if context["size"] != "paper":
        notes.insert(0, SMALLER.format(size=context["size"]))
    document = {
        "title": result.title,
        "columns": list(result.columns),
        "rows": [list(row) for row in result.rows],
        "notes": notes,
        "images": list(result.images),
        "context": context,
        "details": result.details,
    }
    stem = file_stem(result.name, context["size"])
    texts = {f"{stem}.md": _markdown(result, notes, context), f"{stem}.json": json_text(document)}
    return write_texts(folder, texts)


def file_stem(name: str, size: str) -> str:
    """Stem of a result's files: "table2", or "table2_smoke_run" for another size than the paper's."""
    return name if size == "paper" else f"{name}_{size.replace(' ', '_')}"


def _markdown(result: Result, notes: list[str], context: dict[str, Any]) -> str:
    lines = [f"# {result.title}", ""]
    for note in notes:
        lines += [note, ""]
    if result.rows:
        table = [result.columns, ["---"] * len(result.columns), *result.rows]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in table] + [""]
    for image in result.images:
        lines += [f"![{result.title}]({image})", ""]
    lines += [f"- {name}: {value}" for name, value in context.items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    return "–" if value is None else str(value)
