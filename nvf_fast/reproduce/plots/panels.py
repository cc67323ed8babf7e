"""Single panels of figures: an image with a prediction drawn over it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

from nvf_fast.camera import project
from nvf_fast.overlay import draw_joints

FINE = 4  # samples per pixel along each axis
DARKENED = 0.35
CIRCLE_COLOUR = (255, 255, 255)
MESH_COLOUR = np.array([196.0, 206.0, 226.0])
MASK_COLOUR = (60, 150, 235)
MESH_OPACITY, MASK_OPACITY = 0.92, 0.6
AMBIENT = 0.3
LIGHT = np.array([-0.42, -0.56, -0.71])  # towards the light: above, to the left, behind the camera


class ImageView:
    """An image, or a window of it, filling a square panel; points are given in the whole image's pixels.

    Args:
        image: (H, W, 3) uint8 RGB.
        intrinsics: (3, 3) px of the image, the first pixel of a row centred at 0.
        side: px of the panel.
        window: (x0, y0, x1, y1) whole px, the visible part without x1 and y1; None shows all.
    """

    def __init__(
        self,
        image: np.ndarray,
        intrinsics: np.ndarray,
        side: int,
        window: tuple[int, int, int, int] | None = None,
    ) -> None:
        self.intrinsics = torch.from_numpy(np.asarray(intrinsics, np.float64))
        left, top, right, bottom = window or (0, 0, image.shape[1], image.shape[0])
        self.scale = side / max(right - left, bottom - top)
        size = [max(1, round(extent * self.scale)) for extent in (right - left, bottom - top)]
        margin = (side - size[0]) // 2, (side - size[1]) // 2
        self._corner = np.array([left, top]) - np.array(margin) / self.scale
        crop = Image.fromarray(image).crop((left, top, right, bottom)).resize(size, Image.Resampling.LANCZOS)
        self.image, self.darkened = (Image.new("RGB", (side, side), (255, 255, 255)) for _ in range(2))
        self.image.paste(crop, margin)
        self.darkened.paste(crop.point(lambda value: value * DARKENED), margin)

    def placed(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 2) px of the panel, its first pixel centred at 0, of pixels (..., 2) of the image."""
        return (pixels + 0.5 - self._corner) * self.scale - 0.5

    def projected(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) px of the panel, of points (N, 3) mm in front of the camera."""
        points = np.asarray(points, np.float64).reshape(-1, 3)
        return self.placed(project(torch.from_numpy(points), self.intrinsics).numpy())


def pose_panel(view: ImageView, joints: np.ndarray) -> Image.Image:
    """Draw the pose (21, 3) mm over the image."""
    return draw_joints(np.asarray(view.image), view.projected(joints), joints[:, 2])


def mesh_panel(view: ImageView, vertices: np.ndarray, faces: np.ndarray) -> Image.Image:
    """Draw a shaded mesh, vertices (V, 3) mm and faces (F, 3) outward by the right-hand rule."""
    vertices = np.asarray(vertices, np.float64)
    faces = faces[(vertices[faces][..., 2] > 0).all(1)]
    corners = vertices[faces]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], facing)
    # The mean of the corners' normals, so that neighbouring faces differ little.
    normals = normals[faces].sum(1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    brightness = AMBIENT + (1 - AMBIENT) * np.clip(normals @ LIGHT / np.linalg.norm(LIGHT), 0, None)
    colours = (brightness[:, None] * MESH_COLOUR).astype(int)

    seen = (facing * corners[:, 0]).sum(1) < 0  # turned to the camera
    order = np.flatnonzero(seen)
    order = order[np.argsort(-corners[order, :, 2].mean(1), kind="stable")]  # farthest first
    layer, cover = _fine(view, "RGB"), _fine(view, "L")
    draw, draw_cover = ImageDraw.Draw(layer), ImageDraw.Draw(cover)
    outlines = _on_fine(view.projected(vertices))[faces].reshape(-1, 6)
    for face in order:
        outline = outlines[face].tolist()
        draw.polygon(outline, tuple(colours[face]))
        draw_cover.polygon(outline, round(255 * MESH_OPACITY))
    # Averaging must not mix the mesh with the black about it: the layer is filled from the image first.
    ground = view.image.resize(layer.size, Image.Resampling.NEAREST)
    return _coarse(Image.composite(layer, ground, cover))


def mask_panel(view: ImageView, mask: np.ndarray) -> Image.Image:
    """Colour the pixels of a mask (H, W) bool of the image."""
    side = view.image.width
    axis = np.arange(side) + 0.5
    columns, rows = (np.floor(axis / view.scale + start).astype(int) for start in view._corner)
    inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & (columns >= 0) & (columns < mask.shape[1])
    shown = mask[rows.clip(0, mask.shape[0] - 1)[:, None], columns.clip(0, mask.shape[1] - 1)] & inside
    cover = Image.fromarray((shown * round(255 * MASK_OPACITY)).astype(np.uint8))
    return Image.composite(Image.new("RGB", view.image.size, MASK_COLOUR), view.image, cover)


def vote_panel(
    view: ImageView, voters: np.ndarray, weights: np.ndarray, joint: np.ndarray, colour: tuple[int, int, int]
) -> Image.Image:
    """Draw the voters of one joint over the darkened image.

    Args:
        view: the image.
        voters: (V, 3) mm, white circles.
        weights: (V,) opacity of a voter's line to the joint, clipped to [0, 1].
        joint: (3,) mm.
        colour: of the lines.
    """
    circles, (end,) = _on_fine(view.projected(voters)), _on_fine(view.projected(joint))
    discs, strength = _fine(view, "L"), _fine(view, "L")
    draw, radius = ImageDraw.Draw(discs), view.image.width * FINE / 180
    for x, y in circles:
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], 255)
    draw, width = ImageDraw.Draw(strength), round(view.image.width * FINE / 130)
    opacities = np.clip(weights, 0, 1)
    for voter in np.argsort(opacities, kind="stable"):  # the strongest on top
        draw.line([*circles[voter], *end], round(255 * float(opacities[voter])), width)
    panel = view.darkened
    for paint, cover in ((CIRCLE_COLOUR, discs), (colour, strength)):
        panel = Image.composite(Image.new("RGB", panel.size, paint), panel, _coarse(cover))
    return panel


def _fine(view: ImageView, mode: str) -> Image.Image:
    return Image.new(mode, (view.image.width * FINE, view.image.height * FINE))


def _coarse(layer: Image.Image) -> Image.Image:
    return layer.resize((layer.width // FINE, layer.height // FINE), Image.Resampling.BOX)


def _on_fine(pixels: np.ndarray) -> np.ndarray:
    return (pixels + 0.5) * FINE  # Pillow counts from the pixel's corner
