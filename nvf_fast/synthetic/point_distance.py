"""Signed distance of points to a posed mesh on a CPU: nearest vertex first, then its triangles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import trimesh

from nvf_fast.runtime.compiled import compiled
from nvf_fast.synthetic.rasteriser import mesh_normals

CELLS = 48  # along each axis of the grid that finds the points below a triangle
GROUP = 32  # vertices that are looked through or left out together


class SearchableMesh(NamedTuple):
    """A closed mesh of small triangles, indexed for nearest-vertex search in any pose."""

    faces: np.ndarray  # (F, 3) int32, outward
    starts: np.ndarray  # (V + 1,) int32
    around: np.ndarray  # (3 F,) int32; the faces around vertex v are around[starts[v] : starts[v + 1]]
    wide: np.ndarray  # (W,) int32, faces much wider than the others, which are always tested
    groups: np.ndarray  # (G, 32) int32, vertices that lie together; the last ones may repeat
    watertight: bool  # whether the mesh has an inside even where it intersects itself

    @classmethod
    def build(cls, vertices: np.ndarray, faces: np.ndarray, wide: np.ndarray) -> SearchableMesh:
        """Prepare a mesh whose nearby vertices (V, 3) remain close in every pose."""
        corners = faces.reshape(-1)
        starts = np.zeros(len(vertices) + 1, np.int32)
        starts[1:] = np.cumsum(np.bincount(corners, minlength=len(vertices)))
        around: np.ndarray = np.argsort(corners, kind="stable") // 3
        parts = [np.arange(len(vertices))]
        while max(map(len, parts)) > GROUP:
            parts = [half for part in parts for half in _halves(vertices, part)]
        groups: np.ndarray = np.stack([np.resize(part, GROUP) for part in parts])
        mesh = trimesh.Trimesh(vertices, faces, process=False)
        watertight = bool(mesh.is_watertight and mesh.is_winding_consistent)
        indices = (faces, starts, around, wide, groups)
        faces, starts, around, wide, groups = (np.ascontiguousarray(each, np.int32) for each in indices)
        return cls(faces, starts, around, wide, groups, watertight)

    def distance(self, points: np.ndarray, vertices: np.ndarray) -> np.ndarray:
        """Measure signed distances (N,) mm of points (N, 3) to the mesh in some pose, negative inside.

        The search for the nearest triangle starts from the nearest vertex and includes all wide triangles. A
        point is inside if the winding number is positive, even where fingers intersect. A mesh that is not
        watertight has no such number; the normal at the nearest place then determines the sign.
        """
        vertices = np.ascontiguousarray(vertices)
        squared, closest = _closest_faces(points, vertices, self)
        if self.watertight:
            inside = _winding_numbers(points, vertices, self.faces) > 0
        else:
            inside = _behind(points, vertices, mesh_normals(vertices, self.faces), self.faces[closest])
        return np.where(inside, -1, 1) * np.sqrt(squared)


def _halves(vertices: np.ndarray, part: np.ndarray) -> list[np.ndarray]:
    if len(part) <= GROUP:
        return [part]
    axis = np.ptp(vertices[part], axis=0).argmax()
    order = part[np.argsort(vertices[part, axis], kind="stable")]
    return [order[: len(part) // 2], order[len(part) // 2 :]]


@compiled()
def _winding_numbers(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(N,) int64 of points (N, 3): how often a ray along z leaves the surface, minus how often it enters."""
    low_x, low_y = vertices[:, 0].min(), vertices[:, 1].min()
    cell = max(vertices[:, 0].max() - low_x, vertices[:, 1].max() - low_y) / CELLS + 1e-9
    # Points by cell of a grid across the rays: their number, then their places.
    starts = np.zeros(CELLS * CELLS + 1, np.int64)
    where = np.full(len(points), -1)
    for n in range(len(points)):
        i, j = np.floor((points[n, 0] - low_x) / cell), np.floor((points[n, 1] - low_y) / cell)
        if 0 <= i < CELLS and 0 <= j < CELLS:
            where[n] = int(j) * CELLS + int(i)
            starts[where[n] + 1] += 1
    for at in range(CELLS * CELLS):
        starts[at + 1] += starts[at]
    filled, members = starts[:-1].copy(), np.empty(len(points), np.int64)
    for n in range(len(points)):
        if where[n] >= 0:
            members[filled[where[n]]] = n
            filled[where[n]] += 1
    winding = np.zeros(len(points), np.int64)
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, bx, by = vertices[a, 0], vertices[a, 1], vertices[b, 0], vertices[b, 1]
        cx, cy = vertices[c, 0], vertices[c, 1]
        left, right = int((min(ax, bx, cx) - low_x) / cell), int((max(ax, bx, cx) - low_x) / cell)
        top, bottom = int((min(ay, by, cy) - low_y) / cell), int((max(ay, by, cy) - low_y) / cell)
        for j in range(top, min(bottom, CELLS - 1) + 1):
            for i in range(left, min(right, CELLS - 1) + 1):
                for at in range(starts[j * CELLS + i], starts[j * CELLS + i + 1]):
                    x, y, z = points[members[at]]
                    w0 = (bx - x) * (cy - y) - (by - y) * (cx - x)
                    w1 = (cx - x) * (ay - y) - (cy - y) * (ax - x)
                    w2 = (ax - x) * (by - y) - (ay - y) * (bx - x)
                    if (w0 > 0 and w1 > 0 and w2 > 0) or (w0 < 0 and w1 < 0 and w2 < 0):
                        total = w0 + w1 + w2
                        if (w0 * vertices[a, 2] + w1 * vertices[b, 2] + w2 * vertices[c, 2]) / total > z:
                            winding[members[at]] += 1 if total > 0 else -1
    return winding


