"""Panels of figures: matplotlib axes with an image and a prediction over it, in the image's pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import trimesh

from nvf_fast.camera import project
from nvf_fast.data.sample import HandSample
from nvf_fast.overlay import FINGER_COLOURS
from nvf_fast.pose import BONES
from nvf_fast.surface import Mesh

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DARKENED = 0.35
WINDOW = 1.8  # side of the visible window over the larger extent of the true joints
MESH_COLOUR = np.array([0.77, 0.81, 0.89])
AMBIENT = 0.3
LIGHT = np.array([-0.42, -0.56, -0.71])  # towards the light: above, to the left, behind the camera
MASK_COLOUR = (0.24, 0.59, 0.92, 0.6)
WRIST_COLOUR = (0.37, 0.88, 0.88)  # of votes for the wrist: voters are white
COLOURS = [tuple(value / 255 for value in colour) for colour in FINGER_COLOURS]


class Mask(NamedTuple):
    """A mask of the hand, where values at points of the image are positive."""

    pixels: np.ndarray  # (S, S, 2) px of the image, a lattice
    values: np.ndarray  # (S, S), interpolated between the points


def draw_image(axes: Axes, sample: HandSample, brightness: float = 1.0) -> None:
    """Show a sample's image, or a square window about its joints where they are known."""
    height, width = sample.image.shape[:2]
    left, top, right, bottom = (0, 0, width, height) if sample.joints is None else hand_window(sample)
    visible = (sample.image[top:bottom, left:right] * brightness).astype(np.uint8)
    axes.imshow(visible, extent=(left - 0.5, right - 0.5, bottom - 0.5, top - 0.5))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_autoscale_on(False)


def hand_window(sample: HandSample) -> tuple[int, int, int, int]:
    """A square (x0, y0, x1, y1) px about the true joints, inside the image."""
    assert sample.joints is not None
    height, width = sample.image.shape[:2]
    pixels = project(sample.joints.double().numpy(), sample.intrinsics)
    low, high = pixels.min(0), pixels.max(0)
    side = int(np.clip(WINDOW * (high - low).max(), 1, min(height, width)))
    x, y = (round(float(middle) - side / 2) for middle in (low + high) / 2)
    x, y = min(max(x, 0), width - side), min(max(y, 0), height - side)
    return x, y, x + side, y + side


def draw_pose(axes: Axes, sample: HandSample, joints: np.ndarray) -> None:
    """Draw joints (21, 3) mm, one colour per finger, nearer bones over farther ones."""
    pixels = project(joints.astype(np.float64), sample.intrinsics)
    for parent, child in sorted(BONES, key=lambda bone: -joints[list(bone), 2].mean()):
        ends = pixels[[parent, child]]
        axes.plot(*ends.T, color=COLOURS[(child - 1) // 4], marker="o", markersize=2.5, linewidth=1.5)
    edge: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.5}
    axes.plot(*pixels[0], color="white", marker="o", markersize=4, **edge)


def draw_hand(axes: Axes, sample: HandSample, hand: Mesh | Mask) -> None:
    """Draw a shaded mesh, or colour a mask."""
    from matplotlib.collections import PolyCollection

    if isinstance(hand, Mask):
        if hand.values.max() > 0:
            axes.contourf(*np.moveaxis(hand.pixels, -1, 0), hand.values, [0, np.inf], colors=[MASK_COLOUR])
        return
    if not len(hand.faces):
        return
    mesh = trimesh.Trimesh(hand.vertices, hand.faces, process=False)
    corners = mesh.triangles
    # The mean of the corners' normals, so that neighbouring faces differ little.
    normals = mesh.vertex_normals[mesh.faces].mean(1)
    brightness = AMBIENT + (1 - AMBIENT) * np.clip(normals @ LIGHT / np.linalg.norm(LIGHT), 0, 1)
    seen = (corners[..., 2] > 0).all(1) & ((mesh.face_normals * corners[:, 0]).sum(1) < 0)
    order = np.flatnonzero(seen)
    order = order[np.argsort(-corners[order, :, 2].mean(1), kind="stable")]  # farthest first
    outlines = project(corners[order], sample.intrinsics)
    colours = brightness[order, None] * MESH_COLOUR
    # Edges in the faces' colours close the gaps that antialiasing leaves between them.
    axes.add_collection(PolyCollection(outlines, facecolors=colours, edgecolors=colours, linewidths=0.2))


def draw_votes(
    axes: Axes, sample: HandSample, voters: np.ndarray, weights: np.ndarray, joints: np.ndarray, joint: int
) -> None:
    """Draw voters (V, 3) mm as white discs, and lines to a joint, more opaque for larger weights (V,)."""
    from matplotlib.collections import LineCollection

    order = np.argsort(weights, kind="stable")  # the strongest on top
    points = np.concatenate([joints[[joint]], voters[order]]).astype(np.float64)
    pixels = project(points, sample.intrinsics)
    axes.scatter(pixels[1:, 0], pixels[1:, 1], s=3, color="white", linewidths=0)
    lines = [(start, pixels[0]) for start in pixels[1:]]
    colour = WRIST_COLOUR if joint == 0 else COLOURS[(joint - 1) // 4]  # the finger's, as in the pose
    look = {"colors": colour, "alpha": np.clip(weights[order], 0, 1)}
    axes.add_collection(LineCollection(lines, linewidths=0.6, zorder=2, **look))


def note(axes: Axes, text: str) -> None:
    """Write a note on the panel's lower edge."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    axes.text(0.5, 0.04, text, transform=axes.transAxes, ha="center", bbox=box)
