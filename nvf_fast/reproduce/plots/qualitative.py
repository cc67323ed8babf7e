"""Figures 4, 6 and 7: the surface and votes that a network predicts, and the resulting pose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from nvf_fast.data.mesh import Mesh
from nvf_fast.overlay import FINGER_COLOURS
from nvf_fast.reproduce.plots.panels import ImageView, mask_panel, mesh_panel, pose_panel, vote_panel
from nvf_fast.reproduce.plots.sheet import noted, panel_side, save_sheet, sheet

VOTED = {"Wrist": 0, "Thumb root": 1, "Index tip": 8, "Middle root": 9, "Ring tip": 16, "Pinky root": 17}
VOTED_WRIST_COLOUR = (95, 225, 225)  # the circles are white already
COLUMNS = 3 + len(VOTED)
NO_PREDICTION = "no voter"


@dataclass(frozen=True)
class QualitativeRow:
    """One method's prediction for one image, root-relative predictions moved to the true root.

    Attributes:
        id: of the sample; rows of one sample are close together.
        method: label of the row, or "".
        image: (H, W, 3) uint8 RGB.
        intrinsics: (3, 3) px, the first pixel of a row centred at 0.
        hand: the surface of signed distance zero, or an (H, W) bool mask.
        voters: (V, 3) mm in the camera's frame; for voting pixels, any point on their rays.
        weights: (V, 21) of the votes for each joint.
        joints: (21, 3) mm in the camera's frame.
        valid: whether the pose is valid; an invalid one is drawn without pose and votes.
        window: (x0, y0, x1, y1) px, the visible part of the image, as from `hand_window`; None shows all.

    Raises:
        ValueError: a shape does not fit, or a valid row's numbers are not finite.
    """

    id: str
    method: str
    image: np.ndarray
    intrinsics: np.ndarray
    hand: Mesh | np.ndarray
    voters: np.ndarray
    weights: np.ndarray
    joints: np.ndarray
    valid: bool
    window: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"{self.id}: the image must be (H, W, 3) uint8, got {self.image.dtype} {self.image.shape}"
            )
        if isinstance(self.hand, np.ndarray) and (
            self.hand.shape != self.image.shape[:2] or self.hand.dtype != bool
        ):
            raise ValueError(
                f"{self.id}: the mask must be {self.image.shape[:2]} bool as the image, got "
                f"{self.hand.shape} {self.hand.dtype}"
            )
        count = len(self.voters)
        expected = {"intrinsics": (3, 3), "voters": (count, 3), "weights": (count, 21), "joints": (21, 3)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value.shape != shape:
                raise ValueError(f"{self.id}: {name} must be {shape}, got {value.shape}")
            if self.valid and not np.isfinite(value).all():
                raise ValueError(f"{self.id}: {name} holds numbers that are not finite")


def qualitative_figure(rows: Sequence[QualitativeRow], path: Path | str) -> None:
    """Draw a row of nine panels for each prediction, all by the camera's intrinsics.

    (a) the image; (b) the mesh or the mask; (c-h) the voters as white circles, with lines to the wrist, the
    thumb's root, the index finger's tip, the middle finger's root, the ring finger's tip and the little
    finger's root, the brighter the larger a voter's weight; (i) the pose.

    Args:
        rows: rows of one sample follow each other.
        path: .png file to write.

    Raises:
        ValueError: no row is given, or the file has another suffix.
    """
    if not rows:
        raise ValueError("a qualitative figure needs at least one row, got none")
    side = panel_side(COLUMNS * len(rows))
    meshes = {isinstance(row.hand, Mesh) for row in rows}
    hand = "Mask / mesh" if len(meshes) > 1 else "3D hand mesh" if True in meshes else "Hand mask"
    new = [row.id != before.id for before, row in pairwise(rows)]
    paper = sheet(
        [[[panel] for panel in _panels(row, side)] for row in rows],
        titles=[(title,) for title in ("RGB input", hand, *VOTED, "3D hand pose")],
        letters=[f"({letter})" for letter in "abcdefghi"],
        labels=[row.method for row in rows],
        apart=[] if all(new) else [True, *new],
    )
    save_sheet(paper, path)


def hand_window(
    joints_2d: np.ndarray, height: int, width: int, margin: float = 1.8
) -> tuple[int, int, int, int]:
    """A square window about a hand, for images in which it is small.

    Args:
        joints_2d: (21, 2) px.
        height, width: px, of the image.
        margin: the window's side is this times the joints' larger extent, and at most the image's.

    Returns:
        (x0, y0, x1, y1) px, inside the image.
    """
    low, high = joints_2d.min(0), joints_2d.max(0)
    side = int(np.clip(margin * (high - low).max(), 1, min(height, width)))
    x, y = (round(float(middle) - side / 2) for middle in (low + high) / 2)
    x, y = min(max(x, 0), width - side), min(max(y, 0), height - side)
    return x, y, x + side, y + side


def _panels(row: QualitativeRow, side: int) -> list[Image.Image]:
    view = ImageView(row.image, row.intrinsics, side, row.window)
    if isinstance(row.hand, Mesh):
        hand = mesh_panel(view, row.hand.vertices, row.hand.faces)
    else:
        hand = mask_panel(view, row.hand)
    if not row.valid:
        silent = noted(view.darkened, NO_PREDICTION)
        return [view.image, hand, *[silent] * len(VOTED), noted(view.image, NO_PREDICTION)]
    votes = [
        vote_panel(view, row.voters, row.weights[:, joint], row.joints[joint], vote_colour(joint))
        for joint in VOTED.values()
    ]
    return [view.image, hand, *votes, pose_panel(view, row.joints)]


def vote_colour(joint: int) -> tuple[int, int, int]:
    """Colour of the lines to a joint: its finger's, as in the pose."""
    return VOTED_WRIST_COLOUR if joint == 0 else FINGER_COLOURS[(joint - 1) // 4]