@compiled()
def _closest_faces(
    points: np.ndarray, vertices: np.ndarray, mesh: SearchableMesh
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances (N,) of points to their closest faces (N,)."""
    faces, starts, around, wide, groups = mesh.faces, mesh.starts, mesh.around, mesh.wide, mesh.groups
    centres, radii = np.zeros((len(groups), 3)), np.zeros(len(groups))
    for g in range(len(groups)):
        for i in groups[g]:
            for k in range(3):
                centres[g, k] += vertices[i, k] / GROUP
        for i in groups[g]:
            squared = 0.0
            for k in range(3):
                squared += (vertices[i, k] - centres[g, k]) ** 2
            radii[g] = max(radii[g], np.sqrt(squared))
    out, faces_out, far = np.empty(len(points)), np.empty(len(points), np.int64), np.empty(len(groups))
    for n in range(len(points)):
        x, y, z = points[n]
        limit = np.inf
        for g in range(len(groups)):
            a, b, c = x - centres[g, 0], y - centres[g, 1], z - centres[g, 2]
            far[g] = np.sqrt(a * a + b * b + c * c)
            limit = min(limit, far[g] + radii[g])
        nearest, squared = 0, limit * limit * (1 + 1e-9)
        for g in range(len(groups)):
            least = far[g] - radii[g]
            if least > 0 and least * least > squared:
                continue
            for i in groups[g]:
                a, b, c = x - vertices[i, 0], y - vertices[i, 1], z - vertices[i, 2]
                gap = a * a + b * b + c * c
                if gap < squared:
                    nearest, squared = i, gap
        best, closest = np.inf, -1
        for at in range(starts[nearest], starts[nearest + 1]):
            distance = _triangle(x, y, z, vertices, faces[around[at]])[0]
            if distance < best:
                best, closest = distance, around[at]
        while True:  # and on from the closest triangle to its neighbours
            before = closest
            for corner in faces[before]:
                for at in range(starts[corner], starts[corner + 1]):
                    distance = _triangle(x, y, z, vertices, faces[around[at]])[0]
                    if distance < best:
                        best, closest = distance, around[at]
            if closest == before:
                break
        for face in wide:
            distance = _triangle(x, y, z, vertices, faces[face])[0]
            if distance < best:
                best, closest = distance, face
        out[n], faces_out[n] = best, closest
    return out, faces_out


@compiled()
def _behind(points: np.ndarray, vertices: np.ndarray, normals: np.ndarray, closest: np.ndarray) -> np.ndarray:
    """(N,) bool, whether points lie behind their closest faces (N, 3), by the normal at the nearest place."""
    behind = np.empty(len(points), np.bool_)
    for n in range(len(points)):
        x, y, z = points[n]
        _, v, w = _triangle(x, y, z, vertices, closest[n])
        a, b, c = closest[n]
        side = 0.0
        face = np.cross(vertices[b] - vertices[a], vertices[c] - vertices[a])
        for k in range(3):
            place = (1 - v - w) * vertices[a, k] + v * vertices[b, k] + w * vertices[c, k]
            normal = (1 - v - w) * normals[a, k] + v * normals[b, k] + w * normals[c, k]
            side += (points[n, k] - place) * (face[k] if v > 0 and w > 0 and v + w < 1 else normal)
        behind[n] = side < 0
    return behind


@compiled()
def _triangle(
    x: float, y: float, z: float, vertices: np.ndarray, face: np.ndarray
) -> tuple[float, float, float]:
    """Squared distance of a point to one triangle, and the weights of its second and third corner at the
    nearest place (C. Ericson, Real-Time Collision Detection, 2005, section 5.1.5)."""
    a, b, c = face[0], face[1], face[2]
    ax, ay, az = vertices[a, 0], vertices[a, 1], vertices[a, 2]
    abx, aby, abz = vertices[b, 0] - ax, vertices[b, 1] - ay, vertices[b, 2] - az
    acx, acy, acz = vertices[c, 0] - ax, vertices[c, 1] - ay, vertices[c, 2] - az
    apx, apy, apz = x - ax, y - ay, z - az
    aa, ab = abx * abx + aby * aby + abz * abz, abx * acx + aby * acy + abz * acz
    bb = acx * acx + acy * acy + acz * acz
    d1, d2 = abx * apx + aby * apy + abz * apz, acx * apx + acy * apy + acz * apz
    d3, d4 = d1 - aa, d2 - ab
    d5, d6 = d1 - ab, d2 - bb
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
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
    gx, gy, gz = apx - v * abx - w * acx, apy - v * aby - w * acy, apz - v * abz - w * acz
    return gx * gx + gy * gy + gz * gz, v, w
