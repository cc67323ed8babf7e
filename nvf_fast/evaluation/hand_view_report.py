"""The report on a network of hand views: tables, JSON, and a plot of its expected errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nvf_fast.evaluation.report import json_text, markdown_table, write_texts

ERRORS = {
    "error_2d": "2D error %",
    "aligned": "aligned mm",
    "relative": "relative mm",
    "camera": "camera space, true scale mm",
    "camera_without_scale": "without scale mm",
}
TITLES = {
    "rendered": "Rendered hands of any orientation",
    "depth": "Mean signed depth error with the true scale",
    "facing": "Final joints by the visible side of the hand",
    "visibility": "Final joints by visibility",
    "calibration": "Expected and true errors, in tenths of the joints",
    "sizes": "Recall in wide images, by size in px",
    "checks": "Presence, finding, stability, time",
}


CHECKS = (
    ("poses", "correlation", "expected against true error, Spearman", "{hands} hands"),
    ("poses", "lost", "rendered hands lost, %", "{hands} hands"),
    ("presence", "lost", "photographs lost, %", "{hands} photographs"),
    ("presence", "side", "side right, %", "{hands} photographs"),
    ("empty", "accepted", "empty views accepted, %", "{empty} views"),
    ("stability", "turned", "aligned error upside down over upright", "{hands} hands"),
    ("stability", "moved", "joints move when the box moves by half a pixel, mm", "{hands} hands"),
    ("stability", "batch", "largest difference between single and batched predictions, mm", "{hands} hands"),
    ("finding", "recall", "hands found in wide images, %", "{hands} hands in {images} images"),
    ("finding", "side", "side right of those, %", "{images} images"),
    ("finding", "false_hands", "false hands per image", "{images} images"),
    ("time", "pose", "pose with box, ms", "{threads} threads, {device}"),
    ("time", "find", "all hands of 1280 x 720, ms", "{threads} threads, {device}"),
)
"""Rows of the table of checks: part and entry of the report, name, and number of cases."""


def write_hand_view_report(folder: Path, report: Mapping[str, Any], context: Mapping[str, Any]) -> list[Path]:
    """Write report.json, report.md and calibration.png.

    Args:
        folder: made when missing.
        report: results of `hand_views` by part, any of "poses", "stability", "empty", "presence", "finding"
            and "time"; and "skipped", reasons by part.
        context: conditions of the measurement.

    Returns:
        The files. Without matplotlib the plot is left out.
    """
    lines = ["# Checks of a network of hand views"]
    for name, (columns, rows) in report_tables(report).items():
        lines += ["", f"## {TITLES[name]}", *markdown_table(columns, rows)]
    if report["skipped"]:
        lines += ["", "## Skipped", "", *(f"- {part}: {why}" for part, why in report["skipped"].items())]
    lines += ["", "## Context", "", *(f"- {name}: {value}" for name, value in context.items())]
    whole = json_text({"context": dict(context), **report})
    written = write_texts(folder, {"report.json": whole, "report.md": "\n".join(lines) + "\n"})
    if "poses" in report and find_spec("matplotlib") is not None:
        plot_calibration(report["poses"]["calibration"], folder / "calibration.png")
        written.append(folder / "calibration.png")
    return written


def report_tables(report: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Columns and rows by name, in the order of `TITLES`."""

    def rows(found: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
        return [[name, *values.values()] for name, values in found.items()]

    tables: dict[str, tuple[list[str], list[list[Any]]]] = {}
    if poses := report.get("poses"):
        aligned = ["aligned mm", "relative mm"]
        tables["rendered"] = ["joints", *ERRORS.values()], rows(poses["methods"])
        tables["depth"] = ["distance", "error mm", "hands"], rows(poses["depth"])
        tables["facing"] = ["facing", *aligned, "hands"], rows(poses["facing"])
        if poses["visibility"]:
            tables["visibility"] = ["joints", *aligned, "number"], rows(poses["visibility"])
        tenths = [list(row.values()) for row in poses["calibration"]]
        tables["calibration"] = ["expected mm", "true mm", "joints"], tenths
    if finding := report.get("finding"):
        tables["sizes"] = ["longer side px", "recall %", "hands"], rows(finding["sizes"])
    tables["checks"] = ["check", "measured", "over"], _checks(report)
    return tables


def plot_calibration(table: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw true against expected errors, of `calibration_table`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from nvf_fast.reproduce.plots.style import figure_file

    expected, true = ([row[name] for row in table] for name in ("expected", "true"))
    limit = 1.05 * max([*expected, *true, 1e-3])
    with figure_file(path, 4, 4, dpi=120) as figure:
        axes = figure.subplots()
        axes.plot([0, limit], [0, limit], color="0.7", linewidth=1)
        axes.plot(expected, true, "o-")
        axes.set(xlabel="expected error, mm", ylabel="true error, mm", xlim=(0, limit), ylim=(0, limit))


def _checks(report: Mapping[str, Any]) -> list[list[Any]]:
    parts = dict(report)
    if poses := report.get("poses"):
        parts["poses"] = poses | {"lost": 100 * poses["lost"] / poses["hands"]}
    return [
        [check, parts[part][key], over.format(**parts[part])]
        for part, key, check, over in CHECKS
        if parts.get(part)
    ]
