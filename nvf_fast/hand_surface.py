"""The surface of a hand from its 21 joints: round cones (tapered capsules) along the bones and in the palm.

The radii are those of the built-in hand, slightly smaller, so that the surface fits joints in FreiHAND's
definition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nvf_fast.joint_definitions import TIPS, UNIT_LENGTH_MM, bone_lengths, palm_frame
from nvf_fast.runtime.arguments import check_number

if TYPE_CHECKING:
    import trimesh

FINGER_RADII = (
    (10.8, 10.2, 8.6, 6.6),
    (9.6, 8.4, 7.3, 5.9),
    (9.8, 8.6, 7.5, 6.1),
    (9.2, 8.0, 7.0, 5.7),
    (8.2, 7.0, 6.2, 5.0),
)
"""mm at the four joints of each finger, thumb first, of the built-in hand."""
# The unit hand is smaller than the mean capsule hand, whose radii these are.
RADIUS_SCALE = 0.975
CORNERS = (21, 22)  # two nodes beyond the joints, beside the wrist
CORNER_ACROSS_MM, CORNER_AHEAD_MM = 9.0, 5.0
TIP_RETREAT = 0.9  # of the last radius, from the fingertip to the centre of its cap
FINGER_CONES = 15  # the first cones, three for each finger
FINGER_BLEND_MM, PALM_BLEND_MM = 1.5, 5.0
POINTS = 2048  # measured at a time, so that intermediate results stay in caches
MARGIN_MM = 22.0  # from the nodes to the sides of the box that is meshed

_FINGERS = {
    (joint, joint + 1): radii[phalanx : phalanx + 2]
    for finger, radii in enumerate(FINGER_RADII)
    for phalanx, joint in enumerate(range(1 + 4 * finger, 4 + 4 * finger))
}
_PALM = {
    (0, 5): (14.0, 9.8),
    (0, 9): (14.0, 9.8),
    (0, 13): (14.0, 9.8),
    (0, 17): (13.0, 9.0),
    (5, 9): (9.4, 9.4),
    (9, 13): (9.4, 9.4),
    (13, 17): (9.4, 9.4),
    (1, 5): (11.5, 8.0),  # the web between thumb and index
    (CORNERS[0], 1): (12.5, 12.0),
    (CORNERS[0], 5): (12.5, 9.8),
    (CORNERS[1], 17): (12.5, 9.0),
    CORNERS: (13.0, 13.0),
}
CONES = np.array(list(_FINGERS | _PALM))
"""(C, 2) nodes at both ends of each cone; three cones for each finger come first."""
RADII_MM = RADIUS_SCALE * np.array(list((_FINGERS | _PALM).values()))
"""(C, 2) of the unit hand."""


def hand_mesh(joints: np.ndarray, step_mm: float = 2.0) -> trimesh.Trimesh:
    """Mesh the closed surface around joints, scaled to the hand, with its faces outward.

    Args:
        joints: (21, 3) mm of a right or a left hand.
        step_mm: mm, spacing of the lattice for marching cubes.

    Raises:
        ImportError: scikit-image is not installed (`pip install nvf-fast[viz]`).
        TypeError: the step is not a number.
    """
    from nvf_fast.surface import closed_mesh

    check_number("step_mm", step_mm)
    joints = joints.astype(np.float64)
    size = float(bone_lengths(joints).sum()) / UNIT_LENGTH_MM
    starts, ends = (torch.from_numpy(each[0]).float() for each in cone_ends(joints[None] / size))
    cones, radii = torch.stack([starts, ends], 1), torch.from_numpy(RADII_MM).float()
    origin = cones.mean((0, 1))

    def distance(points: Tensor) -> Tensor:
        return blend(cone_distances(cones, radii, points, origin))

    low, high = cones.amin((0, 1)) - MARGIN_MM, cones.amax((0, 1)) + MARGIN_MM
    mesh = closed_mesh(distance, low, high, step_mm / size)
    mesh.apply_scale(size)
    return mesh


def cone_ends(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres of both ends of each cone.

    Args:
        joints: (B, 21, 3) mm, hands of the unit hand's size.

    Returns:
        Starts and ends, both (B, C, 3) float64 mm.
    """
    joints = joints.astype(np.float64)
    frame = palm_frame(joints)
    middle = joints[:, 0] + CORNER_AHEAD_MM * frame[:, 1]
    corners = [middle + side * CORNER_ACROSS_MM * frame[:, 0] for side in (1, -1)]
    nodes = np.concatenate([joints, np.stack(corners, axis=1)], axis=1)
    starts, ends = nodes[:, CONES[:, 0]], nodes[:, CONES[:, 1]]
    for cone, tip in zip(range(2, FINGER_CONES, 3), TIPS, strict=True):
        back = joints[:, tip - 1] - joints[:, tip]
        length = np.linalg.norm(back, axis=-1, keepdims=True)
        retreat = np.minimum(TIP_RETREAT * RADII_MM[cone, 1], 0.9 * length)
        ends[:, cone] = joints[:, tip] + back / np.maximum(length, 1e-9) * retreat
    return starts, ends


def cone_distances(ends: Tensor, radii: Tensor, points: Tensor, origin: Tensor) -> Tensor:
    """Measure the signed distance of points (N, 3) to each cone, (N, C) mm, negative inside.

    Args:
        ends: (C, 2, 3), centres of both ends.
        radii: (C, 2).
        points: (N, 3).
        origin: (3,) near the cones, from which distances are computed for precision.
    """
    start, axis = ends[:, 0] - origin, ends[:, 1] - ends[:, 0]
    squared_length, squared_start = (axis * axis).sum(-1).clamp_min(1e-9), (start * start).sum(-1)
    difference, offset = radii[:, 0] - radii[:, 1], (start * axis).sum(-1)
    # Where one end contains the other, the clamp leaves the larger sphere.
    slope = difference / (squared_length - difference * difference).clamp_min(1e-6).sqrt()
    slope = slope / squared_length.sqrt()
    distances = []
    for part in (points - origin).split(POINTS):
        projection = part @ axis.T - offset
        squared = (part * part).sum(-1, keepdim=True) - 2 * part @ start.T + squared_start
        ratio = projection / squared_length
        radial = (squared - projection * ratio).clamp_min(0).sqrt()
        # The nearest sphere of the cone lies where the surface's normal meets the axis, shifted by the slope.
        along = (ratio - radial * slope).clamp(0, 1)
        gap = (squared - 2 * along * projection + along * along * squared_length).clamp_min(1e-6).sqrt()
        distances.append(gap - radii[:, 0] + along * difference)
    return torch.cat(distances)


def blend(distances: Tensor) -> Tensor:
    """Join the distances (N, C) mm to cones, the fingers' first, to those of one smooth surface, (N,) mm.

    The palm's cones are blended widely, the fingers narrowly with each other and with the palm.
    """
    fingers, palm = distances[:, :FINGER_CONES], distances[:, FINGER_CONES:]
    palm = -PALM_BLEND_MM * torch.logsumexp(palm * (-1 / PALM_BLEND_MM), -1, keepdim=True)
    parts = torch.cat([palm + 0.5 * PALM_BLEND_MM, fingers], 1)
    return -FINGER_BLEND_MM * torch.logsumexp(parts * (-1 / FINGER_BLEND_MM), -1)
