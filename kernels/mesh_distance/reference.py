"""Signed distance to a closed triangle mesh, in plain PyTorch: the definition of `mesh_distance`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_PAIRS = 2**17  # of points and faces at a time, which bounds memory


def mesh_distance(vertices: Tensor, faces: Tensor, points: Tensor) -> Tensor:
    """Distances (B, N) mm, as in `nvf_fast.ops.mesh_distance`, in the dtype of `points`.

    The winding number is the signed count of the faces that the ray point + t (0, 0, 1), t > 0, crosses,
    exact at edges and vertices. A face without area counts as a segment.
    """
    distance = points.new_empty(points.shape[:2])
    for image, mesh in enumerate(vertices):
        triangles = Triangles.of(mesh, faces)
        for chunk, found in zip(
            points[image].split(max(1, _PAIRS // len(faces))),
            distance[image].split(max(1, _PAIRS // len(faces))),
            strict=True,
        ):
            # Relative to the point: the difference of nearby numbers is exact.
            corners = triangles.corners[:, :, None] - chunk.T[:, :, None]
            nearest = squared_distance(corners, triangles).amin(1).sqrt()
            inside = crossings(corners, triangles).sum(1) != 0
            found[:] = torch.where(inside, -nearest, nearest)
            found[~chunk.isfinite().all(1)] = math.nan
    return distance


class Triangles(NamedTuple):
    """Faces, prepared for queries; corners and coordinates come first, (..., F) last."""

    corners: Tensor  # (3, xyz, F) mm
    edges: Tensor  # (3, xyz, F) mm, from each corner to the next
    normal: Tensor  # (xyz, F) mm², right-handed, twice the area long
    # (xyz, F) 1 / mm; its product with the vector from the first corner to a point is the second's weight
    second: Tensor
    third: Tensor  # (xyz, F) 1 / mm, likewise for the third corner; NaN for a face without area

    @classmethod
    def of(cls, vertices: Tensor, faces: Tensor) -> Triangles:
        """Prepare faces (F, 3) of vertices (V, 3)."""
        corners = vertices[faces].permute(1, 2, 0)
        # The first corner is opposite the longest edge, which defines the plane of a sliver best.
        longest = (corners.roll(-1, 0) - corners).square().sum(1, keepdim=True).argmax(0, keepdim=True)
        order = (longest + torch.arange(2, 5, device=faces.device)[:, None, None]) % 3
        corners = corners.gather(0, order.expand_as(corners))
        edges = corners.roll(-1, 0) - corners
        ab, ac = edges[0], -edges[2]
        normal = torch.linalg.cross(ab, ac, dim=0)
        per_area = 1 / _dot(normal, normal)
        second = torch.linalg.cross(ac, normal, dim=0) * per_area
        return cls(corners, edges, normal, second, torch.linalg.cross(normal, ab, dim=0) * per_area)


def squared_distance(corners: Tensor, triangles: Triangles) -> Tensor:
    """(..., F) mm² from the origin to triangles with `corners` (3, xyz, ..., F) relative to the origin."""
    tiny = torch.finfo(corners.dtype).tiny
    squared = torch.full_like(corners[0, 0], math.inf)
    for start, edge in zip(corners, _spread(triangles.edges, corners), strict=True):
        along = (-_dot(start, edge) / _dot(edge, edge).clamp(min=tiny)).clamp(0, 1)  # 0 / tiny = 0, no NaN
        nearest = start + along * edge
        squared = torch.minimum(squared, _dot(nearest, nearest))
    # The foot on the plane from its barycentric coordinates, whose errors move it within the plane, where
    # the distance hardly changes. NaN is not inside.
    start = corners[0]
    ab, _, ca = _spread(triangles.edges, corners)
    second = -_dot(start, _spread(triangles.second, corners[0]))
    third = -_dot(start, _spread(triangles.third, corners[0]))
    foot = start + second * ab - third * ca
    inside = (second >= 0) & (third >= 0) & (second + third <= 1)
    return torch.where(inside, torch.minimum(squared, _dot(foot, foot)), squared)


def crossings(corners: Tensor, triangles: Triangles) -> Tensor:
    """(..., F) int32: 1 or -1, by orientation, where the positive z axis crosses the face; else 0."""
    x, y, z = corners.unbind(1)
    x_next, y_next = x.roll(-1, 0), y.roll(-1, 0)
    above, above_next = y > 0, y_next > 0
    # Products are compared, not subtracted, so that both faces of an edge get exactly opposite results.
    left, right = x * y_next > y * x_next, x * y_next < y * x_next
    turns = (~above & above_next & left).int() - (above & ~above_next & right).int()
    winding = turns.sum(0, dtype=torch.int32)
    # Corners that agree determine the result, since rounding is unbounded on the plane of a vertical face.
    higher = winding * _dot(corners[0], _spread(triangles.normal, corners[0])) > 0
    return winding * ((z.amin(0) > 0) | ((z.amax(0) > 0) & higher))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _spread(constants: Tensor, like: Tensor) -> Tensor:
    """Expand (..., F) to the dimensions of `like` before the last."""
    missing = like.ndim - constants.ndim
    return constants.reshape(*constants.shape[:-1], *[1] * missing, constants.shape[-1])
