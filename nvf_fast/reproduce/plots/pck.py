"""Figure 3: the fraction of joints within an error, over the error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nvf_fast.evaluation.metrics import KeypointScores
from nvf_fast.reproduce.plots.style import figure_file

# Okabe and Ito's colours, safe for colour-blind readers; dashes help on grey paper.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")


def pck_figure(curves: Mapping[str, KeypointScores], path: Path) -> None:
    """Draw the methods' 3D PCK curves, each with its area in the legend.

    Args:
        curves: by method, at least one, in the legend's order.
        path: .png file to write.

    Raises:
        ImportError: matplotlib is not installed (`pip install nvf-fast[viz]`).
    """
    with figure_file(path, 3.6, 2.7 + 0.15 * len(curves), dpi=300) as figure:
        axes = figure.add_subplot()
        for k, (method, curve) in enumerate(curves.items()):
            axes.plot(
                curve.thresholds,
                curve.pck,
                DASHES[k % len(DASHES)],
                color=COLOURS[k % len(COLOURS)],
                label=f"{method} (AUC {curve.auc:.3f})",
                linewidth=1.4,
            )
        axes.set_xlabel("error threshold (mm)")
        axes.set_ylabel("3D PCK")
        axes.margins(x=0)
        axes.set_ylim(0, 1)
        axes.grid(color="0.88", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", frameon=False, handlelength=2.6, fontsize=7)
