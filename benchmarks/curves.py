"""Draws how trainings went, from the log.jsonl of their folders.

    python benchmarks/curves.py RUN [RUN ...] --out curves.png

Above each loss by step; below every score in mm that was measured on the way, where one was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
# Of a line of the log, what is no loss.
NO_LOSS = ("step", "minutes", "images_per_second", "learning_rate", "gradient_norm", "evaluation")
SCORES = ("cs_mje", "de", "te", "pa_mpjpe")

Curves = dict[str, list[tuple[int, float]]]


def read_curves(folder: Path) -> tuple[Curves, Curves]:
    """Losses and scores of one training, each as (step, value).

    Raises:
        FileNotFoundError: the folder has no log.
        ValueError: a line of it is no JSON.
    """
    losses: Curves = defaultdict(list)
    scores: Curves = defaultdict(list)
    for number, line in enumerate((folder / LOG).read_text().splitlines(), 1):
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{folder / LOG}, line {number}: {error}") from error
        for name, value in entry.items():
            if isinstance(value, float) and name not in NO_LOSS:
                losses[name].append((entry["step"], value))
        for name, value in entry.get("evaluation", {}).items():
            if name.endswith(SCORES):
                scores[name].append((entry["step"], value))
    return losses, scores


def draw(folders: Sequence[Path], path: Path) -> None:
    """Writes the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    for folder in folders:
        ahead = f"{folder.name} " if len(folders) > 1 else ""
        for axes, curves in zip((above, below), read_curves(folder), strict=True):
            for name, curve in curves.items():
                label = ahead + name.replace("_", " ")
                axes.plot(*zip(*curve, strict=True), label=label, marker="." if axes is below else "")
    above.set(ylabel="loss", yscale="log")
    below.set(ylabel="mm", xlabel="step", ylim=(0, None))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a training")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="the picture")
    options = parser.parse_args(arguments)
    for folder in options.runs:
        if not (folder / LOG).is_file():
            sys.exit(f"{folder} is no training's folder: {LOG} is missing")
    draw(options.runs, options.out)


if __name__ == "__main__":
    main()
