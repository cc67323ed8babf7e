"""Figures 5 and 8: input images beside the predicted poses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from nvf_fast.reproduce.plots.panels import ImageView, pose_panel
from nvf_fast.reproduce.plots.sheet import noted, panel_side, save_sheet, sheet

PAIRS = 4  # of photographs in a row
NO_PREDICTION = "no pose"


@dataclass(frozen=True)
class PosePair:
    """An image and one method's pose in it.

    Attributes:
        image: (H, W, 3) uint8 RGB, to draw the pose over.
        intrinsics: (3, 3) px of the image, the first pixel of a row centred at 0.
        joints: (21, 3) mm in the camera's frame; with NaN or behind the camera, a note replaces the pose.
        seen: (h, w, 3) uint8 RGB, the method's input if it is a crop; None for the image.
        window: (x0, y0, x1, y1) px, the visible part of the image; None shows all.
    """

    image: np.ndarray
    intrinsics: np.ndarray
    joints: np.ndarray
    seen: np.ndarray | None = None
    window: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("image", "seen"):
            image = getattr(self, name)
            if image is not None and (image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8):
                raise ValueError(f"{name} must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
        for name, shape in {"intrinsics": (3, 3), "joints": (21, 3)}.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must be {shape}, got {getattr(self, name).shape}")


def comparison_figure(rows: Sequence[Mapping[str, PosePair]], path: Path | str) -> None:
    """Draw a row for each sample with a pair for each method: its input and its pose.

    Args:
        rows: pairs by method, the same methods in each row.
        path: .png file to write.

    Raises:
        ValueError: no row is given, methods differ between rows, or the file has another suffix.
    """
    methods = list(rows[0]) if rows else []
    if not methods:
        raise ValueError("a comparison needs at least one row with one method, got none")
    for number, row in enumerate(rows):
        if set(row) != set(methods):
            raise ValueError(f"row {number} compares {sorted(row)}, the first one {sorted(methods)}")
    side = panel_side(2 * len(methods) * len(rows))
    blocks = [[_panels(row[method], side) for method in methods] for row in rows]
    save_sheet(sheet(blocks, [(method,) for method in methods]), path)


def photograph_figure(pairs: Sequence[PosePair], path: Path | str) -> None:
    """Draw pairs of an image and its pose, up to four in a row.

    Args:
        pairs: of one method.
        path: .png file to write.

    Raises:
        ValueError: no pair is given, or the file has another suffix.
    """
    if not pairs:
        raise ValueError("a figure of photographs needs at least one pair, got none")
    side = panel_side(2 * len(pairs))
    blocks = [_panels(pair, side) for pair in pairs]
    columns = math.ceil(len(pairs) / math.ceil(len(pairs) / PAIRS))  # rows as equal as can be
    rows = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    save_sheet(sheet(rows, [("RGB input", "3D hand pose")] * columns), path)


def _panels(pair: PosePair, side: int) -> list[Image.Image]:
    view = ImageView(pair.image, pair.intrinsics, side, pair.window)
    seen = view if pair.seen is None else ImageView(pair.seen, pair.intrinsics, side)
    there = np.isfinite(pair.joints).all() and (pair.joints[:, 2] > 0).all()
    return [seen.image, pose_panel(view, pair.joints) if there else noted(view.image, NO_PREDICTION)]
