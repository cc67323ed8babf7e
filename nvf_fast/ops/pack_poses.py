"""Poses of hand views as rows for one transfer to the host."""

from __future__ import annotations

import torch
from torch import Tensor

from nvf_fast.kernels.pack_poses import reference
from nvf_fast.ops.operation import Backend, Operation, check_tensor


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
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Combine coarse and voted joints, and pack them with scores, errors and counts.

    Args:
        coarse: (B, J, 3) float32 mm.
        voted: (B, J, 3) float32 mm; a view in which one is not finite keeps its coarse joints.
        vote_weight: (1 + J,) float32, weights of the voted joints' mean, and of each joint relative to it.
        errors: (B, J) float32 mm, expected errors; a score is 1 / (1 + (error / spread_mm)^2).
        presence: (B,) float32, logit of a hand's presence.
        voters: (B,) int32, number of voters.
        left: (B,) bool, whether the mirror image was chosen.
        needs_retry: (B,) bool.
        evaluated: number of points evaluated in each view.
        spread_mm: mm, error at which the score is 0.5.
        backend: None, "triton" or "torch".

    Returns:
        (B, 5 J + 5) float32, as `nvf_fast.pipeline.PackedEstimates.rows`.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: the requested backend cannot run here, or a gradient is required, which does not exist.
    """
    check_tensor("pack_poses", "coarse", coarse, [("B", "J", 3)], torch.float32, unit="mm")
    batch, joints = coarse.shape[:2]
    check_tensor("pack_poses", "voted", voted, [(batch, joints, 3)], torch.float32, unit="mm")
    check_tensor("pack_poses", "vote_weight", vote_weight, [(1 + joints,)], torch.float32)
    check_tensor("pack_poses", "errors", errors, [(batch, joints)], torch.float32, unit="mm")
    check_tensor("pack_poses", "presence", presence, [(batch,)], torch.float32)
    check_tensor("pack_poses", "voters", voters, [(batch,)], torch.int32)
    check_tensor("pack_poses", "left", left, [(batch,)], torch.bool)
    check_tensor("pack_poses", "needs_retry", needs_retry, [(batch,)], torch.bool)
    return _run(
        backend,
        coarse,
        voted,
        vote_weight,
        errors,
        presence,
        voters,
        left,
        needs_retry,
        evaluated,
        spread_mm,
    )


_run = Operation("pack_poses", reference.pack_poses)
