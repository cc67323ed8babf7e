"""Drawing of poses into images."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from nvf_fast.pose import BONES, HandPose

WRIST_COLOUR = (255, 255, 255)
FINGER_COLOURS = ((230, 75, 60), (245, 170, 40), (75, 190, 90), (60, 150, 235), (175, 95, 220))
FINEST = 4  # samples per pixel along each axis
MOST_SAMPLES = 16_000_000  # in total, which reduces the samples per pixel of large hands


def draw_pose(image: np.ndarray, pose: HandPose) -> Image.Image:
    """Draw the skeleton and its joints, one colour per finger, nearer bones over farther ones.

    Args:
        image: (H, W, 3) uint8 RGB.
        pose: one pose in it; an invalid pose leaves the image unchanged.

    Returns:
        An RGB image of the same size.
    """
    if not pose.valid:
        return Image.fromarray(image)
    return draw_joints(image, pose.joints_2d, pose.joints[:, 2])


def draw_joints(image: np.ndarray, joints_2d: np.ndarray, depth: np.ndarray) -> Image.Image:
    """Draw joints without a pose, as `draw_pose` does.

    Args:
        image: (H, W, 3) uint8 RGB.
        joints_2d: (21, 2) px of the image, the first pixel of a row centred at 0.
        depth: (21,) of the joints, any unit.

    Returns:
        An RGB image of the same size.
    """
    drawing = Image.fromarray(image)
    pixels = np.asarray(joints_2d, dtype=np.float64) + 0.5  # Pillow counts from the pixel's corner
    depth = np.asarray(depth, dtype=np.float64)
    thickness = max(2.0, float(np.ptp(pixels, 0).max()) / 60)

    margin = 3 * thickness
    left, top = np.clip(np.floor(pixels.min(0) - margin), 0, drawing.size).astype(int)
    right, bottom = np.clip(np.ceil(pixels.max(0) + margin), 0, drawing.size).astype(int)
    if right <= left or bottom <= top:
        return drawing
    region = (int(left), int(top), int(right), int(bottom))
    fine = int(np.clip(np.sqrt(MOST_SAMPLES / ((right - left) * (bottom - top))), 1, FINEST))
    patch = drawing.crop(region)
    layer = patch.resize((patch.width * fine, patch.height * fine), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(layer)
    points = (pixels - region[:2]) * fine
    for parent, child in sorted(BONES, key=lambda bone: -depth[list(bone)].mean()):
        colour = FINGER_COLOURS[(child - 1) // 4]
        draw.line([*points[parent], *points[child]], colour, round(thickness * fine))
        _disc(draw, points[child], thickness * fine, colour)
    _disc(draw, points[0], 1.3 * thickness * fine, WRIST_COLOUR)
    drawing.paste(layer.resize(patch.size, Image.Resampling.BOX), region)
    return drawing


def _disc(draw: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
    box = [*(centre - radius), *(centre + radius)]
    draw.ellipse(box, colour, outline=(20, 20, 20), width=max(1, round(radius / 5)))
