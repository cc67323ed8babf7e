"""Figures 4 to 8: images beside the surfaces, votes and poses that networks predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nvf_fast.data.sample import HandSample
from nvf_fast.reproduce.plots.panels import DARKENED, draw_hand, draw_image, draw_pose, draw_votes, note
from nvf_fast.reproduce.plots.rows import PredictionRow
from nvf_fast.reproduce.plots.style import figure_file
from nvf_fast.surface import Mesh

VOTED = {"Wrist": 0, "Thumb root": 1, "Index tip": 8, "Middle root": 9, "Ring tip": 16, "Pinky root": 17}
INCHES, DPI = 1.1, 200  # of a panel


def qualitative_figure(rows: Sequence[PredictionRow], path: Path) -> None:
    """Draw a row of nine panels for each prediction.

    (a) the image; (b) the mesh or the mask; (c-h) the voters as white discs, with lines to the wrist, the
    thumb's root, the index finger's tip, the middle finger's root, the ring finger's tip and the little
    finger's root, the more opaque the larger a voter's weight; (i) the pose.

    Args:
        rows: at least one.
        path: .png file to write.
    """
    meshes = {isinstance(row.hand, Mesh) for row in rows}
    hand = "Mask / mesh" if len(meshes) > 1 else "3D hand mesh" if True in meshes else "Hand mask"
    titles = ["RGB input", hand, *VOTED, "3D hand pose"]
    with figure_file(path, INCHES * len(titles), INCHES * len(rows) + 0.4, DPI) as figure:
        grid = figure.subplots(len(rows), len(titles), squeeze=False)
        for row, panels in zip(rows, grid, strict=True):
            image, surface, *voting, pose = panels
            image.set_ylabel(row.method)
            for axes in panels:
                draw_image(axes, row.sample, DARKENED if axes in voting else 1.0)
            draw_hand(surface, row.sample, row.hand)
            if not row.valid:
                for axes in (*voting, pose):
                    note(axes, "no voter")
                continue
            for axes, joint in zip(voting, VOTED.values(), strict=True):
                draw_votes(axes, row.sample, row.voters, row.weights[:, joint], row.joints, joint)
            draw_pose(pose, row.sample, row.joints)
        for above, below, title, letter in zip(grid[0], grid[-1], titles, "abcdefghi", strict=True):
            above.set_title(title)
            below.set_xlabel(f"({letter})")


def pose_figure(
    rows: Sequence[Sequence[tuple[HandSample, np.ndarray | None]]], titles: Sequence[str], path: Path
) -> None:
    """Draw rows of images, with poses over some.

    Args:
        rows: of samples, each with joints (21, 3) mm to draw over it, or None; a note replaces joints that
            are not finite or behind the camera. The first row is the longest.
        titles: above the columns.
        path: .png file to write.
    """
    with figure_file(path, 2 * INCHES * len(titles), 2 * INCHES * len(rows) + 0.2, DPI) as figure:
        grid = figure.subplots(len(rows), len(titles), squeeze=False)
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title)
        for row, panels in zip(rows, grid, strict=True):
            for axes in panels[len(row) :]:
                axes.set_axis_off()
            for axes, (sample, joints) in zip(panels, row, strict=False):
                draw_image(axes, sample)
                if joints is None:
                    continue
                if np.isfinite(joints).all() and (joints[:, 2] > 0).all():
                    draw_pose(axes, sample, joints)
                else:
                    note(axes, "no pose")
