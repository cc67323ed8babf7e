"""What happens to labelled hand views after they are drawn: some become left hands, some are cut off."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from nvf_fast.data.hand_views import HandViews

CUT = (0.03, 0.5)  # of the longer side of a hand's box, least and most
CUT_TILT = 0.06  # standard deviation of the cut's slope


def with_left_hands(views: HandViews, share: float, random: np.random.Generator) -> HandViews:
    """Mirror a share of the views of one right hand, so that sides are learned from every source.

    A mirrored view shows a left hand, and has no pose labels.
    """
    rows = np.flatnonzero((views.trust > 0) & (random.random(len(views)) < share))
    arrays = {field.name: getattr(views, field.name).copy() for field in fields(views)}
    arrays["images"][rows] = views.images[rows, :, ::-1]
    arrays["boxes"][rows, :, 0::2] = views.images.shape[2] - 1 - views.boxes[rows, :, 2::-2]
    arrays["left"][rows] = ~views.left[rows]
    arrays["trust"][rows] = 0
    return HandViews(**arrays)


def with_cut_hands(views: HandViews, share: float, random: np.random.Generator) -> HandViews:
    """Blacken a share of the posed views beyond a line through the hand, as an image border cuts hands."""
    images = views.images.copy()
    for row in np.flatnonzero((views.trust > 0) & (random.random(len(views)) < share)):
        images[row][_beyond(views.boxes[row, 0], images.shape[1], random)] = 0
    return HandViews(**{**vars(views), "images": images})


def _beyond(box: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """(size, size) bool: what lies beyond a nearly upright or level line through a box (x0, y0, x1, y1)."""
    axis, far = random.integers(2), random.random() < 0.5
    low, high = box[axis], box[axis + 2]
    depth = random.uniform(*CUT) * (box[2:] - box[:2]).max()
    line = high - depth if far else low + depth
    rows, columns = np.indices((size, size), np.float32)
    along, across = (columns, rows) if axis == 0 else (rows, columns)
    place = along + random.normal(0, CUT_TILT) * (across - size / 2)
    return place > line if far else place < line
