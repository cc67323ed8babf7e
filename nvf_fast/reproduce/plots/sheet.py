"""Panels in rows and columns, with titles: a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from nvf_fast.runtime.files import whole_file

INK, PAPER = (20, 20, 20), (255, 255, 255)
PANEL_PX = (120, 224)  # sides of the smallest and the largest panels
SHEET_PX = 1_500_000  # of all panels together, so that a sheet of photographs stays below 1.5 MB


def panel_side(count: int) -> int:
    """Side in px of each of `count` panels of one figure."""
    smallest, largest = PANEL_PX
    return max(smallest, min(largest, math.isqrt(SHEET_PX // count)))


def sheet(
    rows: Sequence[Sequence[Sequence[Image.Image]]],
    titles: Sequence[Sequence[str]],
    letters: Sequence[str] = (),
    labels: Sequence[str] = (),
    apart: Sequence[bool] = (),
) -> Image.Image:
    """Arrange square panels of one size on white.

    Args:
        rows: each a sequence of blocks, each a sequence of adjacent panels; the first row and its blocks are
            the longest.
        titles: above each block, one or several side by side.
        letters: one below each block, or empty.
        labels: one beside each row, possibly ""; or empty.
        apart: for each row, whether a gap separates it from the preceding one; empty for no gaps.
    """
    side = rows[0][0][0].width
    near, far, band = max(2, side // 50), side // 10, side // 6
    left, foot = (band if any(texts) else 0 for texts in (labels, letters))
    widths = [len(block) * (side + near) - near for block in rows[0]]
    between = far if max(map(len, rows[0])) > 1 else near
    starts = list(accumulate((width + between for width in widths[:-1]), initial=left))
    gaps = [far if away else near for away in apart[1:] or [False] * (len(rows) - 1)]
    tops = list(accumulate((side + gap for gap in gaps), initial=band))

    paper = Image.new("RGB", (starts[-1] + widths[-1], tops[-1] + side + foot), PAPER)
    for top, row in zip(tops, rows, strict=True):
        for start, block in zip(starts, row, strict=False):
            for k, panel in enumerate(block):
                paper.paste(panel, (start + k * (side + near), top))

    fields = [
        (title, start + k * width // len(block), width // len(block))
        for start, width, block in zip(starts, widths, titles, strict=True)
        for k, title in enumerate(block)
    ]
    font = _fitting(
        [(title, width) for title, _, width in fields] + [(label, side) for label in labels], band
    )
    for title, start, width in fields:
        paper.paste(_written(title, (width, band), font), (start, 0))
    for start, width, letter in zip(starts, widths, letters, strict=False):
        paper.paste(_written(letter, (width, foot), font), (start, tops[-1] + side))
    for top, label in zip(tops, labels, strict=False):
        paper.paste(_written(label, (side, left), font).transpose(Image.Transpose.ROTATE_90), (0, top))
    return paper


def noted(panel: Image.Image, note: str) -> Image.Image:
    """Draw a note on the panel's lower edge."""
    panel, band = panel.copy(), panel.width // 6
    panel.paste(_written(note, (panel.width, band), _font(band * 0.62)), (0, panel.height - band))
    return panel


def save_sheet(paper: Image.Image, path: Path | str) -> None:
    """Write a figure as PNG, deterministically.

    Raises:
        ValueError: the file has another suffix.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"a figure of images is written as .png, got {path}")
    with whole_file(path) as file:
        paper.save(file, "PNG", optimize=True)


def _fitting(texts: Sequence[tuple[str, int]], band: int) -> ImageFont.FreeTypeFont:
    """The font for a band's height, or a smaller one in which each text fits into its width."""
    font = _font(band * 0.72)
    fullest = max((font.getlength(text) / (0.96 * width) for text, width in texts), default=0.0)
    return _font(font.size / max(1.0, fullest))


def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)  # Pillow's own: the same on every machine
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ImportError("figures need a Pillow that was built with FreeType")
    return font


def _written(text: str, size: tuple[int, int], font: ImageFont.FreeTypeFont) -> Image.Image:
    field = Image.new("RGB", size, PAPER)
    ImageDraw.Draw(field).text((size[0] / 2, size[1] / 2), text, INK, font, anchor="mm")
    return field
