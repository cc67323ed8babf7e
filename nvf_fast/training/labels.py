"""Voting labels: each query point's closeness to every joint and the direction to it (Eqs. 1-3)."""

from __future__ import annotations

import torch
from torch import Tensor


def voting_labels(
    points: Tensor, joints: Tensor, near: Tensor, ball_mm: float = 80.0, nearest: int = 1024
) -> tuple[Tensor, Tensor]:
    """Label the weight and direction of each point's vote for each joint (Eqs. 1-3).

    A label is non-zero where the point is near the surface, within `ball_mm` of the joint, and among the
    `nearest` such points of that joint.

    Args:
        points: (B, N, 3) float mm, camera frame.
        joints: (B, J, 3) float mm, camera frame.
        near: (B, N) bool, the points within the clamping distance of the surface.
        ball_mm: radius r of the ball about each joint, mm.
        nearest: K, the points per joint that keep their label; every point where N is smaller.

    Returns:
        weight (B, N, J) = 1 - distance / r, and direction (B, N, J, 3), unit vectors from point to joint;
        both zero where the label is.
    """
    offset = joints[:, None] - points[:, :, None]
    distance = offset.norm(dim=-1)
    weight = (ball_mm - distance).clamp_min(0) / ball_mm * near[..., None]
    if nearest < points.shape[1]:
        kept = torch.zeros_like(weight, dtype=torch.bool)
        kept.scatter_(1, weight.topk(nearest, dim=1).indices, True)
        weight = weight * kept
    scale = (weight > 0) / distance.clamp_min(1e-10)  # a point on the joint itself gets the zero vector
    return weight, offset * scale[..., None]
