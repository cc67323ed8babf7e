"""A hand surface fitted to 21 joints: round cones along the bones, with the radii of the capsule hand.

It labels the field of data sets with joints but without meshes.
"""

from __future__ import annotations

import numba
import numpy as np

from nvf_fast.data.query_points import NEAR, NEAR_MM, ON_RAYS, points_about, unit_vectors
from nvf_fast.joint_definitions import TIPS, palm_frame
from nvf_fast.synthetic.capsule_hand import CAPSULE_RADII, CAPSULES

# The unit hand is smaller than the mean capsule hand, whose radii these are.
RADIUS_SCALE = 0.975
CORNERS = (21, 22)  # two nodes beyond the joints, beside the wrist
CORNER_ACROSS_MM, CORNER_AHEAD_MM = 9.0, 5.0
TIP_RETREAT = 0.9  # of the last radius, from the fingertip to the centre of its cap

_FINGERS = [(start, end if end < 21 else start + 1) for start, end in CAPSULES[:15]]
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
CONES = np.array(_FINGERS + list(_PALM))
"""(C, 2) nodes at both ends of each cone; three cones for each finger come first."""
RADII_MM = RADIUS_SCALE * np.array(list(CAPSULE_RADII[:15]) + list(_PALM.values()))
"""(C, 2) of the unit hand."""


def cone_ends(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres of both ends of each cone.

    Args:
        joints: (B, 21, 3) mm, right hands of the unit hand's size.

    Returns:
        Starts and ends, both (B, C, 3) float64 mm.
    """
    joints = joints.astype(np.float64)
    frame = palm_frame(joints)
    middle = joints[:, 0] + CORNER_AHEAD_MM * frame[:, 1]
    corners = [middle + side * CORNER_ACROSS_MM * frame[:, 0] for side in (1, -1)]
    nodes = np.concatenate([joints, np.stack(corners, axis=1)], axis=1)
    starts, ends = nodes[:, CONES[:, 0]], nodes[:, CONES[:, 1]]
    for cone, tip in zip(range(2, 15, 3), TIPS, strict=True):
        back = joints[:, tip - 1] - joints[:, tip]
        length = np.linalg.norm(back, axis=-1, keepdims=True)
        retreat = np.minimum(TIP_RETREAT * RADII_MM[cone, 1], 0.9 * length)
        ends[:, cone] = joints[:, tip] + back / np.maximum(length, 1e-9) * retreat
    return starts, ends


def surface_distance(points: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Signed distance of points (B, P, 3) to the surfaces of joints (B, 21, 3), (B, P) float32 mm.

    The distance to the union of the cones, negative inside; exact outside.
    """
    starts, ends = cone_ends(joints)
    points = points.astype(np.float64)
    distances = np.empty(points.shape[:2], np.float32)
    for index in range(len(points)):
        _measure(points[index], starts[index], ends[index], RADII_MM, distances[index])
    return distances


def sample_field_points(
    joints: np.ndarray, slope: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample query points around each hand and measure their signed distances.

    Args:
        joints: (B, 21, 3) mm, camera frame.
        slope: (B,) tangent of half the view's angle.
        random: source of randomness.

    Returns:
        Points (B, P, 3), as `points_about` spreads them, and distances (B, P), float32 mm.
    """
    batch = len(joints)
    starts, ends = cone_ends(joints)
    weights = np.linalg.norm(ends - starts, axis=-1) * RADII_MM.sum(1) + (RADII_MM**2).sum(1)
    cumulated = np.cumsum(weights, axis=1)
    count = NEAR + ON_RAYS
    chosen = random.random((batch, count)) * cumulated[:, -1:]
    cones = (chosen[..., None] > cumulated[:, None]).sum(-1)
    rows = np.arange(batch)[:, None]
    along = random.random((batch, count, 1))
    directions = unit_vectors(random, batch, count)
    first, second = starts[rows, cones], ends[rows, cones]
    radii = RADII_MM[cones]
    surface = first + along * (second - first)
    surface = surface + directions * (radii[..., :1] + along * (radii[..., 1:] - radii[..., :1]))
    normals = np.empty_like(surface)
    for index in range(batch):
        _move_to_surface(surface[index], starts[index], ends[index], RADII_MM, normals[index])
    near = surface[:, :NEAR] + normals[:, :NEAR] * random.normal(0, NEAR_MM, (batch, NEAR, 1))
    points = points_about(near, surface[:, NEAR:], joints, slope, random)
    return points, surface_distance(points, joints)


@numba.njit(cache=True, nogil=True)
def _nearest(point, starts, ends, radii):
    """Distance to the union of the cones, the nearest cone, and the position on its axis, in [0, 1]."""
    best, cone, place = np.inf, 0, 0.0
    for index in range(len(starts)):
        ax = ends[index, 0] - starts[index, 0]
        ay = ends[index, 1] - starts[index, 1]
        az = ends[index, 2] - starts[index, 2]
        px = point[0] - starts[index, 0]
        py = point[1] - starts[index, 1]
        pz = point[2] - starts[index, 2]
        squared = max(ax * ax + ay * ay + az * az, 1e-9)
        projection = px * ax + py * ay + pz * az
        ratio = projection / squared
        radial = np.sqrt(max(px * px + py * py + pz * pz - projection * ratio, 0.0))
        difference = radii[index, 0] - radii[index, 1]
        # The nearest sphere lies where the surface's normal meets the axis: shifted by the cone's slope.
        slope = difference / np.sqrt(max(squared - difference * difference, 1e-6)) / np.sqrt(squared)
        along = min(max(ratio - radial * slope, 0.0), 1.0)
        dx, dy, dz = px - along * ax, py - along * ay, pz - along * az
        distance = np.sqrt(dx * dx + dy * dy + dz * dz) - radii[index, 0] + along * difference
        if distance < best:
            best, cone, place = distance, index, along
    return best, cone, place


@numba.njit(cache=True, nogil=True)
def _measure(points, starts, ends, radii, distances):
    for index in range(len(points)):
        distances[index] = _nearest(points[index], starts, ends, radii)[0]


@numba.njit(cache=True, nogil=True)
def _move_to_surface(points, starts, ends, radii, normals):
    """Move points onto the union's surface, and write its normals there."""
    for index in range(len(points)):
        point, normal = points[index], normals[index]
        for _ in range(4):
            distance, cone, along = _nearest(point, starts, ends, radii)
            length = 1e-12
            for axis in range(3):
                centre = starts[cone, axis] + along * (ends[cone, axis] - starts[cone, axis])
                normal[axis] = point[axis] - centre
                length += normal[axis] * normal[axis]
            for axis in range(3):
                normal[axis] /= np.sqrt(length)
                point[axis] -= distance * normal[axis]
