"""Orientations and positions of hands before the reference camera."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nvf_fast.data.draws import Draws
from nvf_fast.data.rotations import rotation_about
from nvf_fast.runtime.arguments import check_choices, check_ranges

PLACES = 40  # tries of each hand


@dataclass(frozen=True)
class HandDistribution:
    """Orientations and distances of hands."""

    # "palm", "back" (turned to the camera, within `tilt_deg`) or "any" (uniform over the sphere)
    facing: Literal["palm", "back", "any"] = "palm"
    tilt_deg: float = 60.0  # largest angle between the palm's normal and the optical axis
    roll_deg: float = 60.0  # largest rotation about the optical axis from fingers-up
    nearest_mm: float = 350.0  # smallest depth of the joints' mean
    farthest_mm: float = 1000.0  # largest depth of the joints' mean
    visible_joints: int = 15  # smallest number of the 21 joints inside the image

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, tilt_deg="(0, 180]", roll_deg="[0, 180]", visible_joints="[0, 21]")
        check_ranges(self, nearest_mm=f"(150, {self.farthest_mm})", farthest_mm="(150, 1200)")


UNIFORM = HandDistribution(facing="any", tilt_deg=180.0, roll_deg=180.0)


def draw_places(
    joints: Tensor, draws: Draws, distribution: HandDistribution
) -> tuple[Tensor, Tensor, Tensor]:
    """Place hands before the reference camera.

    Args:
        joints: (B, 21, 3) float64 mm, hand frame.
        draws: B streams.
        distribution: orientations and distances.

    Returns:
        Rotation (B, 3, 3), then offset (B, 3) mm, from the hand frame to the camera frame; and the number
        (B,) of the accepted candidate.
    """
    count = len(joints)
    towards_camera = draws.chance(0.5)
    if distribution.facing != "any":
        towards_camera = torch.full((count,), distribution.facing == "palm")
    facing = torch.where(towards_camera, 1.0, -1.0).double()
    upright = torch.diag_embed(torch.stack([facing, -torch.ones_like(facing), -facing], -1))
    most = min(distribution.tilt_deg, 90.0 if distribution.facing == "any" else 180.0)
    tilt = torch.acos(draws.uniform(math.cos(math.radians(most)), 1.0))
    towards = draws.uniform(0, 2 * math.pi)
    axis = torch.stack([torch.cos(towards), torch.sin(towards), torch.zeros_like(towards)], -1)
    roll = math.radians(distribution.roll_deg) * draws.uniform(-1, 1)
    rotation = rotation_about((0, 0, 1), roll) @ rotation_about(axis, tilt) @ upright

    joints = joints @ rotation.transpose(1, 2)
    middle = joints.mean(1)
    depth = draws.uniform(distribution.nearest_mm, distribution.farthest_mm)
    reach = torch.linspace(1, 0, PLACES, dtype=depth.dtype)[:, None]
    pixels = 112 * reach * draws.uniform(-1, 1, PLACES, 2)
    depths = depth[:, None].repeat(1, PLACES)
    depths[:, -1] = distribution.farthest_mm  # near the camera a spread hand may not fit: then farther off
    places = torch.cat([pixels * depths[..., None] / 480, depths[..., None]], -1)
    seen = (joints - middle[:, None])[:, None] + places[:, :, None]
    shown = ((480 * seen[..., :2] / seen[..., 2:]).abs() <= 112).all(-1)
    inside = shown.sum(-1) >= distribution.visible_joints
    first = torch.where(inside, torch.arange(PLACES), PLACES - 1).amin(1)
    return rotation, places[torch.arange(count), first] - middle, first
