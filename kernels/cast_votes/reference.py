"""Joints from voters in plain PyTorch: the definition of `cast_votes`, Eqs. 8 and 9 with the fraction."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cast_votes(
    points: Tensor,
    votes: Tensor,
    counts: Tensor,
    indices: Tensor | None = None,
    *,
    ball_mm: float = 80.0,
    fraction: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints, weight and spread, as in `nvf_fast.ops.cast_votes`, in the dtype of `votes`."""
    if indices is not None:
        images = torch.arange(len(indices), device=indices.device)[:, None]
        points, votes = (each[images, indices.clamp(min=0)] for each in (points, votes))
    batch, _, joint_count, _ = votes.shape
    points = points.to(votes.dtype)
    joints = votes.new_full((batch, joint_count, 3), math.nan)
    weight = votes.new_zeros(batch, joint_count)
    spread = votes.new_full((batch, joint_count), math.nan)
    for image, count in enumerate(counts.tolist()):
        voters = min(count, votes.shape[1])
        if voters == 0:
            continue
        selected = max(1, int(voters * fraction))
        w = votes[image, :voters, :, 0]
        rank = (
            torch.where(w.isnan(), -math.inf, w).sort(dim=0, descending=True, stable=True).indices[:selected]
        )
        w = w.gather(0, rank)[..., None]
        direction = votes[image, :voters, :, 1:].gather(0, rank[..., None].expand(-1, -1, 3))
        targets = points[image][rank] + ball_mm * (1 - w) * direction
        joints[image] = (w * targets).sum(0) / w.sum(0)
        weight[image] = w.mean(0)[:, 0]
        clamped = w.clamp(min=0)
        squared = ((targets - joints[image]) ** 2).sum(-1, keepdim=True)
        spread[image] = ((clamped * squared).sum(0) / clamped.sum(0)).sqrt()[:, 0]
    return joints, weight, spread
