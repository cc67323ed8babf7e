"""A z-buffer rasteriser for square views of pinhole cameras, in numba."""

from __future__ import annotations

import numpy as np

from nvf_fast.runtime.compiled import compiled

NEAREST_MM = 25.0  # triangles with a corner before this depth are left out


@compiled()
def rasterise(
    vertices: np.ndarray, faces: np.ndarray, focal: float, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the visible surface at each pixel; back faces are culled.

    Args:
        vertices: (V, 3) float64 mm, camera frame (x right, y down, z forward).
        faces: (F, 3) int32, outward by the right-hand rule.
        focal: px.
        size: S px; the principal point is pixel (S/2, S/2), pixel centres are integers.

    Returns:
        The face (S, S) int32 at each pixel, or -1; the weights (S, S, 2) float64 of its
        second and third corner, correct in perspective; the depth (S, S) float64 mm, +inf elsewhere.
    """
    x, y, q = np.empty(len(vertices)), np.empty(len(vertices)), np.empty(len(vertices))
    for i in range(len(vertices)):
        q[i] = 1 / max(vertices[i, 2], NEAREST_MM)
        x[i] = focal * vertices[i, 0] * q[i] + size / 2
        y[i] = focal * vertices[i, 1] * q[i] + size / 2
    shown = np.full((size, size), -1, np.int32)
    corners = np.zeros((size, size, 2))
    nearest = np.zeros((size, size))  # 1 / depth
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        if vertices[a, 2] < NEAREST_MM or vertices[b, 2] < NEAREST_MM or vertices[c, 2] < NEAREST_MM:
            continue
        xa, ya, xb, yb, xc, yc = x[a], y[a], x[b], y[b], x[c], y[c]
        area = (xb - xa) * (yc - ya) - (yb - ya) * (xc - xa)
        if area >= 0:  # y points down: front faces turn the other way
            continue
        left = max(int(np.ceil(min(xa, xb, xc))), 0)
        right = min(int(np.floor(max(xa, xb, xc))), size - 1)
        top = max(int(np.ceil(min(ya, yb, yc))), 0)
        bottom = min(int(np.floor(max(ya, yb, yc))), size - 1)
        qa, qb, qc, inverse = q[a], q[b], q[c], 1 / area
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                w0 = ((xb - column) * (yc - row) - (yb - row) * (xc - column)) * inverse
                w1 = ((xc - column) * (ya - row) - (yc - row) * (xa - column)) * inverse
                w2 = 1 - w0 - w1
                if w0 < 0 or w1 < 0 or w2 < 0:
                    continue
                near = w0 * qa + w1 * qb + w2 * qc
                if near > nearest[row, column]:
                    nearest[row, column] = near
                    shown[row, column] = face
                    corners[row, column, 0] = w1 * qb / near
                    corners[row, column, 1] = w2 * qc / near
    return shown, corners, 1 / nearest


@compiled()
def mesh_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals of vertices (V, 3), means over the faces (F, 3) around each by area."""
    normals = np.zeros_like(vertices)
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, az = vertices[a, 0], vertices[a, 1], vertices[a, 2]
        ux, uy, uz = vertices[b, 0] - ax, vertices[b, 1] - ay, vertices[b, 2] - az
        wx, wy, wz = vertices[c, 0] - ax, vertices[c, 1] - ay, vertices[c, 2] - az
        x, y, z = uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx
        for k in (a, b, c):
            normals[k, 0] += x
            normals[k, 1] += y
            normals[k, 2] += z
    for i in range(len(normals)):
        x, y, z = normals[i, 0], normals[i, 1], normals[i, 2]
        scale = 1 / (np.sqrt(x * x + y * y + z * z) + 1e-12)
        normals[i, 0], normals[i, 1], normals[i, 2] = x * scale, y * scale, z * scale
    return normals


def shown_vertices(shown: np.ndarray, faces: np.ndarray, count: int) -> np.ndarray:
    """Indices (K,) int64 of the `count` vertices with faces visible in the result of `rasterise`."""
    seen = np.zeros(count, bool)
    seen[faces[shown[shown >= 0]]] = True
    return np.flatnonzero(seen)
