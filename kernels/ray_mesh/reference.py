"""First intersections of rays with a triangle mesh, in plain PyTorch: the definition of `ray_mesh`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PAIRS = 2**17  # of rays and faces at a time, which bounds memory


def ray_mesh(vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """t (B, R) and face (B, R), as in `nvf_fast.ops.ray_mesh`, in the dtype of `origins`.

    The corners are sheared so that the ray is an axis, as Woop, Benthin and Wald do (Watertight Ray/Triangle
    Intersection, JCGT 2013). A face is hit if the axis passes no edge on the wrong side; an edge belongs to
    both its faces, which makes it watertight.
    """
    t = origins.new_empty(origins.shape[:2])
    face = torch.empty_like(t, dtype=torch.int64)
    order, directions = longest_last(directions)
    origins = origins.gather(2, order)
    for image, mesh in enumerate(vertices):
        corners = mesh[faces].permute(1, 2, 0).contiguous()
        for rays in torch.arange(origins.shape[1], device=order.device).split(max(1, _PAIRS // len(faces))):
            relative = corners[:, order[image, rays].T] - origins[image, rays].T[:, :, None]
            t[image, rays], face[image, rays] = hits(relative, directions[image, rays].T[:, :, None]).min(1)
    return t, torch.where(t < math.inf, face, -1)


def longest_last(directions: Tensor) -> tuple[Tensor, Tensor]:
    """The axes (..., 3) ordered so that the direction's longest is last, and the ordered directions."""
    last = directions.abs().argmax(-1, keepdim=True)
    order = (last + torch.tensor([1, 2, 0], device=last.device)) % 3
    return order, directions.gather(-1, order)


def hits(corners: Tensor, directions: Tensor) -> Tensor:
    """t (...) of hits of triangles by rays from the origin, +inf without a hit; the longest axis is last.

    corners (3, xyz, ...), directions (xyz, ...).
    """
    z = corners[:, 2] / directions[2]
    x, y = corners[:, 0] - directions[0] * z, corners[:, 1] - directions[1] * z
    # Products are compared, not subtracted, so that both faces of an edge get exactly opposite results.
    one, other = x * y.roll(-1, 0), y * x.roll(-1, 0)
    inside = (one >= other).all(0) | (one <= other).all(0)
    # The area of an edge and the origin is the weight of the opposite corner.
    weight = (one - other).abs().roll(-1, 0)
    t = (weight * z).sum(0) / weight.sum(0)  # 0 / 0 = NaN edge-on, which is not ahead
    return torch.where(inside & (t > 0), t, math.inf)
