"""Distances to the round cones about 21 joints (`nvf_fast.hand_surface`), unblended and fast.

They label the field of data sets with joints but without meshes.
"""

from __future__ import annotations

import numpy as np

from nvf_fast.data.query_points import NEAR, NEAR_MM, ON_RAYS, points_about, unit_vectors
from nvf_fast.hand_surface import RADII_MM, cone_ends
from nvf_fast.runtime.compiled import compiled


def surface_distance(points: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Signed distance of points (B, P, 3) to the surfaces of joints (B, 21, 3), (B, P) float32 mm.

    The distance to the union of the cones, negative inside; exact outside.
    """
    return _measure(points.astype(np.float64), *cone_ends(joints), RADII_MM)


def sample_field_points(
    joints: np.ndarray, slope: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample query points around each hand and measure their signed distances.

    Args:
        joints, slope, random: as in `points_about`.

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
    normals = _move_to_surface(surface, starts, ends, RADII_MM)
    near = surface[:, :NEAR] + normals[:, :NEAR] * random.normal(0, NEAR_MM, (batch, NEAR, 1))
    points = points_about(near, surface[:, NEAR:], joints, slope, random)
    return points, surface_distance(points, joints)


@compiled()
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


@compiled()
def _measure(points, starts, ends, radii):
    distances = np.empty(points.shape[:2], np.float32)
    for hand, index in np.ndindex(distances.shape):
        distances[hand, index] = _nearest(points[hand, index], starts[hand], ends[hand], radii)[0]
    return distances


@compiled()
def _move_to_surface(points, starts, ends, radii):
    """Move points (B, P, 3) onto the union's surface, and return its normals there."""
    normals = np.empty_like(points)
    for hand, index in np.ndindex(points.shape[:2]):
        point, normal = points[hand, index], normals[hand, index]
        for _ in range(4):
            distance, cone, along = _nearest(point, starts[hand], ends[hand], radii)
            length = 1e-12
            for axis in range(3):
                start, end = starts[hand, cone, axis], ends[hand, cone, axis]
                centre = start + along * (end - start)
                normal[axis] = point[axis] - centre
                length += normal[axis] * normal[axis]
            for axis in range(3):
                normal[axis] /= np.sqrt(length)
                point[axis] -= distance * normal[axis]
    return normals
