"""One style of all figures, and their files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nvf_fast.runtime.extras import extra
from nvf_fast.runtime.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {"font.family": "DejaVu Sans", "font.size": 8}  # the font comes with matplotlib


@contextmanager
def figure_file(path: Path, width: float, height: float, dpi: int) -> Iterator[Figure]:
    """Yield an empty figure, then write it as PNG; equal figures give equal files.

    Args:
        path: of the file.
        width, height: inches.
        dpi: px per inch.

    Raises:
        ImportError: matplotlib is not installed (`pip install nvf-fast[viz]`).
        OSError: the file cannot be written.
    """
    with extra("viz", "figures need matplotlib"):
        from matplotlib import style
        from matplotlib.figure import Figure
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
        yield figure
        with whole_file(path) as file:
            figure.savefig(file, format="png", metadata={"Software": None})  # without matplotlib's version
