"""Poses of hand views as rows for one transfer, a program per view."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _coordinate(coarse_ptr, voted_ptr, weight_ptr, joint, valid, joint_count, AXIS: tl.constexpr):
    """One coordinate of the joints: coarse, combined, and how many voted ones are not finite."""
    coarse = tl.load(coarse_ptr + joint * 3 + AXIS, mask=valid, other=0.0)
    voted = tl.load(voted_ptr + joint * 3 + AXIS, mask=valid, other=0.0)
    coarse_middle = tl.sum(coarse, 0) / joint_count
    voted_middle = tl.sum(voted, 0) / joint_count
    middle = coarse_middle + (voted_middle - coarse_middle) * tl.load(weight_ptr)
    weight = tl.load(weight_ptr + 1 + joint, mask=valid, other=0.0)
    relative = coarse - coarse_middle
    combined = middle + (relative + ((voted - voted_middle) - relative) * weight)
    # False for NaN too.
    finite = tl.abs(voted) < float("inf")
    return coarse, combined, tl.sum(tl.where(finite, 0, 1), 0)


@triton.jit
def pack_rows(
    coarse_ptr,
    voted_ptr,
    weight_ptr,
    errors_ptr,
    presence_ptr,
    voters_ptr,
    left_ptr,
    retry_ptr,
    rows_ptr,
    joint_count,
    evaluated,
    spread_mm,
    JOINTS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    joint = tl.arange(0, JOINTS)
    valid = joint < joint_count
    coarse_ptr += image * joint_count * 3
    voted_ptr += image * joint_count * 3
    rows_ptr += image * (5 * joint_count + 5)
    x, combined_x, bad_x = _coordinate(coarse_ptr, voted_ptr, weight_ptr, joint, valid, joint_count, 0)
    y, combined_y, bad_y = _coordinate(coarse_ptr, voted_ptr, weight_ptr, joint, valid, joint_count, 1)
    z, combined_z, bad_z = _coordinate(coarse_ptr, voted_ptr, weight_ptr, joint, valid, joint_count, 2)
    voted = bad_x + bad_y + bad_z == 0
    tl.store(rows_ptr + joint * 3, tl.where(voted, combined_x, x), mask=valid)
    tl.store(rows_ptr + joint * 3 + 1, tl.where(voted, combined_y, y), mask=valid)
    tl.store(rows_ptr + joint * 3 + 2, tl.where(voted, combined_z, z), mask=valid)
    error = tl.load(errors_ptr + image * joint_count + joint, mask=valid, other=0.0)
    ratio = error / spread_mm
    tl.store(rows_ptr + 3 * joint_count + joint, 1 / (1 + ratio * ratio), mask=valid)
    tl.store(rows_ptr + 4 * joint_count + joint, error, mask=valid)
    rows_ptr += 5 * joint_count
    tl.store(rows_ptr, 1 / (1 + tl.exp(-tl.load(presence_ptr + image))))
    tl.store(rows_ptr + 1, tl.load(voters_ptr + image).to(tl.float32))
    tl.store(rows_ptr + 2, evaluated * 1.0)
    tl.store(rows_ptr + 3, tl.load(left_ptr + image).to(tl.float32))
    tl.store(rows_ptr + 4, tl.load(retry_ptr + image).to(tl.float32))


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
    """Rows (B, 5 J + 5), as in the reference."""
    batch, joint_count, _ = coarse.shape
    rows = coarse.new_empty(batch, 5 * joint_count + 5)
    if batch == 0:
        return rows
    pack_rows[(batch,)](
        coarse.contiguous(),
        voted.contiguous(),
        vote_weight.contiguous(),
        errors.contiguous(),
        presence.contiguous(),
        voters.contiguous(),
        left.contiguous().view(torch.uint8),
        needs_retry.contiguous().view(torch.uint8),
        rows,
        joint_count,
        evaluated,
        spread_mm,
        JOINTS=triton.next_power_of_2(joint_count),
        num_warps=1,
        enable_fp_fusion=True,
    )
    return rows
