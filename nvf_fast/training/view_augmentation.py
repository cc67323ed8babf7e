"""Augmentation of labelled hand views: mirrored hands, hands cropped by a border, blank empty views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nvf_fast.data.hand_views import HandViews

CROP = (0.03, 0.5)  # of the longer side of a hand's box, least and most
CROP_TILT = 0.06  # standard deviation of the slope of a crop's border
BLACK, NOISE = 0.2, 8.0  # blank views: probability of black, largest standard deviation of noise, of 255
BLANK_SLOPES = (0.05, 0.9)  # tangents of half their angles


def with_left_hands(views: HandViews, ratio: float, random: np.random.Generator) -> HandViews:
    """Mirror a ratio of the posed views, so that sides are learned from every source.

    A mirrored view shows a left hand, and has no pose labels.
    """
    rows = np.flatnonzero((views.trust > 0) & (random.random(len(views)) < ratio))
    arrays = {name: array.copy() for name, array in vars(views).items()}
    arrays["images"][rows] = views.images[rows, :, ::-1]
    arrays["boxes"][rows, :, 0::2] = views.images.shape[2] - 1 - views.boxes[rows, :, 2::-2]
    arrays["left"][rows] = ~views.left[rows]
    arrays["trust"][rows] = 0
    return HandViews(**arrays)


def with_cropped_hands(views: HandViews, ratio: float, random: np.random.Generator) -> HandViews:
    """Blacken a ratio of the posed views beyond a line through the hand, like hands at an image border."""
    images = views.images.copy()
    for row in np.flatnonzero((views.trust > 0) & (random.random(len(views)) < ratio)):
        images[row][_beyond(views.boxes[row, 0], images.shape[1], random)] = 0
    return replace(views, images=images)


def with_blank_views(views: HandViews, ratio: float, random: np.random.Generator) -> HandViews:
    """Replace a ratio of the empty views by blank ones, so that dark and featureless images show no hand.

    A blank view has one colour, most are dark, some are noisy, and half have a black border.
    """
    rows = np.flatnonzero(np.isnan(views.boxes).all((1, 2)) & (random.random(len(views)) < ratio))
    count, size = len(rows), views.images.shape[1]
    colour = random.uniform(0, 255, (count, 1, 1, 3)) * random.random((count, 1, 1, 1)) ** 2
    colour *= random.random((count, 1, 1, 1)) > BLACK
    noise = random.normal(size=(count, size, size, 3)) * random.uniform(0, NOISE, (count, 1, 1, 1))
    blank = (colour + noise * (random.random((count, 1, 1, 1)) < 0.5)).clip(0, 255).astype(np.uint8)
    for image in blank[: count // 2]:
        top, left = random.integers(-size // 2, size // 2, 2)
        inside = tuple(slice(max(first, 0), size + min(first, 0)) for first in (top, left))
        content = image[inside].copy()
        image[:] = 0
        image[inside] = content
    images, focal = views.images.copy(), views.focal.copy()
    images[rows], focal[rows] = blank, size / 2 / random.uniform(*BLANK_SLOPES, count)
    return replace(views, images=images, focal=focal)


def _beyond(box: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """(size, size) bool, pixels beyond a nearly upright or level line through a box (x0, y0, x1, y1)."""
    axis, far = random.integers(2), random.random() < 0.5
    low, high = box[axis], box[axis + 2]
    depth = random.uniform(*CROP) * (box[2:] - box[:2]).max()
    line = high - depth if far else low + depth
    rows, columns = np.indices((size, size), np.float32)
    along, across = (columns, rows) if axis == 0 else (rows, columns)
    place = along + random.normal(0, CROP_TILT) * (across - size / 2)
    return place > line if far else place < line
