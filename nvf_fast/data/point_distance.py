"""Signed distance of points to a posed mesh, on a CPU core: nearest vertex first, then the triangles around it."""

from __future__ import annotations

import numpy as np
from numba import njit


def faces_around(faces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """List the faces around each vertex.

    Args:
        faces: (F, 3).
        count: number of vertices V.

    Returns:
        Starts (V + 1,) int32 and faces (3 F,) int32: those around vertex v are faces[starts[v] : starts[v + 1]].
    """
    order = np.argsort(faces.reshape(-1), kind="stable")
    starts = np.zeros(count + 1, np.int32)
    starts[1:] = np.cumsum(np.bincount(faces.reshape(-1), minlength=count))
    return starts, (order // 3).astype(np.int32)


@njit(cache=True)
def point_distance(
    points: np.ndarray,
    vertices: np.ndarray,
    normals: np.ndarray,
    faces: np.ndarray,
    starts: np.ndarray,
    around: np.ndarray,
    wide: np.ndarray,
) -> np.ndarray:
    """Measure signed distances to a closed mesh of small triangles.

    The nearest triangle is looked for among those around the nearest vertex and around that vertex's
    neighbours, and among the `wide` ones.

    Args:
        points: (N, 3) float64 mm.
        vertices: (V, 3) float64 mm.
        normals: (V, 3) unit, outward.
        faces: (F, 3) int32, outward.
        starts, around: from `faces_around`.
        wide: (W,) int32, faces that are much wider than the others.

    Returns:
        (N,) float64 mm, negative inside.
    """
    count = len(vertices)
    x, y, z = np.empty(count, np.float32), np.empty(count, np.float32), np.empty(count, np.float32)
    for i in range(count):
        x[i], y[i], z[i] = vertices[i]
    squared = np.empty(count, np.float32)
    out = np.empty(len(points))
    for i in range(len(points)):
        px, py, pz = np.float32(points[i, 0]), np.float32(points[i, 1]), np.float32(points[i, 2])
        for k in range(count):
            u, v, w = px - x[k], py - y[k], pz - z[k]
            squared[k] = u * u + v * v + w * w
        nearest = np.argmin(squared)
        best, sign = np.inf, 1.0
        for at in range(starts[nearest], starts[nearest + 1]):
            for corner in faces[around[at]]:
                for beside in range(starts[corner], starts[corner + 1]):
                    distance, side = _triangle(points[i], vertices, normals, faces[around[beside]])
                    if distance < best:
                        best, sign = distance, side
        for at in range(len(wide)):
            distance, side = _triangle(points[i], vertices, normals, faces[wide[at]])
            if distance < best:
                best, sign = distance, side
        out[i] = sign * np.sqrt(best)
    return out


@njit(cache=True)
def _triangle(
    point: np.ndarray, vertices: np.ndarray, normals: np.ndarray, face: np.ndarray
) -> tuple[float, float]:
    """Squared distance to one triangle and the side, 1 or -1, by the normal at the nearest place (C. Ericson,
    Real-Time Collision Detection, 2005, section 5.1.5)."""
    a, b, c = vertices[face[0]], vertices[face[1]], vertices[face[2]]
    abx, aby, abz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    acx, acy, acz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    apx, apy, apz = point[0] - a[0], point[1] - a[1], point[2] - a[2]
    aa, bb, ab = abx * abx + aby * aby + abz * abz, acx * acx + acy * acy + acz * acz, abx * acx + aby * acy + abz * acz
    d1, d2 = abx * apx + aby * apy + abz * apz, acx * apx + acy * apy + acz * apz
    d3, d4 = d1 - aa, d2 - ab
    d5, d6 = d1 - ab, d2 - bb
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    inside = False
    if d1 <= 0 and d2 <= 0:
        v, w = 0.0, 0.0
    elif d3 >= 0 and d4 <= d3:
        v, w = 1.0, 0.0
    elif vc <= 0 and d1 >= 0 and d3 <= 0:
        v, w = d1 / (d1 - d3), 0.0
    elif d6 >= 0 and d5 <= d6:
        v, w = 0.0, 1.0
    elif vb <= 0 and d2 >= 0 and d6 <= 0:
        v, w = 0.0, d2 / (d2 - d6)
    elif va <= 0 and d4 - d3 >= 0 and d5 - d6 >= 0:
        w = (d4 - d3) / (d4 - d3 + d5 - d6)
        v = 1 - w
    else:
        total = va + vb + vc
        v, w = vb / total, vc / total
        inside = True
    gx, gy, gz = apx - v * abx - w * acx, apy - v * aby - w * acy, apz - v * abz - w * acz
    if inside:
        nx, ny, nz = aby * acz - abz * acy, abz * acx - abx * acz, abx * acy - aby * acx
    else:
        u, na, nb, nc = 1 - v - w, normals[face[0]], normals[face[1]], normals[face[2]]
        nx, ny, nz = (
            u * na[0] + v * nb[0] + w * nc[0],
            u * na[1] + v * nb[1] + w * nc[1],
            u * na[2] + v * nb[2] + w * nc[2],
        )
    side = 1.0 if gx * nx + gy * ny + gz * nz >= 0 else -1.0
    return gx * gx + gy * gy + gz * gz, side
