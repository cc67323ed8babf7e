"""`cast_votes` in PyTorch, for CPU tensors; tested against the reference.

It finds the smallest selected weight instead of sorting all weights, and uses masked sums instead of
gathering.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cast_votes(
    points: Tensor, votes: Tensor, counts: Tensor, *, ball_mm: float, fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints, weight and spread, as in `nvf_fast.ops.cast_votes`, which checks the arguments."""
    batch, capacity, joint_count, _ = votes.shape
    joints = votes.new_full((batch, joint_count, 3), math.nan)
    weight = votes.new_zeros(batch, joint_count)
    spread = votes.new_full((batch, joint_count), math.nan)
    for image, count in enumerate(counts.tolist()):
        voters = min(count, capacity)
        if voters > 0:
            joints[image], weight[image], spread[image] = _cast(
                points[image, :voters], votes[image, :voters], ball_mm, max(1, int(voters * fraction))
            )
    return joints, weight, spread


def _cast(
    points: Tensor, votes: Tensor, ball_mm: float, selected_count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints (J, 3), weight (J,) and spread (J,) of one image's voters (V, 3) and their votes (V, J, 4)."""
    # One contiguous row per joint and coordinate.
    w, *direction = votes.permute(2, 1, 0).contiguous()
    key = w.masked_fill(w.isnan(), -math.inf)
    threshold = key.kthvalue(key.shape[1] - selected_count + 1, dim=1, keepdim=True).values
    above, tie = key > threshold, key == threshold
    # Among weights equal to the threshold the first ones count.
    selected = above | (tie & (tie.cumsum(1) <= selected_count - above.sum(1, keepdim=True)))

    total = torch.where(selected, w, 0.0).sum(1)
    reach = ball_mm * (1 - w)
    targets = [axis + reach * part for axis, part in zip(points.T, direction, strict=True)]
    joints = torch.stack([torch.where(selected, w * target, 0.0).sum(1) / total for target in targets], 1)
    clamped = torch.where(selected, w.clamp(min=0), 0.0)
    squared = sum((target - joint[:, None]) ** 2 for target, joint in zip(targets, joints.T, strict=True))
    spread = (torch.where(selected, clamped * squared, 0.0).sum(1) / clamped.sum(1)).sqrt()
    return joints, total / selected_count, spread
