"""Drawing of poses into images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import grid_sample

from nvf_fast.camera_model import Camera
from nvf_fast.inputs import read_one_image
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.pose import BONES, JOINT_NAMES, HandPose
from nvf_fast.runtime.files import read_path, whole_file

WHITE = (255, 255, 255)
FINGER_COLOURS = ((230, 75, 60), (245, 170, 40), (75, 190, 90), (60, 150, 235), (175, 95, 220))
DARK, GREY = (20, 20, 20), (130, 130, 130)
FINEST = 4  # samples per pixel along each axis
MOST_SAMPLES = 16_000_000  # in total, which reduces the samples per pixel of large hands
SMALLEST_TEXT, LARGEST_TEXT = 11, 120  # px


def draw_poses(
    image: np.ndarray,
    poses: HandPose | Iterable[HandPose],
    ids: Sequence[int] = (),
    bones: Sequence[tuple[int, int]] | None = None,
) -> Image.Image:
    """Draw skeletons, one colour per finger, nearer hands and bones over farther ones.

    A joint is a filled disc if its score is 1; a hole grows in it as the score falls. A label beside the
    wrist gives the hand's id, its side and, for a hand of known size, the mean expected error of its joints.

    Args:
        image: (H, W, 3) uint8 RGB.
        poses: one or several poses in the image; invalid ones are not drawn.
        ids: ids of the hands, one for each pose, or empty.
        bones: pairs of joints, nearer to the root first; None connects the 21 joints of hands only.

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: the image has another shape, the ids another number, or a bone a joint of another number.
        TypeError: the image has another type or dtype, or a pose another type.
    """
    image = read_one_image("draw_poses", image)
    if isinstance(poses, HandPose) and poses.joints.ndim == 2:
        poses = [poses]
    poses = list(poses)
    for pose in poses:
        if not isinstance(pose, HandPose):
            raise TypeError(
                f"poses must be HandPose, as the estimator returns them, got {type(pose).__name__}"
            )
    if len(ids) not in (0, len(poses)):
        raise ValueError(f"ids must be one for each of {len(poses)} pose(s), or empty, got {ids}")
    hands = [
        (pose.numpy(), f"{ids[row]} " if len(ids) else "") for row, pose in enumerate(poses) if pose.valid
    ]
    drawing, drawn, labels = Image.fromarray(np.asarray(image)), [np.empty((0, 2))], []
    for pose, label in sorted(hands, key=lambda hand: -float(hand[0].joints[:, 2].mean())):
        pixels = np.asarray(pose.joints_2d, np.float64) + 0.5
        edges = bones if bones is not None else BONES if len(pixels) == len(JOINT_NAMES) else ()
        if not all(0 <= joint < len(pixels) for edge in edges for joint in edge):
            raise ValueError(f"bones must be pairs of joints 0 to {len(pixels) - 1}, got {edges}")
        _draw_skeleton(drawing, pixels, pose, edges)
        starts, ends = pixels[np.array(edges or [(0, 0)])].transpose(1, 0, 2)
        drawn += [starts + ratio * (ends - starts) for ratio in np.linspace(0, 1, 6)]
        labels.append((pixels, label + description(pose)))
    taken = np.concatenate(drawn)[:, None].repeat(2, 1)
    for pixels, text in labels:
        taken = np.concatenate([taken, _draw_label(drawing, pixels, text, taken)])
    return drawing


def write_drawing(path: Path | str, drawing: Image.Image) -> None:
    """Write a drawing atomically, in the format of its file name's extension.

    Raises:
        ValueError: the extension is not that of an image format.
        OSError: the file cannot be written.
    """
    path = read_path("path", path)
    format = Image.registered_extensions().get(path.suffix.lower())
    if format is None:
        raise ValueError(f"{path} must have an image extension, such as .png or .jpg")
    with whole_file(path) as file:
        drawing.save(file, format)


def undistorted(image: np.ndarray, camera: Camera) -> np.ndarray:
    """Remove the lens distortion of an image, with K unchanged.

    Args:
        image: (H, W, 3) uint8 RGB.
        camera: camera that took the image.

    Returns:
        (H, W, 3) uint8 RGB, black where the lens did not see; without distortion, the image itself.
    """
    if not camera.distortion:
        return image
    height, width = image.shape[:2]
    pixels = torch.from_numpy(np.moveaxis(image, -1, 0).copy())[None].float()
    inverse, columns = np.linalg.inv(camera.K).T, np.arange(width)
    rows = []
    for row in range(height):
        rays = np.stack([columns, np.full(width, row), np.ones(width)], -1) @ inverse
        seen = torch.from_numpy((2 * camera.project(rays) + 1) / (width, height) - 1).nan_to_num(2.0)
        rows.append(grid_sample(pixels, seen.float()[None, None], align_corners=False)[0, :, 0])
    return torch.stack(rows, 1).permute(1, 2, 0).round().byte().numpy()


def description(pose: HandPose) -> str:
    """The label of a pose: its side and, if the hand's size is known, its mean expected error.

    The pose of a hand of unknown size is that of the unit hand, whose errors are not those of the hand.
    """
    side = pose.side if isinstance(pose.side, str) else ""
    if pose.expected_error is None or pose.hand_scale in (None, np.float32(UNIT_SCALE_MM)):
        return side
    return f"{side} ±{np.mean(pose.expected_error):.0f} mm"


def _draw_skeleton(
    drawing: Image.Image, pixels: np.ndarray, pose: HandPose, bones: Sequence[tuple[int, int]]
) -> None:
    """Draw a pose at pixels (J, 2), which Pillow counts from the first pixel's corner."""
    depth, scores = pose.joints[:, 2], np.asarray(pose.scores, np.float64)
    thickness = max(2.0, float(np.ptp(pixels, 0).max()) / 60)
    margin = 3 * thickness
    left, top = np.clip(np.floor(pixels.min(0) - margin), 0, drawing.size).astype(int)
    right, bottom = np.clip(np.ceil(pixels.max(0) + margin), 0, drawing.size).astype(int)
    if right <= left or bottom <= top:
        return
    region = (int(left), int(top), int(right), int(bottom))
    fine = int(np.clip(np.sqrt(MOST_SAMPLES / ((right - left) * (bottom - top))), 1, FINEST))
    patch = drawing.crop(region)
    layer = patch.resize((patch.width * fine, patch.height * fine), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(layer)
    points = (pixels - region[:2]) * fine
    for parent, child in sorted(bones, key=lambda bone: -depth[list(bone)].mean()):
        colour = FINGER_COLOURS[(child - 1) // 4 % len(FINGER_COLOURS)]
        draw.line([*points[parent], *points[child]], colour, round(thickness * fine))
        _disc(draw, points[child], 1.3 * thickness * fine, colour, scores[child])
    for root in sorted(set(range(len(points))) - {child for _, child in bones}):
        _disc(draw, points[root], 1.6 * thickness * fine, GREY, scores[root])
    drawing.paste(layer.resize(patch.size, Image.Resampling.BOX), region)


def _disc(
    draw: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, colour: tuple[int, int, int], score: float
) -> None:
    """A disc with a dark edge, and a white hole whose radius is 1 - score of the disc's."""
    edge = max(1, round(radius / 6))
    draw.ellipse([*(centre - radius), *(centre + radius)], colour, outline=DARK, width=edge)
    hole = (radius - edge) * (1 - score)
    if hole >= 1:
        draw.ellipse([*(centre - hole), *(centre + hole)], WHITE)


def _draw_label(drawing: Image.Image, pixels: np.ndarray, text: str, taken: np.ndarray) -> np.ndarray:
    """Write a text beside the first of joints (J, 2) px, if that is in the image.

    Args:
        drawing: the image.
        pixels: (J, 2) px.
        text: the label.
        taken: (N, 2, 2) px, least and greatest corners of boxes that the text should not cover.

    Returns:
        (1, 2, 2) px, the box of the text; (0, 2, 2) without one.
    """
    if not text or not (pixels[0] >= 0).all() or not (pixels[0] < drawing.size).all():
        return taken[:0]
    size = float(np.clip(np.ptp(pixels, 0).max() / 10, SMALLEST_TEXT, LARGEST_TEXT))
    draw, font = ImageDraw.Draw(drawing), ImageFont.load_default(size)
    half = np.array([draw.textlength(text, font) + 0.6 * size, 1.4 * size]) / 2
    away = pixels[0] - pixels[1:].mean(0)
    turns = np.arctan2(away[1], away[0]) + np.pi / 8 * np.array([0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5])
    directions = np.stack([np.cos(turns), np.sin(turns)], 1)
    places = np.concatenate([pixels[0] + (half + gap * size) * directions for gap in (0.4, 1.5, 3.0)])
    places = np.clip(places, half, np.maximum(drawing.size - half, half))
    boxes = np.stack([places - half, places + half], 1)
    apart = np.maximum(taken[:, 0] - boxes[:, None, 1], boxes[:, None, 0] - taken[:, 1])
    free = np.linalg.norm(np.maximum(apart, 0), axis=-1).min(1)
    best = np.minimum(free, 0.3 * size).argmax()  # the first place that is free enough
    x, y = places[best]
    draw.text((x, y), text, WHITE, font, "mm", stroke_width=max(1, round(size / 9)), stroke_fill=DARK)
    return boxes[[best]]
