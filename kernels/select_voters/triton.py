"""The indices of the near-surface points, in order and without synchronising: count, prefix sum, write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_IMAGES = 2**15  # per launch: CUDA takes 65535 programs along the second axis


@triton.jit
def _near(sdf_ptr, first, point_count, surface_mm, BLOCK: tl.constexpr):
    """Which points of a block are near; `first`, its first one, takes 64 bits where there are many."""
    lane = tl.arange(0, BLOCK)
    there = lane < tl.minimum(point_count - first, BLOCK).to(tl.int32)
    sdf = tl.load(sdf_ptr + first + lane, mask=there, other=float("inf"))
    return tl.abs(sdf) < surface_mm  # false for NaN and infinity


@triton.jit
def count_near(sdf_ptr, block_counts_ptr, point_count, surface_mm, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    near = _near(sdf_ptr + image * point_count, block.to(tl.int64) * BLOCK, point_count, surface_mm, BLOCK)
    tl.store(block_counts_ptr + image * tl.num_programs(0) + block, tl.sum(near.to(tl.int32), 0))


@triton.jit
def write_indices(
    sdf_ptr, block_ends_ptr, indices_ptr, point_count, capacity, surface_mm, BLOCK: tl.constexpr
):
    block = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    start = block.to(tl.int64) * BLOCK
    near = _near(sdf_ptr + image * point_count, start, point_count, surface_mm, BLOCK)
    ones = near.to(tl.int32)
    first = tl.load(block_ends_ptr + image * tl.num_programs(0) + block) - tl.sum(ones, 0)
    slot = first + tl.cumsum(ones, 0) - ones
    point = start + tl.arange(0, BLOCK)
    tl.store(indices_ptr + image * capacity + slot, point, mask=near & (slot < capacity))


def select_voters(sdf: Tensor, surface_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The points with abs(sdf) < surface_mm as ascending indices; see `select_voters_ref`.

    Args:
        sdf: (B, N) float32 mm.
        surface_mm: mm, half the thickness of the shell that votes.
        capacity: slots per image.

    Returns:
        indices (B, capacity) int64, -1 in unused slots; counts (B,) int32; overflow (B,) bool.
    """
    batch, point_count = sdf.shape
    if batch > _IMAGES:
        parts = [select_voters(part, surface_mm, capacity) for part in sdf.split(_IMAGES)]
        indices, counts, overflow = (torch.cat(some) for some in zip(*parts, strict=True))
        return indices, counts, overflow
    sdf = sdf.contiguous()
    indices = torch.full((batch, capacity), -1, dtype=torch.int64, device=sdf.device)
    blocks = triton.cdiv(point_count, _BLOCK)
    block_counts = torch.empty(batch, blocks, dtype=torch.int32, device=sdf.device)
    if block_counts.numel() > 0:
        count_near[(blocks, batch)](sdf, block_counts, point_count, surface_mm, BLOCK=_BLOCK)
        block_ends = block_counts.cumsum(1, dtype=torch.int32)
        write_indices[(blocks, batch)](
            sdf, block_ends, indices, point_count, capacity, surface_mm, BLOCK=_BLOCK
        )
    counts = block_counts.sum(1, dtype=torch.int32)
    return indices, counts, counts > capacity
