"""Figure 3: the fraction of joints within an error, over the error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from nvf_fast.runtime.files import whole_file

# Okabe and Ito's colours, safe for colour-blind readers; dashes help on grey paper.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
# Without matplotlib's date and version, equal figures give equal files.
METADATA: dict[str, dict[str, str | None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    ".svg": {"Date": None, "Creator": None},
}
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "nvf-fast",
}


class PckCurve(Protocol):
    """One method's curve, such as `metrics.KeypointScores`."""

    @property
    def thresholds(self) -> np.ndarray:
        """(T,) mm, ascending."""
        ...

    @property
    def pck(self) -> np.ndarray:
        """(T,) fraction of errors at or below each threshold."""
        ...

    @property
    def auc(self) -> float:
        """Area under the curve over the thresholds' range, in [0, 1]."""
        ...


def pck_figure(curves: Mapping[str, PckCurve], path: Path | str) -> None:
    """Draw the methods' 3D PCK curves, each with its area in the legend.

    Args:
        curves: by method, in the legend's order.
        path: .png, .pdf or .svg file to write.

    Raises:
        ValueError: no curve is given, a curve is invalid, or the file has another suffix.
        ImportError: matplotlib is not installed (`pip install nvf-fast[viz]`).
    """
    path = Path(path)
    if path.suffix not in METADATA:
        raise ValueError(f"a PCK figure is written as {', '.join(METADATA)}, got {path}")
    if not curves:
        raise ValueError("a PCK figure needs at least one method's curve, got none")
    for method, curve in curves.items():
        _check(method, curve)
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("PCK figures need matplotlib: pip install 'nvf-fast[viz]'") from error

    with style.context(["default", STYLE]), whole_file(path) as file:
        figure = Figure(figsize=(3.6, 2.9), dpi=300, layout="constrained")
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
        axes.set_xlim(
            min(curve.thresholds[0] for curve in curves.values()),
            max(curve.thresholds[-1] for curve in curves.values()),
        )
        axes.set_ylim(0, 1)
        axes.grid(color="0.88", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="0.85", handlelength=2.6, fontsize=7)
        figure.savefig(file, format=path.suffix[1:], metadata=METADATA[path.suffix])


def _check(method: str, curve: PckCurve) -> None:
    thresholds, pck = np.asarray(curve.thresholds), np.asarray(curve.pck)
    if thresholds.ndim != 1 or thresholds.shape != pck.shape or len(thresholds) < 2:
        raise ValueError(
            f"{method}: thresholds and pck must be (T,), T at least 2, got {thresholds.shape} and {pck.shape}"
        )
    if not (np.diff(thresholds) > 0).all():
        raise ValueError(f"{method}: thresholds must ascend")
    if not ((pck >= 0) & (pck <= 1)).all():
        raise ValueError(f"{method}: pck must be ratios in [0, 1], got {pck.min():g} to {pck.max():g}")
