"""The built-in hand before the reference camera: drawn, posed, placed and rendered."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import REFERENCE_FOCAL, REFERENCE_SIZE
from nvf_fast.data.draws import Draws, Stream
from nvf_fast.joint_definitions import to_freihand
from nvf_fast.synthetic.backgrounds import Backgrounds
from nvf_fast.synthetic.placement import HandDistribution, draw_places
from nvf_fast.synthetic.posed_hands import HandShapes, draw_shapes, posed_vertices, with_forearm
from nvf_fast.synthetic.renderer import HandRenderer, SceneChances
from nvf_fast.synthetic.rig import Rig, built_in_rig, built_in_surface

CHANCES = SceneChances(held=0.2, in_front=0.2, clutter=0.4)
SLEEVES = 0.4
SIZE_SPREAD = 0.075  # between people
CHECKED_WORDS = 64  # of each image's stream


class DrawnHands(NamedTuple):
    """B hands and their places."""

    # (B, V, 3) float64 mm, hand frame: the mesh that is rendered and the coarser one
    skins: np.ndarray
    surfaces: np.ndarray
    joints: np.ndarray  # (B, 21, 3) float64 mm, hand frame
    # (B, 3, 3) and (B, 3) mm, into the camera frame
    rotations: np.ndarray
    offsets: np.ndarray
    streams: list[Stream]  # random numbers of each image
    checksum: str  # SHA-256 of the hands' words, the first words of each image, and the accepted candidates


def draw_hands(seed: int, indices: Sequence[int], distribution: HandDistribution) -> DrawnHands:
    """Draw the hands of the images of these indices."""
    draws = Draws(seed, "mesh hand", indices)
    shapes, size = draw_people(built_in_rig(), draws)
    skins, joints = (size * points for points in posed_vertices(built_in_rig(), shapes))
    surfaces = size * posed_vertices(built_in_surface(), shapes)[0]
    rotation, offset, places = draw_places(torch.from_numpy(joints), draws, distribution)
    streams = [Stream(seed, "mesh scene", index) for index in indices]
    scenes = Draws(seed, "mesh scene", indices)  # the same words as the streams'
    scenes.uniform(0, 1, CHECKED_WORDS)
    tries = torch.stack([shapes.tries, places]).numpy().astype("<i8").tobytes()
    checksum = hashlib.sha256(draws.digest + scenes.digest + tries).hexdigest()
    return DrawnHands(skins, surfaces, joints, rotation.numpy(), offset.numpy(), streams, checksum)


def render_hands(hands: DrawnHands, size: int) -> dict[str, Tensor]:
    """Render hands with their forearms, objects and surroundings in the reference camera.

    Args:
        hands: B hands.
        size: px, side of the images.

    Returns:
        images (B, 3, size, size) uint8 RGB, and in the camera frame the labels: vertices (B, V, 3) and joints
        (B, 21, 3) in mm, boxes (B, 4) around the joints in px, float32.
    """
    renderer, focal = _renderer(size), REFERENCE_FOCAL * size / REFERENCE_SIZE
    images = []
    for row, stream in enumerate(hands.streams):
        hand = with_forearm(renderer.rig, hands.skins[row], hands.joints[row], stream, SLEEVES)
        hand = hand.placed(hands.rotations[row], hands.offsets[row])
        canvas = renderer.render(stream, [hand], [False], focal)
        images.append(renderer.compose(stream, canvas, 0.0, 1.0, False))
    joints, vertices = (
        points @ hands.rotations.transpose(0, 2, 1) + hands.offsets[:, None]
        for points in (hands.joints, hands.surfaces)
    )
    seen = focal * joints[..., :2] / joints[..., 2:] + size / 2
    return {
        "images": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        "vertices": torch.from_numpy(vertices).float(),
        "joints": torch.from_numpy(joints).float(),
        "boxes": torch.from_numpy(np.concatenate([seen.min(1), seen.max(1)], 1)).float(),
    }


def draw_joints(seed: int, indices: Sequence[int], distribution: HandDistribution) -> np.ndarray:
    """Draw the joints (B, 21, 3) float64 mm, camera frame, of the hands that `draw_hands` draws."""
    rig, draws = built_in_rig(), Draws(seed, "mesh hand", indices)
    shapes, size = draw_people(rig, draws)
    joints = to_freihand(rig.posed_joints(shapes.angles, shapes.stretch, shapes.breadth), rig.definition)
    rotation, offset, _ = draw_places(torch.from_numpy(size * joints), draws, distribution)
    return size * joints @ rotation.numpy().transpose(0, 2, 1) + offset.numpy()[:, None]


def draw_people(rig: Rig, draws: Draws) -> tuple[HandShapes, np.ndarray]:
    """Shapes and poses of B hands, and their sizes (B, 1, 1)."""
    shapes = draw_shapes(rig, draws)
    return shapes, (1 + SIZE_SPREAD * draws.normal()).clamp(0.8, 1.22).numpy()[:, None, None]


@cache
def _renderer(size: int) -> HandRenderer:
    return HandRenderer(built_in_rig(), (), Backgrounds(), CHANCES, size, turnable=False)
