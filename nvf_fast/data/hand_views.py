"""Labelled hand views, the training samples of networks of hand views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

VIEW_SIZE = 128  # px, side of a hand view
VIEW_POINTS = 192  # query points labelled in each view
VIEW_HANDS = 2  # hands labelled in one view, at most


@dataclass(frozen=True)
class HandViews:
    """A batch of B square views of pinhole cameras and the hands they show.

    A view of S px has intrinsics [[f, 0, S/2], [0, f, S/2], [0, 0, 1]]. Millimetres are those of the unit
    hand, in the view's camera frame. Pose labels describe the first hand.
    """

    images: np.ndarray  # (B, S, S, 3) uint8 RGB
    focal: np.ndarray  # (B,) float32 px
    # (B, 21, 3) float32 mm, FreiHAND's order and definition; NaN where no hand is labelled in 3D
    joints: np.ndarray
    points: np.ndarray  # (B, P, 3) float32 mm, query points; NaN where `joints` is
    distances: np.ndarray  # (B, P) float32 mm, signed distance of the points to the surface, negative inside
    # (B, 2, 4) float32 px, (x0, y0, x1, y1) around the joints of each hand; NaN beyond the hands
    boxes: np.ndarray
    left: np.ndarray  # (B, 2) bool, whether a hand is a left one
    # (B,) float32, weight of the pose losses: 0 for left hands and for hands too small to pose
    trust: np.ndarray

    @classmethod
    def blank(cls, count: int) -> HandViews:
        """Black views without labels, to be filled in."""
        shapes = ((21, 3), (VIEW_POINTS, 3), (VIEW_POINTS,), (VIEW_HANDS, 4))
        joints, points, distances, boxes = (np.full((count, *s), np.nan, np.float32) for s in shapes)
        images, focal = np.zeros((count, VIEW_SIZE, VIEW_SIZE, 3), np.uint8), np.zeros(count, np.float32)
        left = np.zeros((count, VIEW_HANDS), bool)
        return cls(images, focal, joints, points, distances, boxes, left, np.zeros_like(focal))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> HandViews:
        return HandViews(**{name: array[index] for name, array in vars(self).items()})

    @classmethod
    def concatenate(cls, parts: Sequence[HandViews]) -> HandViews:
        """Join several batches into one."""
        arrays = [vars(part) for part in parts]
        return cls(**{name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]})


def joints_box(joints: np.ndarray, focal: np.ndarray | float) -> np.ndarray:
    """Box (..., 4) px around joints (..., 21, 3) mm in a view of a focal length in px."""
    seen = focal * joints[..., :2] / joints[..., 2:] + VIEW_SIZE / 2
    return np.concatenate([seen.min(-2), seen.max(-2)], -1)
