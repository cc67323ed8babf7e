"""Plot the curves of trainings from the log.jsonl of their folders.

    python benchmarks/curves.py RUN [RUN ...] --out curves.png

The figure has one panel for each loss, for images per second, and for each validation score in mm, over the
steps. The suffix of --out determines the format: .png, .svg or .pdf.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
SCORES = ("cs_mje", "rs_mje", "de", "te", "pa_mpjpe")
NOT_DRAWN = ("minutes", "learning_rate")
LAST_LOSSES = ("gradient_norm", "images_per_second")
COLUMNS = 4

Curves = dict[str, list[tuple[int, float]]]


def read_curves(folder: Path) -> Curves:
    """Read the curves of one training as (step, value): losses, "loss" first, images per second, and scores.

    Raises:
        FileNotFoundError: the folder has no log.
        ValueError: a line is not JSON.
    """
    losses: Curves = {"loss": []}
    scores: Curves = {}
    for number, line in enumerate((folder / LOG).read_text().splitlines(), 1):
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{folder / LOG}, line {number}: {error}") from error
        for name, value in entry.items():
            if isinstance(value, float) and name not in NOT_DRAWN:
                losses.setdefault(name, []).append((entry["step"], value))
        for name, value in entry.get("evaluation", {}).items():
            if name.endswith(SCORES):
                scores.setdefault(f"validation {name} (mm)", []).append((entry["step"], value))
    last = {name: losses.pop(name) for name in LAST_LOSSES if name in losses}
    return {name: curve for name, curve in (losses | last | scores).items() if curve}


def draw(folders: Sequence[Path], path: Path) -> None:
    """Plot the trainings over each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = {folder.name: read_curves(folder) for folder in folders}
    names = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 2.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        for number, curves in enumerate(runs.values()):
            if name in curves:
                steps, values = zip(*curves[name], strict=True)
                axes.plot(steps, values, color=f"C{number}", marker="." if len(steps) < 30 else "")
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.supxlabel("step", fontsize=9)
    if len(runs) > 1:
        panels[0].legend(panels[0].lines, runs, fontsize=8)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a training")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="the figure")
    options = parser.parse_args(arguments)
    for folder in options.runs:
        if not (folder / LOG).is_file():
            sys.exit(f"{folder} is no training's folder: {LOG} is missing")
    draw(options.runs, options.out)


if __name__ == "__main__":
    main()
