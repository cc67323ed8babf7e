"""The capsule hand behind the built-in mesh: bone lengths and distances."""

from __future__ import annotations

import torch

from nvf_fast.synthetic.capsule_hand import (
    CAPSULE_RADII,
    CAPSULES,
    FINGER_METACARPALS,
    FINGER_PHALANGES,
    THUMB_BONES,
    capsule_distances,
    mean_nodes,
)


def test_bone_lengths() -> None:
    nodes = mean_nodes()
    expected = [*THUMB_BONES, *(bone for finger in FINGER_PHALANGES for bone in finger)]
    pairs = [(1, 2), (2, 3), (3, 4)] + [(5 + 4 * f + k, 6 + 4 * f + k) for f in range(4) for k in range(3)]
    lengths = torch.stack([(nodes[a] - nodes[b]).norm() for a, b in pairs])
    torch.testing.assert_close(lengths, torch.tensor(expected, dtype=torch.float64))
    palm = torch.stack([(nodes[5 + 4 * f] - nodes[21 + f]).norm() for f in range(4)])
    # Knuckles lie up to 3 mm outside the plane of the metacarpals.
    torch.testing.assert_close(palm, torch.tensor(FINGER_METACARPALS, dtype=torch.float64), rtol=0, atol=0.1)


def test_handedness() -> None:
    nodes = mean_nodes()
    normal = torch.linalg.cross(nodes[5] - nodes[17], nodes[9] - nodes[0])
    assert normal[2] > 0 and (nodes[[8, 12, 16, 20], 2] > nodes[[5, 9, 13, 17], 2]).all()


def test_capsule_distances() -> None:
    """Distances equal those to the union of the spheres along the axis."""
    nodes = mean_nodes()
    points = nodes.mean(0) + 80 * torch.randn(200, 3, dtype=torch.float64)
    at = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
    measured = capsule_distances(nodes, points)
    for cone, ((a, b), (first, last)) in enumerate(zip(CAPSULES, CAPSULE_RADII, strict=True)):
        centres = nodes[a] + at * (nodes[b] - nodes[a])
        expected = (torch.cdist(points, centres) - (first + at[:, 0] * (last - first))).amin(-1)
        torch.testing.assert_close(measured[:, cone], expected, rtol=0, atol=1e-4)
