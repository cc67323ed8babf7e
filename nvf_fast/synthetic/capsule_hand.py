"""A right hand of mean proportions as round cones (tapered capsules), the origin of the built-in mesh.

Bone lengths: A. Buryanov and V. Kotiuk, "Proportions of Hand Segments", International Journal of Morphology
28(3), 2010 (radiographs of 66 adults): means of metacarpals and phalanges and of the soft tissue beyond the
last bone; standard deviations are about 8.5 % of them.

Hand frame (mm): origin at the wrist, x towards the thumb, y towards the fingertips, z out of the palm.
For a right hand this frame is right-handed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nvf_fast.data.rotations import rotation_about
from nvf_fast.hand_surface import FINGER_RADII, cone_distances
from nvf_fast.synthetic.hand_skeleton import THUMB_ACROSS, THUMB_AHEAD
from nvf_fast.synthetic.poses import FINGER_SPLAY

# Metacarpal, then the phalanges from base to tip (mm). The last one includes the soft tissue.
THUMB_BONES = (46.22, 31.57, 21.67 + 5.67)
FINGER_METACARPALS = (68.12, 64.60, 58.00, 53.69)
FINGER_PHALANGES = (
    (39.78, 22.38, 15.82 + 3.84),
    (44.63, 26.33, 17.40 + 3.95),
    (41.37, 25.65, 17.30 + 3.95),
    (32.74, 18.11, 15.96 + 3.73),
)
# Carpal ends of the metacarpals (mm, hand frame), their directions in the palm's plane (degrees towards the
# thumb), and how far the knuckles lie out of it (mm).
METACARPAL_BASES = ((11.0, 26.0, 1.0), (2.0, 27.0, 0.0), (-7.0, 25.0, 0.0), (-14.0, 22.0, 2.0))
METACARPAL_ANGLES = (8.0, 0.0, -8.0, -17.0)
KNUCKLE_HEIGHTS = (0.0, -2.0, -0.5, 3.0)
THUMB_BASE = (17.0, 20.0, 7.0)
# The pose: slightly bent, fingers spread. Degrees from base to tip.
FINGER_BENDS, THUMB_BENDS = (12.0, 18.0, 9.0), (14.0, 10.0)
THUMB_OPPOSITION, THUMB_ABDUCTION, SPREAD = 8.0, -5.0, 2.0

# Nodes beyond the 21 joints: carpal ends of the metacarpals, two wrist corners, the heel of the palm,
# two ends of the forearm's stump, and the centres of the five fingertip caps.
ORIGIN = slice(9, 10)  # distances are computed from this knuckle, in the hand's middle, for precision
BASES, CORNERS, HEEL, STUMP, CAPS = range(21, 25), range(25, 27), 27, range(28, 30), range(30, 35)
NODES = 35

_FINGERS = {
    (joint, CAPS[finger] if phalanx == 2 else joint + 1): radii[phalanx : phalanx + 2]
    for finger, radii in enumerate(FINGER_RADII)
    for phalanx, joint in enumerate(range(1 + 4 * finger, 4 + 4 * finger))
}
_PALM = {(base, 5 + 4 * finger): (11.0, 9.8) for finger, base in enumerate(BASES)} | {
    (5, 9): (9.4, 9.4),
    (9, 13): (9.4, 9.4),
    (13, 17): (9.4, 9.4),
    (1, 5): (11.5, 8.0),  # thenar: the web between thumb and index
    (CORNERS[0], 1): (12.5, 12.0),
    (HEEL, 17): (11.5, 9.0),  # hypothenar
    (CORNERS[0], BASES[0]): (12.5, 11.0),
    (CORNERS[1], BASES[3]): (12.5, 11.0),
    (CORNERS[1], HEEL): (12.5, 11.5),
    (CORNERS[0], STUMP[0]): (13.0, 13.5),
    (CORNERS[1], STUMP[1]): (13.0, 13.5),
    (0, BASES[1]): (14.0, 11.0),
}
CAPSULES, CAPSULE_RADII = list(_FINGERS | _PALM), list((_FINGERS | _PALM).values())
"""Nodes at both ends of each cone, and the radii there in mm; three cones for each finger come first."""


def mean_nodes() -> Tensor:
    """(35, 3) float64 mm: the skeleton's nodes by forward kinematics, the 21 joints first."""
    nodes, ahead = _double([[0.0, 0.0, 0.0]]).repeat(NODES, 1), _double([0.0, 1.0, 0.0])
    bases = _double(METACARPAL_BASES)
    nodes[list(BASES)] = bases
    directions = rotation_about((0, 0, 1), -torch.deg2rad(_double(METACARPAL_ANGLES))) @ ahead
    splay = torch.deg2rad(SPREAD * _double(FINGER_SPLAY))
    bends = torch.deg2rad(_double(FINGER_BENDS))
    for finger in range(4):
        joint = 5 + 4 * finger
        nodes[joint] = bases[finger] + FINGER_METACARPALS[finger] * directions[finger]
        nodes[joint, 2] += KNUCKLE_HEIGHTS[finger]
        turn = rotation_about((0, 0, 1), -splay[finger])
        for phalanx, length in enumerate(FINGER_PHALANGES[finger]):
            turn = turn @ rotation_about((1, 0, 0), bends[phalanx])
            nodes[joint + phalanx + 1] = nodes[joint + phalanx] + length * (turn @ ahead)
        cap = CAPSULE_RADII[3 * (finger + 1) + 2][1]
        nodes[CAPS[finger + 1]] = nodes[joint + 3] - 0.9 * cap * (turn @ ahead)

    nodes[1] = _double(THUMB_BASE)
    rest, across = normalize(_double(THUMB_AHEAD), dim=0), _double(THUMB_ACROSS)
    across = normalize(across - (across @ rest) * rest, dim=0)
    hinge = torch.linalg.cross(rest, across)
    opposition, abduction = torch.deg2rad(_double([THUMB_OPPOSITION, THUMB_ABDUCTION]))
    turn = rotation_about((0, 1, 0), -opposition) @ rotation_about((0, 0, 1), abduction)
    for bone, bend in enumerate(torch.deg2rad(_double([0.0, *THUMB_BENDS]))):
        turn = turn @ rotation_about(hinge, bend)
        nodes[bone + 2] = nodes[bone + 1] + THUMB_BONES[bone] * (turn @ rest)
    nodes[CAPS[0]] = nodes[4] - 0.9 * CAPSULE_RADII[2][1] * (turn @ rest)

    nodes[list(CORNERS)] = _double([[9.0, 5.0, 1.0], [-9.0, 5.0, 1.0]])
    nodes[HEEL] = _double([-16.0, 18.0, 6.0])
    nodes[list(STUMP)] = _double([[9.0, -12.0, -1.0], [-9.0, -12.0, -1.0]])
    return nodes


def capsule_distances(nodes: Tensor, points: Tensor) -> Tensor:
    """Distances (N, C) mm of points (N, 3) to the cones of nodes (35, 3), float64 mm, negative inside."""
    return cone_distances(nodes[torch.tensor(CAPSULES)], _double(CAPSULE_RADII), points, nodes[ORIGIN])


def _double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
