"""Poses of hand views as rows for one transfer, in plain PyTorch: the definition of `pack_poses`."""

from __future__ import annotations

import torch
from torch import Tensor


def combine(coarse: Tensor, voted: Tensor, vote_weight: Tensor) -> Tensor:
    """Interpolate coarse and voted joints (B, J, 3), by weights of the mean and of joints relative to it."""
    coarse_middle, voted_middle = coarse.mean(1, keepdim=True), voted.mean(1, keepdim=True)
    middle = coarse_middle.lerp(voted_middle, vote_weight[0])
    return middle + (coarse - coarse_middle).lerp(voted - voted_middle, vote_weight[1:, None])


def pack_poses(
    coarse: Tensor,
    voted: Tensor,
    vote_weight: Tensor,
    errors: Tensor,
    presence: Tensor,
    voters: Tensor,
    left: Tensor,
    needs_retry: Tensor,
    evaluated: int,
    spread_mm: float,
) -> Tensor:
    """Rows (B, 5 J + 5), as in `nvf_fast.ops.pack_poses`."""
    valid = voted.isfinite().flatten(1).all(1)
    joints = torch.where(valid[:, None, None], combine(coarse, voted, vote_weight), coarse)
    scores = 1 / (1 + (errors / spread_mm) ** 2)
    integers = torch.stack([voters, torch.full_like(voters, evaluated), left, needs_retry], 1)
    return torch.cat([joints.flatten(1), scores, errors, presence.sigmoid()[:, None], integers.float()], 1)
